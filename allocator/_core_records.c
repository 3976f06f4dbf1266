// Records and SlotLooks: the words of tables whose rows are records, and the binding of native/current.h.
#include "_core.h"

#include <string.h>

#include "native/current.h"

// ---- Records

typedef struct {
    PyObject_HEAD
    Mapping *mapping;
    word64 *first;
    uint64_t shape[3]; // rows, columns, words of a record
    bool has_columns;
} Records;

static PyObject *records_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"mapping", "offset", "rows", "words", "columns", NULL};
    PyObject *mapping;
    Py_ssize_t offset, rows, words, columns = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!nnn|n:Records", names, state_of_type(type)->mapping, &mapping,
                                     &offset, &rows, &words, &columns))
        return NULL;
    if (rows < 0 || rows > INT32_MAX || words < 1 || words > UINT16_MAX || columns < 0 || columns > UINT16_MAX)
        return PyErr_Format(PyExc_ValueError, "records: %zd rows of %zd by %zd words do not fit", rows, columns, words);
    const bool has_columns = columns != 0;
    const uint64_t shape[3] = {(uint64_t)rows, has_columns ? (uint64_t)columns : 1, (uint64_t)words};
    // below 2**63 words; `mapping_range` compares bytes, so a count that wraps must not come there
    const uint64_t count = shape[0] * shape[1] * shape[2];
    if (count > UINT64_C(1) << 56)
        return PyErr_Format(PyExc_ValueError, "records: %zd rows of %zd by %zd words do not fit", rows, columns, words);
    unsigned char *first = mapping_range((Mapping *)mapping, "records", offset, count * 8, 8);
    Records *self = first == NULL ? NULL : (Records *)handle_new(type, (Mapping *)mapping);
    if (self != NULL) {
        self->first = (word64 *)(void *)first;
        memcpy(self->shape, shape, sizeof shape);
        self->has_columns = has_columns;
    }
    return (PyObject *)self;
}

// The record that (row) or (row, column) names.
static word64 *record_of(const Records *self, PyObject *const *place)
{
    uint32_t row, column = 0;
    if (take_index(place[0], "row", self->shape[0], &row) < 0 ||
        (self->has_columns && take_index(place[1], "column", self->shape[1], &column) < 0))
        return NULL;
    return self->first + (row * self->shape[1] + column) * self->shape[2];
}

// The word that the record's place and the field after it name; `more` arguments follow.
static word64 *word_of(const Records *self, const char *function, PyObject *const *args, Py_ssize_t nargs,
                       Py_ssize_t more)
{
    const Py_ssize_t num_places = self->has_columns ? 2 : 1;
    uint32_t field;
    if (take_count(function, nargs, num_places + 1 + more) < 0)
        return NULL;
    word64 *record = record_of(self, args);
    if (record == NULL || take_index(args[num_places], "field", self->shape[2], &field) < 0)
        return NULL;
    return record + field;
}

// The word to change, and the value that comes last.
static word64 *word_to_change(const Records *self, const char *function, PyObject *const *args, Py_ssize_t nargs,
                              uint64_t *value)
{
    if (require_writable(self->mapping) < 0)
        return NULL;
    word64 *word = word_of(self, function, args, nargs, 1);
    return word == NULL || take_u64(args[nargs - 1], value) < 0 ? NULL : word;
}

// SYNC word: as those of Words.

static PyObject *records_get(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const word64 *word = word_of((Records *)self, "get", args, nargs, 0);
    return word == NULL ? NULL : PyLong_FromUnsignedLongLong(atomic_load_explicit(word, memory_order_acquire));
}

static PyObject *records_set(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t value;
    word64 *word = word_to_change((Records *)self, "set", args, nargs, &value);
    if (word == NULL)
        return NULL;
    atomic_store_explicit(word, value, memory_order_release);
    Py_RETURN_NONE;
}

static PyObject *records_raise_to(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t value;
    word64 *word = word_to_change((Records *)self, "raise_to", args, nargs, &value);
    return word == NULL ? NULL : PyBool_FromLong(word_raise(word, value));
}

static PyObject *records_get_all(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    const Records *self = (Records *)object;
    if (take_count("get_all", nargs, self->has_columns ? 2 : 1) < 0)
        return NULL;
    const word64 *record = record_of(self, args);
    const Py_ssize_t count = (Py_ssize_t)self->shape[2];
    PyObject *list = record == NULL ? NULL : PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(atomic_load_explicit(&record[i], memory_order_acquire));
        if (value == NULL || PyList_SetItem(list, i, value) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyMethodDef records_methods[] = {
    {"get", (PyCFunction)(void (*)(void))records_get, METH_FASTCALL, NULL},
    {"set", (PyCFunction)(void (*)(void))records_set, METH_FASTCALL, NULL},
    {"raise_to", (PyCFunction)(void (*)(void))records_raise_to, METH_FASTCALL, NULL},
    {"get_all", (PyCFunction)(void (*)(void))records_get_all, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot records_slots[] = {
    {Py_tp_doc, "The atomic words of a table of records."},
    {Py_tp_new, records_new},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_methods, records_methods},
    {0, NULL},
};

PyType_Spec records_spec = {"embridge.allocator._core.Records", sizeof(Records), 0, CORE_TYPE_FLAGS, records_slots};

// ---- SlotLooks

typedef struct {
    PyObject_HEAD
    Mapping *mapping; // of the status words; those of the others are the members below
    PyObject *others[3];
    struct slot_looks looks;
} SlotLooks;

static const word64 *part_of(core_state *state, PyObject *object, const char *what, uint64_t rows, uint64_t least,
                             size_t *row_words)
{
    if (!Py_IS_TYPE(object, state->words)) {
        PyErr_Format(PyExc_TypeError, "%s: %R is no Words", what, object);
        return NULL;
    }
    const Words *words = (const Words *)object;
    if (words->stride != 8 || rows == 0 || words->count % rows != 0 || words->count / rows < least) {
        PyErr_Format(PyExc_ValueError, "%s: %zu words of stride %zu are not %llu rows of at least %llu", what,
                     words->count, words->stride, (unsigned long long)rows, (unsigned long long)least);
        return NULL;
    }
    *row_words = words->count / rows;
    return (const word64 *)(const void *)words->first;
}

static PyObject *looks_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"status", "slots", "lanes", "pages", NULL};
    core_state *state = state_of_type(type);
    PyObject *object, *parts[3];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOO:SlotLooks", names, state->status_table, &object, &parts[0],
                                     &parts[1], &parts[2]))
        return NULL;
    const StatusTable *status = (const StatusTable *)object;
    struct slot_looks looks = {.status = status->table};
    size_t one;
    looks.slots = part_of(state, parts[0], "slots", looks.status.num_slots, SLOT_WORDS, &looks.slot_words);
    if (looks.slots == NULL)
        return NULL;
    const uint64_t num_lanes = Py_IS_TYPE(parts[1], state->words) ? ((Words *)parts[1])->count / LANE_WORDS : 0;
    if ((looks.lanes = part_of(state, parts[1], "lanes", num_lanes, LANE_WORDS, &looks.lane_words)) == NULL ||
        (looks.pages = part_of(state, parts[2], "pages", looks.status.num_slots / SLOTS_PER_PAGE, 1, &one)) == NULL)
        return NULL;
    looks.num_lanes = (size_t)num_lanes;
    SlotLooks *self = (SlotLooks *)handle_new(type, status->mapping);
    if (self != NULL) {
        self->looks = looks;
        for (size_t i = 0; i < 3; i++) {
            self->others[i] = (PyObject *)((const Words *)parts[i])->mapping;
            Py_INCREF(self->others[i]);
        }
    }
    return (PyObject *)self;
}

static void looks_dealloc(PyObject *self)
{
    for (size_t i = 0; i < 3; i++)
        Py_XDECREF(((SlotLooks *)self)->others[i]);
    handle_dealloc(self);
}

// A slot or an epoch as somebody else has named it: what no number of 64 bits is, is none.
static int take_named_number(PyObject *argument, uint64_t *value)
{
    if (take_u64(argument, value) == 0)
        return 0;
    if (!PyErr_ExceptionMatches(PyExc_OverflowError))
        return -1;
    PyErr_Clear();
    *value = UINT64_MAX;
    return 0;
}

#define LOOK(name, look)                                                                                               \
    static PyObject *looks_##name(PyObject *self, PyObject *const *args, Py_ssize_t nargs)                             \
    {                                                                                                                  \
        uint64_t slot, epoch;                                                                                          \
        if (take_count(#name, nargs, 2) < 0 || take_named_number(args[0], &slot) < 0 ||                                \
            take_named_number(args[1], &epoch) < 0)                                                                    \
            return NULL;                                                                                               \
        return PyBool_FromLong(look(&((SlotLooks *)self)->looks, slot, epoch));                                        \
    }

LOOK(is_open, slot_is_open)
LOOK(is_current, slot_is_current)
LOOK(is_live, slot_is_live)

static PyObject *looks_has_client(PyObject *self, PyObject *argument)
{
    const struct slot_looks *looks = &((SlotLooks *)self)->looks;
    uint32_t slot;
    if (take_index(argument, "slot", looks->status.num_slots, &slot) < 0)
        return NULL;
    return PyBool_FromLong(slot_has_client(looks, slot));
}

static PyObject *looks_open_in(PyObject *self, PyObject *argument)
{
    const struct slot_looks *looks = &((SlotLooks *)self)->looks;
    uint64_t room;
    if (take_u64(argument, &room) < 0)
        return NULL;
    PyObject *list = PyList_New(0);
    for (uint32_t slot = 0; list != NULL && slot < looks->status.num_slots; slot++) {
        if (slot % SLOTS_PER_PAGE == 0 && look_at(&looks->pages[slot / SLOTS_PER_PAGE]) == 0) {
            slot += SLOTS_PER_PAGE - 1;
            continue;
        }
        const uint64_t epoch = slot_open_in(looks, slot, room);
        if (epoch == 0)
            continue;
        PyObject *found = Py_BuildValue("kK", (unsigned long)slot, (unsigned long long)epoch);
        if (found == NULL || PyList_Append(list, found) < 0)
            Py_CLEAR(list);
        Py_XDECREF(found);
    }
    return list;
}

static PyMethodDef looks_methods[] = {
    {"is_open", (PyCFunction)(void (*)(void))looks_is_open, METH_FASTCALL, NULL},
    {"is_current", (PyCFunction)(void (*)(void))looks_is_current, METH_FASTCALL, NULL},
    {"is_live", (PyCFunction)(void (*)(void))looks_is_live, METH_FASTCALL, NULL},
    {"open_in", looks_open_in, METH_O, NULL},
    {"has_client", looks_has_client, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot looks_slots[] = {
    {Py_tp_doc, "Says which request a slot has."},
    {Py_tp_new, looks_new},
    {Py_tp_dealloc, looks_dealloc},
    {Py_tp_methods, looks_methods},
    {0, NULL},
};

PyType_Spec slot_looks_spec = {"embridge.allocator._core.SlotLooks", sizeof(SlotLooks), 0, CORE_TYPE_FLAGS,
                               looks_slots};

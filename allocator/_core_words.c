// Words and StatusTable: the bindings of native/status.h, of native/rows.h, and of single atomic words.
#include "_core.h"

#include "native/rows.h"

// ---- Words

static PyObject *words_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"mapping", "offset", "count", "stride", NULL};
    PyObject *mapping;
    Py_ssize_t offset, count, stride = 8;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!nn|n:Words", names, state_of_type(type)->mapping, &mapping,
                                     &offset, &count, &stride))
        return NULL;
    if (stride < 8 || stride % 8 != 0)
        return PyErr_Format(PyExc_ValueError, "stride: %zd is not a multiple of 8", stride);
    if (count < 0 || count > UINT32_MAX || (count > 1 && stride > PY_SSIZE_T_MAX / count))
        return PyErr_Format(PyExc_ValueError, "count: %zd words of stride %zd do not fit", count, stride);
    const uint64_t bytes = count == 0 ? 0 : (uint64_t)(count - 1) * (uint64_t)stride + 8;
    unsigned char *first = mapping_range((Mapping *)mapping, "words", offset, bytes, 8);
    Words *self = first == NULL ? NULL : (Words *)handle_new(type, (Mapping *)mapping);
    if (self != NULL) {
        self->first = first;
        self->count = (size_t)count;
        self->stride = (size_t)stride;
    }
    return (PyObject *)self;
}

static Py_ssize_t words_length(PyObject *self) { return (Py_ssize_t)((Words *)self)->count; }

static word64 *words_at(const Words *self, PyObject *argument)
{
    uint32_t index;
    if (take_index(argument, "index", self->count, &index) < 0)
        return NULL;
    return (word64 *)(void *)(self->first + index * self->stride);
}

// The word to change and the value to change it with, from the arguments (index, value).
static word64 *words_take(PyObject *self, const char *function, PyObject *const *args, Py_ssize_t nargs,
                          uint64_t *value)
{
    if (take_count(function, nargs, 2) < 0 || require_writable(((Words *)self)->mapping) < 0)
        return NULL;
    word64 *word = words_at((Words *)self, args[0]);
    return word == NULL || take_u64(args[1], value) < 0 ? NULL : word;
}

// SYNC word: every store releases and every load acquires, for a word may be the one that says that others are ready.

static PyObject *words_load(PyObject *self, PyObject *index)
{
    word64 *word = words_at((Words *)self, index);
    return word == NULL ? NULL : PyLong_FromUnsignedLongLong(atomic_load_explicit(word, memory_order_acquire));
}

static PyObject *words_store(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t value;
    word64 *word = words_take(self, "store", args, nargs, &value);
    if (word == NULL)
        return NULL;
    atomic_store_explicit(word, value, memory_order_release);
    Py_RETURN_NONE;
}

static PyObject *words_fill(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const Words *words = (Words *)self;
    uint64_t first, count, value;
    if (take_count("fill", nargs, 3) < 0 || require_writable(words->mapping) < 0 ||
        take_up_to(args[0], "index", words->count, &first) < 0 ||
        take_up_to(args[1], "count", words->count - first, &count) < 0 || take_u64(args[2], &value) < 0)
        return NULL;
    for (uint64_t i = first; i < first + count; i++)
        atomic_store_explicit((word64 *)(void *)(words->first + i * words->stride), value, memory_order_release);
    Py_RETURN_NONE;
}

static PyObject *words_sum(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const Words *words = (Words *)self;
    uint64_t first, count, step, sum = 0;
    if (take_count("sum", nargs, 3) < 0 || take_up_to(args[0], "index", words->count, &first) < 0 ||
        take_up_to(args[1], "count", words->count, &count) < 0 || take_up_to(args[2], "step", words->count, &step) < 0)
        return NULL;
    if (count != 0 && (first >= words->count || step * (count - 1) >= words->count - first))
        return PyErr_Format(PyExc_IndexError, "%llu words, every %llu-th from %llu on, are not among %zu",
                            (unsigned long long)count, (unsigned long long)step, (unsigned long long)first,
                            words->count);
    for (uint64_t i = 0; i < count; i++)
        sum += atomic_load_explicit((word64 *)(void *)(words->first + (first + i * step) * words->stride),
                                    memory_order_acquire);
    return PyLong_FromUnsignedLongLong(sum);
}

static PyObject *words_load_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const Words *words = (Words *)self;
    uint64_t first, count;
    if (take_count("load_many", nargs, 2) < 0 || take_up_to(args[0], "index", words->count, &first) < 0 ||
        take_up_to(args[1], "count", words->count - first, &count) < 0)
        return NULL;
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (uint64_t i = 0; list != NULL && i < count; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(atomic_load_explicit(
            (word64 *)(void *)(words->first + (first + i) * words->stride), memory_order_acquire));
        if (value == NULL || PyList_SetItem(list, (Py_ssize_t)i, value) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *words_store_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const Words *words = (Words *)self;
    uint64_t first;
    Array values;
    if (take_count("store_many", nargs, 2) < 0 || require_writable(words->mapping) < 0 ||
        take_up_to(args[0], "index", words->count, &first) < 0 || array_open(&values, args[1], "values", 8, false) < 0)
        return NULL;
    const bool fits = values.length <= words->count - first;
    const uint64_t *items = values.data;
    for (uint64_t i = 0; fits && i < values.length; i++)
        atomic_store_explicit((word64 *)(void *)(words->first + (first + i) * words->stride), items[i],
                              memory_order_release);
    if (!fits)
        PyErr_Format(PyExc_IndexError, "%zu words from %llu on are not among %zu", values.length,
                     (unsigned long long)first, words->count);
    PyBuffer_Release(&values.view);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

#define WORDS_FETCH(name, operation)                                                                                   \
    static PyObject *words_##name(PyObject *self, PyObject *const *args, Py_ssize_t nargs)                             \
    {                                                                                                                  \
        uint64_t value;                                                                                                \
        word64 *word = words_take(self, #name, args, nargs, &value);                                                   \
        return word == NULL ? NULL : PyLong_FromUnsignedLongLong(operation);                                           \
    }

WORDS_FETCH(add, atomic_fetch_add_explicit(word, value, memory_order_acq_rel))
WORDS_FETCH(set_bits, atomic_fetch_or_explicit(word, value, memory_order_acq_rel))
WORDS_FETCH(clear_bits, atomic_fetch_and_explicit(word, ~value, memory_order_acq_rel))

static PyObject *words_raise_to(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t value;
    word64 *word = words_take(self, "raise_to", args, nargs, &value);
    return word == NULL ? NULL : PyBool_FromLong(word_raise(word, value));
}

static PyObject *words_compare_exchange(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (take_count("compare_exchange", nargs, 3) < 0 || require_writable(((Words *)self)->mapping) < 0)
        return NULL;
    word64 *word = words_at((Words *)self, args[0]);
    uint64_t expected, value;
    if (word == NULL || take_u64(args[1], &expected) < 0 || take_u64(args[2], &value) < 0)
        return NULL;
    // SYNC post: sequentially consistent, for who enters a word and then looks at another's (R37).
    return PyBool_FromLong(
        atomic_compare_exchange_strong_explicit(word, &expected, value, memory_order_seq_cst, memory_order_seq_cst));
}

// The first `num_pages` of `pages`, each below `limit`.
static int take_pages(PyObject *buffer, PyObject *num_pages, uint32_t limit, Array *pages, uint64_t *count)
{
    if (array_open(pages, buffer, "pages", 4, false) < 0)
        return -1;
    if (take_up_to(num_pages, "num_pages", pages->length, count) == 0) {
        const uint32_t *items = pages->data;
        uint32_t highest = 0;
        for (uint64_t i = 0; i < *count; i++)
            highest = items[i] > highest ? items[i] : highest;
        if (*count == 0 || highest < limit)
            return 0;
        PyErr_Format(PyExc_IndexError, "pages: %lu is outside 0 to %ld", (unsigned long)highest, (long)limit - 1);
    }
    PyBuffer_Release(&pages->view);
    return -1;
}

static PyObject *words_changed_rows(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const Words *words = (Words *)self;
    uint64_t row_words, first, count, num_pages;
    if (take_count("changed_rows", nargs, 7) < 0 || take_up_to(args[0], "row_words", UINT32_MAX, &row_words) < 0 ||
        take_up_to(args[1], "first", row_words, &first) < 0 ||
        take_up_to(args[2], "count", row_words - first, &count) < 0)
        return NULL;
    if (words->stride != 8 || row_words == 0 || words->count % row_words != 0)
        return PyErr_Format(PyExc_ValueError, "row_words: %zu words of stride %zu are no rows of %llu", words->count,
                            words->stride, (unsigned long long)row_words);
    const struct row_table table = {.words = (const word64 *)(const void *)words->first,
                                    .num_rows = (uint32_t)(words->count / row_words),
                                    .row_words = (uint32_t)row_words};
    Array pages, seen, out;
    if (take_pages(args[3], args[4], table.num_rows / ROWS_A_PAGE, &pages, &num_pages) < 0)
        return NULL;
    PyObject *result = NULL;
    if (array_open(&seen, args[5], "seen", 8, true) == 0) {
        if (seen.length < table.num_rows) {
            PyErr_Format(PyExc_ValueError, "seen: %zu words < %lu rows", seen.length, (unsigned long)table.num_rows);
        } else if (array_open(&out, args[6], "out", 4, true) == 0) {
            result = PyLong_FromSize_t(rows_changed(&table, (uint32_t)first, (uint32_t)count, pages.data, num_pages,
                                                    seen.data, out.data, out.length));
            PyBuffer_Release(&out.view);
        }
        PyBuffer_Release(&seen.view);
    }
    PyBuffer_Release(&pages.view);
    return result;
}

static PyMethodDef words_methods[] = {
    {"load", words_load, METH_O, NULL},
    {"store", (PyCFunction)(void (*)(void))words_store, METH_FASTCALL, NULL},
    {"fill", (PyCFunction)(void (*)(void))words_fill, METH_FASTCALL, NULL},
    {"sum", (PyCFunction)(void (*)(void))words_sum, METH_FASTCALL, NULL},
    {"load_many", (PyCFunction)(void (*)(void))words_load_many, METH_FASTCALL, NULL},
    {"store_many", (PyCFunction)(void (*)(void))words_store_many, METH_FASTCALL, NULL},
    {"add", (PyCFunction)(void (*)(void))words_add, METH_FASTCALL, NULL},
    {"set_bits", (PyCFunction)(void (*)(void))words_set_bits, METH_FASTCALL, NULL},
    {"clear_bits", (PyCFunction)(void (*)(void))words_clear_bits, METH_FASTCALL, NULL},
    {"raise_to", (PyCFunction)(void (*)(void))words_raise_to, METH_FASTCALL, NULL},
    {"compare_exchange", (PyCFunction)(void (*)(void))words_compare_exchange, METH_FASTCALL, NULL},
    {"changed_rows", (PyCFunction)(void (*)(void))words_changed_rows, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot words_slots[] = {
    {Py_tp_doc, "Atomic 64-bit words in a mapping."},
    {Py_tp_new, words_new},
    {Py_tp_dealloc, handle_dealloc},
    {Py_sq_length, words_length},
    {Py_tp_methods, words_methods},
    {0, NULL},
};

PyType_Spec words_spec = {"embridge.allocator._core.Words", sizeof(Words), 0, CORE_TYPE_FLAGS, words_slots};

// ---- StatusTable

static PyObject *status_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"mapping", "words_offset", "stamps_offset", "dirty_offset", "num_slots", "num_views", NULL};
    PyObject *object;
    Py_ssize_t words, stamps, dirty, num_slots, num_views;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!nnnnn:StatusTable", names, state_of_type(type)->mapping, &object,
                                     &words, &stamps, &dirty, &num_slots, &num_views))
        return NULL;
    if (num_slots < SLOTS_PER_PAGE || num_slots % SLOTS_PER_PAGE != 0 || num_slots > INT32_MAX)
        return PyErr_Format(PyExc_ValueError, "num_slots: %zd is not a multiple of %d", num_slots, SLOTS_PER_PAGE);
    if (num_views < 1 || num_views > 64)
        return PyErr_Format(PyExc_ValueError, "num_views: %zd is outside 1 to 64", num_views);
    Mapping *mapping = (Mapping *)object;
    const uint64_t slots = (uint64_t)num_slots;
    struct status_table table = {.num_slots = (uint32_t)num_slots, .num_views = (uint32_t)num_views};
    table.words = (word64 *)(void *)mapping_range(mapping, "words", words, slots * 8, 8);
    if (table.words == NULL)
        return NULL;
    table.stamps = (word64 *)(void *)mapping_range(mapping, "stamps", stamps, slots * NUM_PHASES * 8, 8);
    if (table.stamps == NULL)
        return NULL;
    table.dirty =
        (word64 *)(void *)mapping_range(mapping, "dirty", dirty, slots / SLOTS_PER_PAGE * (uint64_t)num_views * 8, 8);
    if (table.dirty == NULL)
        return NULL;
    StatusTable *self = (StatusTable *)handle_new(type, mapping);
    if (self != NULL)
        self->table = table;
    return (PyObject *)self;
}

static PyObject *status_load_word(PyObject *self, PyObject *argument)
{
    const struct status_table *table = &((StatusTable *)self)->table;
    uint32_t slot;
    if (take_index(argument, "slot", table->num_slots, &slot) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(status_load(table, slot));
}

#define STATUS_PART(name, part)                                                                                        \
    static PyObject *status_get_##name(PyObject *self, PyObject *argument)                                             \
    {                                                                                                                  \
        const struct status_table *table = &((StatusTable *)self)->table;                                              \
        uint32_t slot;                                                                                                 \
        if (take_index(argument, "slot", table->num_slots, &slot) < 0)                                                 \
            return NULL;                                                                                               \
        return PyLong_FromUnsignedLongLong(part(status_load(table, slot)));                                            \
    }

STATUS_PART(epoch, status_epoch)
STATUS_PART(phase, status_phase)
STATUS_PART(sent, status_sent)

static PyObject *status_get_stamps(PyObject *self, PyObject *argument)
{
    const struct status_table *table = &((StatusTable *)self)->table;
    uint32_t slot;
    if (take_index(argument, "slot", table->num_slots, &slot) < 0)
        return NULL;
    uint64_t times[NUM_PHASES];
    status_stamps(table, slot, times);
    PyObject *result = PyTuple_New(NUM_PHASES);
    for (Py_ssize_t phase = 0; result != NULL && phase < NUM_PHASES; phase++) {
        PyObject *time = PyLong_FromUnsignedLongLong(times[phase]);
        if (time == NULL || PyTuple_SetItem(result, phase, time) < 0)
            Py_CLEAR(result);
    }
    return result;
}

static PyObject *status_open_slot(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    StatusTable *status = (StatusTable *)self;
    uint32_t slot;
    uint64_t now_ns;
    if (take_count("open", nargs, 2) < 0 || require_writable(status->mapping) < 0 ||
        take_index(args[0], "slot", status->table.num_slots, &slot) < 0 || take_u64(args[1], &now_ns) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(status_open(&status->table, slot, now_ns));
}

static PyObject *status_advance_slot(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    StatusTable *status = (StatusTable *)self;
    uint32_t slot;
    uint64_t epoch, phase, sent, now_ns;
    const int is_told = nargs == 6 ? PyObject_IsTrue(args[5]) : 0;
    if (is_told < 0 || (nargs != 6 && take_count("advance", nargs, 5) < 0) || require_writable(status->mapping) < 0 ||
        take_index(args[0], "slot", status->table.num_slots, &slot) < 0 ||
        take_up_to(args[1], "epoch", MAX_EPOCH, &epoch) < 0 ||
        take_up_to(args[2], "phase", NUM_PHASES - 1, &phase) < 0 ||
        take_up_to(args[3], "sent", UINT32_MAX, &sent) < 0 || take_u64(args[4], &now_ns) < 0)
        return NULL;
    return PyBool_FromLong(status_move(&status->table, slot, epoch, phase, sent, now_ns, is_told));
}

static PyObject *status_mark_slot(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    StatusTable *status = (StatusTable *)self;
    uint32_t slot, view;
    if (take_count("mark", nargs, 2) < 0 || require_writable(status->mapping) < 0 ||
        take_index(args[0], "slot", status->table.num_slots, &slot) < 0 ||
        take_index(args[1], "view", status->table.num_views, &view) < 0)
        return NULL;
    status_mark(&status->table, slot, view);
    Py_RETURN_NONE;
}

// (view, pages, num_pages, out[, words])
static PyObject *status_take_changed(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    StatusTable *status = (StatusTable *)self;
    uint32_t view;
    uint64_t num_pages;
    Array pages, out, words = {.data = NULL};
    const bool with_words = nargs == 5;
    if (take_count("changed", nargs, with_words ? 5 : 4) < 0 || require_writable(status->mapping) < 0 ||
        take_index(args[0], "view", status->table.num_views, &view) < 0 ||
        take_pages(args[1], args[2], status->table.num_slots / SLOTS_PER_PAGE, &pages, &num_pages) < 0)
        return NULL;
    PyObject *result = NULL;
    if (array_open(&out, args[3], "out", 4, true) == 0) {
        if (!with_words || array_open(&words, args[4], "words", 8, true) == 0) {
            if (out.length < SLOTS_PER_PAGE)
                PyErr_Format(PyExc_ValueError, "out: %zu items < %d, one page's slots", out.length, SLOTS_PER_PAGE);
            else if (with_words && words.length < out.length)
                PyErr_Format(PyExc_ValueError, "words: %zu items < %zu of out", words.length, out.length);
            else
                result = PyLong_FromSize_t(status_changed(&status->table, view, pages.data, num_pages, out.data,
                                                          words.data, out.length));
            if (with_words)
                PyBuffer_Release(&words.view);
        }
        PyBuffer_Release(&out.view);
    }
    PyBuffer_Release(&pages.view);
    return result;
}

static PyObject *status_compare_words(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const struct status_table *table = &((StatusTable *)self)->table;
    uint64_t num_pages;
    Array pages, seen, out;
    if (take_count("compare", nargs, 4) < 0 ||
        take_pages(args[0], args[1], table->num_slots / SLOTS_PER_PAGE, &pages, &num_pages) < 0)
        return NULL;
    PyObject *result = NULL;
    if (array_open(&seen, args[2], "seen", 8, true) == 0) {
        if (seen.length < table->num_slots) {
            PyErr_Format(PyExc_ValueError, "seen: %zu words < %lu slots", seen.length, (unsigned long)table->num_slots);
        } else if (array_open(&out, args[3], "out", 4, true) == 0) {
            result = PyLong_FromSize_t(status_compare(table, pages.data, num_pages, seen.data, out.data, out.length));
            PyBuffer_Release(&out.view);
        }
        PyBuffer_Release(&seen.view);
    }
    PyBuffer_Release(&pages.view);
    return result;
}

static PyMethodDef status_methods[] = {
    {"load", status_load_word, METH_O, NULL},
    {"epoch", status_get_epoch, METH_O, NULL},
    {"phase", status_get_phase, METH_O, NULL},
    {"sent", status_get_sent, METH_O, NULL},
    {"stamps", status_get_stamps, METH_O, NULL},
    {"open", (PyCFunction)(void (*)(void))status_open_slot, METH_FASTCALL, NULL},
    {"open_record", (PyCFunction)(void (*)(void))status_open_record, METH_FASTCALL, NULL},
    {"advance", (PyCFunction)(void (*)(void))status_advance_slot, METH_FASTCALL, NULL},
    {"count_success", (PyCFunction)(void (*)(void))status_count_success, METH_FASTCALL, NULL},
    {"mark", (PyCFunction)(void (*)(void))status_mark_slot, METH_FASTCALL, NULL},
    {"changed", (PyCFunction)(void (*)(void))status_take_changed, METH_FASTCALL, NULL},
    {"compare", (PyCFunction)(void (*)(void))status_compare_words, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot status_slots[] = {
    {Py_tp_doc, "One status word a slot, which only increases, with stamps and dirty bits."},
    {Py_tp_new, status_new},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_methods, status_methods},
    {0, NULL},
};

PyType_Spec status_table_spec = {"embridge.allocator._core.StatusTable", sizeof(StatusTable), 0, CORE_TYPE_FLAGS,
                                 status_slots};

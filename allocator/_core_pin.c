// ShelfReader and Pin: the binding of native/shelf_pins.h.
//
// A Pin is a buffer: the rows of one item, where they lie. Whoever has a view of them keeps the Pin, and with it the
// item's place on the shelf (R63), and the mapping (R64). The last one that goes takes the pin away.
#include "_core_shelf.h"

#include <structmember.h>

#include "native/shelf_pins.h"

enum { RECORD, HEADS, ITEMS, CELLS, USES, LEDGER, NUM_WORDS };

typedef struct {
    PyObject_HEAD
    Words *words[NUM_WORDS];
    Mapping *rows;
    struct shelf_reader reader;
    uint64_t block_bytes;
    Py_ssize_t num_pins;
    PyObject *connection; // which ends with this, so after the last pin
    PyObject *before;     // or NULL
} ShelfReader;

typedef struct {
    PyObject_HEAD
    ShelfReader *reader;
    Py_buffer rows; // of the whole mapping: it is not let go of meanwhile
    struct shelf_found found;
} Pin;

struct call {
    struct shelf_reader reader; // first: what a callback is given is the shelf in it
    ShelfReader *self;
};

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"record", "heads", "items", "cells", "uses", "ledger", "rows", "block_bytes",
                            "connection", NULL};
    PyTypeObject *const is = state_of_type(type)->words, *const mapping = state_of_type(type)->mapping;
    PyObject *words[NUM_WORDS], *rows, *connection;
    Py_ssize_t block_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!O!O!O!O!nO:ShelfReader", names, is, &words[0], is, &words[1],
                                     is, &words[2], is, &words[3], is, &words[4], is, &words[5], mapping, &rows,
                                     &block_bytes, &connection))
        return NULL;
    const allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    ShelfReader *self = (ShelfReader *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    for (size_t i = 0; i < NUM_WORDS; i++) {
        Py_INCREF(words[i]);
        self->words[i] = (Words *)words[i];
    }
    Py_INCREF(connection);
    self->connection = connection;
    Py_INCREF(rows);
    self->rows = (Mapping *)rows;
    self->block_bytes = (uint64_t)block_bytes;
    struct shelf *s = &self->reader.shelf;
    if (shelf_take_tables(s, self->words, NUM_WORDS, false) < 0 || require_writable(self->words[USES]->mapping) < 0 ||
        require_writable(self->words[LEDGER]->mapping) < 0) {
        Py_CLEAR(self);
    } else if (self->words[LEDGER]->stride != 8 || self->words[LEDGER]->count < s->num_entries || block_bytes < 1 ||
               self->rows->size / self->block_bytes < s->num_blocks) {
        PyErr_Format(PyExc_ValueError, "ledger of %zu words, rows of %zu bytes: too small for the shelf",
                     self->words[LEDGER]->count, self->rows->size);
        Py_CLEAR(self);
    } else if ((self->reader.counts = PyMem_Calloc(s->num_entries, sizeof *self->reader.counts)) == NULL) {
        PyErr_NoMemory();
        Py_CLEAR(self);
    } else {
        self->reader.ledger = (word64 *)(void *)self->words[LEDGER]->first;
    }
    return (PyObject *)self;
}

static int reader_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((ShelfReader *)object)->before);
    Py_VISIT(((ShelfReader *)object)->connection);
    return 0;
}

static int reader_clear(PyObject *object)
{
    Py_CLEAR(((ShelfReader *)object)->before);
    Py_CLEAR(((ShelfReader *)object)->connection);
    return 0;
}

static void reader_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    ShelfReader *self = (ShelfReader *)object;
    PyObject_GC_UnTrack(object);
    reader_clear(object);
    for (size_t i = 0; i < NUM_WORDS; i++)
        Py_XDECREF((PyObject *)self->words[i]);
    Py_XDECREF((PyObject *)self->rows);
    PyMem_Free(self->reader.counts);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static bool say_before(struct shelf *shelf, enum shelf_step step)
{
    return say_step(((struct call *)(void *)shelf)->self->before, (int)step);
}

// Whether what the record says of its rows lies on the shelf: it is input.
static bool is_inside(const ShelfReader *self, const struct shelf_found *found)
{
    const uint64_t first = found->words[ITEM_FIRST], blocks = found->words[ITEM_BLOCKS];
    const uint64_t num_blocks = self->reader.shelf.num_blocks;
    return first <= num_blocks && blocks <= num_blocks - first &&
           found->words[ITEM_BYTES] <= blocks * self->block_bytes;
}

// What both ways to a pin begin with: a Pin of nothing yet.
static Pin *pin_new(ShelfReader *self)
{
    const core_state *state = state_of_type(Py_TYPE((PyObject *)self));
    Pin *pin = (Pin *)PyType_GenericAlloc(state->pin, 0);
    if (pin != NULL && PyObject_GetBuffer((PyObject *)self->rows, &pin->rows, PyBUF_SIMPLE) < 0)
        Py_CLEAR(pin);
    return pin;
}

static void pin_of(Pin *pin, ShelfReader *self)
{
    Py_INCREF((PyObject *)self);
    pin->reader = self;
    self->num_pins++;
}

// With the GIL, which makes the threads of this process take turns at the counts.
static PyObject *reader_pin(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    ShelfReader *self = (ShelfReader *)object;
    struct shelf_key key;
    uint64_t now_ns;
    if (take_count("pin", nargs, 3) < 0 || shelf_take_key(args, &key) < 0 || take_u64(args[2], &now_ns) < 0)
        return NULL;
    Pin *pin = pin_new(self);
    if (pin == NULL)
        return NULL;
    struct call call = {.reader = self->reader, .self = self};
    call.reader.shelf.before = self->before == NULL ? NULL : say_before;
    const bool is_there = shelf_pin(&call.reader, &key, now_ns, &pin->found);
    if (is_there) {
        pin_of(pin, self);
        if (is_inside(self, &pin->found))
            return (PyObject *)pin;
        PyErr_Format(PyExc_ValueError, "shelf: an item of %llu bytes in block %llu lies outside; restart its node",
                     (unsigned long long)pin->found.words[ITEM_BYTES],
                     (unsigned long long)pin->found.words[ITEM_FIRST]);
    }
    Py_DECREF((PyObject *)pin);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *reader_adopt(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    ShelfReader *self = (ShelfReader *)object;
    uint64_t entry, generation;
    if (take_count("adopt", nargs, 2) < 0 || take_u64(args[0], &entry) < 0 || take_u64(args[1], &generation) < 0)
        return NULL;
    if (entry >= self->reader.shelf.num_entries) {
        PyErr_Format(PyExc_IndexError, "entry %llu of %u", (unsigned long long)entry, self->reader.shelf.num_entries);
        return NULL;
    }
    Pin *pin = pin_new(self);
    if (pin == NULL)
        return NULL;
    if (shelf_adopt(&self->reader, (uint32_t)entry, generation, &pin->found)) {
        pin_of(pin, self);
        if (is_inside(self, &pin->found))
            return (PyObject *)pin;
    }
    Py_DECREF((PyObject *)pin);
    Py_RETURN_NONE;
}

static PyObject *reader_forget_others(PyObject *object, PyObject *args)
{
    (void)args;
    shelf_forget_others(&((ShelfReader *)object)->reader);
    Py_RETURN_NONE;
}

static PyObject *reader_watch(PyObject *object, PyObject *before)
{
    return watch_with(&((ShelfReader *)object)->before, before);
}

static PyMethodDef reader_methods[] = {
    {"pin", (PyCFunction)(void (*)(void))reader_pin, METH_FASTCALL, NULL},
    {"adopt", (PyCFunction)(void (*)(void))reader_adopt, METH_FASTCALL, NULL},
    {"forget_others", reader_forget_others, METH_NOARGS, NULL},
    {"watch", reader_watch, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef reader_members[] = {
    {"num_pins", T_PYSSIZET, offsetof(ShelfReader, num_pins), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, "Finds and pins the items of a shelf, for one reader."},
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_traverse, reader_traverse},
    {Py_tp_clear, reader_clear},
    {Py_tp_methods, reader_methods},
    {Py_tp_members, reader_members},
    {0, NULL},
};

PyType_Spec shelf_reader_spec = {"embridge.allocator._core.ShelfReader", sizeof(ShelfReader), 0,
                                 CORE_TYPE_FLAGS | Py_TPFLAGS_HAVE_GC, reader_slots};

// ---- Pin

static void pin_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    Pin *pin = (Pin *)object;
    if (pin->reader != NULL) {
        shelf_unpin(&pin->reader->reader, pin->found.entry);
        pin->reader->num_pins--;
        Py_DECREF((PyObject *)pin->reader);
    }
    if (pin->rows.obj != NULL)
        PyBuffer_Release(&pin->rows);
    PyObject_Free(object);
    Py_DECREF(type);
}

static int pin_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    const Pin *pin = (Pin *)object;
    unsigned char *first = (unsigned char *)pin->rows.buf + pin->found.words[ITEM_FIRST] * pin->reader->block_bytes;
    const int is_readonly = !(flags & PyBUF_WRITABLE); // torch takes no buffer that is
    return PyBuffer_FillInfo(view, object, first, (Py_ssize_t)pin->found.words[ITEM_BYTES], is_readonly, flags);
}

static PyObject *pin_get_entry(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(((Pin *)object)->found.entry);
}

static PyObject *pin_get_generation(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Pin *)object)->found.generation);
}

static PyObject *pin_get_word(PyObject *object, void *word)
{
    return PyLong_FromUnsignedLongLong(((Pin *)object)->found.words[(uintptr_t)word]);
}

static PyGetSetDef pin_properties[] = {
    {"number", pin_get_word, NULL, NULL, (void *)ITEM_NUMBER},
    {"rows", pin_get_word, NULL, NULL, (void *)ITEM_ROWS},
    {"width", pin_get_word, NULL, NULL, (void *)ITEM_WIDTH},
    {"dtype", pin_get_word, NULL, NULL, (void *)ITEM_DTYPE},
    {"bytes", pin_get_word, NULL, NULL, (void *)ITEM_BYTES},
    {"first", pin_get_word, NULL, NULL, (void *)ITEM_FIRST},
    {"entry", pin_get_entry, NULL, NULL, NULL},
    {"generation", pin_get_generation, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pin_slots[] = {
    {Py_tp_doc, "One pinned item: the bytes of its rows, read-only, where they lie."},
    {Py_tp_dealloc, pin_dealloc},
    {Py_bf_getbuffer, pin_getbuffer},
    {Py_tp_getset, pin_properties},
    {0, NULL},
};

PyType_Spec pin_spec = {"embridge.allocator._core.Pin", sizeof(Pin), 0,
                        CORE_TYPE_FLAGS | Py_TPFLAGS_DISALLOW_INSTANTIATION, pin_slots};

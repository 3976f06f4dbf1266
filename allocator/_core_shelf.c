// Shelf: the binding of native/shelf.h and native/shelf_publish.h, for whoever publishes, makes room and buries.
#include "_core_shelf.h"

#include <string.h>

#include "native/shelf_publish.h"

enum { RECORD, HEADS, ITEMS, CELLS, USES, LEDGERS, NUM_WORDS };

typedef struct {
    PyObject_HEAD
    Words *words[NUM_WORDS];
    struct shelf shelf;
    PyObject *before; // or NULL
} Shelf;

struct call {
    struct shelf shelf; // first: what a callback is given is this
    Shelf *self;
};

int shelf_take_key(PyObject *const *args, struct shelf_key *key)
{
    char *digest, *text;
    Py_ssize_t digest_bytes, bytes;
    if (PyBytes_AsStringAndSize(args[0], &digest, &digest_bytes) < 0 ||
        PyBytes_AsStringAndSize(args[1], &text, &bytes) < 0)
        return -1;
    if (digest_bytes != sizeof key->hash || bytes > (Py_ssize_t)sizeof key->words)
        return PyErr_Format(PyExc_ValueError, "key: a hash of %zd bytes, and %zd bytes > %zu", digest_bytes, bytes,
                            sizeof key->words),
               -1;
    memset(key, 0, sizeof *key);
    memcpy(key->hash, digest, sizeof key->hash);
    memcpy(key->words, text, (size_t)bytes);
    key->bytes = (uint64_t)bytes;
    return 0;
}

int shelf_take_tables(struct shelf *s, Words *const *words, Py_ssize_t num_words, bool is_writable)
{
    for (Py_ssize_t i = 0; i < num_words; i++) {
        if (words[i]->stride != 8)
            return PyErr_Format(PyExc_ValueError, "words: a stride of %zu bytes is not 8", words[i]->stride), -1;
        if (is_writable && require_writable(words[i]->mapping) < 0)
            return -1;
    }
    const size_t num_entries = words[HEADS]->count;
    const struct {
        const char *what;
        size_t count, least;
    } all[] = {
        {"record", words[RECORD]->count, SHELF_READERS + 1},
        {"entries", num_entries, SHELF_WAYS},
        {"items", words[ITEMS]->count, num_entries * ITEM_WORDS},
        {"blocks", words[CELLS]->count, 1},
        {"uses", words[USES]->count, num_entries},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].count < all[i].least)
            return PyErr_Format(PyExc_ValueError, "%s: %zu < %zu", all[i].what, all[i].count, all[i].least), -1;
    }
    if (num_entries % SHELF_WAYS != 0 || num_entries >= (size_t)1 << SHELF_ENTRY_BITS ||
        words[CELLS]->count > INT32_MAX)
        return PyErr_Format(PyExc_ValueError, "entries: %zu, of %zu blocks, are no shelf", num_entries,
                            words[CELLS]->count),
               -1;
    s->record = (word64 *)(void *)words[RECORD]->first;
    s->heads = (word64 *)(void *)words[HEADS]->first;
    s->items = (word64 *)(void *)words[ITEMS]->first;
    s->cells = (word64 *)(void *)words[CELLS]->first;
    s->uses = (word64 *)(void *)words[USES]->first;
    s->num_entries = (uint32_t)num_entries;
    s->num_blocks = (uint32_t)words[CELLS]->count;
    return 0;
}

static int take_ledgers(Shelf *self, Py_ssize_t ledger_words)
{
    struct shelf *s = &self->shelf;
    if (self->words[LEDGERS]->stride != 8 || ledger_words < (Py_ssize_t)s->num_entries)
        return PyErr_Format(PyExc_ValueError, "ledger_words: %zd < %u", ledger_words, s->num_entries), -1;
    s->ledgers = (word64 *)(void *)self->words[LEDGERS]->first;
    s->ledger_words = (uint64_t)ledger_words;
    s->num_readers = (uint32_t)(self->words[LEDGERS]->count / (size_t)ledger_words);
    s->costs = PyMem_Calloc(6 * (size_t)s->num_entries + 3, sizeof *s->costs); // see `shelf_window`
    return s->costs == NULL ? (PyErr_NoMemory(), -1) : 0;
}

static PyObject *shelf_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"record", "heads", "items", "cells", "uses", "ledgers", "ledger_words", NULL};
    PyTypeObject *const is = state_of_type(type)->words;
    PyObject *words[NUM_WORDS];
    Py_ssize_t ledger_words;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!O!O!O!n:Shelf", names, is, &words[0], is, &words[1], is,
                                     &words[2], is, &words[3], is, &words[4], is, &words[5], &ledger_words))
        return NULL;
    const allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Shelf *self = (Shelf *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    for (size_t i = 0; i < NUM_WORDS; i++) {
        Py_INCREF(words[i]);
        self->words[i] = (Words *)words[i];
    }
    if (shelf_take_tables(&self->shelf, self->words, NUM_WORDS, true) < 0 || take_ledgers(self, ledger_words) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int shelf_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((Shelf *)object)->before);
    return 0;
}

static int shelf_clear_callback(PyObject *object)
{
    Py_CLEAR(((Shelf *)object)->before);
    return 0;
}

static void shelf_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    Shelf *self = (Shelf *)object;
    PyObject_GC_UnTrack(object);
    shelf_clear_callback(object);
    for (size_t i = 0; i < NUM_WORDS; i++)
        Py_XDECREF((PyObject *)self->words[i]);
    PyMem_Free(self->shelf.costs);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static bool say_before(struct shelf *shelf, enum shelf_step step)
{
    return say_step(((struct call *)(void *)shelf)->self->before, (int)step);
}

static struct call call_of(Shelf *self)
{
    struct call call = {.shelf = self->shelf, .self = self};
    call.shelf.before = self->before == NULL ? NULL : say_before;
    return call;
}

// What a call returns, unless it was stopped: then the exception of whoever looked on stands.
static PyObject *ended(const struct call *call, PyObject *result)
{
    if (!call->shelf.is_stopped)
        return result;
    Py_XDECREF(result);
    return NULL;
}

static int take_entry(const Shelf *self, PyObject *const *args, struct shelf_publication *p)
{
    return take_index(args[0], "entry", self->shelf.num_entries, &p->entry) < 0 ||
                   take_up_to(args[1], "generation", MAX_GENERATION_DRAWN, &p->generation) < 0 ||
                   take_up_to(args[2], "lane", (1u << SHELF_LANE_BITS) - 1, &p->lane) < 0
               ? -1
               : 0;
}

// All of these hold the GIL: they move words, and no rows.
static PyObject *shelf_call_begin(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    Shelf *self = (Shelf *)object;
    struct shelf_publication p = {0};
    if (take_count("begin", nargs, 11) < 0 || shelf_take_key(args, &p.key) < 0 ||
        take_up_to(args[2], "lane", (1u << SHELF_LANE_BITS) - 1, &p.lane) < 0 ||
        take_up_to(args[3], "blocks", self->shelf.num_blocks, &p.blocks) < 0 || take_u64(args[4], &p.bytes) < 0 ||
        take_u64(args[5], &p.rows) < 0 || take_u64(args[6], &p.width) < 0 || take_u64(args[7], &p.dtype) < 0 ||
        take_u64(args[8], &p.expires_ns) < 0 || take_u64(args[9], &p.now_ns) < 0)
        return NULL;
    const int replaces = PyObject_IsTrue(args[10]);
    if (replaces < 0)
        return NULL;
    if (p.blocks == 0)
        return PyErr_Format(PyExc_ValueError, "blocks: 0 < 1");
    p.replaces = replaces;
    struct call call = call_of(self);
    const enum shelf_answer answer = shelf_begin(&call.shelf, &p);
    self->shelf.next_block = call.shelf.next_block;
    return ended(&call, Py_BuildValue("(iIKKKI)", (int)answer, p.entry, (unsigned long long)p.generation,
                                      (unsigned long long)p.first, (unsigned long long)p.number, p.num_evicted));
}

static PyObject *shelf_call_show(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    Shelf *self = (Shelf *)object;
    struct shelf_publication p = {0};
    if (take_count("show", nargs, 3) < 0 || take_entry(self, args, &p) < 0)
        return NULL;
    struct call call = call_of(self);
    const uint64_t filling = shelf_head(p.generation, SHELF_FILLING, p.lane);
    const bool is_shown = shelf_key_of(&call.shelf, p.entry, filling, &p.key) && shelf_show(&call.shelf, &p);
    return ended(&call, PyLong_FromUnsignedLongLong(is_shown ? p.number : 0));
}

static PyObject *shelf_call_drop(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    Shelf *self = (Shelf *)object;
    struct shelf_publication p = {0};
    if (take_count("drop", nargs, 4) < 0 || take_entry(self, args, &p) < 0)
        return NULL;
    const int replaces = PyObject_IsTrue(args[3]);
    if (replaces < 0)
        return NULL;
    p.replaces = replaces;
    struct call call = call_of(self);
    const uint64_t filling = shelf_head(p.generation, SHELF_FILLING, p.lane);
    if (shelf_key_of(&call.shelf, p.entry, filling, &p.key))
        shelf_drop(&call.shelf, &p);
    Py_INCREF(Py_None);
    return ended(&call, Py_None);
}

static PyObject *shelf_call_unpublish(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct shelf_key key;
    if (take_count("unpublish", nargs, 2) < 0 || shelf_take_key(args, &key) < 0)
        return NULL;
    struct call call = call_of((Shelf *)object);
    return ended(&call, PyLong_FromUnsignedLong(shelf_unpublish(&call.shelf, &key)));
}

static PyObject *shelf_call_find(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct shelf_key key;
    struct shelf_found found;
    uint64_t now_ns;
    if (take_count("find", nargs, 3) < 0 || shelf_take_key(args, &key) < 0 || take_u64(args[2], &now_ns) < 0)
        return NULL;
    const bool is_there = shelf_find(&((Shelf *)object)->shelf, &key, now_ns, &found);
    return PyLong_FromUnsignedLongLong(is_there ? found.words[ITEM_NUMBER] : 0);
}

static PyObject *shelf_call_clear(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct call call = call_of((Shelf *)object);
    return ended(&call, PyLong_FromUnsignedLongLong(shelf_clear(&call.shelf)));
}

static PyObject *shelf_call_sweep(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct call call = call_of((Shelf *)object);
    return ended(&call, PyLong_FromUnsignedLong(shelf_sweep(&call.shelf)));
}

static PyObject *shelf_call_bury_publisher(PyObject *object, PyObject *argument)
{
    uint64_t lane;
    if (take_up_to(argument, "lane", (1u << SHELF_LANE_BITS) - 1, &lane) < 0)
        return NULL;
    struct call call = call_of((Shelf *)object);
    return ended(&call, PyLong_FromUnsignedLong(shelf_bury_publisher(&call.shelf, lane)));
}

static PyObject *shelf_call_bury_reader(PyObject *object, PyObject *argument)
{
    Shelf *self = (Shelf *)object;
    uint32_t reader;
    if (take_index(argument, "reader", self->shelf.num_readers, &reader) < 0)
        return NULL;
    shelf_bury_reader(&self->shelf, reader);
    Py_RETURN_NONE;
}

static PyObject *shelf_watch(PyObject *object, PyObject *before)
{
    return watch_with(&((Shelf *)object)->before, before);
}

static PyMethodDef shelf_methods[] = {
    {"begin", (PyCFunction)(void (*)(void))shelf_call_begin, METH_FASTCALL, NULL},
    {"show", (PyCFunction)(void (*)(void))shelf_call_show, METH_FASTCALL, NULL},
    {"drop", (PyCFunction)(void (*)(void))shelf_call_drop, METH_FASTCALL, NULL},
    {"unpublish", (PyCFunction)(void (*)(void))shelf_call_unpublish, METH_FASTCALL, NULL},
    {"find", (PyCFunction)(void (*)(void))shelf_call_find, METH_FASTCALL, NULL},
    {"clear", shelf_call_clear, METH_NOARGS, NULL},
    {"sweep", shelf_call_sweep, METH_NOARGS, NULL},
    {"bury_publisher", shelf_call_bury_publisher, METH_O, NULL},
    {"bury_reader", shelf_call_bury_reader, METH_O, NULL},
    {"watch", shelf_watch, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot shelf_slots[] = {
    {Py_tp_doc, "The entries and cells of a shelf, for whoever publishes, makes room and buries."},
    {Py_tp_new, shelf_new},
    {Py_tp_dealloc, shelf_dealloc},
    {Py_tp_traverse, shelf_traverse},
    {Py_tp_clear, shelf_clear_callback},
    {Py_tp_methods, shelf_methods},
    {0, NULL},
};

PyType_Spec shelf_spec = {"embridge.allocator._core.Shelf", sizeof(Shelf), 0, CORE_TYPE_FLAGS | Py_TPFLAGS_HAVE_GC,
                          shelf_slots};

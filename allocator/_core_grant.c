// GrantPoster: the binding of native/grant.h.
#include "_core_untold.h"

#include "native/grant.h"

enum { SLOTS, WINDOWS, OWN_CLAIMS, MEETINGS, POSTS, NUM_GRANT_TABLES };

typedef struct {
    PyObject_HEAD
    StatusTable *status;
    BlockCells *cells;
    Words *words[NUM_GRANT_TABLES];
    struct grant_tables tables;
    PyObject *before; // or NULL
} GrantPoster;

struct call {
    struct own_grant grant; // first: what a callback is given is this
    GrantPoster *self;
};

// Where each table begins; -1 with an exception: one is of another size.
static int take_tables(GrantPoster *self, Py_ssize_t slot_words, Py_ssize_t window)
{
    struct grant_tables *t = &self->tables;
    const uint64_t num_slots = self->status->table.num_slots;
    if (slot_words < SLOT_WORDS || window < 1) {
        PyErr_Format(PyExc_ValueError, "slot_words: %zd, window: %zd", slot_words, window);
        return -1;
    }
    const uint64_t least[NUM_GRANT_TABLES] = {
        [SLOTS] = num_slots * (uint64_t)slot_words,
        [WINDOWS] = num_slots * (uint64_t)window,
        [OWN_CLAIMS] = num_slots * CLAIM_WORDS,
        [MEETINGS] = num_slots * MEETING_WORDS,
        [POSTS] = BUCKET_POSTS,
    };
    for (size_t i = 0; i < NUM_GRANT_TABLES; i++) {
        if (require_writable(self->words[i]->mapping) < 0)
            return -1;
        if (self->words[i]->stride != 8 || self->words[i]->count < least[i]) {
            PyErr_Format(PyExc_ValueError, "table %zu: %zu words of stride %zu < %llu of stride 8", i,
                         self->words[i]->count, self->words[i]->stride, (unsigned long long)least[i]);
            return -1;
        }
    }
    t->status = &self->status->table;
    t->blocks = &self->cells->blocks;
    t->slots = (word64 *)(void *)self->words[SLOTS]->first;
    t->windows = (word64 *)(void *)self->words[WINDOWS]->first;
    t->claims = (word64 *)(void *)self->words[OWN_CLAIMS]->first;
    t->meetings = (word64 *)(void *)self->words[MEETINGS]->first;
    t->posts = (word64 *)(void *)self->words[POSTS]->first;
    t->slot_words = (uint64_t)slot_words;
    t->window = (uint64_t)window;
    t->num_buckets = self->words[POSTS]->count / BUCKET_POSTS;
    return 0;
}

static PyObject *poster_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"status", "cells", "slots",      "windows",       "claims",
                            "meetings", "posts", "slot_words", "window_blocks", NULL};
    const core_state *state = state_of_type(type);
    PyTypeObject *words = state->words;
    PyObject *status, *cells, *given[NUM_GRANT_TABLES];
    Py_ssize_t slot_words, window;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!O!O!O!O!nn:GrantPoster", names, state->status_table, &status,
                                     state->block_cells, &cells, words, &given[SLOTS], words, &given[WINDOWS], words,
                                     &given[OWN_CLAIMS], words, &given[MEETINGS], words, &given[POSTS], &slot_words,
                                     &window))
        return NULL;
    const allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    GrantPoster *self = (GrantPoster *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(status);
    Py_INCREF(cells);
    self->status = (StatusTable *)status;
    self->cells = (BlockCells *)cells;
    for (size_t i = 0; i < NUM_GRANT_TABLES; i++) {
        Py_INCREF(given[i]);
        self->words[i] = (Words *)given[i];
    }
    if (require_writable(self->status->mapping) < 0 || require_writable(self->cells->mapping) < 0 ||
        take_tables(self, slot_words, window) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int poster_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((GrantPoster *)object)->before);
    return 0;
}

static int poster_clear(PyObject *object)
{
    Py_CLEAR(((GrantPoster *)object)->before);
    return 0;
}

static void poster_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    GrantPoster *self = (GrantPoster *)object;
    PyObject_GC_UnTrack(object);
    poster_clear(object);
    for (size_t i = 0; i < NUM_GRANT_TABLES; i++)
        Py_XDECREF((PyObject *)self->words[i]);
    Py_XDECREF((PyObject *)self->status);
    Py_XDECREF((PyObject *)self->cells);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static bool say_before(struct own_grant *grant, enum grant_step step)
{
    return say_step(((struct call *)(void *)grant)->self->before, (int)step);
}

// (slot, epoch, room, ...); -1 with an exception.
static int begin_call(GrantPoster *self, struct call *call, PyObject *const *args)
{
    *call = (struct call){.grant = {.tables = &self->tables, .before = self->before == NULL ? NULL : say_before},
                          .self = self};
    struct own_grant *g = &call->grant;
    if (take_index(args[0], "slot", self->status->table.num_slots, &g->slot) < 0 ||
        take_up_to(args[1], "epoch", MAX_EPOCH, &g->epoch) < 0)
        return -1;
    return take_u64(args[2], &g->room);
}

// -1 with an exception: they are no grant.
static int take_blocks(struct own_grant *g, const Array *blocks)
{
    g->blocks = blocks->data;
    g->num_blocks = blocks->length;
    if (g->num_blocks == 0 || g->num_blocks > g->tables->window) {
        PyErr_Format(PyExc_ValueError, "blocks: %zu is outside 1 to %llu", blocks->length,
                     (unsigned long long)g->tables->window);
        return -1;
    }
    for (uint64_t k = 0; k < g->num_blocks; k++)
        if (g->blocks[k] >= g->tables->blocks->num_blocks) {
            PyErr_Format(PyExc_IndexError, "blocks: %lu is outside 0 to %lu", (unsigned long)g->blocks[k],
                         (unsigned long)g->tables->blocks->num_blocks - 1);
            return -1;
        }
    return 0;
}

// With the GIL: it takes less time than to give that away and to take it back.
static PyObject *poster_post(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct call call;
    struct own_grant *g = &call.grant;
    uint64_t now_ns;
    Array blocks;
    if (take_count("post", nargs, 8) < 0 || begin_call((GrantPoster *)object, &call, args) < 0 ||
        take_u64(args[3], &g->node_id) < 0 || take_u64(args[4], &g->incarnation) < 0 ||
        take_up_to(args[6], "tokens", UINT32_MAX, &g->num_tokens) < 0 || take_u64(args[7], &now_ns) < 0 ||
        array_open(&blocks, args[5], "blocks", 4, false) < 0)
        return NULL;
    const unsigned posted = take_blocks(g, &blocks) == 0 ? grant_post(g, now_ns) : POSTED_NOT;
    PyBuffer_Release(&blocks.view);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLong(posted);
}

static PyObject *poster_release(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct call call;
    uint64_t now_ns;
    if (take_count("release", nargs, 4) < 0 || begin_call((GrantPoster *)object, &call, args) < 0 ||
        take_u64(args[3], &now_ns) < 0)
        return NULL;
    const bool is_released = grant_release(&call.grant, now_ns);
    return call.grant.is_stopped ? NULL : PyBool_FromLong(is_released);
}

static PyObject *poster_watch(PyObject *object, PyObject *before)
{
    return watch_with(&((GrantPoster *)object)->before, before);
}

const struct grant_tables *poster_tables(PyObject *poster) { return &((GrantPoster *)poster)->tables; }

PyObject *poster_before(PyObject *poster)
{
    PyObject *before = ((GrantPoster *)poster)->before;
    Py_XINCREF(before);
    return before;
}

static PyMethodDef poster_methods[] = {
    {"post", (PyCFunction)(void (*)(void))poster_post, METH_FASTCALL, NULL},
    {"release", (PyCFunction)(void (*)(void))poster_release, METH_FASTCALL, NULL},
    {"watch", poster_watch, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot poster_slots[] = {
    {Py_tp_doc, "Posts the grants of one language node's client, and takes them back when their requests are over."},
    {Py_tp_new, poster_new},
    {Py_tp_dealloc, poster_dealloc},
    {Py_tp_traverse, poster_traverse},
    {Py_tp_clear, poster_clear},
    {Py_tp_methods, poster_methods},
    {0, NULL},
};

PyType_Spec grant_poster_spec = {"embridge.allocator._core.GrantPoster", sizeof(GrantPoster), 0,
                                 CORE_TYPE_FLAGS | Py_TPFLAGS_HAVE_GC, poster_slots};

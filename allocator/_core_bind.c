// GrantBinder: the binding of native/bind.h.
#include "_core_untold.h"

#include "native/bind.h"

#define BLOCKS_ON_STACK 64

enum { SLOTS, DESTINATIONS, GRANTS, PEERS, TOMBSTONES, FINDERS, THEIR_CLAIMS, MEETINGS, POSTS, WINDOWS, NUM_BOUND };
enum {
    SLOT_SIZE,
    NUM_DESTINATIONS,
    WINDOW,
    PEER_SIZE,
    NUM_PEER_SLOTS,
    WINDOW_THERE,
    BLOCK_SIZE,
    NUM_BLOCKS,
    NUM_SIZES
};
enum { NODE_ID, INCARNATION, ID_THERE, INCARNATION_THERE, NUM_NAMES };

typedef struct {
    PyObject_HEAD
    Words *words[NUM_BOUND];
    struct bind_tables tables;
    PyObject *before; // or NULL
} GrantBinder;

struct call {
    struct grant_bind bind; // first: what a callback is given is this
    GrantBinder *self;
};

// Where each table begins; -1: one is too small.
static int take_tables(GrantBinder *self, const Py_ssize_t *n)
{
    struct bind_tables *t = &self->tables;
    uint64_t count[NUM_BOUND];
    for (size_t i = 0; i < NUM_BOUND; i++) {
        if (self->words[i]->stride != 8)
            return PyErr_Format(PyExc_ValueError, "words: a stride of %zu bytes is not 8", self->words[i]->stride), -1;
        if (require_writable(self->words[i]->mapping) < 0)
            return -1;
        count[i] = self->words[i]->count;
    }
    t->slot_words = (uint64_t)n[SLOT_SIZE];
    t->destinations_words = (uint64_t)n[NUM_DESTINATIONS] * DESTINATION_WORDS;
    t->window = (uint64_t)n[WINDOW];
    t->peer_words = (uint64_t)n[PEER_SIZE];
    t->num_peer_slots = (uint64_t)n[NUM_PEER_SLOTS];
    t->window_there = (uint64_t)n[WINDOW_THERE];
    t->block_size = (uint64_t)n[BLOCK_SIZE];
    t->num_blocks = (uint64_t)n[NUM_BLOCKS];
    t->num_slots = count[SLOTS] / t->slot_words;
    t->num_peers = count[PEERS] / t->peer_words;
    t->num_slots_there = count[THEIR_CLAIMS] / CLAIM_WORDS;
    t->num_buckets = count[POSTS] / BUCKET_POSTS;
    const struct {
        const char *what;
        uint64_t count, least;
    } all[] = {
        {"a slot's record", t->slot_words, SLOT_JOINED_BY + 1},
        {"a slot's destinations", t->destinations_words, DESTINATION_WORDS},
        {"an entry of the peer table", t->peer_words, PEER_REGISTRATION + 1},
        {"destinations", count[DESTINATIONS], t->num_slots * t->destinations_words},
        {"grants", count[GRANTS], t->num_slots * t->window},
        {"tombstones", count[TOMBSTONES], t->num_peers * t->num_peer_slots},
        {"finders", count[FINDERS], t->num_peers * t->num_peer_slots},
        {"meetings", count[MEETINGS], t->num_slots_there * MEETING_WORDS},
        {"windows", count[WINDOWS], t->num_slots_there * t->window_there},
        {"buckets", t->num_buckets, 1},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].count < all[i].least)
            return PyErr_Format(PyExc_ValueError, "%s: %llu < %llu", all[i].what, (unsigned long long)all[i].count,
                                (unsigned long long)all[i].least),
                   -1;
    }
    word64 *first[NUM_BOUND];
    for (size_t i = 0; i < NUM_BOUND; i++)
        first[i] = (word64 *)(void *)self->words[i]->first;
    t->slots = first[SLOTS];
    t->destinations = first[DESTINATIONS];
    t->grants = first[GRANTS];
    t->peers = first[PEERS];
    t->tombstones = first[TOMBSTONES];
    t->finders = first[FINDERS];
    t->claims = first[THEIR_CLAIMS];
    t->meetings = first[MEETINGS];
    t->posts = first[POSTS];
    t->windows = first[WINDOWS];
    return 0;
}

static PyObject *binder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"slots",     "destinations", "grants",       "peers",      "tombstones",
                            "finders",   "claims",    "meetings",     "posts",        "windows",    "slot_words",
                            "num_destinations", "window_blocks", "peer_words", "num_peer_slots", "window_there",
                            "block_size", "num_blocks",  "node_id",      "incarnation",
                            "node_id_there", "incarnation_there", NULL};
    PyTypeObject *const is = state_of_type(type)->words;
    PyObject *words[NUM_BOUND], *name[NUM_NAMES];
    uint64_t named[NUM_NAMES];
    Py_ssize_t n[NUM_SIZES];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!O!O!O!O!O!O!O!nnnnnnnnOOOO:GrantBinder", names, is,
                                     &words[0], is, &words[1], is, &words[2], is, &words[3], is, &words[4], is,
                                     &words[5], is, &words[6], is, &words[7], is, &words[8], is, &words[9], &n[0],
                                     &n[1], &n[2], &n[3], &n[4], &n[5], &n[6], &n[7], &name[0], &name[1], &name[2],
                                     &name[3]))
        return NULL;
    for (size_t i = 0; i < NUM_SIZES; i++) {
        if (n[i] < 1 || n[i] > INT32_MAX)
            return PyErr_Format(PyExc_ValueError, "%s: %zd is out of range", names[NUM_BOUND + i], n[i]);
    }
    for (size_t i = 0; i < NUM_NAMES; i++) {
        if (take_u64(name[i], &named[i]) < 0)
            return NULL;
    }
    const allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    GrantBinder *self = (GrantBinder *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    for (size_t i = 0; i < NUM_BOUND; i++) {
        Py_INCREF(words[i]);
        self->words[i] = (Words *)words[i];
    }
    self->tables.own = (struct node_name){named[NODE_ID], named[INCARNATION]};
    self->tables.there = (struct node_name){named[ID_THERE], named[INCARNATION_THERE]};
    if (take_tables(self, n) < 0) {
        Py_CLEAR(self);
    } else if ((self->tables.seen = PyMem_Calloc(self->tables.num_blocks / 64 + 1, sizeof(uint64_t))) == NULL) {
        Py_CLEAR(self);
        PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static int binder_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((GrantBinder *)object)->before);
    return 0;
}

static int binder_clear(PyObject *object)
{
    Py_CLEAR(((GrantBinder *)object)->before);
    return 0;
}

static void binder_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    GrantBinder *self = (GrantBinder *)object;
    PyObject_GC_UnTrack(object);
    binder_clear(object);
    for (size_t i = 0; i < NUM_BOUND; i++)
        Py_XDECREF((PyObject *)self->words[i]);
    PyMem_Free(self->tables.seen);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static bool say_before(struct grant_bind *bind, enum bind_step step)
{
    return say_step(((struct call *)(void *)bind)->self->before, (int)step);
}

// With the GIL: it takes less time than to give that away and to take it back.
int binder_bind_request(PyObject *object, PyObject *peer_given, uint64_t room, uint32_t slot, uint64_t epoch,
                        unsigned *bound)
{
    GrantBinder *self = (GrantBinder *)object;
    const struct bind_tables *t = &self->tables;
    struct call call = {.bind = {.tables = t, .before = self->before == NULL ? NULL : say_before}, .self = self};
    struct grant_bind *b = &call.bind;
    uint64_t on_stack[BLOCKS_ON_STACK];
    uint32_t peer;
    if (take_index(peer_given, "peer", t->num_peers, &peer) < 0)
        return -1;
    const uint64_t most = t->window < t->window_there ? t->window : t->window_there;
    b->peer = peer;
    b->room = room;
    b->slot = slot;
    b->epoch = epoch;
    b->blocks = most <= BLOCKS_ON_STACK ? on_stack : PyMem_Malloc(most * sizeof *b->blocks);
    if (b->blocks == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    *bound = bind_grant(b);
    if (b->blocks != on_stack)
        PyMem_Free(b->blocks);
    return b->is_stopped ? -1 : 0;
}

int binder_there(PyObject *object, uint64_t num_slots, uint64_t num_slots_there, word64 **meetings,
                 uint64_t *incarnation)
{
    const struct bind_tables *t = &((GrantBinder *)object)->tables;
    if (t->num_slots < num_slots || t->num_slots_there < num_slots_there) {
        PyErr_Format(PyExc_ValueError, "binder: of %llu slots and %llu there, not %llu and %llu",
                     (unsigned long long)t->num_slots, (unsigned long long)t->num_slots_there,
                     (unsigned long long)num_slots, (unsigned long long)num_slots_there);
        return -1;
    }
    *meetings = t->meetings;
    *incarnation = t->there.incarnation;
    return 0;
}

static PyObject *binder_bind(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t room, epoch;
    uint32_t slot;
    unsigned bound;
    if (take_count("bind", nargs, 4) < 0 || take_u64(args[1], &room) < 0 ||
        take_index(args[2], "slot", ((GrantBinder *)object)->tables.num_slots, &slot) < 0 ||
        take_up_to(args[3], "epoch", MAX_EPOCH, &epoch) < 0 ||
        binder_bind_request(object, args[0], room, slot, epoch, &bound) < 0)
        return NULL;
    return PyLong_FromUnsignedLong(bound);
}

static PyObject *binder_watch(PyObject *object, PyObject *before)
{
    return watch_with(&((GrantBinder *)object)->before, before);
}

static PyMethodDef binder_methods[] = {
    {"bind", (PyCFunction)(void (*)(void))binder_bind, METH_FASTCALL, NULL},
    {"watch", binder_watch, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot binder_slots[] = {
    {Py_tp_doc, "Finds grants that one language node has posted, and binds requests of this node to them."},
    {Py_tp_new, binder_new},
    {Py_tp_dealloc, binder_dealloc},
    {Py_tp_traverse, binder_traverse},
    {Py_tp_clear, binder_clear},
    {Py_tp_methods, binder_methods},
    {0, NULL},
};

PyType_Spec grant_binder_spec = {"embridge.allocator._core.GrantBinder", sizeof(GrantBinder), 0,
                                 CORE_TYPE_FLAGS | Py_TPFLAGS_HAVE_GC, binder_slots};

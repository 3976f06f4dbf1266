// UntoldReceiver: the binding of what native/untold.h has for a scheduler's client, with the end of native/grant.h.
#include "_core_untold.h"

#include <string.h>

#include "native/ends.h"
#include "native/untold.h"

#define MOST_SLOT_WORDS 128
#define MOST_ADDRESS_WORDS 32
enum { HEADER, PEERS, FETCHES, LANES, METRICS, ENDS, NUM_TABLES_HERE };

typedef struct {
    PyObject_HEAD
    PyObject *poster;
    StatusTable *status;
    PyObject *words[NUM_TABLES_HERE];
    struct receiver_tables tables;
    uint64_t slot_words, address_at, block_size;
    word64 *lent, *succeeded, *ends;
} UntoldReceiver;

struct call {
    struct own_grant grant; // first: what a callback is given is this
    PyObject *before;       // owned, or NULL
};

static bool say_before(struct own_grant *grant, enum grant_step step)
{
    return say_step(((struct call *)(void *)grant)->before, (int)step);
}

static word64 *take_table(UntoldReceiver *self, int which, const char *what, uint64_t least)
{
    const Words *words = (const Words *)self->words[which];
    if (require_writable(words->mapping) < 0)
        return NULL;
    if (words->stride == 8 && words->count >= least && least > 0)
        return (word64 *)(void *)words->first;
    PyErr_Format(PyExc_ValueError, "%s: %zu words of stride %zu < %llu of stride 8", what, words->count, words->stride,
                 (unsigned long long)least);
    return NULL;
}

static PyObject *receiver_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"poster",      "status",     "header",     "peers",   "fetches",    "lanes",      "metrics",
                            "ends",        "lane",       "lent_at",    "metrics_at", "peer_words", "fetch_words",
                            "slot_words",  "address_at", "block_size", NULL};
    const core_state *state = state_of_type(type);
    PyTypeObject *const is = state->words;
    PyObject *poster, *status, *words[NUM_TABLES_HERE];
    Py_ssize_t n[8];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!O!O!O!O!O!nnnnnnnn:UntoldReceiver", names,
                                     state->grant_poster, &poster, state->status_table, &status, is, &words[0], is,
                                     &words[1], is, &words[2], is, &words[3], is, &words[4], is, &words[5], &n[0],
                                     &n[1], &n[2], &n[3], &n[4], &n[5], &n[6], &n[7]))
        return NULL;
    for (size_t i = 0; i < sizeof n / sizeof *n; i++)
        if (n[i] < (i < 3 ? 0 : 1) || n[i] > INT32_MAX)
            return PyErr_Format(PyExc_ValueError, "%s: %zd is out of range", names[8 + i], n[i]);
    const allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    UntoldReceiver *self = (UntoldReceiver *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(poster);
    Py_INCREF(status);
    self->poster = poster;
    self->status = (StatusTable *)status;
    for (size_t i = 0; i < NUM_TABLES_HERE; i++) {
        Py_INCREF(words[i]);
        self->words[i] = words[i];
    }
    const uint64_t num_slots = self->status->table.num_slots;
    const uint64_t lent_at = (uint64_t)n[1], succeeded_at = (uint64_t)n[2] + METRIC_SUCCEEDED;
    self->slot_words = (uint64_t)n[5];
    self->address_at = (uint64_t)n[6];
    self->block_size = (uint64_t)n[7];
    struct receiver_tables *t = &self->tables;
    t->grants = poster_tables(poster);
    t->lane = (uint64_t)n[0];
    t->peer_words = (uint64_t)n[3];
    t->fetch_words = (uint64_t)n[4];
    if (self->slot_words != t->grants->slot_words || self->slot_words > MOST_SLOT_WORDS ||
        self->address_at >= self->slot_words || t->peer_words <= PEER_WINDOW)
        PyErr_Format(PyExc_ValueError, "slot_words: %zd, address_at: %zd, peer_words: %zd", n[5], n[6], n[3]);
    else if (num_slots != t->grants->status->num_slots)
        PyErr_Format(PyExc_ValueError, "status: %llu slots, and the poster has %lu", (unsigned long long)num_slots,
                     (unsigned long)t->grants->status->num_slots);
    else if ((t->header = take_table(self, HEADER, "header", HEADER_SLOT_WAITERS + 1)) != NULL &&
             (t->peers = take_table(self, PEERS, "peers", t->peer_words)) != NULL &&
             (t->fetches = take_table(self, FETCHES, "fetches", num_slots * t->fetch_words)) != NULL &&
             (self->lent = take_table(self, LANES, "lanes", lent_at + 1)) != NULL &&
             (self->succeeded = take_table(self, METRICS, "metrics", succeeded_at + 1)) != NULL &&
             (self->ends = take_table(self, ENDS, "ends", END_WORDS)) != NULL) {
        t->num_peers = ((Words *)words[PEERS])->count / t->peer_words;
        self->lent += lent_at;
        self->succeeded += succeeded_at;
    }
    if (PyErr_Occurred())
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int receiver_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((UntoldReceiver *)object)->poster);
    return 0;
}

static void receiver_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    UntoldReceiver *self = (UntoldReceiver *)object;
    PyObject_GC_UnTrack(object);
    Py_XDECREF(self->poster);
    Py_XDECREF((PyObject *)self->status);
    for (size_t i = 0; i < NUM_TABLES_HERE; i++)
        Py_XDECREF(self->words[i]);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

// -1 with an exception: there is nothing to end.
static int begin(UntoldReceiver *self, struct call *call, PyObject *given)
{
    uint32_t slot;
    if (take_index(given, "slot", self->status->table.num_slots, &slot) < 0)
        return -1;
    *call = (struct call){.grant = {.tables = self->tables.grants, .slot = slot},
                          .before = poster_before(self->poster)};
    call->grant.before = call->before == NULL ? NULL : say_before;
    return 0;
}

static PyObject *ended(struct call *call, PyObject *result)
{
    Py_XDECREF(call->before);
    if (call->grant.is_stopped)
        Py_CLEAR(result);
    return PyErr_Occurred() ? NULL : result;
}

static int take_words(PyObject *buffer, const char *what, uint64_t *to, size_t most)
{
    Array given;
    if (array_open(&given, buffer, what, 8, false) < 0)
        return -1;
    const bool fits = given.length <= most;
    if (fits)
        memcpy(to, given.data, given.length * 8);
    else
        PyErr_Format(PyExc_ValueError, "%s: %zu words > %zu", what, given.length, most);
    PyBuffer_Release(&given.view);
    return fits ? 0 : -1;
}

// (slot, room, opened_ns, deadline_ns, address, peer, node_id, incarnation, rows, enough, out)
static PyObject *receiver_open_request(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    UntoldReceiver *self = (UntoldReceiver *)object;
    struct receiver_opening o = {.tables = &self->tables};
    uint64_t values[MOST_SLOT_WORDS] = {0};
    uint32_t peer;
    struct call call;
    Array out;
    if (take_count("open", nargs, 11) < 0 || begin(self, &call, args[0]) < 0)
        return NULL;
    struct own_grant *g = &call.grant;
    if (take_u64(args[1], &g->room) < 0 || take_u64(args[2], &o.now_ns) < 0 ||
        take_u64(args[3], &values[SLOT_DEADLINE_NS]) < 0 ||
        take_words(args[4], "address", values + self->address_at, self->slot_words - self->address_at) < 0 ||
        take_index(args[5], "peer", self->tables.num_peers, &peer) < 0 || take_u64(args[6], &g->node_id) < 0 ||
        take_u64(args[7], &g->incarnation) < 0 || take_up_to(args[8], "rows", UINT32_MAX, &o.most_rows) < 0 ||
        take_up_to(args[9], "enough", UINT32_MAX, &o.enough) < 0 || array_open(&out, args[10], "out", 4, true) < 0)
        return ended(&call, NULL);
    values[SLOT_ROOM] = g->room;
    values[SLOT_LANE] = self->tables.lane;
    values[SLOT_OPENED_NS] = o.now_ns;
    values[SLOT_REQUIRED] = 1;
    values[SLOT_PEER] = (uint64_t)peer + 1;
    g->num_tokens = self->block_size;
    g->blocks = out.data;
    o.peer = peer;
    o.want = out.length < UINT32_MAX ? (uint32_t)out.length : UINT32_MAX;
    o.blocks = out.data;
    o.grant = g;
    const struct grant_tables *own = self->tables.grants;
    struct slot_opening opening = {.values = values,
                                   .is_untold = true,
                                   .record = {own->slots + g->slot * self->slot_words, self->slot_words},
                                   .claim = own->claims + (size_t)g->slot * CLAIM_WORDS};
    const unsigned came = o.want > 0 && receiver_is_usual(&o) ? receiver_open(&o, &opening) : OPENED_NOT;
    PyBuffer_Release(&out.view);
    return ended(&call, PyLong_FromUnsignedLongLong(g->epoch << RECEIVER_EPOCH_SHIFT |
                                                    g->num_blocks << RECEIVER_CAME_BITS | came));
}

// (slot, epoch, blocks, enough)
static PyObject *receiver_lend_request(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    UntoldReceiver *self = (UntoldReceiver *)object;
    struct call call;
    uint64_t enough;
    if (take_count("lend", nargs, 4) < 0 || begin(self, &call, args[0]) < 0)
        return NULL;
    if (take_up_to(args[1], "epoch", MAX_EPOCH, &call.grant.epoch) < 0 ||
        take_up_to(args[2], "blocks", UINT32_MAX, &call.grant.num_blocks) < 0 ||
        take_up_to(args[3], "enough", UINT32_MAX, &enough) < 0)
        return ended(&call, NULL);
    return ended(&call, PyLong_FromUnsignedLongLong(receiver_lend(&self->tables, &call.grant, self->lent, enough)));
}

// (slot, epoch, room, now_ns)
static PyObject *receiver_renew_request(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    static const unsigned char kept[] = {SLOT_ROOM,        SLOT_LANE,     SLOT_OPENED_NS,
                                         SLOT_DEADLINE_NS, SLOT_REQUIRED, SLOT_PEER};
    UntoldReceiver *self = (UntoldReceiver *)object;
    uint64_t values[MOST_SLOT_WORDS] = {0}, now_ns;
    struct call call;
    if (take_count("renew", nargs, 4) < 0 || begin(self, &call, args[0]) < 0)
        return NULL;
    if (take_up_to(args[1], "epoch", MAX_EPOCH, &call.grant.epoch) < 0 || take_u64(args[2], &call.grant.room) < 0 ||
        take_u64(args[3], &now_ns) < 0)
        return ended(&call, NULL);
    word64 *record = grant_record(&call.grant);
    for (size_t i = 0; i < sizeof kept; i++)
        values[kept[i]] = grant_load(&record[kept[i]]);
    for (uint64_t i = self->address_at; i < self->slot_words; i++)
        values[i] = grant_load(&record[i]);
    struct slot_opening opening = {.values = values,
                                   .record = {record, self->slot_words},
                                   .claim = self->tables.grants->claims + (size_t)call.grant.slot * CLAIM_WORDS};
    return ended(&call, PyLong_FromUnsignedLongLong(receiver_renew(&self->tables, &call.grant, &opening, now_ns)));
}

// (slot, epoch, room, lent, now_ns)
static PyObject *receiver_release_request(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    UntoldReceiver *self = (UntoldReceiver *)object;
    struct call call;
    uint64_t now_ns, lent, times[NUM_PHASES];
    if (take_count("release", nargs, 5) < 0 || begin(self, &call, args[0]) < 0)
        return NULL;
    if (take_up_to(args[1], "epoch", MAX_EPOCH, &call.grant.epoch) < 0 || take_u64(args[2], &call.grant.room) < 0 ||
        take_up_to(args[3], "lent", UINT32_MAX, &lent) < 0 || take_u64(args[4], &now_ns) < 0)
        return ended(&call, NULL);
    const uint64_t word = status_load(&self->status->table, call.grant.slot);
    status_stamps(&self->status->table, call.grant.slot, times);
    // another process may end it just now: what is said is what was seen
    if (status_phase(word) != PHASE_SUCCESS || !grant_release(&call.grant, now_ns)) {
        Py_INCREF(Py_None);
        return ended(&call, Py_None);
    }
    if (lent)
        atomic_fetch_sub_explicit(self->lent, lent, memory_order_acq_rel);
    atomic_fetch_add_explicit(self->succeeded, 1, memory_order_relaxed);
    const word64 *record = grant_record(&call.grant);
    end_success(&self->status->table, call.grant.slot, call.grant.epoch, END_PATH_DIRECT,
                grant_load(&record[SLOT_NUM_ROUNDS]), self->ends);
    return ended(&call, outcome_of(word, times));
}

static PyMethodDef receiver_methods[] = {
    {"open", (PyCFunction)(void (*)(void))receiver_open_request, METH_FASTCALL, NULL},
    {"lend", (PyCFunction)(void (*)(void))receiver_lend_request, METH_FASTCALL, NULL},
    {"renew", (PyCFunction)(void (*)(void))receiver_renew_request, METH_FASTCALL, NULL},
    {"release", (PyCFunction)(void (*)(void))receiver_release_request, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot receiver_slots[] = {
    {Py_tp_doc, "Opens, grants, lends, renews and releases untold requests of a scheduler's client."},
    {Py_tp_new, receiver_new},
    {Py_tp_dealloc, receiver_dealloc},
    {Py_tp_traverse, receiver_traverse},
    {Py_tp_methods, receiver_methods},
    {0, NULL},
};

PyType_Spec untold_receiver_spec = {"embridge.allocator._core.UntoldReceiver", sizeof(UntoldReceiver), 0,
                                    CORE_TYPE_FLAGS | Py_TPFLAGS_HAVE_GC, receiver_slots};

int add_untold_constants(PyObject *module)
{
    const struct {
        const char *name;
        long value;
    } constants[] = {
        {"OPENER_ASKED", OPENER_ASKED},
        {"OPENER_EPOCH_SHIFT", OPENER_EPOCH_SHIFT},
        {"SENDER_FAILED", SENDER_FAILED},
        {"SENDER_END_SHIFT", SENDER_END_SHIFT},
        {"RECEIVER_CAME_BITS", RECEIVER_CAME_BITS},
        {"RECEIVER_EPOCH_SHIFT", RECEIVER_EPOCH_SHIFT},
        {"OPENED", OPENED},
        {"OPENED_NEAR", OPENED_NEAR},
        {"OPENED_WITH_BLOCKS", OPENED_WITH_BLOCKS},
        {"OPENED_AND_POSTED", OPENED_AND_POSTED},
        {"OPENED_AND_POSTED_LATE", OPENED_AND_POSTED_LATE},
        {"RENEWED_NOT", RENEWED_NOT},
        {"RENEWED_BUT_TOLD", RENEWED_BUT_TOLD},
    };
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
            return -1;
    return 0;
}

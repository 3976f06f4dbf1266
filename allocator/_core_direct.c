// DirectWriter: what it is made of, and how it ends.
#include "_core_direct.h"

#include "native/bind.h"
#include "native/claims.h"
#include "native/doorbell.h"

static int check_words(const DirectWriter *self)
{
    for (size_t i = 0; i < NUM_WORDS; i++) {
        if (self->words[i]->stride != 8)
            return PyErr_Format(PyExc_ValueError, "words: a stride of %zu bytes is not 8", self->words[i]->stride), -1;
        if (require_writable(self->words[i]->mapping) < 0)
            return -1;
    }
    const uint64_t num_slots = self->tables[OWN]->table.num_slots, num_there = self->tables[THEIRS]->table.num_slots;
    const struct {
        const char *what;
        uint64_t count, least;
    } all[] = {
        {"slots", self->words[OWN_SLOTS]->count, num_slots * self->slot_words},
        {"destinations", self->words[OWN_DESTINATIONS]->count, num_slots * self->destinations_words},
        {"grants", self->words[OWN_GRANTS]->count, num_slots * self->window_blocks},
        {"metrics", self->words[OWN_METRICS]->count, self->metrics_at + METRIC_TOKENS_WRITTEN + 1},
        {"claims", self->words[CLAIMS]->count, num_there * CLAIM_WORDS},
        {"a slot's record", self->slot_words * 8, self->aux_at + self->aux_bytes},
        {"a slot's record", self->slot_words, SLOT_NUM_DESTINATIONS + 1},
        {"a slot's destinations", self->destinations_words, DESTINATION_WORDS},
        {"a request's window", self->window_blocks, 1},
        {"a block", self->block_size, 1},
        {"the payload", self->payload->size, self->aux_offset + self->num_blocks * self->aux_bytes},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].count < all[i].least)
            return PyErr_Format(PyExc_ValueError, "%s: %llu < %llu", all[i].what, (unsigned long long)all[i].count,
                                (unsigned long long)all[i].least),
                   -1;
    }
    return require_writable(self->payload) < 0 || require_writable(self->tables[OWN]->mapping) < 0 ||
                   require_writable(self->tables[THEIRS]->mapping) < 0
               ? -1
               : 0;
}

// The callable to ask for the time; NULL where that is the clock that is read here (`time.monotonic_ns`).
static int take_clock(PyObject *clock, PyObject **taken)
{
    PyObject *module = PyImport_ImportModule("time");
    PyObject *real = module == NULL ? NULL : PyObject_GetAttrString(module, "monotonic_ns");
    Py_XDECREF(module);
    if (real == NULL)
        return -1;
    *taken = clock == real ? NULL : clock;
    Py_XINCREF(*taken);
    Py_DECREF(real);
    return 0;
}

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"slots",         "destinations", "grants",     "metrics",    "claims",
                            "status",        "there",        "payload",    "writer",     "slot_words",
                            "aux_at",        "window_blocks", "num_destinations", "metrics_at", "block_size",
                            "num_blocks",    "aux_offset",   "aux_bytes",  "bells",  "num_lanes", "clock",      NULL};
    core_state *state = state_of_type(type);
    PyObject *words[NUM_WORDS], *tables[NUM_TABLES], *payload, *clock, *taken;
    unsigned int writer;
    Py_ssize_t n[11];
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!O!O!O!O!O!O!O!InnnnnnnnnnnO:DirectWriter", names, state->words, &words[OWN_SLOTS],
            state->words, &words[OWN_DESTINATIONS], state->words, &words[OWN_GRANTS], state->words,
            &words[OWN_METRICS], state->words, &words[CLAIMS], state->status_table, &tables[OWN], state->status_table,
            &tables[THEIRS], state->mapping, &payload, &writer, &n[0], &n[1], &n[2], &n[3], &n[4], &n[5], &n[6], &n[7],
            &n[8], &n[9], &n[10], &clock))
        return NULL;
    for (size_t i = 0; i < sizeof n / sizeof *n; i++) {
        if (n[i] < 0 || n[i] > (Py_ssize_t)1 << 48)
            return PyErr_Format(PyExc_ValueError, "%s: %zd is out of range", names[9 + i], n[i]);
    }
    if (take_clock(clock, &taken) < 0)
        return NULL;
    const allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    DirectWriter *self = (DirectWriter *)alloc(type, 0);
    if (self == NULL) {
        Py_XDECREF(taken);
        return NULL;
    }
    for (size_t i = 0; i < NUM_WORDS; i++) {
        Py_INCREF(words[i]);
        self->words[i] = (Words *)words[i];
    }
    for (size_t i = 0; i < NUM_TABLES; i++) {
        Py_INCREF(tables[i]);
        self->tables[i] = (StatusTable *)tables[i];
    }
    Py_INCREF(payload);
    self->payload = (Mapping *)payload;
    self->clock = taken;
    self->writer = writer;
    self->slot_words = (uint64_t)n[0];
    self->aux_at = (uint64_t)n[1];
    self->window_blocks = (uint64_t)n[2];
    self->destinations_words = (uint64_t)n[3] * DESTINATION_WORDS;
    self->metrics_at = (uint64_t)n[4];
    self->block_size = (uint64_t)n[5];
    self->num_blocks = (uint64_t)n[6];
    self->aux_offset = (uint64_t)n[7];
    self->aux_bytes = (uint64_t)n[8];
    self->num_lanes = (uint64_t)n[10];
    self->bells = mapping_range(self->tables[THEIRS]->mapping, "bells", n[9],
                                2 * self->num_lanes * DOORBELL_BYTES, LINE_BYTES);
    if (self->bells == NULL || check_words(self) < 0) {
        Py_CLEAR(self);
    } else if ((self->populated = PyMem_Calloc(self->num_blocks, sizeof *self->populated)) == NULL) {
        Py_CLEAR(self);
        PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static int writer_traverse(PyObject *object, visitproc visit, void *arg)
{
    DirectWriter *self = (DirectWriter *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->clock);
    Py_VISIT(self->before);
    return 0;
}

static int writer_clear(PyObject *object)
{
    DirectWriter *self = (DirectWriter *)object;
    Py_CLEAR(self->clock);
    Py_CLEAR(self->before);
    return 0;
}

static void writer_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    DirectWriter *self = (DirectWriter *)object;
    PyObject_GC_UnTrack(object);
    writer_clear(object);
    for (size_t i = 0; i < NUM_WORDS; i++)
        Py_XDECREF((PyObject *)self->words[i]);
    for (size_t i = 0; i < NUM_TABLES; i++)
        Py_XDECREF((PyObject *)self->tables[i]);
    Py_XDECREF((PyObject *)self->payload);
    PyMem_Free((void *)self->populated);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *writer_watch(PyObject *object, PyObject *before)
{
    return watch_with(&((DirectWriter *)object)->before, before);
}

static PyObject *writer_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    DirectWriter *self = (DirectWriter *)object;
    self->closing = true;
    return PyBool_FromLong(self->num_writing == 0);
}

static PyMethodDef writer_methods[] = {
    {"write", (PyCFunction)(void (*)(void))direct_writer_write, METH_FASTCALL, NULL},
    {"follow", (PyCFunction)(void (*)(void))direct_writer_follow, METH_FASTCALL, NULL},
    {"watch", writer_watch, METH_O, NULL},
    {"close", writer_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_doc, "Writes rows of this node's requests into blocks of one language node."},
    {Py_tp_new, writer_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_traverse, writer_traverse},
    {Py_tp_clear, writer_clear},
    {Py_tp_methods, writer_methods},
    {0, NULL},
};

PyType_Spec direct_writer_spec = {"embridge.allocator._core.DirectWriter", sizeof(DirectWriter), 0,
                                  CORE_TYPE_FLAGS | Py_TPFLAGS_HAVE_GC, writer_slots};

int add_direct_constants(PyObject *module)
{
    const struct {
        const char *name;
        long value;
    } constants[] = {
        {"SLOT_EPOCH", SLOT_EPOCH},
        {"SLOT_LANE", SLOT_LANE},
        {"SLOT_TOTAL", SLOT_TOTAL},
        {"SLOT_READY", SLOT_READY},
        {"SLOT_REQUIRED", SLOT_REQUIRED},
        {"SLOT_RELEASED_EPOCH", SLOT_RELEASED_EPOCH},
        {"SLOT_GRANTED", SLOT_GRANTED},
        {"SLOT_DRAINED_BLOCKS", SLOT_DRAINED_BLOCKS},
        {"SLOT_MOVED_NS", SLOT_MOVED_NS},
        {"SLOT_NUM_DESTINATIONS", SLOT_NUM_DESTINATIONS},
        {"SLOT_NUM_ROUNDS", SLOT_NUM_ROUNDS},
        {"SLOT_INIT_ASKED", SLOT_INIT_ASKED},
        {"SLOT_SESSION", SLOT_SESSION},
        {"SLOT_TOLD", SLOT_TOLD},
        {"SLOT_JOINED_BY", SLOT_JOINED_BY},
        {"DESTINATION_PEER", DESTINATION_PEER},
        {"DESTINATION_INCARNATION", DESTINATION_INCARNATION},
        {"DESTINATION_REMOTE_SLOT", DESTINATION_REMOTE_SLOT},
        {"DESTINATION_REMOTE_EPOCH", DESTINATION_REMOTE_EPOCH},
        {"DESTINATION_GRANTED_TOKENS", DESTINATION_GRANTED_TOKENS},
        {"DESTINATION_GRANTED_BLOCKS", DESTINATION_GRANTED_BLOCKS},
        {"DESTINATION_FIRST_GRANT", DESTINATION_FIRST_GRANT},
        {"DESTINATION_SENT", DESTINATION_SENT},
        {"DESTINATION_REGISTRATION", DESTINATION_REGISTRATION},
        {"DESTINATION_WINDOW", DESTINATION_WINDOW},
        {"DESTINATION_WRITTEN_BY", DESTINATION_WRITTEN_BY},
        {"DESTINATION_WORDS", DESTINATION_WORDS},
        {"METRIC_WRITES", METRIC_WRITES},
        {"METRIC_BYTES_WRITTEN", METRIC_BYTES_WRITTEN},
        {"METRIC_TOKENS_WRITTEN", METRIC_TOKENS_WRITTEN},
        {"PEER_STATE", PEER_STATE},
        {"PEER_NODE_ID", PEER_NODE_ID},
        {"PEER_INCARNATION", PEER_INCARNATION},
        {"PEER_REGISTRATION", PEER_REGISTRATION},
        {"MEETING_EPOCH", MEETING_EPOCH},
        {"MEETING_ROOM", MEETING_ROOM},
        {"MEETING_NODE_ID", MEETING_NODE_ID},
        {"MEETING_INCARNATION", MEETING_INCARNATION},
        {"MEETING_GRANTED", MEETING_GRANTED},
        {"MEETING_BOUND", MEETING_BOUND},
        {"MEETING_WORDS", MEETING_WORDS},
        {"JOINED_BY_NOBODY", JOINED_BY_NOBODY},
        {"JOINED_BY_CLIENT", JOINED_BY_CLIENT},
        {"WRITTEN_BY_CLIENT", WRITTEN_BY_CLIENT},
        {"TOLD_UNTOLD", TOLD_UNTOLD},
        {"TOLD_TOLD", TOLD_TOLD},
        {"TOLD_RELEASED", TOLD_RELEASED},
        {"FINDER_SLOT_BITS", FINDER_SLOT_BITS},
        {"LOCAL_EXPOSURE", LOCAL_EXPOSURE},
        {"REGISTERED_STATE", REGISTERED_STATE},
        {"BIND_BOUND", BIND_BOUND},
        {"BIND_TOLD", BIND_TOLD},
        {"BIND_GONE", BIND_GONE},
        {"SLOT_ROOM", SLOT_ROOM},
        {"SLOT_OPENED_NS", SLOT_OPENED_NS},
        {"SLOT_DEADLINE_NS", SLOT_DEADLINE_NS},
        {"SLOT_LENT", SLOT_LENT},
        {"SLOT_PEER", SLOT_PEER},
        {"SLOT_MAY_WRITE", SLOT_MAY_WRITE},
        {"METRIC_SUCCEEDED", METRIC_SUCCEEDED},
        {"PEER_WINDOW", PEER_WINDOW},
        {"MEETING_TOLD", MEETING_TOLD},
        {"HEADER_NODE_STATE", HEADER_NODE_STATE},
        {"HEADER_BLOCK_WAITERS", HEADER_BLOCK_WAITERS},
        {"HEADER_FAILING", HEADER_FAILING},
        {"HEADER_SLOT_WAITERS", HEADER_SLOT_WAITERS},
        {"NODE_STATE_READY", NODE_STATE_READY},
        {"LENT_RESULT", LENT_RESULT},
        {"CLAIM_WORDS", CLAIM_WORDS},
        {"LANE_STATE", LANE_STATE},
        {"LANE_WORDS", LANE_WORDS},
        {"ATTACHED_LANE", ATTACHED_LANE},
    };
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
            return -1;
    }
    return 0;
}

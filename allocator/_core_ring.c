// Producer, Consumer and Doorbell: the bindings of native/ring.h and native/doorbell.h.
#define _GNU_SOURCE
#include "_core.h"

#include <errno.h>
#include <fcntl.h>

#include "native/ring.h"

#define DEFAULT_SPIN_NS 20000

// ---- both ends

typedef struct {
    PyObject_HEAD
    Mapping *mapping;
    struct ring ring;
} RingEnd;

static PyObject *ring_end_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"mapping", "offset", NULL};
    PyObject *object;
    Py_ssize_t offset;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!n", names, state_of_type(type)->mapping, &object, &offset))
        return NULL;
    Mapping *mapping = (Mapping *)object;
    if (require_writable(mapping) < 0)
        return NULL;
    unsigned char *header = mapping_range(mapping, "ring", offset, RING_HEADER_BYTES, LINE_BYTES);
    if (header == NULL)
        return NULL;
    struct ring ring = {.header = (struct ring_header *)(void *)header, .records = header + RING_HEADER_BYTES};
    // SYNC capacity: acquire; the positions that are read later are those of a ring that was formatted.
    ring.capacity = atomic_load_explicit(&ring.header->capacity, memory_order_acquire);
    if (!ring_capacity_is_valid(ring.capacity))
        return PyErr_Format(PyExc_ValueError,
                            "ring at offset %zd: capacity %llu is not a power of two from 2 to 2**20; format it first",
                            offset, (unsigned long long)ring.capacity);
    if (mapping_range(mapping, "ring", offset, RING_HEADER_BYTES + ring.capacity * RECORD_BYTES, LINE_BYTES) == NULL)
        return NULL;
    RingEnd *self = (RingEnd *)handle_new(type, mapping);
    if (self != NULL) {
        self->ring = ring;
        // A lower bound of both positions. SYNC head: acquire, as wherever a producer reads it.
        self->ring.other = atomic_load_explicit(&ring.header->head, memory_order_acquire);
    }
    return (PyObject *)self;
}

static PyObject *ring_is_damaged(const struct ring *ring)
{
    return PyErr_Format(PyExc_RuntimeError,
                        "ring: head %llu and tail %llu are further apart than its %llu records; its header is damaged",
                        (unsigned long long)atomic_load_explicit(&ring->header->head, memory_order_relaxed),
                        (unsigned long long)atomic_load_explicit(&ring->header->tail, memory_order_relaxed),
                        (unsigned long long)ring->capacity);
}

static PyObject *ring_get_capacity(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(((RingEnd *)self)->ring.capacity);
}

// ---- Producer

static PyObject *producer_push(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    uint64_t record[RECORD_WORDS] = {0};
    if (nargs > RECORD_WORDS)
        return PyErr_Format(PyExc_TypeError, "push() takes at most %d words: %zd given", RECORD_WORDS, nargs);
    for (Py_ssize_t i = 0; i < nargs; i++) {
        if (take_u64(args[i], &record[i]) < 0)
            return NULL;
    }
    struct ring *ring = &((RingEnd *)self)->ring;
    const int64_t pushed = ring_push(ring, record, 1);
    return pushed < 0 ? ring_is_damaged(ring) : PyBool_FromLong(pushed != 0);
}

static PyObject *producer_push_bytes(PyObject *self, PyObject *records)
{
    struct ring *ring = &((RingEnd *)self)->ring;
    Py_buffer view;
    if (PyObject_GetBuffer(records, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *result;
    if (view.len % RECORD_BYTES != 0) {
        result = PyErr_Format(PyExc_ValueError, "records: %zd bytes are not a multiple of %d", view.len, RECORD_BYTES);
    } else {
        const int64_t pushed = ring_push(ring, view.buf, (uint64_t)view.len / RECORD_BYTES);
        result = pushed < 0 ? ring_is_damaged(ring) : PyLong_FromLongLong(pushed);
    }
    PyBuffer_Release(&view);
    return result;
}

static PyObject *producer_room(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct ring *ring = &((RingEnd *)self)->ring;
    const int64_t room = ring_room(ring, ring->capacity);
    return room < 0 ? ring_is_damaged(ring) : PyLong_FromLongLong(room);
}

static PyMethodDef producer_methods[] = {
    {"push", (PyCFunction)(void (*)(void))producer_push, METH_FASTCALL, NULL},
    {"push_bytes", producer_push_bytes, METH_O, NULL},
    {"room", producer_room, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef producer_properties[] = {
    {"capacity", ring_get_capacity, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot producer_slots[] = {
    {Py_tp_doc, "The writing end of a ring."},
    {Py_tp_new, ring_end_new},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_methods, producer_methods},
    {Py_tp_getset, producer_properties},
    {0, NULL},
};

PyType_Spec producer_spec = {"embridge.allocator._core.Producer", sizeof(RingEnd), 0, CORE_TYPE_FLAGS, producer_slots};

// ---- Doorbell

typedef struct {
    PyObject_HEAD
    Mapping *mapping;
    struct doorbell *bell;
    int event_fd; // -1, or a duplicate of the caller's: a number that was closed and given away is never written to
} Doorbell;

static PyObject *doorbell_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"mapping", "offset", "event_fd", NULL};
    PyObject *object;
    Py_ssize_t offset;
    int event_fd = -1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!n|i:Doorbell", names, state_of_type(type)->mapping, &object,
                                     &offset, &event_fd))
        return NULL;
    Mapping *mapping = (Mapping *)object;
    if (require_writable(mapping) < 0)
        return NULL;
    unsigned char *line = mapping_range(mapping, "doorbell", offset, DOORBELL_BYTES, LINE_BYTES);
    if (line == NULL)
        return NULL;
    // Above 2: in a process that has closed standard error, whoever prints would ring.
    if (event_fd >= 0 && (event_fd = fcntl(event_fd, F_DUPFD_CLOEXEC, 3)) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Doorbell *self = (Doorbell *)handle_new(type, mapping);
    if (self == NULL) {
        if (event_fd >= 0)
            close(event_fd);
        return NULL;
    }
    self->bell = (struct doorbell *)(void *)line;
    self->event_fd = event_fd < 0 ? -1 : event_fd;
    return (PyObject *)self;
}

static void doorbell_dealloc(PyObject *self)
{
    if (((Doorbell *)self)->event_fd >= 0)
        close(((Doorbell *)self)->event_fd);
    handle_dealloc(self);
}

static PyObject *doorbell_get_sequence(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLong(doorbell_sequence(((Doorbell *)self)->bell));
}

// With the GIL held: a wake takes some microseconds, while getting the GIL back from another thread may take
// milliseconds.
static PyObject *doorbell_ring_it(PyObject *self, PyObject *unused)
{
    (void)unused;
    bool woke;
    const int error = doorbell_ring_sleeper(((Doorbell *)self)->bell, ((Doorbell *)self)->event_fd, &woke);
    if (error != 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyBool_FromLong(woke);
}

// With the GIL held, as `ring`.
static PyObject *doorbell_ring_client_it(PyObject *self, PyObject *other)
{
    if (!PyObject_TypeCheck(other, Py_TYPE(self)))
        return PyErr_Format(PyExc_TypeError, "library: expected a Doorbell");
    struct doorbell *caller = ((Doorbell *)self)->bell, *library = ((Doorbell *)other)->bell;
    errno = doorbell_ring_client(caller, ((Doorbell *)self)->event_fd, library, ((Doorbell *)other)->event_fd);
    if (errno != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

// The optional spin_s, and the deadline that timeout_s gives; a deadline of 0: look, do not wait.
static int take_wait(PyObject *timeout_s, PyObject *spin_s, int64_t *deadline_ns, int64_t *spin_ns)
{
    int64_t timeout_ns;
    *spin_ns = DEFAULT_SPIN_NS;
    if (take_seconds_as_ns(timeout_s, "timeout_s", &timeout_ns) < 0 ||
        (spin_s != NULL && take_seconds_as_ns(spin_s, "spin_s", spin_ns) < 0))
        return -1;
    *deadline_ns = timeout_ns == 0 ? 0 : monotonic_ns() + timeout_ns;
    return 0;
}

static int take_sequence(PyObject *argument, uint32_t *seen)
{
    uint64_t value;
    if (take_up_to(argument, "seen", UINT32_MAX, &value) < 0)
        return -1;
    *seen = (uint32_t)value;
    return 0;
}

static PyObject *doorbell_wait_for(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names_given)
{
    static const char *const names[] = {"seen", "timeout_s", "spin_s"};
    struct doorbell *bell = ((Doorbell *)self)->bell;
    PyObject *given[3];
    uint32_t seen;
    int64_t deadline_ns, spin_ns;
    if (take_named("wait", args, nargs, names_given, names, 3, 2, given) < 0 || take_sequence(given[0], &seen) < 0 ||
        take_wait(given[1], given[2], &deadline_ns, &spin_ns) < 0)
        return NULL;
    uint32_t sequence = doorbell_sequence(bell);
    if (sequence == seen && deadline_ns != 0) {
        Py_BEGIN_ALLOW_THREADS
        sequence = doorbell_wait(bell, seen, deadline_ns, spin_ns);
        Py_END_ALLOW_THREADS
    }
    return PyLong_FromUnsignedLong(sequence);
}

static PyObject *doorbell_arm_it(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names_given)
{
    static const char *const names[] = {"seen"};
    PyObject *given[1];
    uint32_t seen;
    if (take_named("arm", args, nargs, names_given, names, 1, 1, given) < 0 || take_sequence(given[0], &seen) < 0)
        return NULL;
    return PyBool_FromLong(doorbell_arm(((Doorbell *)self)->bell, seen));
}

static PyObject *doorbell_disarm_it(PyObject *self, PyObject *unused)
{
    (void)unused;
    doorbell_disarm(((Doorbell *)self)->bell);
    Py_RETURN_NONE;
}

static PyObject *doorbell_spare_it(PyObject *self, PyObject *is_spared)
{
    const int is_true = PyObject_IsTrue(is_spared);
    if (is_true < 0)
        return NULL;
    doorbell_spare(((Doorbell *)self)->bell, is_true);
    Py_RETURN_NONE;
}

static PyMethodDef doorbell_methods[] = {
    {"sequence", doorbell_get_sequence, METH_NOARGS, NULL},
    {"ring", doorbell_ring_it, METH_NOARGS, NULL},
    {"ring_client", doorbell_ring_client_it, METH_O, NULL},
    {"wait", (PyCFunction)(void (*)(void))doorbell_wait_for, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"arm", (PyCFunction)(void (*)(void))doorbell_arm_it, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"disarm", doorbell_disarm_it, METH_NOARGS, NULL},
    {"spare", doorbell_spare_it, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot doorbell_slots[] = {
    {Py_tp_doc, "A line that wakes one waiter."},
    {Py_tp_new, doorbell_new},
    {Py_tp_dealloc, doorbell_dealloc},
    {Py_tp_methods, doorbell_methods},
    {0, NULL},
};

PyType_Spec doorbell_spec = {"embridge.allocator._core.Doorbell", sizeof(Doorbell), 0, CORE_TYPE_FLAGS, doorbell_slots};

// ---- Consumer

// How many records there are to look at, at most `most`.
static int take_most(struct ring *ring, PyObject *argument, uint64_t *count)
{
    uint64_t most;
    if (take_u64(argument, &most) < 0)
        return -1;
    const int64_t pending = ring_pending(ring, most);
    if (pending < 0) {
        ring_is_damaged(ring);
        return -1;
    }
    *count = most < (uint64_t)pending ? most : (uint64_t)pending;
    return 0;
}

static PyObject *record_as_tuple(const uint64_t *record)
{
    PyObject *tuple = PyTuple_New(RECORD_WORDS);
    for (Py_ssize_t i = 0; tuple != NULL && i < RECORD_WORDS; i++) {
        PyObject *word = PyLong_FromUnsignedLongLong(record[i]);
        if (word == NULL || PyTuple_SetItem(tuple, i, word) < 0)
            Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *consumer_peek(PyObject *self, PyObject *argument)
{
    struct ring *ring = &((RingEnd *)self)->ring;
    uint64_t count;
    if (take_most(ring, argument, &count) < 0)
        return NULL;
    const uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_relaxed); // our own
    PyObject *records = PyList_New((Py_ssize_t)count);
    for (uint64_t i = 0; records != NULL && i < count; i++) {
        PyObject *record = record_as_tuple((const uint64_t *)(const void *)ring_record(ring, head + i));
        if (record == NULL || PyList_SetItem(records, (Py_ssize_t)i, record) < 0)
            Py_CLEAR(records);
    }
    return records;
}

static PyObject *consumer_peek_bytes(PyObject *self, PyObject *argument)
{
    struct ring *ring = &((RingEnd *)self)->ring;
    uint64_t count;
    if (take_most(ring, argument, &count) < 0)
        return NULL;
    const uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_relaxed); // our own
    const uint64_t to_end = ring->capacity - (head & (ring->capacity - 1)), first = count < to_end ? count : to_end;
    PyObject *records = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * RECORD_BYTES));
    if (records != NULL) {
        char *bytes = PyBytes_AsString(records);
        memcpy(bytes, ring_record(ring, head), first * RECORD_BYTES);
        memcpy(bytes + first * RECORD_BYTES, ring->records, (count - first) * RECORD_BYTES);
    }
    return records;
}

static PyObject *consumer_commit(PyObject *self, PyObject *argument)
{
    struct ring *ring = &((RingEnd *)self)->ring;
    uint64_t count;
    if (take_u64(argument, &count) < 0)
        return NULL;
    const int64_t pending = ring_pending(ring, count);
    if (pending < 0)
        return ring_is_damaged(ring);
    if (count > (uint64_t)pending)
        return PyErr_Format(PyExc_ValueError, "commit: %llu records > %lld pending", (unsigned long long)count,
                            (long long)pending);
    ring_commit(ring, count);
    Py_RETURN_NONE;
}

static PyObject *consumer_pending(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct ring *ring = &((RingEnd *)self)->ring;
    const int64_t pending = ring_pending(ring, ring->capacity);
    return pending < 0 ? ring_is_damaged(ring) : PyLong_FromLongLong(pending);
}

static PyObject *consumer_wait(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names_given)
{
    static const char *const names[] = {"doorbell", "timeout_s", "spin_s"};
    struct ring *ring = &((RingEnd *)self)->ring;
    PyObject *given[3];
    int64_t deadline_ns, spin_ns;
    if (take_named("wait", args, nargs, names_given, names, 3, 2, given) < 0)
        return NULL;
    if (Py_TYPE(given[0]) != state_of_type(Py_TYPE(self))->doorbell)
        return PyErr_Format(PyExc_TypeError, "doorbell: %R is not a Doorbell", given[0]);
    struct doorbell *bell = ((Doorbell *)given[0])->bell;
    int64_t pending = ring_pending(ring, 1);
    if (pending == 0) {
        if (take_wait(given[1], given[2], &deadline_ns, &spin_ns) < 0)
            return NULL;
        if (deadline_ns != 0) {
            Py_BEGIN_ALLOW_THREADS
            pending = ring_wait(ring, bell, deadline_ns, spin_ns);
            Py_END_ALLOW_THREADS
        }
    }
    return pending < 0 ? ring_is_damaged(ring) : PyBool_FromLong(pending != 0);
}

PyObject *core_pending_rings(PyObject *module, PyObject *rings)
{
    const core_state *state = PyModule_GetState(module);
    if (!PyTuple_Check(rings))
        return PyErr_Format(PyExc_TypeError, "rings: %R is no tuple", rings);
    PyObject *places = PyList_New(0);
    for (Py_ssize_t i = 0; places != NULL && i < PyTuple_Size(rings); i++) {
        PyObject *end = PyTuple_GetItem(rings, i);
        const bool is_ring = Py_IS_TYPE(end, state->consumer);
        struct ring *ring = &((RingEnd *)end)->ring;
        const int64_t pending = is_ring ? ring_pending(ring, 1) : 0;
        if (is_ring && pending == 0)
            continue;
        PyObject *place = !is_ring      ? PyErr_Format(PyExc_TypeError, "rings: %R is no Consumer", end)
                          : pending < 0 ? ring_is_damaged(ring)
                                        : PyLong_FromSsize_t(i);
        if (place == NULL || PyList_Append(places, place) < 0)
            Py_CLEAR(places);
        Py_XDECREF(place);
    }
    return places;
}

static PyMethodDef consumer_methods[] = {
    {"peek", consumer_peek, METH_O, NULL},
    {"peek_bytes", consumer_peek_bytes, METH_O, NULL},
    {"commit", consumer_commit, METH_O, NULL},
    {"pending", consumer_pending, METH_NOARGS, NULL},
    {"wait", (PyCFunction)(void (*)(void))consumer_wait, METH_FASTCALL | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef consumer_properties[] = {
    {"capacity", ring_get_capacity, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot consumer_slots[] = {
    {Py_tp_doc, "The reading end of a ring: peek, work, commit."},
    {Py_tp_new, ring_end_new},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_methods, consumer_methods},
    {Py_tp_getset, consumer_properties},
    {0, NULL},
};

PyType_Spec consumer_spec = {"embridge.allocator._core.Consumer", sizeof(RingEnd), 0, CORE_TYPE_FLAGS, consumer_slots};

// The module embridge.allocator._core: its constants, functions and types.
//
// The algorithms are in native/, free of Python, a structure a file, each with its memory layout, its invariants and
// the reason why a SIGKILL between any two instructions is safe:
//
//   native/shared.h     atomic words, the clock, when to spin
//   native/status.h     status words, stamps, dirty bits     bound in _core_words.c
//   native/rows.h       which records have changed           bound in _core_words.c
//   native/blocks.h     owner cells                          bound in _core_blocks.c
//   native/doorbell.h   waking a waiter                      bound in _core_ring.c
//   native/ring.h       records from one to one              bound in _core_ring.c
//   native/copy.h       copies past the cache                bound here
//   native/checksum.h   CRC-32C of rows                      bound here
//   native/claims.h     claims, as their writers move them   bound in _core_claims.c
//   native/direct.h     a write into another node's blocks   bound in _core_direct_write.c
//   native/current.h    which request a slot has             bound in _core_records.c
//   native/posts.h      where grants and offers are found    used by the next two
//   native/bind.h       finding a grant, and who has it      bound in _core_bind.c
//   native/grant.h      posting a grant, and its end         bound in _core_grant.c
//   native/shelf.h      published items, and their end       used by the next two
//   native/shelf_publish.h    publishing one                 bound in _core_shelf.c
//   native/shelf_pins.h       reading one where it lies      bound in _core_pin.c
//
// _core_mapping.c has the mappings that all of these lie in, and _core_arguments.c checks what callers pass;
// `_core.pyi` is the contract. _core_direct.c makes the handle of direct writes; _core_turn.c is for the threads of one
// process, and _core_watch.c for tests that look on. What holds for all of them:
//
//   - Shared state is in 64-bit (doorbells: 32-bit) words, each with one writer, or moved by one compare-and-swap.
//     There are no locks: nobody's death leaves one held.
//   - A handle keeps pointers, and hints that it can do without. Whoever restarts makes a new one and goes on.
//   - Words that come out of shared memory are input: they are checked before they are used as a size or an index.
//   - Calls hold the GIL, and so one handle is used by one thread at a time; those that wait or move many bytes give it
//     up.
#include "_core.h"

#include <errno.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "native/checksum.h"
#include "native/copy.h"
#include "native/ring.h"
#include "native/shelf.h"
#include "native/status.h"

static PyObject *core_format_ring(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"mapping", "offset", "capacity", NULL};
    core_state *state = PyModule_GetState(module);
    PyObject *object;
    Py_ssize_t offset, capacity;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!nn:format_ring", names, state->mapping, &object, &offset,
                                     &capacity))
        return NULL;
    if (capacity < 0 || !ring_capacity_is_valid((uint64_t)capacity))
        return PyErr_Format(PyExc_ValueError, "capacity: %zd is not a power of two from 2 to 2**20", capacity);
    if (require_writable((Mapping *)object) < 0)
        return NULL;
    unsigned char *header = mapping_range((Mapping *)object, "ring", offset,
                                          RING_HEADER_BYTES + (uint64_t)capacity * RECORD_BYTES, LINE_BYTES);
    if (header == NULL)
        return NULL;
    ring_format((struct ring_header *)(void *)header, (uint64_t)capacity);
    Py_RETURN_NONE;
}

#define MOVES_ON_STACK 64
#define KEEP_GIL_BYTES 4096 // moves of so little are over before the GIL could be given away and taken back

// Copies the moves, so that nobody can change what was checked; returns NULL with an exception where one is out of
// range.
static struct move *take_moves(const Array *moves, size_t count, uint64_t destination_bytes, uint64_t source_bytes,
                               struct move *on_stack, uint64_t *total)
{
    struct move *checked = on_stack;
    if (count > MOVES_ON_STACK && (checked = PyMem_Malloc(count * sizeof *checked)) == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    memcpy(checked, moves->data, count * sizeof *checked);
    *total = 0;
    for (size_t i = 0; i < count; i++) {
        if (!move_is_valid(&checked[i], destination_bytes, source_bytes)) {
            PyErr_Format(
                PyExc_IndexError,
                "move %zu: %lld bytes from %lld to %lld are outside the source's %llu or the destination's %llu", i,
                (long long)checked[i].bytes, (long long)checked[i].source, (long long)checked[i].destination,
                (unsigned long long)source_bytes, (unsigned long long)destination_bytes);
            if (checked != on_stack)
                PyMem_Free(checked);
            return NULL;
        }
        *total += (uint64_t)checked[i].bytes;
    }
    return checked;
}

static PyObject *copy_checked(const Py_buffer *destination, const Py_buffer *source, const Array *moves,
                              PyObject *num_moves)
{
    uint64_t count, total;
    struct move on_stack[MOVES_ON_STACK];
    if (take_up_to(num_moves, "count", moves->length / 3, &count) < 0)
        return NULL;
    struct move *checked =
        take_moves(moves, count, (uint64_t)destination->len, (uint64_t)source->len, on_stack, &total);
    if (checked == NULL)
        return NULL;
    if (total <= KEEP_GIL_BYTES && count <= MOVES_ON_STACK) {
        copy_moves(destination->buf, source->buf, checked, count);
    } else {
        Py_BEGIN_ALLOW_THREADS
        copy_moves(destination->buf, source->buf, checked, count);
        Py_END_ALLOW_THREADS
    }
    if (checked != on_stack)
        PyMem_Free(checked);
    return PyLong_FromUnsignedLongLong(total);
}

static PyObject *core_copy(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    Py_buffer destination, source;
    Array moves;
    if (take_count("copy", nargs, 4) < 0 || PyObject_GetBuffer(args[0], &destination, PyBUF_WRITABLE) < 0)
        return NULL;
    PyObject *result = NULL;
    if (PyObject_GetBuffer(args[1], &source, PyBUF_SIMPLE) == 0) {
        if (array_open(&moves, args[2], "moves", 8, false) == 0) {
            result = copy_checked(&destination, &source, &moves, args[3]);
            PyBuffer_Release(&moves.view);
        }
        PyBuffer_Release(&source);
    }
    PyBuffer_Release(&destination);
    return result;
}

#define MAX_COLUMNS 16

static PyObject *checksum_checked(const Py_buffer *memory, const Array *columns, uint64_t rows, uint32_t checksum)
{
    struct column checked[MAX_COLUMNS]; // a copy, so that nobody can change what was checked
    const size_t count = columns->length / 2;
    if (count > MAX_COLUMNS || columns->length % 2 != 0)
        return PyErr_Format(PyExc_ValueError, "columns: %zu words are not at most %d pairs", columns->length,
                            MAX_COLUMNS);
    memcpy(checked, columns->data, count * sizeof *checked);
    uint64_t row_bytes = 0;
    for (size_t i = 0; i < count; i++) {
        if (!column_is_valid(&checked[i], rows, (uint64_t)memory->len))
            return PyErr_Format(PyExc_IndexError,
                                "column %zu: %llu rows of %lld bytes from %lld are outside the memory's %zd", i,
                                (unsigned long long)rows, (long long)checked[i].row_bytes, (long long)checked[i].offset,
                                memory->len);
        row_bytes += (uint64_t)checked[i].row_bytes;
    }
    if (row_bytes == 0) // of no bytes there may be any number of rows
        return PyLong_FromUnsignedLong(checksum);
    if (rows <= KEEP_GIL_BYTES / row_bytes) {
        checksum = checksum_rows(checksum, memory->buf, checked, count, rows);
    } else {
        Py_BEGIN_ALLOW_THREADS
        checksum = checksum_rows(checksum, memory->buf, checked, count, rows);
        Py_END_ALLOW_THREADS
    }
    return PyLong_FromUnsignedLong(checksum);
}

static PyObject *core_checksum(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    uint64_t rows, checksum;
    Py_buffer memory;
    Array columns;
    if (take_count("checksum", nargs, 4) < 0 || take_u64(args[2], &rows) < 0 ||
        take_up_to(args[3], "checksum", UINT32_MAX, &checksum) < 0 ||
        PyObject_GetBuffer(args[0], &memory, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *result = NULL;
    if (array_open(&columns, args[1], "columns", 8, false) == 0) {
        result = checksum_checked(&memory, &columns, rows, (uint32_t)checksum);
        PyBuffer_Release(&columns.view);
    }
    PyBuffer_Release(&memory);
    return result;
}

// Have the collector pass these objects over: thousands a second that are freed with their last use are not worth its
// walk.
static PyObject *core_untrack(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    for (Py_ssize_t i = 0; i < nargs; i++)
        if (PyObject_GC_IsTracked(args[i]))
            PyObject_GC_UnTrack(args[i]);
    Py_RETURN_NONE;
}

// Have it look at them again, before somebody else has them, who may put them into a cycle.
static PyObject *core_track(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    for (Py_ssize_t i = 0; i < nargs; i++)
        if (PyType_HasFeature(Py_TYPE(args[i]), Py_TPFLAGS_HAVE_GC) && !PyObject_GC_IsTracked(args[i]))
            PyObject_GC_Track(args[i]);
    Py_RETURN_NONE;
}

static PyObject *core_set_parent_death_signal(PyObject *module, PyObject *argument)
{
    (void)module;
    uint64_t signal;
    if (take_up_to(argument, "signal", 64, &signal) < 0)
        return NULL;
    if (prctl(PR_SET_PDEATHSIG, (unsigned long)signal) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

// It keeps the GIL, for it does not wait, and is called where another thread would not give that back for a while.
static PyObject *core_has_hung_up(PyObject *module, PyObject *argument)
{
    (void)module;
    const int fd = PyObject_AsFileDescriptor(argument);
    char byte;
    if (fd < 0)
        return NULL;
    const ssize_t found = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return PyBool_FromLong(found == 0 || (found < 0 && errno != EAGAIN && errno != EINTR));
}

static PyMethodDef core_functions[] = {
    {"format_ring", (PyCFunction)(void (*)(void))core_format_ring, METH_VARARGS | METH_KEYWORDS, NULL},
    {"copy", (PyCFunction)(void (*)(void))core_copy, METH_FASTCALL, NULL},
    {"checksum", (PyCFunction)(void (*)(void))core_checksum, METH_FASTCALL, NULL},
    {"untrack", (PyCFunction)(void (*)(void))core_untrack, METH_FASTCALL, NULL},
    {"track", (PyCFunction)(void (*)(void))core_track, METH_FASTCALL, NULL},
    {"set_parent_death_signal", core_set_parent_death_signal, METH_O, NULL},
    {"has_hung_up", core_has_hung_up, METH_O, NULL},
    {"claim_take", (PyCFunction)(void (*)(void))core_claim_take, METH_FASTCALL, NULL},
    {"claim_give_back", (PyCFunction)(void (*)(void))core_claim_give_back, METH_FASTCALL, NULL},
    {"pending_rings", core_pending_rings, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static int core_exec(PyObject *module)
{
    checksum_prepare();
    core_state *state = PyModule_GetState(module);
    const struct {
        PyType_Spec *spec;
        PyTypeObject **type;
    } types[] = {
        {&mapping_spec, &state->mapping},           {&words_spec, &state->words},
        {&status_table_spec, &state->status_table}, {&block_cells_spec, &state->block_cells},
        {&producer_spec, &state->producer},         {&consumer_spec, &state->consumer},
        {&doorbell_spec, &state->doorbell},         {&turn_spec, &state->turn},
        {&turn_taker_spec, &state->turn_taker},     {&direct_writer_spec, &state->direct_writer},
        {&grant_binder_spec, &state->grant_binder}, {&grant_poster_spec, &state->grant_poster},
        {&shelf_spec, &state->shelf},               {&shelf_reader_spec, &state->shelf_reader},
        {&pin_spec, &state->pin},                   {&untold_opener_spec, &state->untold_opener},
        {&untold_sender_spec, &state->untold_sender}, {&untold_receiver_spec, &state->untold_receiver},
        {&plain_rows_spec, &state->plain_rows},     {&records_spec, &state->records},
        {&slot_looks_spec, &state->slot_looks},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        *types[i].type = (PyTypeObject *)PyType_FromModuleAndSpec(module, types[i].spec, NULL);
        if (*types[i].type == NULL || PyModule_AddType(module, *types[i].type) < 0)
            return -1;
    }
    const struct {
        const char *name;
        long value;
    } constants[] = {
        {"PHASE_BITS", PHASE_BITS},
        {"EPOCH_BITS", EPOCH_BITS},
        {"SENT_BITS", SENT_BITS},
        {"RECORD_BYTES", RECORD_BYTES},
        {"RING_HEADER_BYTES", RING_HEADER_BYTES},
        {"DOORBELL_BYTES", DOORBELL_BYTES},
        {"MAX_EPOCH", (long)MAX_EPOCH},
        {"NON_TEMPORAL_BYTES", NON_TEMPORAL_BYTES},
        {"SHELF_WAYS", SHELF_WAYS},
        {"ITEM_WORDS", ITEM_WORDS},
        {"SHELF_STATE_SHIFT", SHELF_LANE_BITS},
        {"SHELF_GENERATION_SHIFT", SHELF_GENERATION_SHIFT},
    };
    if (add_direct_constants(module) < 0 || add_end_constants(module) < 0 || add_untold_constants(module) < 0)
        return -1;
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
            return -1;
    }
    return 0;
}

static int core_traverse(PyObject *module, visitproc visit, void *arg)
{
    core_state *state = PyModule_GetState(module);
    Py_VISIT(state->mapping);
    Py_VISIT(state->words);
    Py_VISIT(state->status_table);
    Py_VISIT(state->block_cells);
    Py_VISIT(state->producer);
    Py_VISIT(state->consumer);
    Py_VISIT(state->doorbell);
    Py_VISIT(state->turn);
    Py_VISIT(state->turn_taker);
    Py_VISIT(state->direct_writer);
    Py_VISIT(state->grant_binder);
    Py_VISIT(state->grant_poster);
    Py_VISIT(state->shelf);
    Py_VISIT(state->shelf_reader);
    Py_VISIT(state->pin);
    Py_VISIT(state->untold_opener);
    Py_VISIT(state->untold_sender);
    Py_VISIT(state->untold_receiver);
    Py_VISIT(state->plain_rows);
    Py_VISIT(state->records);
    Py_VISIT(state->slot_looks);
    return 0;
}

static int core_clear(PyObject *module)
{
    core_state *state = PyModule_GetState(module);
    Py_CLEAR(state->mapping);
    Py_CLEAR(state->words);
    Py_CLEAR(state->status_table);
    Py_CLEAR(state->block_cells);
    Py_CLEAR(state->producer);
    Py_CLEAR(state->consumer);
    Py_CLEAR(state->doorbell);
    Py_CLEAR(state->turn);
    Py_CLEAR(state->turn_taker);
    Py_CLEAR(state->direct_writer);
    Py_CLEAR(state->grant_binder);
    Py_CLEAR(state->grant_poster);
    Py_CLEAR(state->shelf);
    Py_CLEAR(state->shelf_reader);
    Py_CLEAR(state->pin);
    Py_CLEAR(state->untold_opener);
    Py_CLEAR(state->untold_sender);
    Py_CLEAR(state->untold_receiver);
    Py_CLEAR(state->plain_rows);
    Py_CLEAR(state->records);
    Py_CLEAR(state->slot_looks);
    return 0;
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
    {0, NULL},
};

static PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_doc = "The native core: shared mappings and the lock-free structures in them.",
    .m_size = sizeof(core_state),
    .m_methods = core_functions,
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&core_module); }

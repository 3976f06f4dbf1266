// What the binding files share: the module's state, mappings, and the conversion of arguments.
#ifndef EMBRIDGE_CORE_H
#define EMBRIDGE_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include "native/blocks.h"
#include "native/status.h"

#define HIDDEN __attribute__((visibility("hidden")))

typedef struct {
    PyTypeObject *mapping;
    PyTypeObject *words;
    PyTypeObject *status_table;
    PyTypeObject *block_cells;
    PyTypeObject *producer;
    PyTypeObject *consumer;
    PyTypeObject *doorbell;
    PyTypeObject *turn;
    PyTypeObject *turn_taker;
    PyTypeObject *direct_writer;
    PyTypeObject *grant_binder;
    PyTypeObject *grant_poster;
    PyTypeObject *shelf;
    PyTypeObject *shelf_reader;
    PyTypeObject *pin;
    PyTypeObject *untold_opener;
    PyTypeObject *untold_sender;
    PyTypeObject *untold_receiver;
    PyTypeObject *plain_rows;
    PyTypeObject *records;
    PyTypeObject *slot_looks;
} core_state;

typedef struct {
    PyObject_HEAD
    unsigned char *address;
    size_t size;
    size_t mapped; // `size` rounded up to pages
    Py_ssize_t views; // buffers that are exported now
    bool writable;
    bool closed;   // no more buffers and handles
    bool released; // the descriptor's bytes are gone, private ones lie there
} Mapping;

// What every handle begins with.
typedef struct {
    PyObject_HEAD
    Mapping *mapping; // owned: the handle's pointers go into it
} Handle;

// Words, StatusTable and BlockCells, for those who go on from them.
typedef struct {
    PyObject_HEAD
    Mapping *mapping;
    unsigned char *first;
    size_t count;
    size_t stride;
} Words;

typedef struct {
    PyObject_HEAD
    Mapping *mapping;
    struct status_table table;
} StatusTable;

typedef struct {
    PyObject_HEAD
    Mapping *mapping;
    struct blocks blocks;
} BlockCells;

// Not to be subclassed (`state_of_type` relies on it) nor changed.
#define CORE_TYPE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE)

HIDDEN extern PyType_Spec mapping_spec, words_spec, status_table_spec, block_cells_spec, producer_spec, consumer_spec,
    doorbell_spec, direct_writer_spec, grant_binder_spec, grant_poster_spec, turn_spec, turn_taker_spec, shelf_spec,
    shelf_reader_spec, pin_spec, untold_opener_spec, untold_sender_spec, untold_receiver_spec,
    plain_rows_spec, records_spec, slot_looks_spec;

// ---- handles (_core_mapping.c)

HIDDEN core_state *state_of_type(PyTypeObject *type);
// A new handle of `type` that keeps `mapping`.
HIDDEN PyObject *handle_new(PyTypeObject *type, Mapping *mapping);
HIDDEN void handle_dealloc(PyObject *self);
// The address of `bytes` bytes at `offset`, or NULL with ValueError: outside the mapping, or not aligned.
HIDDEN unsigned char *mapping_range(const Mapping *mapping, const char *what, Py_ssize_t offset, uint64_t bytes,
                                    size_t alignment);
// 0, or -1 with ValueError: what is about to be written belongs to a read-only mapping.
HIDDEN int require_writable(const Mapping *mapping);

// ---- claims (_core_claims.c)

HIDDEN PyObject *core_claim_take(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
HIDDEN PyObject *core_claim_give_back(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

// ---- rings (_core_ring.c)

HIDDEN PyObject *core_pending_rings(PyObject *module, PyObject *rings);

// ---- slots (_core_slots.c)

HIDDEN PyObject *status_open_record(PyObject *self, PyObject *const *args, Py_ssize_t nargs);

// ---- ends (_core_ends.c)

HIDDEN PyObject *status_count_success(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
HIDDEN int add_end_constants(PyObject *module);

// ---- direct writes (_core_direct.c)

HIDDEN int add_direct_constants(PyObject *module);

// ---- untold requests (_core_untold_receiver.c)

HIDDEN int add_untold_constants(PyObject *module);

// ---- who looks on (_core_watch.c)

// Have `callback` called from now on, or nobody where it is None; `before` is the handle's own. Returns None.
HIDDEN PyObject *watch_with(PyObject **before, PyObject *callback);
// Call it, if there is one. False: it has raised, and nothing is to be changed any more.
HIDDEN bool say_step(PyObject *before, int step);

// ---- arguments (_core_arguments.c)

// Each of these returns 0, or -1 with an exception. `what` names the argument in it.
// TypeError.
HIDDEN int take_count(const char *function, Py_ssize_t given, Py_ssize_t expected);
// OverflowError, or TypeError for what is no integer.
HIDDEN int take_u64(PyObject *argument, uint64_t *value);
// The same, and ValueError beyond `limit`.
HIDDEN int take_up_to(PyObject *argument, const char *what, uint64_t limit, uint64_t *value);
// IndexError for everything outside 0 to `length` - 1.
HIDDEN int take_index(PyObject *argument, const char *what, uint64_t length, uint32_t *index);
// At least 0; ValueError for what is not a number.
HIDDEN int take_seconds_as_ns(PyObject *argument, const char *what, int64_t *ns);
// Spread positional and keyword arguments over `names`; those that are missing beyond `required` are NULL. TypeError.
HIDDEN int take_named(const char *function, PyObject *const *args, Py_ssize_t nargs, PyObject *names_given,
                      const char *const *names, Py_ssize_t num_names, Py_ssize_t required, PyObject **out);

typedef struct {
    Py_buffer view;
    void *data;
    size_t length; // in items
} Array;

// The items of a contiguous buffer whose items have `item_bytes` bytes, or that is plain bytes. Close with
// PyBuffer_Release.
HIDDEN int array_open(Array *array, PyObject *buffer, const char *what, size_t item_bytes, bool writable);

#endif

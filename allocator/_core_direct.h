// DirectWriter, for the files that bind it: _core_direct.c makes one, _core_direct_write.c is a write of one.
#ifndef EMBRIDGE_CORE_DIRECT_H
#define EMBRIDGE_CORE_DIRECT_H

#include "_core.h"
#include "native/records.h"

enum { OWN_SLOTS, OWN_DESTINATIONS, OWN_GRANTS, OWN_METRICS, CLAIMS, NUM_WORDS };
enum { OWN, THEIRS, NUM_TABLES };

typedef struct {
    PyObject_HEAD
    Words *words[NUM_WORDS];
    StatusTable *tables[NUM_TABLES];
    Mapping *payload;
    _Atomic uint32_t *populated; // see `struct direct_write`
    PyObject *clock, *before; // or NULL
    uint64_t block_size, num_blocks, aux_offset, aux_bytes;
    uint64_t aux_at;           // bytes from the beginning of a slot's record
    uint64_t slot_words, destinations_words, window_blocks, metrics_at;
    unsigned char *bells;
    uint64_t num_lanes;
    uint32_t writer;
    uint32_t num_writing; // calls that are in `write` now
    bool closing;
} DirectWriter;

// ---- a write (_core_direct_write.c)

HIDDEN PyObject *direct_writer_write(PyObject *object, PyObject *const *args, Py_ssize_t nargs);
HIDDEN PyObject *direct_writer_follow(PyObject *object, PyObject *const *args, Py_ssize_t nargs);

#endif

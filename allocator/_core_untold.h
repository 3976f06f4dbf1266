// What the bindings of untold requests (_core_untold.c, _core_untold_receiver.c) use of the handles that they join.
#ifndef EMBRIDGE_CORE_UNTOLD_H
#define EMBRIDGE_CORE_UNTOLD_H

#include "_core_direct.h"
#include "native/status.h"

struct direct_column;
struct grant_tables;

// (word, time of each phase) of a request that has ended, or NULL (_core_untold.c).
HIDDEN PyObject *outcome_of(uint64_t word, const uint64_t times[NUM_PHASES]);

// Each returns 0, or -1 with an exception.

// Look for a grant of the room, and bind the slot to it; `bound` is what `bind_grant` says (_core_bind.c).
HIDDEN int binder_bind_request(PyObject *binder, PyObject *peer, uint64_t room, uint32_t slot, uint64_t epoch,
                               unsigned *bound);
// The meeting records of the language node, which has at least so many slots, and its incarnation.
HIDDEN int binder_there(PyObject *binder, uint64_t num_slots, word64 **meetings, uint64_t *incarnation);
// The columns of rows, checked (_core_direct_write.c).
HIDDEN int direct_writer_columns(const DirectWriter *self, const Array *given, struct direct_column *columns);
// Write what is granted of one span; `end` as `DirectWriter.write` returns it.
HIDDEN int direct_writer_send(DirectWriter *self, uint32_t slot, uint64_t epoch, uint64_t total,
                              const struct direct_column *columns, size_t num_columns, const uint64_t *span,
                              long long *end);
// The tables of a GrantPoster (_core_grant.c).
HIDDEN const struct grant_tables *poster_tables(PyObject *poster);
// Who looks on at it; a new reference, or NULL.
HIDDEN PyObject *poster_before(PyObject *poster);

#endif

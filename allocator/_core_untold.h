// What the bindings of untold requests (_core_untold.c, _core_untold_receiver.c) use of the handles that they join.
#ifndef EMBRIDGE_CORE_UNTOLD_H
#define EMBRIDGE_CORE_UNTOLD_H

#include "_core_direct.h"
#include "native/status.h"

struct direct_column;
struct grant_tables;

// What a call returns in one word. `UntoldOpener.open`: a bit, then the epoch. `UntoldSender.send`: what `enum` BIND_*
// says, a bit, then up to which row. `UntoldReceiver.open`: how far it came (OPENED_*), how many blocks, the epoch.
#define OPENER_ASKED 1
#define OPENER_EPOCH_SHIFT 1
#define SENDER_FAILED 8
#define SENDER_END_SHIFT 4
#define RECEIVER_CAME_BITS 3
#define RECEIVER_EPOCH_SHIFT 36

// (word, time of each phase) of a request that has ended, or NULL (_core_untold.c).
HIDDEN PyObject *outcome_of(uint64_t word, const uint64_t times[NUM_PHASES]);

// Each returns 0, or -1 with an exception.

// Look for a grant of the room, and bind the slot to it; `bound` is what `bind_grant` says (_core_bind.c).
HIDDEN int binder_bind_request(PyObject *binder, PyObject *peer, uint64_t room, uint32_t slot, uint64_t epoch,
                               unsigned *bound);
// The meeting records of the language node, and its incarnation. Either node has at least so many slots.
HIDDEN int binder_there(PyObject *binder, uint64_t num_slots, uint64_t num_slots_there, word64 **meetings,
                        uint64_t *incarnation);
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

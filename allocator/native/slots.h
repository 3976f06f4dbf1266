// The next epoch of a slot, as its client opens it: record, claim, status word.
//
// No other process touches the slot until the status word says the next epoch, because all of them have released the
// one before. So a client that is killed between any two of these steps leaves a slot that nobody takes for open: its
// word and its record name different epochs, or the last one, which is released.
#ifndef EMBRIDGE_NATIVE_SLOTS_H
#define EMBRIDGE_NATIVE_SLOTS_H

#include "claims.h"
#include "records.h"
#include "status.h"

// Shut the claim of a slot for an epoch that is about to be opened.
static inline void claim_begin(word64 *claim, uint64_t epoch, uint64_t lane, uint64_t length)
{
    atomic_store_explicit(claim + 1, length << CLAIM_LANE_BITS | lane, memory_order_release);
    atomic_store_explicit(claim, claim_word(epoch, CLAIM_SHUT, 0), memory_order_release);
}

#define MAX_BLANKS 2

// What belongs to one slot.
struct slot_part {
    word64 *words;
    size_t count;
};

struct slot_opening {
    const uint64_t *values; // of the record's words
    bool is_untold;         // no process of the node is told of it yet (R78)
    struct slot_part record;
    struct slot_part blanks[MAX_BLANKS]; // tables of the slot that begin with zeroes
    word64 *claim;                       // NULL on an encode node
};

// Write the slot's record, then open its next epoch. Returns the epoch, or 0 where the epochs are used up. Only the
// slot's client calls it.
static inline uint64_t slot_open(const struct status_table *status, uint32_t slot, const struct slot_opening *opening,
                                 uint64_t now_ns)
{
    const uint64_t last = status_epoch(status_load(status, slot)), next = last + 1, *values = opening->values;
    word64 *record = opening->record.words;
    word_raise(&record[SLOT_RELEASED_EPOCH], last);
    for (size_t b = 0; b < MAX_BLANKS; b++)
        for (size_t i = 0; i < opening->blanks[b].count; i++)
            atomic_store_explicit(&opening->blanks[b].words[i], 0, memory_order_release);
    for (size_t i = 0; i < opening->record.count; i++) {
        if (i == SLOT_RELEASED_EPOCH) // it only rises
            continue;
        const uint64_t value = i == SLOT_TOLD && opening->is_untold ? next << TOLD_BITS | TOLD_UNTOLD : values[i];
        atomic_store_explicit(&record[i], value, memory_order_release);
    }
    if (opening->claim != NULL && next <= MAX_EPOCH)
        claim_begin(opening->claim, next, values[SLOT_LANE], values[SLOT_TOTAL]);
    // SYNC word: release; who finds that the record is about this epoch finds all of it.
    atomic_store_explicit(&record[SLOT_EPOCH], next, memory_order_release);
    return status_open(status, slot, now_ns);
}

#endif

// Which request a slot has, and who has it: what each process looks at before it touches a slot (R16, R78).
//
// A look is some loads, one after the other in the order in which they stand here: the status word, the record's epoch
// and what is released, whether the node is told, and last whether the slot's client lives. Nothing is written, so a
// SIGKILL between any two of them changes nothing; what was found may be over a moment later, and callers go by that.
#ifndef EMBRIDGE_NATIVE_CURRENT_H
#define EMBRIDGE_NATIVE_CURRENT_H

#include "records.h"
#include "status.h"

struct slot_looks {
    struct status_table status;
    const word64 *slots;
    const word64 *lanes;
    const word64 *pages; // `lane + 1` of who leases one; 0: nobody
    size_t slot_words;
    size_t lane_words;
    size_t num_lanes;
};

static inline uint64_t look_at(const word64 *word)
{
    // SYNC word: acquire, as every load of a record.
    return atomic_load_explicit(word, memory_order_acquire);
}

static inline const word64 *look_record(const struct slot_looks *looks, uint32_t slot)
{
    return &looks->slots[slot * looks->slot_words];
}

// Whether the slot's status word and its record are both about this epoch, and what is released is below it.
static inline bool slot_has_epoch(const struct slot_looks *looks, uint64_t slot, uint64_t epoch)
{
    if (slot >= looks->status.num_slots || status_epoch(status_load(&looks->status, (uint32_t)slot)) != epoch)
        return false;
    const word64 *record = look_record(looks, (uint32_t)slot);
    return look_at(&record[SLOT_EPOCH]) == epoch && look_at(&record[SLOT_RELEASED_EPOCH]) < epoch;
}

// What the slot's word says of whether the node's processes have this epoch; TOLD_TOLD where it is about another one.
static inline unsigned slot_told(const struct slot_looks *looks, uint64_t slot, uint64_t epoch)
{
    const uint64_t word = look_at(&look_record(looks, (uint32_t)slot)[SLOT_TOLD]);
    return word >> TOLD_BITS == epoch ? word & ((1u << TOLD_BITS) - 1) : TOLD_TOLD;
}

// Whether the slot's client lives; a lane that there is not has none.
static inline bool slot_has_client(const struct slot_looks *looks, uint64_t slot)
{
    const uint64_t lane = look_at(&look_record(looks, (uint32_t)slot)[SLOT_LANE]);
    return lane < looks->num_lanes && look_at(&looks->lanes[lane * looks->lane_words + LANE_STATE]) == ATTACHED_LANE;
}

// Whether this epoch of a slot has not been released, whoever has it.
static inline bool slot_is_open(const struct slot_looks *looks, uint64_t slot, uint64_t epoch)
{
    return slot_has_epoch(looks, slot, epoch) && slot_told(looks, slot, epoch) != TOLD_RELEASED;
}

// Whether the node's processes have this epoch of a slot: its client has told of it, or is dead.
static inline bool slot_is_current(const struct slot_looks *looks, uint64_t slot, uint64_t epoch)
{
    if (!slot_has_epoch(looks, slot, epoch))
        return false;
    const unsigned told = slot_told(looks, slot, epoch);
    return told == TOLD_TOLD || (told == TOLD_UNTOLD && !slot_has_client(looks, slot));
}

// Whether they have it and it has not ended.
static inline bool slot_is_live(const struct slot_looks *looks, uint64_t slot, uint64_t epoch)
{
    return slot_is_current(looks, slot, epoch) &&
           status_phase(status_load(&looks->status, (uint32_t)slot)) < FIRST_TERMINAL_PHASE;
}

// The epoch of the slot's request where that is open and of this room; else 0.
static inline uint64_t slot_open_in(const struct slot_looks *looks, uint32_t slot, uint64_t room)
{
    const uint64_t epoch = status_epoch(status_load(&looks->status, slot));
    const bool is_it = epoch != 0 && look_at(&look_record(looks, slot)[SLOT_ROOM]) == room;
    return is_it && slot_is_open(looks, slot, epoch) ? epoch : 0;
}

#endif

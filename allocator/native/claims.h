// Claims as their writers move them: who may write into the blocks of a slot.
//
//   claims [slot]   63        36 35     32 31     24 23            0
//                   | epoch:28  | state:4 | entry:8 | generation:24 |   then: length:32, lane:16
//
// `allocator/claims.py` has the whole life of a claim, and the moves of the language node. A writer makes these three:
// it takes an open claim of the epoch that it was granted, by one compare-and-swap; it says how long the request is
// while it holds the claim; and it gives the claim back by compare-and-swap from its own claim, whose state may have
// become `revoked` meanwhile (R28, R31). Where all rows are there it gives back an ended one (R81).
//
// Why a SIGKILL between any two instructions is safe: the claim names its writer, so whoever hears of the death ends
// the claim. Until then nobody else can take it, and no block of the request is anybody else's.
#ifndef EMBRIDGE_NATIVE_CLAIMS_H
#define EMBRIDGE_NATIVE_CLAIMS_H

#include "shared.h"

#define CLAIM_WORDS 2
#define CLAIM_WRITER_BITS 32
#define CLAIM_STATE_BITS 4
#define CLAIM_LANE_BITS 16

enum claim_state { CLAIM_SHUT, CLAIM_OPEN, CLAIM_WRITING, CLAIM_REVOKED, CLAIM_ENDED };

static inline uint64_t claim_word(uint64_t epoch, enum claim_state state, uint32_t writer)
{
    return (epoch << CLAIM_STATE_BITS | (uint64_t)state) << CLAIM_WRITER_BITS | writer;
}

static inline bool claim_move(word64 *claim, uint64_t before, uint64_t after)
{
    // SYNC claim: acquire, so that what is read under the claim is at least as new as when it was opened; release, so
    // that who ends a claim, or takes it next, sees what was written under it.
    return atomic_compare_exchange_strong_explicit(claim, &before, after, memory_order_acq_rel, memory_order_acquire);
}

// Claim the blocks of a request. False where the claim is not open for this epoch.
static inline bool claim_take(word64 *claim, uint64_t epoch, uint32_t writer)
{
    return claim_move(claim, claim_word(epoch, CLAIM_OPEN, 0), claim_word(epoch, CLAIM_WRITING, writer));
}

// The epoch that the claim is about.
static inline uint64_t claim_epoch(const word64 *claim)
{
    return atomic_load_explicit(claim, memory_order_acquire) >> (CLAIM_WRITER_BITS + CLAIM_STATE_BITS);
}

// The lane of the slot's client.
static inline uint64_t claim_lane(const word64 *claim)
{
    return atomic_load_explicit(claim + 1, memory_order_acquire) & ((1u << CLAIM_LANE_BITS) - 1);
}

// Say how long the request is: who holds its claim, before its status word says that rows have come.
static inline void claim_tell_length(word64 *claim, uint64_t length)
{
    atomic_store_explicit(claim + 1, length << CLAIM_LANE_BITS | claim_lane(claim), memory_order_release);
}

// Whether this writer holds the claim, and it was not revoked.
static inline bool claim_stands(const word64 *claim, uint64_t epoch, uint32_t writer)
{
    return atomic_load_explicit(claim, memory_order_acquire) == claim_word(epoch, CLAIM_WRITING, writer);
}

// Give the claim back: open, or ended where nobody is to write any more. False where it was revoked meanwhile: it is
// ended now, and somebody waits for that.
static inline bool claim_give_back(word64 *claim, uint64_t epoch, uint32_t writer, bool is_over)
{
    const enum claim_state state = is_over ? CLAIM_ENDED : CLAIM_OPEN;
    if (claim_move(claim, claim_word(epoch, CLAIM_WRITING, writer), claim_word(epoch, state, 0)))
        return true;
    claim_move(claim, claim_word(epoch, CLAIM_REVOKED, writer), claim_word(epoch, CLAIM_ENDED, 0));
    return false;
}

#endif

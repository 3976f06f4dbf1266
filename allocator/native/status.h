// Status words: one 64-bit word a slot that only ever increases, with the time of each phase's entry and dirty bits.
//
//   words    [slot]           63        36 35   33  32  31             0
//                             | epoch:28 |phase:3|whole|    sent:32     |     compared as one integer
//
//   stamps   [slot][5]        [0]     ns of the opening, all 64 bits
//                             [1..4]  | epoch's low 8 bits:8 | ns:56 |   0: not entered
//
//   dirty    [view][slot/64]  bit slot%64: the slot's word has changed since this view last looked
//
// Invariants. A word never decreases: every change but `open` is a compare-and-swap to a greater value, and `open`
// adds one to the epoch. A word whose phase is terminal changes only to the next epoch. A word that is whole stays so
// until its end, and fails only because its encode node says so, or is lost (R36). The word is the truth; stamps and
// bits follow it.
//
// Why a SIGKILL between any two instructions is safe: the word moves in one compare-and-swap, so it is changed or it
// is not. A writer that dies after it and before the bit leaves a change that the bitmap does not show:
// `status_compare` finds it. One that dies before the stamp leaves that phase's stamp to the next writer of the same
// phase, or missing. `open` clears the stamps before it moves the word: one that dies in between leaves the old epoch
// ended, as it was, without its times.
//
// Why stamps carry their epoch: a writer that has moved the word may be late with the stamp, and by then the slot may
// belong to the next request. Its stamp then bears an older epoch, and neither replaces a newer one nor is ever
// shown.
#ifndef EMBRIDGE_NATIVE_STATUS_H
#define EMBRIDGE_NATIVE_STATUS_H

#include "shared.h"

#define SENT_BITS 32
#define WHOLE_BIT (UINT64_C(1) << SENT_BITS)
#define PHASE_SHIFT (SENT_BITS + 1)
#define PHASE_BITS 3
#define EPOCH_BITS 28
#define MAX_EPOCH ((UINT64_C(1) << EPOCH_BITS) - 1)
#define NUM_PHASES 5
#define FIRST_TERMINAL_PHASE PHASE_SUCCESS
#define SLOTS_PER_PAGE 64
#define STAMP_NS_BITS 56
#define STAMP_NS_MASK ((UINT64_C(1) << STAMP_NS_BITS) - 1)

enum phase { PHASE_BOOTSTRAPPING, PHASE_WAITING, PHASE_TRANSFERRING, PHASE_SUCCESS, PHASE_FAILED };

struct status_table {
    word64 *words;
    word64 *stamps;
    word64 *dirty;
    uint32_t num_slots;
    uint32_t num_views;
};

static inline uint64_t status_word(uint64_t epoch, uint64_t phase, uint64_t sent)
{
    return epoch << (PHASE_BITS + PHASE_SHIFT) | phase << PHASE_SHIFT | sent;
}

static inline uint64_t status_epoch(uint64_t word) { return word >> (PHASE_BITS + PHASE_SHIFT); }

static inline uint64_t status_phase(uint64_t word) { return word >> PHASE_SHIFT & ((1u << PHASE_BITS) - 1); }

static inline uint64_t status_sent(uint64_t word) { return word & UINT32_MAX; }

static inline uint64_t status_load(const struct status_table *table, uint32_t slot)
{
    // SYNC status: acquire; who sees `sent` sees the rows that had landed before it was raised.
    return atomic_load_explicit(&table->words[slot], memory_order_acquire);
}

static inline word64 *status_page(const struct status_table *table, uint32_t view, uint32_t page)
{
    return &table->dirty[(size_t)view * (table->num_slots / SLOTS_PER_PAGE) + page];
}

static inline void status_mark(const struct status_table *table, uint32_t slot, uint32_t view)
{
    // SYNC dirty: release, so that who takes the bit loads a word at least as new as ours, and sees its stamp.
    atomic_fetch_or_explicit(status_page(table, view, slot / SLOTS_PER_PAGE), UINT64_C(1) << slot % SLOTS_PER_PAGE,
                             memory_order_release);
}

// Note the first entry into a phase of an epoch. A later entry, and a writer of an older epoch, change nothing.
static inline void status_stamp(const struct status_table *table, uint32_t slot, uint64_t epoch, uint64_t phase,
                                uint64_t now_ns)
{
    word64 *stamp = &table->stamps[(size_t)slot * NUM_PHASES + phase];
    const uint64_t mine = epoch << STAMP_NS_BITS | (now_ns & STAMP_NS_MASK);
    // Relaxed: the dirty bit that follows publishes it; who reads it earlier reads a time, and nothing hangs on that.
    uint64_t current = atomic_load_explicit(stamp, memory_order_relaxed);
    while (current == 0 || (int8_t)(uint8_t)((mine >> STAMP_NS_BITS) - (current >> STAMP_NS_BITS)) > 0) {
        if (atomic_compare_exchange_weak_explicit(stamp, &current, mine, memory_order_relaxed, memory_order_relaxed))
            return;
    }
}

// The times at which the phases of the slot's current epoch were first entered.
static inline void status_stamps(const struct status_table *table, uint32_t slot, uint64_t times[NUM_PHASES])
{
    const word64 *stamps = &table->stamps[(size_t)slot * NUM_PHASES];
    uint64_t epoch = status_epoch(status_load(table, slot));
    for (;;) {
        // Acquire: the second look at the epoch must not move before these.
        uint64_t opened = times[0] = atomic_load_explicit(&stamps[0], memory_order_acquire);
        for (int phase = 1; phase < NUM_PHASES; phase++) {
            uint64_t stamp = atomic_load_explicit(&stamps[phase], memory_order_acquire);
            bool entered = stamp != 0 && stamp >> STAMP_NS_BITS == (epoch & 0xFF);
            // The upper byte of the time is that of the opening: the difference, taken with its sign, is far below
            // 2^55 ns.
            int64_t since = (int64_t)((stamp - opened) << (64 - STAMP_NS_BITS)) >> (64 - STAMP_NS_BITS);
            times[phase] = entered ? opened + (uint64_t)since : 0;
        }
        uint64_t now = status_epoch(status_load(table, slot));
        if (now == epoch)
            return;
        epoch = now;
    }
}

// Begin the slot's next epoch. Returns it, or 0 when the epochs are used up. Only the slot's owner calls it.
static inline uint64_t status_open(const struct status_table *table, uint32_t slot, uint64_t now_ns)
{
    word64 *stamps = &table->stamps[(size_t)slot * NUM_PHASES];
    uint64_t word = atomic_load_explicit(&table->words[slot], memory_order_relaxed);
    for (;;) {
        const uint64_t epoch = status_epoch(word) + 1;
        if (epoch > MAX_EPOCH)
            return 0;
        for (int phase = 1; phase < NUM_PHASES; phase++)
            atomic_store_explicit(&stamps[phase], 0, memory_order_relaxed);
        atomic_store_explicit(&stamps[0], now_ns, memory_order_relaxed);
        // SYNC status: release; the owner has prepared the slot's record, and who sees the new epoch sees that
        // record. It is a compare-and-swap because a late writer of the old epoch may still raise a word that is not
        // terminal.
        if (atomic_compare_exchange_strong_explicit(&table->words[slot], &word, status_word(epoch, 0, 0),
                                                    memory_order_acq_rel, memory_order_relaxed))
            return epoch;
    }
}

// Say of a word that has moved what follows from that.
static inline void status_follow_up(const struct status_table *table, uint32_t slot, uint64_t epoch, uint64_t phase,
                                    uint64_t now_ns)
{
    status_stamp(table, slot, epoch, phase, now_ns); // before the bit, which publishes it
    for (uint32_t view = 0; view < table->num_views; view++)
        status_mark(table, slot, view);
}

static inline bool status_move(const struct status_table *table, uint32_t slot, uint64_t epoch, uint64_t phase,
                               uint64_t sent, uint64_t now_ns, bool may_fail_whole)
{
    uint64_t next, word = atomic_load_explicit(&table->words[slot], memory_order_relaxed);
    do {
        const uint64_t whole = word & WHOLE_BIT;
        next = status_word(epoch, phase, sent) | (phase < FIRST_TERMINAL_PHASE ? whole : 0);
        if (epoch == 0 || status_epoch(word) != epoch || status_phase(word) >= FIRST_TERMINAL_PHASE || next <= word)
            return false;
        if (whole && phase == PHASE_FAILED && !may_fail_whole)
            return false;
        // SYNC status: release publishes the rows that landed; acquire hands on what the previous writer published.
    } while (!atomic_compare_exchange_weak_explicit(&table->words[slot], &word, next, memory_order_acq_rel,
                                                    memory_order_relaxed));
    status_follow_up(table, slot, epoch, phase, now_ns);
    return true;
}

// Raise the slot's word to (epoch, phase, sent), or refuse: another epoch, a terminal phase, a value that is not
// greater; or Failed, where the word is whole.
static inline bool status_advance(const struct status_table *table, uint32_t slot, uint64_t epoch, uint64_t phase,
                                  uint64_t sent, uint64_t now_ns)
{
    return status_move(table, slot, epoch, phase, sent, now_ns, false);
}

// As `status_advance`; also to Failed where the word is whole, because the encode node says so, or is lost.
static inline bool status_obey(const struct status_table *table, uint32_t slot, uint64_t epoch, uint64_t phase,
                               uint64_t sent, uint64_t now_ns)
{
    return status_move(table, slot, epoch, phase, sent, now_ns, true);
}

// Say that all rows of the request are there, in this phase at least; `sent` stays. False: it has ended, or is of
// another epoch. Nobody need look, unless the phase has risen.
static inline bool status_make_whole(const struct status_table *table, uint32_t slot, uint64_t epoch, uint64_t least,
                                     uint64_t now_ns)
{
    uint64_t phase, word = atomic_load_explicit(&table->words[slot], memory_order_relaxed);
    do {
        phase = status_phase(word);
        if (status_epoch(word) != epoch || phase >= FIRST_TERMINAL_PHASE)
            return false;
        phase = phase > least ? phase : least;
        // SYNC status: release; who sees that it is whole sees its rows.
    } while (!atomic_compare_exchange_weak_explicit(&table->words[slot], &word,
                                                    status_word(epoch, phase, status_sent(word)) | WHOLE_BIT,
                                                    memory_order_acq_rel, memory_order_relaxed));
    if (phase != status_phase(word))
        status_follow_up(table, slot, epoch, phase, now_ns);
    return true;
}

// Take the dirty bits of `pages` in a view; the slots go into `out`, which has `room`, and their words, as they are
// then, into `words`, unless that is NULL. Stops before a page that might not fit.
static inline size_t status_changed(const struct status_table *table, uint32_t view, const uint32_t *pages,
                                    size_t num_pages, uint32_t *out, uint64_t *words, size_t room)
{
    const uint32_t all_pages = table->num_slots / SLOTS_PER_PAGE;
    size_t count = 0;
    for (size_t i = 0; i < num_pages; i++) {
        const uint32_t page = pages[i];
        if (page >= all_pages) // the caller has checked, but the array may be shared
            continue;
        word64 *bits = status_page(table, view, page);
        // Relaxed: a bit that is set a moment later is seen by the next call, as if it had been set then.
        if (atomic_load_explicit(bits, memory_order_relaxed) == 0)
            continue;
        if (room - count < SLOTS_PER_PAGE)
            break;
        // SYNC dirty: acquire; the words loaded after this are at least as new as the bits.
        for (uint64_t taken = atomic_exchange_explicit(bits, 0, memory_order_acquire); taken; taken &= taken - 1) {
            const uint32_t slot = page * SLOTS_PER_PAGE + (uint32_t)__builtin_ctzll(taken);
            if (words != NULL)
                words[count] = status_load(table, slot);
            out[count++] = slot;
        }
    }
    return count;
}

// Compare every word of `pages` with `seen`; those that differ go into `out` and are updated in `seen`. Stops when
// `out` is full.
static inline size_t status_compare(const struct status_table *table, const uint32_t *pages, size_t num_pages,
                                    uint64_t *seen, uint32_t *out, size_t room)
{
    const uint32_t all_pages = table->num_slots / SLOTS_PER_PAGE;
    size_t count = 0;
    for (size_t i = 0; i < num_pages; i++) {
        const uint32_t page = pages[i];
        if (page >= all_pages)
            continue;
        for (uint32_t slot = page * SLOTS_PER_PAGE; slot < (page + 1) * SLOTS_PER_PAGE; slot++) {
            const uint64_t word = status_load(table, slot);
            if (word == seen[slot])
                continue;
            if (count == room)
                return count;
            seen[slot] = word;
            out[count++] = slot;
        }
    }
    return count;
}

#endif

// A reader's pins: words of its own ledger, each of which its threads share by turns (R42).
//
// A pin is stored, and then head and floor are looked at again: only then does it hold (R41, R48). All that was read
// of the entry before is of that generation, for its head has not changed meanwhile. Who finds another generation in
// the word, which another thread pins, looks the key up again.
#ifndef EMBRIDGE_NATIVE_SHELF_PINS_H
#define EMBRIDGE_NATIVE_SHELF_PINS_H

#include "shelf.h"

struct shelf_reader {
    struct shelf shelf; // without ledgers; `uses` alone is written to
    word64 *ledger;
    uint32_t *counts; // of each word's users; private, changed by one thread at a time
};

static inline void shelf_unpin(struct shelf_reader *r, uint32_t entry)
{
    if (--r->counts[entry] == 0)
        // SYNC pin: release, what was read under it is read.
        atomic_store_explicit(&r->ledger[entry], 0, memory_order_release);
}

// Find the newest item of a key, and pin it. False: it is not published, or stopped.
static inline bool shelf_pin(struct shelf_reader *r, const struct shelf_key *key, uint64_t now_ns,
                             struct shelf_found *found)
{
    struct shelf *s = &r->shelf;
    while (!s->is_stopped && shelf_find(s, key, now_ns, found)) {
        const uint32_t entry = found->entry;
        const uint64_t generation = found->generation;
        if (r->counts[entry] > 0) {
            const uint64_t pinned = atomic_load_explicit(&r->ledger[entry], memory_order_relaxed);
            if (pinned == 0) // the node has buried this reader
                return false;
            if (pinned != generation)
                continue;
        }
        if (r->counts[entry]++ == 0) {
            if (!shelf_may(s, SHELF_STEP_PIN))
                return false;
            // SYNC pin: sequentially consistent, before the look that follows.
            atomic_store_explicit(&r->ledger[entry], generation, memory_order_seq_cst);
        }
        const uint64_t head = shelf_look_at(s, entry);
        if (head_state(head) == SHELF_READY && head_generation(head) == generation && generation >= shelf_floor(s)) {
            atomic_store_explicit(&s->uses[entry], now_ns, memory_order_relaxed);
            return true;
        }
        shelf_unpin(r, entry);
    }
    return false;
}

// Share the pin that a dead process of this reader has left. False: there is none of that generation.
static inline bool shelf_adopt(struct shelf_reader *r, uint32_t entry, uint64_t generation, struct shelf_found *found)
{
    const word64 *item = shelf_item(&r->shelf, entry);
    if (generation == 0 || atomic_load_explicit(&r->ledger[entry], memory_order_relaxed) != generation)
        return false;
    for (unsigned i = 0; i <= ITEM_KEY_BYTES; i++)
        found->words[i] = item_load(item, i); // which stays, for it was pinned all the time
    found->entry = entry;
    found->generation = generation;
    r->counts[entry]++;
    return true;
}

// Take away the pins of this reader that nobody in this process has.
static inline void shelf_forget_others(struct shelf_reader *r)
{
    for (uint32_t entry = 0; entry < r->shelf.num_entries; entry++)
        if (r->counts[entry] == 0 && atomic_load_explicit(&r->ledger[entry], memory_order_relaxed) != 0)
            // SYNC pin: release, what was read under it is read.
            atomic_store_explicit(&r->ledger[entry], 0, memory_order_release);
}

#endif

// The shelf: items under keys, each a run of blocks, published, looked up, pinned and retired without a lock.
//
//   heads   [entry]    63             20 19     16 15     0
//                      | generation:44  | state:4 | lane:16 |      of whoever fills it
//   items   [entry]    number, hash, where its blocks are, what its rows are, when it expires; the key
//   cells   [block]    | generation:44  | entry:20 |      0: the block is free
//   uses    [entry]    when it was used last; a hint
//   ledgers [reader][entry]    the generation that the reader pins, or 0
//
//   over --begin--> filling --show--> showing --> ready --retire--> retired --finish--> over
//                      |                 |                             ^
//                      |                 +---- bury (of its publisher) |
//                      +--- drop --> over                     bury ----+
//
// Invariants. Heads only rise, for a generation is drawn after the look at the head that it replaces (R39). All of an
// item is written before its head is READY (R40). A block is freed by compare-and-swap from its entry and generation
// (R44), and its range stands in the record before its first cell is taken; so whoever finds a head RETIRED can finish
// it. A pin is stored, and then the head is looked at again; who retires moves the head first, and then looks through
// the ledgers: all four are sequentially consistent (R41, R43). Items of a key are in the order of their numbers, which
// are set while the head is SHOWING; whoever retires one completes those of its key that are SHOWING first (R84).
//
// Why a SIGKILL between any two instructions is safe: an entry that is FILLING or SHOWING names its lane, which is
// buried before it is another's (R45), and RETIRED is finished by whoever needs room. A dead reader's pins are words of
// its own ledger, which is cleared before it is another's (R42).
//
// Where a test asks (`before`), a call says before each of its changes which one that is, and can be ended there.
#ifndef EMBRIDGE_NATIVE_SHELF_H
#define EMBRIDGE_NATIVE_SHELF_H

#include "shared.h"

#ifndef SHELF_WAYS
#define SHELF_WAYS 16 // of a set; a key has two sets
#endif
#define MAX_LOOK (2 * SHELF_WAYS)
#define SHELF_KEY_WORDS 32
#define SHELF_LANE_BITS 16
#define SHELF_STATE_BITS 4
#define SHELF_ENTRY_BITS 20
#define SHELF_GENERATION_SHIFT (SHELF_LANE_BITS + SHELF_STATE_BITS)
#define MAX_GENERATION_DRAWN ((UINT64_C(1) << 44) - 1)

// In this order within a generation; a free entry is OVER.
enum shelf_state { SHELF_FILLING = 1, SHELF_SHOWING, SHELF_READY, SHELF_RETIRED, SHELF_OVER };

// Words of the shelf's own record.
enum { SHELF_DRAWN, SHELF_FLOOR, SHELF_READERS };

// Words of an item's record.
enum {
    ITEM_NUMBER,
    ITEM_HASH,
    ITEM_FIRST = ITEM_HASH + 2,
    ITEM_BLOCKS,
    ITEM_BYTES,
    ITEM_ROWS,
    ITEM_WIDTH,
    ITEM_DTYPE,
    ITEM_EXPIRES,
    ITEM_KEY_BYTES,
    ITEM_KEY = 16,
    ITEM_WORDS = ITEM_KEY + SHELF_KEY_WORDS
};

// What a call is about to change.
enum shelf_step {
    SHELF_STEP_TAKE,
    SHELF_STEP_RECORD,
    SHELF_STEP_BLOCK,
    SHELF_STEP_SHOW,
    SHELF_STEP_NUMBER,
    SHELF_STEP_READY,
    SHELF_STEP_RETIRE,
    SHELF_STEP_FREE,
    SHELF_STEP_OVER,
    SHELF_STEP_FLOOR,
    SHELF_STEP_PIN,
    SHELF_STEP_GIVE_BACK,
};

struct shelf_key {
    uint64_t hash[2], bytes, words[SHELF_KEY_WORDS]; // the last word of the key is filled up with zeroes
};

struct shelf {
    word64 *record, *heads, *items, *cells, *uses;
    word64 *ledgers; // of all readers; a reader has its own alone
    uint32_t num_entries, num_blocks, num_readers;
    uint64_t ledger_words;                            // from one reader's to the next one's
    bool (*before)(struct shelf *, enum shelf_step); // or NULL
    bool is_stopped;                                 // by `before`
    // Private from here on.
    uint32_t next_block; // where the search for free blocks goes on
    uint64_t *costs;     // of each run of blocks: see `shelf_window`
};

static inline bool shelf_may(struct shelf *s, enum shelf_step step)
{
    if (__builtin_expect(s->before == NULL, true))
        return true;
    s->is_stopped |= !s->before(s, step);
    return !s->is_stopped;
}

static inline uint64_t shelf_head(uint64_t generation, enum shelf_state state, uint64_t lane)
{
    return generation << SHELF_GENERATION_SHIFT | (uint64_t)state << SHELF_LANE_BITS | lane;
}

static inline uint64_t head_generation(uint64_t head) { return head >> SHELF_GENERATION_SHIFT; }

static inline uint64_t head_lane(uint64_t head) { return head & ((1u << SHELF_LANE_BITS) - 1); }

// What is no head at all counts as OVER: a fresh one is 0.
static inline enum shelf_state head_state(uint64_t head)
{
    const unsigned state = head >> SHELF_LANE_BITS & ((1u << SHELF_STATE_BITS) - 1);
    return state >= SHELF_FILLING && state < SHELF_OVER ? (enum shelf_state)state : SHELF_OVER;
}

static inline uint64_t head_in_state(uint64_t head, enum shelf_state state)
{
    return shelf_head(head_generation(head), state, head_lane(head));
}

static inline uint64_t shelf_cell(uint64_t generation, uint32_t entry)
{
    return generation << SHELF_ENTRY_BITS | entry;
}

static inline uint64_t shelf_look_at(const struct shelf *s, uint32_t entry)
{
    // SYNC head: sequentially consistent, and so an acquire: what was written before the head rose is there; and a look
    // behind a pin is a look after it.
    return atomic_load_explicit(&s->heads[entry], memory_order_seq_cst);
}

static inline bool shelf_move(struct shelf *s, uint32_t entry, uint64_t before, uint64_t after)
{
    // SYNC head: sequentially consistent, and so a release.
    return atomic_compare_exchange_strong_explicit(&s->heads[entry], &before, after, memory_order_seq_cst,
                                                   memory_order_seq_cst);
}

static inline word64 *shelf_item(const struct shelf *s, uint32_t entry)
{
    return &s->items[(size_t)entry * ITEM_WORDS];
}

static inline uint64_t item_load(const word64 *item, unsigned word)
{
    // SYNC item: acquire; a look at the head after it is after it.
    return atomic_load_explicit(&item[word], memory_order_acquire);
}

static inline void item_store(word64 *item, unsigned word, uint64_t value)
{
    // SYNC item: release; whoever sees it sees the head that was moved before it, or a later one.
    atomic_store_explicit(&item[word], value, memory_order_release);
}

static inline uint64_t shelf_draw(struct shelf *s)
{
    return (atomic_fetch_add_explicit(&s->record[SHELF_DRAWN], 1, memory_order_seq_cst) + 1) & MAX_GENERATION_DRAWN;
}

static inline uint64_t shelf_floor(const struct shelf *s)
{
    return atomic_load_explicit(&s->record[SHELF_FLOOR], memory_order_seq_cst);
}

// ---- where the entries of a key are

static inline uint32_t shelf_num_ways(const struct shelf *s)
{
    return s->num_entries > SHELF_WAYS ? 2 * SHELF_WAYS : SHELF_WAYS;
}

// The entry that is the i-th way of a hash.
static inline uint32_t shelf_way(const struct shelf *s, const uint64_t hash[2], uint32_t i)
{
    const uint32_t num_sets = s->num_entries / SHELF_WAYS, first = (uint32_t)(hash[0] % num_sets);
    if (i < SHELF_WAYS)
        return first * SHELF_WAYS + i;
    const uint32_t other = (uint32_t)(hash[1] % (num_sets - 1)); // each set but the first one
    return (other + (other >= first)) * SHELF_WAYS + i - SHELF_WAYS;
}

// Whether the record is of this key; it counts if the head has not changed since before.
static inline bool item_has(const word64 *item, const struct shelf_key *key)
{
    if (item_load(item, ITEM_HASH) != key->hash[0] || item_load(item, ITEM_HASH + 1) != key->hash[1] ||
        item_load(item, ITEM_KEY_BYTES) != key->bytes)
        return false;
    for (unsigned i = 0; i < (key->bytes + 7) / 8; i++)
        if (item_load(item, ITEM_KEY + i) != key->words[i])
            return false;
    return true;
}

// ---- looking a key up

struct shelf_found {
    uint32_t entry;
    uint64_t generation;
    uint64_t words[ITEM_KEY_BYTES + 1]; // of its record; its number is the first
};

// One look at one entry: whether it is READY with this key, and may be seen. `found` is of one generation then.
static inline bool shelf_sees(const struct shelf *s, uint32_t entry, uint64_t head, const struct shelf_key *key,
                              struct shelf_found *found)
{
    const word64 *item = shelf_item(s, entry);
    if (head_state(head) != SHELF_READY || head_generation(head) < shelf_floor(s) || !item_has(item, key))
        return false;
    for (unsigned i = 0; i <= ITEM_KEY_BYTES; i++)
        found->words[i] = item_load(item, i);
    found->entry = entry;
    found->generation = head_generation(head);
    return shelf_look_at(s, entry) == head;
}

// The newest item of the key that may be seen (R47), if it has not expired: the older ones are no longer seen then,
// either. False: it is not published, as two equal looks have shown (R46).
static inline bool shelf_find(const struct shelf *s, const struct shelf_key *key, uint64_t now_ns,
                              struct shelf_found *best)
{
    uint64_t seen[MAX_LOOK];
    const uint32_t num_ways = shelf_num_ways(s);
    for (bool again = false;; again = true) {
        bool has_changed = !again;
        struct shelf_found found;
        best->words[ITEM_NUMBER] = 0; // which nothing has that is READY
        for (uint32_t i = 0; i < num_ways; i++) {
            const uint32_t entry = shelf_way(s, key->hash, i);
            const uint64_t head = shelf_look_at(s, entry);
            has_changed |= again && seen[i] != head;
            seen[i] = head;
            if (shelf_sees(s, entry, head, key, &found) && found.words[ITEM_NUMBER] > best->words[ITEM_NUMBER])
                *best = found;
        }
        if (best->words[ITEM_NUMBER] && (best->words[ITEM_EXPIRES] == 0 || now_ns < best->words[ITEM_EXPIRES]))
            return true;
        if (!has_changed)
            return false;
    }
}

// Whether somebody else fills an entry with this key; a hint, for its record may be half written.
static inline bool shelf_is_filled(const struct shelf *s, const struct shelf_key *key)
{
    for (uint32_t i = 0; i < shelf_num_ways(s); i++) {
        const uint32_t entry = shelf_way(s, key->hash, i);
        const uint64_t head = shelf_look_at(s, entry);
        const enum shelf_state state = head_state(head);
        if ((state == SHELF_FILLING || state == SHELF_SHOWING) && head_generation(head) >= shelf_floor(s) &&
            item_has(shelf_item(s, entry), key) && shelf_look_at(s, entry) == head)
            return true;
    }
    return false;
}

// ---- the end of an item

// Whether a reader pins that generation.
static inline bool shelf_is_pinned(const struct shelf *s, uint32_t entry, uint64_t generation)
{
    const uint64_t used = atomic_load_explicit(&s->record[SHELF_READERS], memory_order_seq_cst);
    const uint32_t num_readers = used < s->num_readers ? (uint32_t)used : s->num_readers;
    for (uint32_t r = 0; r < num_readers; r++) {
        // SYNC pin: sequentially consistent; after the head has risen to RETIRED, each later look at that finds it so.
        if (atomic_load_explicit(&s->ledgers[r * s->ledger_words + entry], memory_order_seq_cst) == generation)
            return true;
    }
    return false;
}

// Free the blocks of an entry that are of this generation.
static inline bool shelf_free_blocks(struct shelf *s, uint32_t entry, uint64_t generation)
{
    const word64 *item = shelf_item(s, entry);
    const uint64_t first = item_load(item, ITEM_FIRST), count = item_load(item, ITEM_BLOCKS);
    if (first > s->num_blocks || count > s->num_blocks - first)
        return true; // of another generation by now: the head has risen
    for (uint64_t block = first; block < first + count; block++) {
        uint64_t owner = shelf_cell(generation, entry);
        if (atomic_load_explicit(&s->cells[block], memory_order_relaxed) != owner)
            continue;
        if (!shelf_may(s, SHELF_STEP_FREE))
            return false;
        // SYNC block: release, what was read there is read; acquire, by who takes it next.
        atomic_compare_exchange_strong_explicit(&s->cells[block], &owner, 0, memory_order_acq_rel,
                                                memory_order_relaxed);
    }
    return true;
}

// Finish a retired entry, whoever has retired it. False: it is pinned, it is not retired, or stopped.
static inline bool shelf_finish(struct shelf *s, uint32_t entry)
{
    const uint64_t head = shelf_look_at(s, entry), generation = head_generation(head);
    if (head_state(head) != SHELF_RETIRED || shelf_is_pinned(s, entry, generation) ||
        !shelf_free_blocks(s, entry, generation) || !shelf_may(s, SHELF_STEP_OVER))
        return false;
    return shelf_move(s, entry, head, shelf_head(generation, SHELF_OVER, 0));
}

// Set the number of an item that is SHOWING, where nobody has, and make it READY. False: stopped.
static inline bool shelf_complete(struct shelf *s, uint32_t entry, uint64_t head)
{
    uint64_t unset = head_generation(head);
    const uint64_t number = shelf_draw(s);
    if (!shelf_may(s, SHELF_STEP_NUMBER))
        return false;
    atomic_compare_exchange_strong_explicit(&shelf_item(s, entry)[ITEM_NUMBER], &unset, number, memory_order_seq_cst,
                                            memory_order_acquire);
    if (!shelf_may(s, SHELF_STEP_READY))
        return false;
    shelf_move(s, entry, head, head_in_state(head, SHELF_READY));
    return true;
}

struct shelf_older {
    uint64_t number;   // what is below is older
    uint32_t num_gone; // out: how many were retired
    bool has_newer;    // out
};

// Retire the items of a key that are older than a number; complete those that are SHOWING first. False: stopped.
static inline bool shelf_retire_older(struct shelf *s, const struct shelf_key *key, struct shelf_older *older)
{
    for (uint32_t i = 0; i < shelf_num_ways(s); i++) {
        const uint32_t entry = shelf_way(s, key->hash, i);
        for (;;) {
            const uint64_t head = shelf_look_at(s, entry);
            const enum shelf_state state = head_state(head);
            if ((state != SHELF_READY && state != SHELF_SHOWING) || !item_has(shelf_item(s, entry), key))
                break;
            const uint64_t number = item_load(shelf_item(s, entry), ITEM_NUMBER);
            if (shelf_look_at(s, entry) != head)
                continue;
            if (state == SHELF_SHOWING) {
                if (!shelf_complete(s, entry, head))
                    return false;
                continue;
            }
            older->has_newer |= number > older->number && head_generation(head) >= shelf_floor(s);
            if (number >= older->number)
                break;
            if (!shelf_may(s, SHELF_STEP_RETIRE))
                return false;
            older->num_gone += shelf_move(s, entry, head, head_in_state(head, SHELF_RETIRED));
            shelf_finish(s, entry);
            break;
        }
    }
    return !s->is_stopped;
}

// The key of an entry, if its head is still that one.
static inline bool shelf_key_of(const struct shelf *s, uint32_t entry, uint64_t head, struct shelf_key *key)
{
    const word64 *item = shelf_item(s, entry);
    key->hash[0] = item_load(item, ITEM_HASH);
    key->hash[1] = item_load(item, ITEM_HASH + 1);
    key->bytes = item_load(item, ITEM_KEY_BYTES);
    if (key->bytes > 8 * SHELF_KEY_WORDS)
        return false;
    for (unsigned i = 0; i < (key->bytes + 7) / 8; i++)
        key->words[i] = item_load(item, ITEM_KEY + i);
    return shelf_look_at(s, entry) == head;
}

// Take an item away: first what is older of its key, then itself; and finish it where nobody pins it. True: it is
// retired now.
static inline bool shelf_evict(struct shelf *s, uint32_t entry, uint64_t head)
{
    struct shelf_key key;
    const uint64_t number = item_load(shelf_item(s, entry), ITEM_NUMBER);
    if (head_state(head) != SHELF_READY || !shelf_key_of(s, entry, head, &key))
        return false;
    struct shelf_older older = {.number = number};
    const bool may_be_seen = head_generation(head) >= shelf_floor(s); // else nothing is older or newer than it
    if ((may_be_seen && !shelf_retire_older(s, &key, &older)) || !shelf_may(s, SHELF_STEP_RETIRE))
        return false;
    const bool is_retired = shelf_move(s, entry, head, head_in_state(head, SHELF_RETIRED));
    shelf_finish(s, entry);
    return is_retired;
}

// Finish all that is retired and not pinned; retire what is below the floor, first. Returns how many entries came free.
static inline uint32_t shelf_sweep(struct shelf *s)
{
    uint32_t freed = 0;
    for (uint32_t entry = 0; entry < s->num_entries && !s->is_stopped; entry++) {
        const uint64_t head = shelf_look_at(s, entry);
        if (head_state(head) == SHELF_READY && head_generation(head) < shelf_floor(s) &&
            shelf_may(s, SHELF_STEP_RETIRE))
            shelf_move(s, entry, head, head_in_state(head, SHELF_RETIRED));
        freed += shelf_finish(s, entry);
    }
    return freed;
}

// ---- the dead

// Retire what a publisher has left that can write no more, and finish it (R45). Its lane is nobody's yet.
static inline uint32_t shelf_bury_publisher(struct shelf *s, uint64_t lane)
{
    uint32_t num_buried = 0;
    for (uint32_t entry = 0; entry < s->num_entries && !s->is_stopped; entry++) {
        const uint64_t head = shelf_look_at(s, entry);
        const enum shelf_state state = head_state(head);
        if ((state == SHELF_FILLING || state == SHELF_SHOWING) && head_lane(head) == lane) {
            if (!shelf_may(s, SHELF_STEP_RETIRE))
                return num_buried;
            num_buried += shelf_move(s, entry, head, head_in_state(head, SHELF_RETIRED));
        }
        shelf_finish(s, entry);
    }
    return num_buried;
}

// Clear the ledger of a reader that can read no more, before it is another's (R42).
static inline void shelf_bury_reader(struct shelf *s, uint32_t reader)
{
    for (uint32_t entry = 0; entry < s->num_entries; entry++)
        // SYNC pin: release, what was read under it is read.
        atomic_store_explicit(&s->ledgers[reader * s->ledger_words + entry], 0, memory_order_release);
}

#endif

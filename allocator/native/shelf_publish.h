// Publishing on the shelf: an entry and a run of blocks for an item, and the room for them.
//
// A run is one stretch of blocks, so that a reader has the rows as one array. Where no stretch is free, a window of
// blocks is chosen whose items were all used the longest ago, and these are evicted; if there is none without a pinned
// item, nothing is evicted at all. Who still finds no room gives back what it has (R49).
#ifndef EMBRIDGE_NATIVE_SHELF_PUBLISH_H
#define EMBRIDGE_NATIVE_SHELF_PUBLISH_H

#include "shelf.h"

#define SHELF_STRIDE 32 // blocks that are passed over at once where both ends are one owner's
#define SHELF_TRIES 8 // of a publication for blocks that others take meanwhile
#define NO_COST 0     // of a run that is free, or can be freed without taking anything from anybody
#define NO_WAY UINT64_MAX

enum shelf_answer {
    SHELF_BEGUN,
    SHELF_ALREADY, // an equal one is READY
    SHELF_OTHERS,  // somebody else fills it
    SHELF_NO_ENTRY,
    SHELF_NO_ROOM,
    SHELF_STOPPED, // by `before`
};

struct shelf_publication {
    struct shelf_key key;
    uint64_t blocks, bytes, rows, width, dtype, expires_ns, now_ns, lane;
    bool replaces;
    // out
    uint32_t entry, num_evicted;
    uint64_t generation, first, number;
};

// ---- room

struct shelf_run {
    uint64_t first, cost;
};

// What it costs to have the blocks of an entry: when it was used last; nothing, where nobody may see it any more; and
// there is no way while it is pinned, or filled.
static inline uint64_t shelf_cost(const struct shelf *s, uint32_t entry, uint64_t now_ns)
{
    const uint64_t head = shelf_look_at(s, entry), generation = head_generation(head);
    const enum shelf_state state = head_state(head);
    if (state == SHELF_FILLING || state == SHELF_SHOWING || shelf_is_pinned(s, entry, generation))
        return NO_WAY;
    if (state != SHELF_READY || generation < shelf_floor(s))
        return NO_COST;
    const uint64_t expires = item_load(shelf_item(s, entry), ITEM_EXPIRES);
    const uint64_t used = atomic_load_explicit(&s->uses[entry], memory_order_relaxed);
    return expires != 0 && now_ns >= expires ? NO_COST : used < 1 ? 1 : used < NO_WAY ? used : NO_WAY - 1;
}

// Where a stretch of free blocks begins that lies between two. It is looked at from its end: so of a full shelf, one
// block of each `want` is.
static inline bool shelf_free_between(const struct shelf *s, uint64_t begin, uint64_t end, uint64_t want,
                                      uint64_t *first)
{
    while (begin + want <= end) {
        uint64_t block = begin + want;
        while (block > begin && atomic_load_explicit(&s->cells[block - 1], memory_order_relaxed) == 0)
            block--;
        if (block == begin) {
            *first = begin;
            return true;
        }
        begin = block; // the one before is somebody's
    }
    return false;
}

// Where a stretch of free blocks begins, looked for from where the last one ended.
static inline bool shelf_free_run(const struct shelf *s, uint64_t want, uint64_t *first)
{
    const uint64_t next = s->next_block, around = next + want - 1;
    return shelf_free_between(s, next, s->num_blocks, want, first) ||
           shelf_free_between(s, 0, around < s->num_blocks ? around : s->num_blocks, want, first);
}

// Where the stretch of one owner, or of nobody, ends that begins at a block. A hint: others change it meanwhile.
static inline uint64_t shelf_end_of_run(const struct shelf *s, uint64_t block, uint64_t cell)
{
    block++;
    while (cell != 0 && block + SHELF_STRIDE <= s->num_blocks &&
           atomic_load_explicit(&s->cells[block + SHELF_STRIDE - 1], memory_order_relaxed) == cell)
        block += SHELF_STRIDE; // what lies between is that owner's, too
    while (block < s->num_blocks && atomic_load_explicit(&s->cells[block], memory_order_relaxed) == cell)
        block++;
    return block;
}

// The blocks as stretches of one owner each, with what each costs. Returns how many there are.
static inline uint32_t shelf_runs(struct shelf *s, uint64_t now_ns, struct shelf_run *runs)
{
    const uint32_t most = 2 * s->num_entries + 1;
    uint32_t num_runs = 0;
    for (uint64_t block = 0; block < s->num_blocks; num_runs++) {
        const uint64_t cell = atomic_load_explicit(&s->cells[block], memory_order_relaxed);
        const uint64_t entry = cell & ((1u << SHELF_ENTRY_BITS) - 1);
        uint64_t cost = cell == 0 ? NO_COST : NO_WAY;
        if (cell != 0 && entry < s->num_entries)
            cost = shelf_cost(s, (uint32_t)entry, now_ns);
        if (num_runs == most) { // others change them meanwhile
            runs[num_runs - 1].cost = NO_WAY;
            break;
        }
        runs[num_runs] = (struct shelf_run){block, cost};
        block = shelf_end_of_run(s, block, cell);
    }
    return num_runs;
}

// The window of blocks that costs least: of the most recent use in each, the one that is the longest ago. False: there
// is none.
static inline bool shelf_window(struct shelf *s, uint64_t want, uint64_t now_ns, uint64_t *first)
{
    struct shelf_run *runs = (struct shelf_run *)(void *)s->costs;
    uint64_t *queue = s->costs + 2 * (2 * s->num_entries + 1); // of runs, dearest first
    const uint32_t num_runs = shelf_runs(s, now_ns, runs);
    uint64_t least = NO_WAY, head = 0, tail = 0;
    uint32_t end = 0; // of the window, a run
    for (uint32_t begin = 0; begin < num_runs; begin++) {
        const uint64_t until = runs[begin].first + want;
        if (until > s->num_blocks)
            break;
        for (; end < num_runs && runs[end].first < until; end++) {
            while (tail > head && runs[queue[tail - 1]].cost <= runs[end].cost)
                tail--;
            queue[tail++] = end;
        }
        while (queue[head] < begin)
            head++;
        if (runs[queue[head]].cost < least) {
            least = runs[queue[head]].cost;
            *first = runs[begin].first;
        }
    }
    return least != NO_WAY;
}

// Take away what lies in a window.
static inline void shelf_clear_window(struct shelf *s, struct shelf_publication *p, uint64_t first)
{
    for (uint64_t block = first; block < first + p->blocks && !s->is_stopped; block++) {
        const uint64_t cell = atomic_load_explicit(&s->cells[block], memory_order_relaxed);
        const uint64_t entry = cell & ((1u << SHELF_ENTRY_BITS) - 1);
        if (cell == 0 || entry >= s->num_entries)
            continue;
        const uint64_t head = shelf_look_at(s, (uint32_t)entry);
        if (head_generation(head) != cell >> SHELF_ENTRY_BITS)
            continue;
        if (head_state(head) == SHELF_READY)
            p->num_evicted += shelf_evict(s, (uint32_t)entry, head);
        else
            shelf_finish(s, (uint32_t)entry);
    }
}

// Take the blocks from `first` on. False: somebody has one of them, and all of ours were given back; or stopped.
static inline bool shelf_take(struct shelf *s, struct shelf_publication *p, uint64_t first)
{
    const uint64_t owner = shelf_cell(p->generation, p->entry);
    if (!shelf_may(s, SHELF_STEP_RECORD))
        return false;
    item_store(shelf_item(s, p->entry), ITEM_FIRST, first); // before the first cell: see `shelf_free_blocks`
    for (uint64_t block = first; block < first + p->blocks; block++) {
        uint64_t nobody = 0;
        if (!shelf_may(s, SHELF_STEP_BLOCK))
            return false;
        // SYNC block: acquire, what its last readers have read is read.
        if (!atomic_compare_exchange_strong_explicit(&s->cells[block], &nobody, owner, memory_order_acq_rel,
                                                     memory_order_relaxed)) {
            shelf_free_blocks(s, p->entry, p->generation);
            return false;
        }
    }
    p->first = first;
    s->next_block = (uint32_t)(first + p->blocks);
    return true;
}

static inline bool shelf_find_room(struct shelf *s, struct shelf_publication *p)
{
    uint64_t first = 0;
    for (int i = 0; i < SHELF_TRIES && !s->is_stopped; i++) {
        if (shelf_free_run(s, p->blocks, &first)) {
            if (shelf_take(s, p, first))
                return true;
        } else if (shelf_window(s, p->blocks, p->now_ns, &first)) {
            shelf_clear_window(s, p, first);
            if (!s->is_stopped && shelf_take(s, p, first))
                return true;
        } else {
            return false;
        }
    }
    return false;
}

// ---- an entry

// A free way of the key; else one whose item was used the longest ago is evicted. False: there is none, or stopped.
static inline bool shelf_find_entry(struct shelf *s, struct shelf_publication *p, uint64_t *head)
{
    for (int i = 0; i < SHELF_TRIES && !s->is_stopped; i++) {
        uint64_t least = NO_WAY;
        for (uint32_t k = 0; k < shelf_num_ways(s); k++) {
            const uint32_t entry = shelf_way(s, p->key.hash, k);
            *head = shelf_look_at(s, entry);
            if (head_state(*head) == SHELF_RETIRED && shelf_finish(s, entry))
                *head = shelf_look_at(s, entry);
            if (head_state(*head) == SHELF_OVER) {
                p->entry = entry;
                return true;
            }
        }
        for (uint32_t k = 0; k < shelf_num_ways(s); k++) {
            const uint64_t cost = shelf_cost(s, shelf_way(s, p->key.hash, k), p->now_ns);
            if (cost < least) {
                least = cost;
                p->entry = shelf_way(s, p->key.hash, k);
            }
        }
        if (least == NO_WAY)
            return false;
        p->num_evicted += shelf_evict(s, p->entry, shelf_look_at(s, p->entry));
    }
    return false;
}

// Nothing was published, and nothing of it is left; if it replaces, the older ones are retired all the same (R47).
static inline void shelf_drop_older(struct shelf *s, struct shelf_publication *p)
{
    if (!p->replaces)
        return;
    struct shelf_older older = {.number = shelf_draw(s)};
    shelf_retire_older(s, &p->key, &older);
}

static inline void shelf_give_back(struct shelf *s, uint32_t entry, uint64_t generation, uint64_t lane)
{
    const uint64_t filling = shelf_head(generation, SHELF_FILLING, lane);
    if (shelf_look_at(s, entry) == filling && shelf_free_blocks(s, entry, generation) &&
        shelf_may(s, SHELF_STEP_GIVE_BACK))
        shelf_move(s, entry, filling, shelf_head(generation, SHELF_OVER, 0));
}

// ---- a publication: begin, then either show or drop

static inline enum shelf_answer shelf_begin(struct shelf *s, struct shelf_publication *p)
{
    struct shelf_found found;
    uint64_t head;
    p->num_evicted = 0;
    if (!p->replaces && shelf_find(s, &p->key, p->now_ns, &found)) {
        p->entry = found.entry;
        p->generation = found.generation;
        p->number = found.words[ITEM_NUMBER];
        return SHELF_ALREADY;
    }
    if (!p->replaces && shelf_is_filled(s, &p->key))
        return SHELF_OTHERS;
    do {
        if (!shelf_find_entry(s, p, &head)) {
            shelf_drop_older(s, p);
            return s->is_stopped ? SHELF_STOPPED : SHELF_NO_ENTRY;
        }
        p->generation = shelf_draw(s); // after the look (R39)
        if (!shelf_may(s, SHELF_STEP_TAKE))
            return SHELF_STOPPED;
    } while (!shelf_move(s, p->entry, head, shelf_head(p->generation, SHELF_FILLING, p->lane)));
    word64 *item = shelf_item(s, p->entry);
    const uint64_t words[ITEM_KEY_BYTES + 1] = {
        p->generation, p->key.hash[0], p->key.hash[1], 0, p->blocks, p->bytes, p->rows, p->width, p->dtype,
        p->expires_ns, p->key.bytes,
    };
    if (!shelf_may(s, SHELF_STEP_RECORD))
        return SHELF_STOPPED;
    for (unsigned i = 0; i <= ITEM_KEY_BYTES; i++)
        item_store(item, i, words[i]);
    for (unsigned i = 0; i < (p->key.bytes + 7) / 8; i++)
        item_store(item, ITEM_KEY + i, p->key.words[i]);
    atomic_store_explicit(&s->uses[p->entry], p->now_ns, memory_order_relaxed);
    if (shelf_find_room(s, p))
        return SHELF_BEGUN;
    if (s->is_stopped)
        return SHELF_STOPPED;
    shelf_give_back(s, p->entry, p->generation, p->lane);
    shelf_drop_older(s, p);
    return s->is_stopped ? SHELF_STOPPED : SHELF_NO_ROOM;
}

// Make an item that is complete visible, and retire the older ones of its key. False: its entry was taken from us, for
// somebody has buried this client; or stopped.
static inline bool shelf_show(struct shelf *s, struct shelf_publication *p)
{
    const uint64_t filling = shelf_head(p->generation, SHELF_FILLING, p->lane);
    const uint64_t showing = head_in_state(filling, SHELF_SHOWING), ready = head_in_state(filling, SHELF_READY);
    if (!shelf_may(s, SHELF_STEP_SHOW) || !shelf_move(s, p->entry, filling, showing) ||
        !shelf_complete(s, p->entry, showing))
        return false;
    const uint64_t number = item_load(shelf_item(s, p->entry), ITEM_NUMBER);
    if (shelf_look_at(s, p->entry) != ready) { // somebody has completed it, and has taken it away again
        p->number = p->generation;
        return true;
    }
    p->number = number;
    if (p->generation < shelf_floor(s)) // all was cleared meanwhile: nobody sees it
        return true;
    struct shelf_older older = {.number = number};
    if (!shelf_retire_older(s, &p->key, &older))
        return false;
    if (older.has_newer && shelf_may(s, SHELF_STEP_RETIRE)) {
        shelf_move(s, p->entry, ready, head_in_state(ready, SHELF_RETIRED));
        shelf_finish(s, p->entry);
    }
    return !s->is_stopped;
}

// Break a publication off. Its device is silent (R45).
static inline void shelf_drop(struct shelf *s, struct shelf_publication *p)
{
    shelf_give_back(s, p->entry, p->generation, p->lane);
    shelf_drop_older(s, p);
}

// Retire all items of a key. Returns how many.
static inline uint32_t shelf_unpublish(struct shelf *s, const struct shelf_key *key)
{
    struct shelf_older older = {.number = shelf_draw(s)};
    shelf_retire_older(s, key, &older);
    return older.num_gone;
}

// Hide all whose publication has begun before now, for ever (R48). Returns the floor.
static inline uint64_t shelf_clear(struct shelf *s)
{
    const uint64_t floor = shelf_draw(s);
    if (!shelf_may(s, SHELF_STEP_FLOOR))
        return 0;
    word_raise(&s->record[SHELF_FLOOR], floor);
    shelf_sweep(s);
    return floor;
}

#endif

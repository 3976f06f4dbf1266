// Owner cells: one 64-bit cell a block says who owns it.
//
//   cells     [block]    63           46 45        18 17      2 1     0
//                        | generation:18 | epoch:28  | slot:16 |state:2|
//                        free: epoch and slot are 0, the generation stays
//
//   exposure  [block]    the session (and peer) to which the block was last exposed
//
//   free --acquire--> owned --expose--> exposed --quarantine, reclaim--> quarantined
//     ^                 |                  |                                  |
//     +-- release, reclaim, quarantine ----+                                  |
//     |                       release, reclaim                                |
//     +--------------- end_quarantine (the owner), end_exposure (a fence) ----+
//
// Invariants. A block's state and owner are one word, moved by one compare-and-swap from the exact value that was
// looked at; so a block has one owner, and two who want it cannot both get it. Each acquire takes the next
// generation, so whoever has an old value in hand loses. The exposure word is stored before the cell becomes exposed.
//
// Why a SIGKILL between any two instructions is safe: there is no free list, no count and no lock that could disagree
// with the cells. Whoever dies holds what the cells say it holds, and `blocks_reclaim` finds that by looking. One
// that dies between the exposure word and the cell leaves an owned block with a newer exposure word, which nobody
// reads until it is exposed again. So does one that has lost the block in between; therefore one process exposes all
// blocks of a pool: a second one could store its word into a block that the first has just exposed.
//
// Finding free blocks. A handle keeps a private bitmap of the blocks that it believes to be free. It is advice only:
// a set bit is checked against the cell, a cleared one is looked up again before memory is called short. What it buys
// is a search for a run of neighbours at 64 blocks a step, over full words at 4096. A handle is used by one thread at
// a time. The lowest run that is long enough is taken, so that use stays dense below and long runs remain above:
// after churn in mixed sizes at 80 % use of 4096 blocks, all requests for 64 came as one run, against 60 % with a
// search that goes on where the last one ended.
#ifndef EMBRIDGE_NATIVE_BLOCKS_H
#define EMBRIDGE_NATIVE_BLOCKS_H

#include "shared.h"

#define CELL_STATE_BITS 2
#define CELL_SLOT_BITS 16
#define CELL_EPOCH_BITS 28
#define CELL_GENERATION_BITS 18
#define CELL_GENERATION_SHIFT (CELL_STATE_BITS + CELL_SLOT_BITS + CELL_EPOCH_BITS)
#define CELL_STATE_MASK UINT64_C(3)
#define CELL_GENERATION_MASK (((UINT64_C(1) << CELL_GENERATION_BITS) - 1) << CELL_GENERATION_SHIFT)
#define CELL_OWNER_MASK (~CELL_STATE_MASK & ~CELL_GENERATION_MASK)
#define MAX_BLOCKS (UINT32_C(1) << 31)

enum cell_state { CELL_FREE, CELL_OWNED, CELL_EXPOSED, CELL_QUARANTINED };

struct blocks {
    word64 *cells;
    word64 *exposure;
    uint32_t num_blocks;
    // Private advice from here on.
    uint64_t *believed_free; // one bit a block
    uint64_t *some_free;     // one bit a word of `believed_free`: it is not 0
    uint32_t next_look;      // the word of `believed_free` that the next acquire compares with the cells
    uint64_t credit;         // grows with every acquire; pays for a look at all cells before a run is given up
};

static inline uint32_t blocks_num_words(uint32_t num_blocks) { return (num_blocks + 63) / 64; }

// How many words of private memory a handle needs, for `believed_free` and `some_free`.
static inline size_t blocks_advice_words(uint32_t num_blocks)
{
    const uint32_t num_words = blocks_num_words(num_blocks);
    return (size_t)num_words + (num_words + 63) / 64;
}

// Give the handle that memory, all 0: nothing is believed free, so the first acquire looks at the cells.
static inline void blocks_use_advice(struct blocks *blocks, uint64_t *advice)
{
    blocks->believed_free = advice;
    blocks->some_free = advice + blocks_num_words(blocks->num_blocks);
}

static inline uint64_t cell_owner(uint64_t slot, uint64_t epoch)
{
    return epoch << (CELL_STATE_BITS + CELL_SLOT_BITS) | slot << CELL_STATE_BITS;
}

static inline enum cell_state cell_state(uint64_t cell) { return (enum cell_state)(cell & CELL_STATE_MASK); }

static inline bool cell_held_by(uint64_t cell, uint64_t owner)
{
    return (cell & CELL_OWNER_MASK) == owner && cell_state(cell) != CELL_FREE;
}

static inline uint64_t cell_freed(uint64_t cell) { return cell & CELL_GENERATION_MASK; }

static inline uint64_t cell_in_state(uint64_t cell, enum cell_state state) { return (cell & ~CELL_STATE_MASK) | state; }

static inline uint64_t blocks_cell(const struct blocks *blocks, uint32_t index)
{
    // SYNC cell: acquire; who sees a block free may write where its last owner has stopped, and who sees it exposed
    // sees the exposure word.
    return atomic_load_explicit(&blocks->cells[index], memory_order_acquire);
}

static inline bool blocks_move(const struct blocks *blocks, uint32_t index, uint64_t *from, uint64_t to)
{
    // SYNC cell: release, what this owner did to the block (and the exposure word) comes before; acquire, what the
    // last one did is over. On failure `from` is what stands there.
    return atomic_compare_exchange_strong_explicit(&blocks->cells[index], from, to, memory_order_acq_rel,
                                                   memory_order_acquire);
}

static inline void blocks_believe_word(struct blocks *blocks, uint32_t word, uint64_t bits)
{
    const uint64_t bit = UINT64_C(1) << word % 64;
    blocks->believed_free[word] = bits;
    if (bits)
        blocks->some_free[word / 64] |= bit;
    else
        blocks->some_free[word / 64] &= ~bit;
}

static inline void blocks_believe(struct blocks *blocks, uint32_t index, bool is_free)
{
    const uint64_t bits = blocks->believed_free[index / 64], bit = UINT64_C(1) << index % 64;
    blocks_believe_word(blocks, index / 64, is_free ? bits | bit : bits & ~bit);
}

// ---- finding free blocks

// Set one word of the advice to what the cells say.
static inline void blocks_look(struct blocks *blocks, uint32_t word)
{
    const uint32_t first = word * 64, left = blocks->num_blocks - first, count = left < 64 ? left : 64;
    uint64_t bits = 0;
    // Relaxed: advice; the compare-and-swap that takes the block orders it.
    for (uint32_t i = count; i-- > 0;)
        bits = bits << 1 |
               (cell_state(atomic_load_explicit(&blocks->cells[first + i], memory_order_relaxed)) == CELL_FREE);
    blocks_believe_word(blocks, word, bits);
}

static inline void blocks_look_at_all(struct blocks *blocks)
{
    for (uint32_t word = 0; word < blocks_num_words(blocks->num_blocks); word++)
        blocks_look(blocks, word);
    blocks->credit = 0;
}

// Bit i of the result: bits i to i + length - 1 are all set; `length` is 1 to 64.
static inline uint64_t run_starts(uint64_t bits, uint32_t length)
{
    for (uint32_t have = 1; have < length && bits;) {
        const uint32_t step = have < length - have ? have : length - have;
        bits &= bits >> step;
        have += step;
    }
    return bits;
}

// The first word from `word` on in which a block is believed free, or the number of words.
static inline uint32_t blocks_next_word(const struct blocks *blocks, uint32_t word)
{
    const uint32_t num_words = blocks_num_words(blocks->num_blocks);
    uint64_t mask = ~UINT64_C(0) << word % 64;
    for (uint32_t group = word / 64; group * 64 < num_words; group++, mask = ~UINT64_C(0)) {
        const uint64_t bits = blocks->some_free[group] & mask;
        if (bits)
            return group * 64 + (uint32_t)__builtin_ctzll(bits);
    }
    return num_words;
}

// The first run of `length` blocks, from `lowest` on, that are believed free.
static inline bool blocks_find(const struct blocks *blocks, uint32_t lowest, uint32_t length, uint32_t *start)
{
    const uint32_t num_words = blocks_num_words(blocks->num_blocks);
    uint32_t run = 0; // how many blocks in a row end where word `reached` begins
    uint32_t reached = lowest / 64;
    for (uint32_t word; (word = blocks_next_word(blocks, reached)) < num_words; reached = word + 1) {
        uint64_t bits = blocks->believed_free[word];
        if (word == lowest / 64)
            bits &= ~UINT64_C(0) << lowest % 64;
        if (word > reached)
            run = 0;
        const uint32_t low = ~bits ? (uint32_t)__builtin_ctzll(~bits) : 64;
        if (run + low >= length) {
            *start = word * 64 - run;
            return true;
        }
        const uint64_t starts = length < 64 ? run_starts(bits, length) : 0;
        if (starts) {
            *start = word * 64 + (uint32_t)__builtin_ctzll(starts);
            return true;
        }
        run = low == 64 ? run + 64 : (uint32_t)__builtin_clzll(~bits);
    }
    return false;
}

// How long the run at `start` is, that is known to have `length` blocks; at most `most`.
static inline uint32_t blocks_run_length(const struct blocks *blocks, uint32_t start, uint32_t length, uint32_t most)
{
    while (length < most && start + length < blocks->num_blocks &&
           blocks->believed_free[(start + length) / 64] >> (start + length) % 64 & 1)
        length++;
    return length;
}

// Take the run [start, start + length). Nothing if one of them turns out not to be free; else all but those lost to a
// rival just now.
static inline uint32_t blocks_take(struct blocks *blocks, uint32_t start, uint32_t length, uint64_t owner,
                                   uint32_t *out)
{
    for (uint32_t index = start; index < start + length; index++) {
        if (cell_state(atomic_load_explicit(&blocks->cells[index], memory_order_relaxed)) != CELL_FREE) {
            blocks_look(blocks, index / 64);
            return 0;
        }
    }
    uint32_t taken = 0;
    for (uint32_t index = start; index < start + length; index++) {
        uint64_t cell = atomic_load_explicit(&blocks->cells[index], memory_order_relaxed);
        while (cell_state(cell) == CELL_FREE) {
            const uint64_t generation = (cell + (UINT64_C(1) << CELL_GENERATION_SHIFT)) & CELL_GENERATION_MASK;
            if (blocks_move(blocks, index, &cell, generation | owner | CELL_OWNED)) {
                out[taken++] = index;
                break;
            }
        }
        blocks_believe(blocks, index, false);
    }
    return taken;
}

#define LOOK_CREDIT 512 // blocks; an acquire that finds no run may look at all cells once in num_blocks / 512 calls

// Take up to `want` free blocks of index >= `lowest`; as one run if there is one, else in as long runs as there are.
static inline uint32_t blocks_acquire(struct blocks *blocks, uint64_t owner, uint32_t want, uint32_t lowest,
                                      uint32_t *out)
{
    if (want == 0 || lowest >= blocks->num_blocks)
        return 0;
    const uint32_t room = blocks->num_blocks - lowest, most = want < room ? want : room;
    uint32_t taken = 0, length = most;
    bool looked = false;
    blocks->credit += LOOK_CREDIT;
    // What other processes freed shows up here bit by bit.
    blocks_look(blocks, blocks->next_look);
    blocks->next_look = (blocks->next_look + 1) % blocks_num_words(blocks->num_blocks);
    while (taken < most) {
        uint32_t start;
        if (blocks_find(blocks, lowest, length, &start)) {
            const uint32_t run = blocks_run_length(blocks, start, length, most - taken);
            taken += blocks_take(blocks, start, run, owner, out + taken);
            if (length > most - taken)
                length = most - taken;
        } else if (!looked && (length == 1 || blocks->credit >= blocks->num_blocks)) {
            blocks_look_at_all(blocks);
            looked = true;
            length = most - taken;
        } else if (length > 1) {
            length = (length + 1) / 2;
        } else {
            break;
        }
    }
    return taken;
}

// ---- moving blocks that are held

// Move a block to `free`, or to another state, if `owner` holds it in one of the states whose bits are set in
// `states`.
static inline bool blocks_change(struct blocks *blocks, uint32_t index, uint64_t owner, unsigned states,
                                 enum cell_state state)
{
    uint64_t cell = atomic_load_explicit(&blocks->cells[index], memory_order_relaxed);
    while (cell_held_by(cell, owner) && states >> cell_state(cell) & 1) {
        if (blocks_move(blocks, index, &cell, state == CELL_FREE ? cell_freed(cell) : cell_in_state(cell, state))) {
            if (state == CELL_FREE)
                blocks_believe(blocks, index, true);
            return true;
        }
    }
    return false;
}

static inline bool blocks_release(struct blocks *blocks, uint32_t index, uint64_t owner)
{
    return blocks_change(blocks, index, owner, 1u << CELL_OWNED | 1u << CELL_EXPOSED, CELL_FREE);
}

static inline bool blocks_expose(struct blocks *blocks, uint32_t index, uint64_t owner, uint64_t exposure)
{
    const uint64_t cell = blocks_cell(blocks, index);
    if (!cell_held_by(cell, owner) || cell_state(cell) == CELL_QUARANTINED)
        return false;
    // Relaxed: the compare-and-swap below publishes it (SYNC cell). Also where the block stands exposed already, so
    // that a newer exposure is ordered before whatever the owner does next.
    atomic_store_explicit(&blocks->exposure[index], exposure, memory_order_relaxed);
    return blocks_change(blocks, index, owner, 1u << CELL_OWNED | 1u << CELL_EXPOSED, CELL_EXPOSED);
}

// Exposed -> quarantined (true), owned -> free.
static inline bool blocks_quarantine(struct blocks *blocks, uint32_t index, uint64_t owner)
{
    return blocks_change(blocks, index, owner, 1u << CELL_EXPOSED, CELL_QUARANTINED) ||
           (blocks_change(blocks, index, owner, 1u << CELL_OWNED, CELL_FREE), false);
}

static inline uint32_t blocks_reclaim(struct blocks *blocks, uint64_t owner, bool quarantine_exposed)
{
    uint32_t changed = 0;
    for (uint32_t index = 0; index < blocks->num_blocks; index++) {
        changed += blocks_change(blocks, index, owner, 1u << CELL_OWNED, CELL_FREE);
        changed +=
            blocks_change(blocks, index, owner, 1u << CELL_EXPOSED, quarantine_exposed ? CELL_QUARANTINED : CELL_FREE);
    }
    return changed;
}

static inline uint32_t blocks_end_quarantine(struct blocks *blocks, uint64_t owner)
{
    uint32_t freed = 0;
    for (uint32_t index = 0; index < blocks->num_blocks; index++)
        freed += blocks_change(blocks, index, owner, 1u << CELL_QUARANTINED, CELL_FREE);
    return freed;
}

// Quarantined -> free where the exposure word e has `e & mask == value` and `e & ~mask < below`.
static inline uint32_t blocks_end_exposure(struct blocks *blocks, uint64_t mask, uint64_t value, uint64_t below)
{
    uint32_t freed = 0;
    for (uint32_t index = 0; index < blocks->num_blocks; index++) {
        uint64_t cell =
            blocks_cell(blocks, index); // acquire, and so the exposure word is that of this exposure or a later one
        if (cell_state(cell) != CELL_QUARANTINED)
            continue;
        const uint64_t exposure = atomic_load_explicit(&blocks->exposure[index], memory_order_relaxed);
        if ((exposure & mask) != value || (exposure & ~mask) >= below)
            continue;
        if (blocks_move(blocks, index, &cell, cell_freed(cell))) {
            blocks_believe(blocks, index, true);
            freed++;
        }
    }
    return freed;
}

static inline void blocks_counts(const struct blocks *blocks, uint32_t counts[4])
{
    counts[0] = counts[1] = counts[2] = counts[3] = 0;
    for (uint32_t index = 0; index < blocks->num_blocks; index++)
        counts[cell_state(atomic_load_explicit(&blocks->cells[index], memory_order_relaxed))]++;
}

static inline uint32_t blocks_num_free(const struct blocks *blocks, uint32_t limit)
{
    uint32_t count = 0;
    for (uint32_t index = 0; index < blocks->num_blocks && count < limit; index++)
        count += cell_state(atomic_load_explicit(&blocks->cells[index], memory_order_relaxed)) == CELL_FREE;
    return count;
}

#endif

// How a scheduler's client grants by itself what encoders of its host find (`bind.h`), and takes it back at the end.
//
// Grant, of a request that has none yet:
//
//   record      the blocks in the slot's window; then how many, which is what counts
//   expose      the blocks, each by compare-and-swap; if one is not the request's any more, that is all
//   write down  what is granted, in the slot's meeting record, whose epoch comes last
//   offer       the claim: shut becomes open
//   post        the grant where encoders of the room look, and look then whether one waits (R37)
//
// Release, of a request that has succeeded and of which no process of the node was told (R78):
//
//   free        its blocks, which are nobody's to write any more (R81)
//   take off    its post
//   release     the slot, by compare-and-swap of the word that says who was told
//
// Withdraw, of a request to whose grant nobody has come, and of which no process of the node was told (R34):
//
//   keep        the grant from all encoders: it is bound to nobody as it would be bound to one of them, by
//               compare-and-swap, so either an encoder has it, or none will
//   end         the claim, which nobody holds then
//   free, take off and release as above
//
// Why a SIGKILL between any two instructions is safe: until the last step the slot is the dead client's, and whoever
// cleans up after it finds the blocks by their cells, and ends the claim first (R30). A post that stays is a hint.
//
// Where a test asks (`before`), a call says before each of its changes which one that is, and can be ended there.
#ifndef EMBRIDGE_NATIVE_GRANT_H
#define EMBRIDGE_NATIVE_GRANT_H

#include "blocks.h"
#include "claims.h"
#include "posts.h"
#include "records.h"
#include "status.h"

// What a call is about to change.
enum grant_step {
    GRANT_WINDOW,
    GRANT_RECORD,
    GRANT_EXPOSE,
    GRANT_WRITE_DOWN,
    GRANT_OFFER,
    GRANT_POST,
    END_DRAINED,
    END_FREE,
    END_TAKE_OFF,
    END_RELEASE,
    GRANT_OPEN,
    GRANT_ACQUIRE,
    GRANT_LEND,
    WITHDRAW_KEEP,
    WITHDRAW_END,
};

struct grant_tables {
    struct blocks *blocks;
    const struct status_table *status;
    word64 *slots, *windows, *claims, *meetings, *posts;
    uint64_t slot_words, window, num_buckets;
};

struct own_grant {
    const struct grant_tables *tables;
    uint64_t room, epoch;
    uint32_t slot;
    uint64_t node_id, incarnation; // of the encode node
    const uint32_t *blocks;        // each of them is in the pool
    uint64_t num_blocks, num_tokens;
    bool (*before)(struct own_grant *, enum grant_step); // or NULL
    bool is_stopped;                                     // by `before`
};

static inline void grant_store(word64 *word, uint64_t value)
{
    // SYNC word: release, as every store of a record.
    atomic_store_explicit(word, value, memory_order_release);
}

static inline uint64_t grant_load(const word64 *word) { return atomic_load_explicit(word, memory_order_acquire); }

static inline word64 *grant_record(const struct own_grant *g)
{
    return &g->tables->slots[g->slot * g->tables->slot_words];
}

static inline bool grant_may(struct own_grant *g, enum grant_step step)
{
    if (__builtin_expect(g->before == NULL, true))
        return true;
    const bool may = g->before(g, step);
    g->is_stopped |= !may;
    return may;
}

// Write the blocks into the window, and then how far it is granted.
static inline bool grant_note(struct own_grant *g, uint64_t now_ns)
{
    const struct grant_tables *t = g->tables;
    word64 *record = grant_record(g);
    if (!grant_may(g, GRANT_WINDOW))
        return false;
    for (uint64_t k = 0; k < g->num_blocks; k++)
        grant_store(&t->windows[g->slot * t->window + k % t->window], g->blocks[k]);
    if (!grant_may(g, GRANT_RECORD))
        return false;
    grant_store(&record[SLOT_NUM_ROUNDS], grant_load(&record[SLOT_NUM_ROUNDS]) + 1);
    word_raise(&record[SLOT_GRANTED], g->num_blocks << 32 | g->num_tokens);
    word_raise(&record[SLOT_MOVED_NS], now_ns);
    grant_store(&record[SLOT_INIT_ASKED], 1);
    return true;
}

static inline bool grant_expose(struct own_grant *g)
{
    const uint64_t owner = cell_owner(g->slot, g->epoch);
    if (!grant_may(g, GRANT_EXPOSE))
        return false;
    for (uint64_t k = 0; k < g->num_blocks; k++)
        if (!blocks_expose(g->tables->blocks, g->blocks[k], owner, LOCAL_EXPOSURE))
            return false;
    return true;
}

static inline void grant_write_down(const struct own_grant *g)
{
    word64 *meeting = &g->tables->meetings[g->slot * MEETING_WORDS];
    grant_store(&meeting[MEETING_EPOCH], 0);
    grant_store(&meeting[MEETING_ROOM], g->room);
    grant_store(&meeting[MEETING_NODE_ID], g->node_id);
    grant_store(&meeting[MEETING_INCARNATION], g->incarnation);
    grant_store(&meeting[MEETING_GRANTED], g->num_blocks << 32 | g->num_tokens);
    grant_store(&meeting[MEETING_BOUND], g->epoch << 1);
    grant_store(&meeting[MEETING_EPOCH], g->epoch);
}

// What came of a grant: it is posted; or an encoder waits for it already, and may or may not look once more; or the
// encode node has to be sent the grant, which is recorded: a block is not this request's any more, or the bucket is
// full; or stopped.
enum { POSTED_NOT, POSTED, POSTED_LATE };

static inline unsigned grant_post(struct own_grant *g, uint64_t now_ns)
{
    const struct grant_tables *t = g->tables;
    word64 *claim = &t->claims[(size_t)g->slot * CLAIM_WORDS];
    uint64_t tag;
    word64 *bucket = post_bucket(t->posts, t->num_buckets, g->room, &tag);
    if (!grant_note(g, now_ns) || !grant_expose(g) || !grant_may(g, GRANT_WRITE_DOWN))
        return POSTED_NOT;
    grant_write_down(g);
    if (!grant_may(g, GRANT_OFFER))
        return POSTED_NOT;
    claim_move(claim, claim_word(g->epoch, CLAIM_SHUT, 0), claim_word(g->epoch, CLAIM_OPEN, 0));
    if (!grant_may(g, GRANT_POST) || !post_enter(bucket, post_of_grant(tag, g->slot, g->epoch)))
        return POSTED_NOT;
    return post_has_offer(bucket, tag) ? POSTED_LATE : POSTED;
}

// Give the blocks back that were not given back yet. False: stopped.
static inline bool grant_free(struct own_grant *g, uint64_t now_ns)
{
    const struct grant_tables *t = g->tables;
    word64 *record = grant_record(g);
    const uint64_t first = grant_load(&record[SLOT_DRAINED_BLOCKS]), end = grant_load(&record[SLOT_GRANTED]) >> 32;
    const uint64_t owner = cell_owner(g->slot, g->epoch);
    if (first >= end)
        return true;
    if (!grant_may(g, END_DRAINED))
        return false;
    grant_store(&record[SLOT_DRAINED_BLOCKS], end);
    word_raise(&record[SLOT_MOVED_NS], now_ns);
    if (!grant_may(g, END_FREE))
        return false;
    for (uint64_t k = first; k < end && k - first < t->window; k++) {
        const uint64_t block = grant_load(&t->windows[g->slot * t->window + k % t->window]);
        if (block < t->blocks->num_blocks)
            blocks_release(t->blocks, (uint32_t)block, owner);
    }
    return true;
}

// Free, take off and release. False: the node has it now, or stopped.
static inline bool grant_leave(struct own_grant *g, uint64_t now_ns)
{
    const struct grant_tables *t = g->tables;
    word64 *record = grant_record(g);
    uint64_t told = g->epoch << TOLD_BITS | TOLD_UNTOLD, tag;
    if (!grant_free(g, now_ns) || !grant_may(g, END_TAKE_OFF))
        return false;
    word64 *bucket = post_bucket(t->posts, t->num_buckets, g->room, &tag);
    post_take_off(bucket, post_of_grant(tag, g->slot, g->epoch));
    if (!grant_may(g, END_RELEASE) ||
        !atomic_compare_exchange_strong_explicit(&record[SLOT_TOLD], &told, g->epoch << TOLD_BITS | TOLD_RELEASED,
                                                 memory_order_acq_rel, memory_order_acquire))
        return false;
    word_raise(&record[SLOT_RELEASED_EPOCH], g->epoch);
    return true;
}

static inline bool grant_is_untold(const struct own_grant *g)
{
    const word64 *record = grant_record(g);
    return grant_load(&record[SLOT_TOLD]) == (g->epoch << TOLD_BITS | TOLD_UNTOLD) &&
           grant_load(&record[SLOT_SESSION]) == 0;
}

// Release. False: it has not succeeded, or the node has it, or rows came over a network; what is to be done is the
// node's then. Or stopped.
static inline bool grant_release(struct own_grant *g, uint64_t now_ns)
{
    const uint64_t word = status_load(g->tables->status, g->slot);
    return status_epoch(word) == g->epoch && status_phase(word) == PHASE_SUCCESS && grant_is_untold(g) &&
           grant_leave(g, now_ns);
}

enum { WITHDRAWN_NOT, WITHDRAWN_BUT_TOLD, WITHDRAWN };

// Withdraw. Nothing has happened where an encoder is bound to the grant, or the node has the request, or it has begun.
static inline unsigned grant_withdraw(struct own_grant *g, uint64_t now_ns)
{
    const struct grant_tables *t = g->tables;
    word64 *meeting = &t->meetings[g->slot * MEETING_WORDS], *claim = &t->claims[(size_t)g->slot * CLAIM_WORDS];
    uint64_t bound = g->epoch << 1;
    if (status_load(t->status, g->slot) != status_word(g->epoch, 0, 0) || !grant_is_untold(g) ||
        grant_load(&meeting[MEETING_EPOCH]) != g->epoch || !grant_may(g, WITHDRAW_KEEP) ||
        !atomic_compare_exchange_strong_explicit(&meeting[MEETING_BOUND], &bound, bound | 1, memory_order_acq_rel,
                                                 memory_order_acquire))
        return WITHDRAWN_NOT;
    if (!grant_may(g, WITHDRAW_END))
        return WITHDRAWN_NOT;
    claim_move(claim, claim_word(g->epoch, CLAIM_OPEN, 0), claim_word(g->epoch, CLAIM_ENDED, 0));
    return grant_leave(g, now_ns) ? WITHDRAWN : WITHDRAWN_BUT_TOLD;
}

#endif

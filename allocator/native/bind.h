// How an encoder's client finds the grant of a room by itself, and binds its slot to it.
//
//   meetings [slot]  epoch, room, node, what is granted, and which encoder is bound to it
//
// They stand in the language node's writers' part, as the posts do (`posts.h`); `grant.h` has the moves of its
// scheduler's client. Of each grant in the room's bucket:
//
//   look      the claim is open for the post's epoch, the meeting record and the window say what is granted to whom,
//             the claim has that epoch still (R37); what they say can be true; the peer table has that node, and has
//             heard of nothing newer of that slot
//   mark      that this encoder has found it, in a table of its own node, and look whether the peer table has heard of
//             it meanwhile: the bootstrap raises the tombstone before it looks at the mark (R81)
//   bind      the grant to this encoder, by compare-and-swap (R38)
//   join      the slot to the grant, by compare-and-swap; if the bootstrap has joined it, the grant is let go of (R79)
//   note      the destination, as the bootstrap notes one; the word that says how many there are is the last
//   take off  the post
//   look      whether the node is told of the request, and whether the peer table has the language node still: the
//             entry is nobody else's from the note on
//
// What comes from the language node is input: it is copied, and checked before it is used as an index, and the copy is
// what is noted.
//
// Why a SIGKILL between any two instructions is safe: a destination is there when its count says so. A grant that is
// marked by the dead, or bound to them, is nobody else's, and the language node, which sends its init when nobody has
// come, hears what the encode node says of the room. A post that stays is a hint, and its epoch is in nobody's claim
// any more.
//
// Where a test asks (`before`), a call says before each of its changes which one that is, and can be ended there.
#ifndef EMBRIDGE_NATIVE_BIND_H
#define EMBRIDGE_NATIVE_BIND_H

#include "claims.h"
#include "posts.h"
#include "records.h"

// What a call is about to change.
enum bind_step {
    BIND_MARK,
    BIND_GRANT,
    BIND_JOIN,
    BIND_UNBIND,
    BIND_REQUIRED,
    BIND_BLOCKS,
    BIND_RECORD,
    BIND_COUNT,
    BIND_TAKE_OFF,
};

// What came of it: 0, or these bits.
enum { BIND_BOUND = 1, BIND_TOLD = 2, BIND_GONE = 4 };

struct node_name {
    uint64_t id, incarnation;
};

// What two nodes have of each other.
struct bind_tables {
    // the language node
    struct node_name there;
    word64 *posts, *meetings;
    const word64 *claims, *windows;
    uint64_t num_buckets, num_slots_there, window_there, num_blocks, block_size;
    // this node
    struct node_name own;
    word64 *slots, *destinations, *grants;
    const word64 *peers, *tombstones;
    word64 *finders; // as many as tombstones
    uint64_t num_slots, slot_words, destinations_words, window;
    uint64_t num_peers, peer_words, num_peer_slots;
    uint64_t *seen; // private, a bit for each of `num_blocks`, all 0 between two looks
};

struct grant_bind {
    const struct bind_tables *tables;
    uint64_t peer; // the entry of the language node
    uint64_t room, epoch;
    uint32_t slot;
    bool (*before)(struct grant_bind *, enum bind_step); // or NULL
    uint64_t *blocks;                                    // as many as the smaller window has
    // of the post that is looked at
    uint64_t remote_slot, remote_epoch, num_blocks, num_tokens;
    bool is_stopped; // by `before`
};

static inline uint64_t bind_load(const word64 *word) { return atomic_load_explicit(word, memory_order_acquire); }

static inline void bind_store(word64 *word, uint64_t value)
{
    // SYNC word: release, as every store of a record.
    atomic_store_explicit(word, value, memory_order_release);
}

static inline bool bind_move(word64 *word, uint64_t before, uint64_t after)
{
    return atomic_compare_exchange_strong_explicit(word, &before, after, memory_order_acq_rel, memory_order_acquire);
}

static inline bool bind_may(struct grant_bind *b, enum bind_step step)
{
    if (__builtin_expect(b->before == NULL, true))
        return true;
    const bool may = b->before(b, step);
    b->is_stopped |= !may;
    return may;
}

// Whether the claim is open for the post's epoch, and what the meeting record and the window say of it is of this
// epoch, for this room and this node. It is copied.
static inline bool bind_read(struct grant_bind *b)
{
    const struct bind_tables *t = b->tables;
    const word64 *claim = &t->claims[b->remote_slot * CLAIM_WORDS];
    const word64 *meeting = &t->meetings[b->remote_slot * MEETING_WORDS];
    if (bind_load(claim) != claim_word(b->remote_epoch, CLAIM_OPEN, 0))
        return false;
    uint64_t said[MEETING_BOUND];
    for (size_t i = 0; i < MEETING_BOUND; i++)
        said[i] = bind_load(&meeting[i]);
    if (said[MEETING_EPOCH] != b->remote_epoch || bind_load(&meeting[MEETING_EPOCH]) != b->remote_epoch)
        return false;
    if (said[MEETING_ROOM] != b->room || said[MEETING_NODE_ID] != t->own.id ||
        said[MEETING_INCARNATION] != t->own.incarnation)
        return false;
    b->num_blocks = said[MEETING_GRANTED] >> 32;
    b->num_tokens = said[MEETING_GRANTED] & UINT32_MAX;
    const uint64_t most = t->window < t->window_there ? t->window : t->window_there;
    if (b->num_blocks == 0 || b->num_blocks > most)
        return false;
    for (uint64_t k = 0; k < b->num_blocks; k++)
        b->blocks[k] = bind_load(&t->windows[b->remote_slot * t->window_there + k]);
    return claim_epoch(claim) == b->remote_epoch;
}

// Whether a grant can be true, judged by the geometry of its node: its tokens end in its last block, and its blocks are
// in the pool, each once.
static inline bool bind_holds(const struct grant_bind *b)
{
    const struct bind_tables *t = b->tables;
    const uint64_t count = b->num_blocks, tokens = b->num_tokens, end = count * t->block_size;
    if (tokens <= end - t->block_size || tokens > end)
        return false;
    uint64_t k = 0;
    for (; k < count && b->blocks[k] < t->num_blocks; k++) {
        uint64_t *word = &t->seen[b->blocks[k] / 64], bit = UINT64_C(1) << b->blocks[k] % 64;
        if (*word & bit)
            break;
        *word |= bit;
    }
    for (uint64_t i = 0; i < k; i++)
        t->seen[b->blocks[i] / 64] = 0;
    return k == count;
}

// Whether the language node has its entry of the peer table, and lives.
static inline bool bind_is_there(const struct grant_bind *b)
{
    const struct bind_tables *t = b->tables;
    const word64 *peer = &t->peers[b->peer * t->peer_words];
    const bool is_alive = bind_load(&peer[PEER_STATE]) == REGISTERED_STATE;
    const uint64_t id = bind_load(&peer[PEER_NODE_ID]);
    return bind_load(&peer[PEER_INCARNATION]) == t->there.incarnation && id == t->there.id && is_alive;
}

// Whether this node has joined another sender to the grant, or has heard that it is over.
static inline bool bind_is_over(const struct grant_bind *b)
{
    const struct bind_tables *t = b->tables;
    return b->remote_slot >= t->num_peer_slots ||
           // SYNC finder: sequentially consistent; either this sees the tombstone, or who has raised it sees the mark.
           atomic_load_explicit(&t->tombstones[b->peer * t->num_peer_slots + b->remote_slot], memory_order_seq_cst) >=
               b->remote_epoch;
}

// Mark the grant as found by this slot. False: another one has, or has found a later one.
static inline bool bind_mark(struct grant_bind *b)
{
    word64 *finder = &b->tables->finders[b->peer * b->tables->num_peer_slots + b->remote_slot];
    const uint64_t ours = b->remote_epoch << FINDER_SLOT_BITS | b->slot;
    uint64_t word = bind_load(finder);
    if (word >> FINDER_SLOT_BITS >= b->remote_epoch)
        return word == ours;
    // SYNC finder: sequentially consistent, and before the look at the tombstone.
    return atomic_compare_exchange_strong_explicit(finder, &word, ours, memory_order_seq_cst, memory_order_acquire);
}

// Enter the destination, which is there once the slot's record says how many there are. False: stopped.
static inline bool bind_note(struct grant_bind *b)
{
    const struct bind_tables *t = b->tables;
    word64 *record = &t->slots[b->slot * t->slot_words];
    word64 *destination = &t->destinations[b->slot * t->destinations_words];
    const uint64_t words[DESTINATION_WORDS] = {
        [DESTINATION_PEER] = b->peer + 1,
        [DESTINATION_INCARNATION] = t->there.incarnation,
        [DESTINATION_REMOTE_SLOT] = b->remote_slot,
        [DESTINATION_REMOTE_EPOCH] = b->remote_epoch,
        [DESTINATION_GRANTED_TOKENS] = b->num_tokens,
        [DESTINATION_GRANTED_BLOCKS] = b->num_blocks,
        [DESTINATION_FIRST_GRANT] = b->num_tokens,
        [DESTINATION_REGISTRATION] = bind_load(&t->peers[b->peer * t->peer_words + PEER_REGISTRATION]),
        [DESTINATION_WINDOW] = t->window,
        [DESTINATION_WRITTEN_BY] = WRITTEN_BY_CLIENT,
    };
    if (!bind_may(b, BIND_REQUIRED))
        return false;
    bind_store(&record[SLOT_REQUIRED], 1);
    if (!bind_may(b, BIND_BLOCKS))
        return false;
    for (uint64_t k = 0; k < b->num_blocks; k++)
        bind_store(&t->grants[b->slot * t->window + k], b->blocks[k]);
    if (!bind_may(b, BIND_RECORD))
        return false;
    for (size_t i = 0; i < DESTINATION_WORDS; i++)
        bind_store(&destination[i], words[i]);
    if (!bind_may(b, BIND_COUNT))
        return false;
    bind_store(&record[SLOT_NUM_DESTINATIONS], 1);
    return true;
}

// Bind the slot to the grant of one post, and the grant to this encoder. False: not to this one, or stopped.
static inline bool bind_to(struct grant_bind *b, word64 *bucket, uint64_t post)
{
    const struct bind_tables *t = b->tables;
    b->remote_slot = post >> POST_EPOCH_BITS & ((1u << POST_SLOT_BITS) - 1);
    b->remote_epoch = post & ((1u << POST_EPOCH_BITS) - 1);
    if (b->remote_slot >= t->num_slots_there || !bind_read(b) || !bind_holds(b) || !bind_is_there(b) || bind_is_over(b))
        return false;
    if (!bind_may(b, BIND_MARK) || !bind_mark(b) || bind_is_over(b))
        return false;
    word64 *bound = &t->meetings[b->remote_slot * MEETING_WORDS + MEETING_BOUND];
    if (!bind_may(b, BIND_GRANT) || !bind_move(bound, b->remote_epoch << 1, b->remote_epoch << 1 | 1))
        return false;
    word64 *joined = &t->slots[b->slot * t->slot_words + SLOT_JOINED_BY];
    if (!bind_may(b, BIND_JOIN))
        return false;
    if (!bind_move(joined, JOINED_BY_NOBODY, JOINED_BY_CLIENT)) {
        if (bind_may(b, BIND_UNBIND))
            bind_move(bound, b->remote_epoch << 1 | 1, b->remote_epoch << 1);
        return false;
    }
    if (!bind_note(b) || !bind_may(b, BIND_TAKE_OFF))
        return false;
    post_take_off(bucket, post);
    return true;
}

// Look for a grant of the room, and bind the slot to it. 0: there is none, the slot has its destination, or stopped.
static inline unsigned bind_grant(struct grant_bind *b)
{
    const word64 *record = &b->tables->slots[b->slot * b->tables->slot_words];
    uint64_t tag;
    word64 *bucket = post_bucket(b->tables->posts, b->tables->num_buckets, b->room, &tag);
    b->is_stopped = false;
    for (size_t k = 0; k < BUCKET_POSTS && !b->is_stopped; k++) {
        // SYNC post: sequentially consistent, and so an acquire: the grant was written down before it was posted.
        const uint64_t post = atomic_load_explicit(&bucket[k], memory_order_seq_cst);
        if (post == 0 || post >> POST_KEY_BITS != tag)
            continue;
        if (bind_load(&record[SLOT_JOINED_BY]) != JOINED_BY_NOBODY)
            return 0;
        if (!bind_to(b, bucket, post))
            continue;
        const bool is_untold = bind_load(&record[SLOT_TOLD]) == (b->epoch << TOLD_BITS | TOLD_UNTOLD);
        return BIND_BOUND | (is_untold ? 0 : BIND_TOLD) | (bind_is_there(b) ? 0 : BIND_GONE);
    }
    return 0;
}

#endif

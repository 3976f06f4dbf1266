// What the client of either side does at the beginning and at the end of an untold request, of which no process of its
// node need hear (R78, R80). What lies between is `grant.h`, `bind.h` and `direct.h`.
//
// An encoder's client opens one:
//
//   forget      that a request of the room has succeeded
//   count       one more of the room; a count may be too high, never too low
//   open        the slot (`slots.h`)
//   look        whether a grant waits for the room: who asks after this look finds the count (R80)
//
// and releases it, when its destination has ended and was not told of it:
//
//   release     the slot, by compare-and-swap of the word that says who was told
//   note        that the room has succeeded; then it is counted no more
//   record      that the epoch is released
//
// A scheduler's client opens one, where its encode node is registered and lives: the slot, whose record names that
// node's entry, and then a second look at the entry, which is nobody else's from there on. It takes blocks, and grants
// them (`grant.h`). Of one that has succeeded, and leaves all others enough, it says that its blocks are lent (R35). A
// request to whose grant nobody has come it renews: it withdraws the grant (`grant.h`), and opens the slot once more,
// for the same request, which its node has from the beginning then (R34).
//
// Why a SIGKILL between any two instructions is safe: a slot that is half open nobody takes for open (`slots.h`); one
// that is open, or released in part, is the dead client's, and its node goes on with it. A room that is counted once
// too often has the bootstrap look for a request that is not there.
//
// Where a test asks (`before`), a call says before each of its changes which one that is, and can be ended there.
#ifndef EMBRIDGE_NATIVE_UNTOLD_H
#define EMBRIDGE_NATIVE_UNTOLD_H

#include "grant.h"
#include "slots.h"

// ---- what an encode node knows of rooms: a word each, by a part of the room's hash

struct room_words {
    word64 *words;
    uint64_t count;
};

static inline word64 *room_word(const struct room_words *table, uint64_t room)
{
    return &table->words[(room * POST_SPREAD >> 32) % table->count];
}

static inline void room_count(const struct room_words *table, uint64_t room, uint64_t change)
{
    // SYNC room: sequentially consistent, as the look that follows it: of two who cross, one sees the other (R80).
    atomic_fetch_add_explicit(room_word(table, room), change, memory_order_seq_cst);
}

static inline bool room_is_counted(const struct room_words *table, uint64_t room)
{
    return atomic_load_explicit(room_word(table, room), memory_order_seq_cst) != 0;
}

// Say that the request of a room has succeeded.
static inline void room_note(const struct room_words *table, uint64_t room)
{
    atomic_store_explicit(room_word(table, room), room + 1, memory_order_release);
}

// Say that the room is used again.
static inline void room_forget(const struct room_words *table, uint64_t room)
{
    uint64_t noted = room + 1;
    if (atomic_load_explicit(room_word(table, room), memory_order_relaxed) == noted)
        atomic_compare_exchange_strong_explicit(room_word(table, room), &noted, 0, memory_order_acq_rel,
                                                memory_order_relaxed);
}

// ---- an encoder's client

enum leave_step { LEAVE_RELEASE, LEAVE_NOTE, LEAVE_COUNT, LEAVE_RECORD };

struct sender_leave {
    const struct status_table *status, *there;
    word64 *record;
    const word64 *destination; // the first
    word64 *meetings;          // of the language node
    const struct room_words *finished, *untold;
    uint64_t num_slots_there, room, epoch, incarnation; // the last: of the language node
    uint32_t slot;
    bool (*before)(struct sender_leave *, enum leave_step); // or NULL
    bool is_stopped;                                        // by `before`
};

static inline bool leave_may(struct sender_leave *l, enum leave_step step)
{
    if (__builtin_expect(l->before == NULL, true))
        return true;
    const bool may = l->before(l, step);
    l->is_stopped |= !may;
    return may;
}

// Whether the destination has ended, and its node was not told of it, so that nobody waits for ours (R80).
static inline bool leave_is_due(const struct sender_leave *l)
{
    const uint64_t own = status_load(l->status, l->slot);
    const uint64_t slot = grant_load(&l->destination[DESTINATION_REMOTE_SLOT]);
    const uint64_t epoch = grant_load(&l->destination[DESTINATION_REMOTE_EPOCH]);
    if (status_epoch(own) != l->epoch || status_phase(own) != PHASE_SUCCESS ||
        grant_load(&l->record[SLOT_TOLD]) != (l->epoch << TOLD_BITS | TOLD_UNTOLD) ||
        grant_load(&l->record[SLOT_JOINED_BY]) != JOINED_BY_CLIENT || slot >= l->num_slots_there ||
        grant_load(&l->destination[DESTINATION_INCARNATION]) != l->incarnation)
        return false;
    const uint64_t theirs = status_load(l->there, (uint32_t)slot);
    if (status_epoch(theirs) == epoch && status_phase(theirs) < FIRST_TERMINAL_PHASE)
        return false;
    word64 *told = &l->meetings[slot * MEETING_WORDS + MEETING_TOLD];
    // SYNC told: sequentially consistent, a step that no other passes: our word was raised before.
    return atomic_fetch_add_explicit(told, 0, memory_order_seq_cst) < epoch;
}

// Release the slot. False: the node has to, or stopped.
static inline bool sender_leave(struct sender_leave *l)
{
    uint64_t told = l->epoch << TOLD_BITS | TOLD_UNTOLD;
    if (!leave_is_due(l) || !leave_may(l, LEAVE_RELEASE) ||
        !atomic_compare_exchange_strong_explicit(&l->record[SLOT_TOLD], &told, l->epoch << TOLD_BITS | TOLD_RELEASED,
                                                 memory_order_acq_rel, memory_order_acquire))
        return false;
    if (!leave_may(l, LEAVE_NOTE))
        return false;
    room_note(l->finished, l->room);
    if (!leave_may(l, LEAVE_COUNT))
        return false;
    room_count(l->untold, l->room, UINT64_MAX);
    if (!leave_may(l, LEAVE_RECORD))
        return false;
    word_raise(&l->record[SLOT_RELEASED_EPOCH], l->epoch);
    return true;
}

// ---- a scheduler's client

enum { OPENED_NOT, OPENED, OPENED_NEAR, OPENED_WITH_BLOCKS, OPENED_AND_POSTED, OPENED_AND_POSTED_LATE };

struct receiver_tables {
    const struct grant_tables *grants;
    const word64 *header, *peers;
    word64 *fetches;
    uint64_t peer_words, num_peers, fetch_words, lane;
};

struct receiver_opening {
    const struct receiver_tables *tables;
    struct own_grant *grant;    // the epoch, and what comes of the blocks, are entered here
    uint64_t peer, now_ns;      // the entry of the encode node
    uint64_t enough, most_rows; // so many blocks must be free before; so many rows are granted at most
    uint32_t want, *blocks;
};

static inline bool receiver_is_near(const struct receiver_opening *o)
{
    const word64 *peer = &o->tables->peers[o->peer * o->tables->peer_words];
    return grant_load(&peer[PEER_STATE]) == REGISTERED_STATE && grant_load(&peer[PEER_NODE_ID]) == o->grant->node_id &&
           grant_load(&peer[PEER_INCARNATION]) == o->grant->incarnation;
}

// Whether nothing but the usual is to be done for a request: the node takes some, nobody waits, there is enough.
static inline bool receiver_is_usual(const struct receiver_opening *o)
{
    const struct receiver_tables *t = o->tables;
    const struct grant_tables *g = t->grants;
    return grant_load(&t->header[HEADER_NODE_STATE]) == NODE_STATE_READY &&
           (grant_load(&t->header[HEADER_FAILING]) | grant_load(&t->header[HEADER_BLOCK_WAITERS]) |
            grant_load(&t->header[HEADER_SLOT_WAITERS])) == 0 &&
           o->want <= g->window && o->want <= grant_load(&t->peers[o->peer * t->peer_words + PEER_WINDOW]) &&
           receiver_is_near(o) && blocks_num_free(g->blocks, (uint32_t)o->enough) >= o->enough;
}

// Open a slot and grant. What came of it is said by how far it got; the slot is open unless that is OPENED_NOT.
static inline unsigned receiver_open(struct receiver_opening *o, struct slot_opening *opening)
{
    const struct grant_tables *g = o->tables->grants;
    struct own_grant *grant = o->grant;
    if (!grant_may(grant, GRANT_OPEN))
        return OPENED_NOT;
    // who was to open this epoch before, and has died, may have asked for something
    grant_store(&o->tables->fetches[grant->slot * o->tables->fetch_words], 0);
    grant->epoch = slot_open(g->status, grant->slot, opening, o->now_ns);
    if (grant->epoch == 0)
        return OPENED_NOT;
    if (!receiver_is_near(o)) // the slot keeps the entry from being another's from here on
        return OPENED;
    if (!grant_may(grant, GRANT_ACQUIRE))
        return OPENED_NEAR;
    grant->num_blocks = blocks_acquire(g->blocks, cell_owner(grant->slot, grant->epoch), o->want, 1, o->blocks);
    if (grant->num_blocks == 0)
        return OPENED_NEAR;
    const uint64_t rows = grant->num_blocks * grant->num_tokens; // `num_tokens`: rows of a block, until here
    grant->num_tokens = rows < o->most_rows ? rows : o->most_rows;
    return OPENED_WITH_BLOCKS + grant_post(grant, o->now_ns);
}

// What `receiver_renew` returns beside an epoch, which is at least 2: nothing has happened, or stopped; its blocks are
// back, but its node was told of it meanwhile, and has it as it is.
enum { RENEWED_NOT = WITHDRAWN_NOT, RENEWED_BUT_TOLD = WITHDRAWN_BUT_TOLD };

// Withdraw the grant of a request, and open it anew, told, with nothing granted. Returns the next epoch.
static inline uint64_t receiver_renew(const struct receiver_tables *t, struct own_grant *grant,
                                      const struct slot_opening *opening, uint64_t now_ns)
{
    if (grant->epoch >= MAX_EPOCH)
        return RENEWED_NOT;
    const unsigned withdrawn = grant_withdraw(grant, now_ns);
    if (withdrawn != WITHDRAWN)
        return grant->is_stopped ? RENEWED_NOT : withdrawn;
    if (!grant_may(grant, GRANT_OPEN))
        return RENEWED_NOT;
    return slot_open(t->grants->status, grant->slot, opening, opening->values[SLOT_OPENED_NS]);
}

// Say that the blocks of a request that has succeeded are lent; `num_blocks` are those with its rows. Returns how many
// grants it has had; 0: something is not as usual, or stopped.
static inline uint64_t receiver_lend(const struct receiver_tables *t, struct own_grant *grant, word64 *lane_lent,
                                     uint64_t enough)
{
    const struct grant_tables *g = t->grants;
    word64 *record = grant_record(grant);
    const uint64_t word = status_load(g->status, grant->slot);
    if (status_epoch(word) != grant->epoch || status_phase(word) != PHASE_SUCCESS ||
        grant_load(&record[SLOT_GRANTED]) >> 32 != grant->num_blocks || grant_load(&record[SLOT_SESSION]) != 0 ||
        (grant_load(&t->header[HEADER_BLOCK_WAITERS]) | grant_load(&t->header[HEADER_SLOT_WAITERS])) != 0 ||
        blocks_num_free(g->blocks, (uint32_t)enough) < enough || !grant_may(grant, GRANT_LEND))
        return 0;
    atomic_fetch_add_explicit(lane_lent, grant->num_blocks, memory_order_acq_rel);
    grant_store(&record[SLOT_LENT], LENT_RESULT);
    return grant_load(&record[SLOT_NUM_ROUNDS]);
}

#endif

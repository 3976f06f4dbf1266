// Structures that are wrong in one place each. A killer that does not find them would prove nothing of the others.
#ifndef EMBRIDGE_TESTS_NATIVE_SCENES_BROKEN_H
#define EMBRIDGE_TESTS_NATIVE_SCENES_BROKEN_H

#include "scenes_blocks.h"
#include "scenes_bind.h"
#include "scenes_direct.h"
#include "scenes_doorbell.h"
#include "scenes_grant.h"
#include "scenes_ring.h"
#include "scenes_slots.h"
#include "scenes_status.h"

// ---- a free list, of which a block is taken in two stores: unlinked, then marked

#define NO_BLOCK UINT32_MAX
#define NUM_LISTED 6

static void prepare_list(const struct scene *scene, struct world *world)
{
    (void)scene;
    memset((void *)world, 0, sizeof *world);
    for (uint32_t block = 0; block < NUM_LISTED; block++)
        world->next_free[block] = block + 1 < NUM_LISTED ? block + 1 : NO_BLOCK;
}

static void list_push(volatile struct world *world, uint32_t block)
{
    world->holder[block] = 0;
    world->next_free[block] = world->first_free;
    world->first_free = block;
}

static void use_list(const struct scene *scene, struct world *shared)
{
    (void)scene;
    volatile struct world *world = shared;
    for (uint32_t i = 0; i < 3; i++) {
        const uint32_t block = world->first_free;
        world->first_free = world->next_free[block];
        world->holder[block] = 1;
    }
    list_push(world, 1);
}

static void recover_list(const struct scene *scene, struct world *world)
{
    (void)scene;
    for (uint32_t block = 0; block < NUM_LISTED; block++)
        if (world->holder[block])
            list_push(world, block);
}

static const char *judge_list(const struct scene *scene, const struct world *killed, struct world *recovered)
{
    (void)scene, (void)killed;
    uint32_t num = 0;
    for (uint32_t block = recovered->first_free; block != NO_BLOCK; block = recovered->next_free[block])
        if (++num > NUM_LISTED)
            return fault("a block is in the list twice");
    return num == NUM_LISTED ? NULL : fault("%u of %u blocks are left", num, NUM_LISTED);
}

static const char *inspect_nothing(const struct scene *scene, bool recovering, const struct world *last,
                                   const struct world *now)
{
    (void)scene, (void)recovering, (void)last, (void)now;
    return NULL;
}

static const char *outcome_of_nothing(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    (void)scene, (void)rival, (void)ended;
    return NULL;
}

// ---- owner cells

static void acquire_in_two_stores(const struct scene *scene, struct world *world)
{
    (void)scene;
    const uint64_t next = (world->cells[2] + (UINT64_C(1) << CELL_GENERATION_SHIFT)) & CELL_GENERATION_MASK;
    atomic_store(&world->cells[2], next | CELL_OWNED);
    atomic_store(&world->cells[2], next | CELL_OWNED | MINE);
}

static void look_then_store(const struct scene *scene, struct world *world)
{
    (void)scene;
    const uint64_t cell = blocks_cell(&mine, 2), next = cell + (UINT64_C(1) << CELL_GENERATION_SHIFT);
    if (cell_state(cell) == CELL_FREE)
        atomic_store(&world->cells[2], (next & CELL_GENERATION_MASK) | CELL_OWNED | MINE);
}

static void expose_cell_first(const struct scene *scene, struct world *world)
{
    (void)scene;
    uint64_t cell = blocks_cell(&mine, 1);
    blocks_move(&mine, 1, &cell, cell_in_state(cell, CELL_EXPOSED));
    atomic_store(&world->exposure[1], NEW_EXPOSURE);
}

// All blocks are exposed by one process. A second one could store its word into a block that it has just lost, and that
// the first has exposed.
static void take_over_and_expose(struct world *world)
{
    struct blocks handle = rival_handle(world);
    reclaim_and_take_all(world);
    for (uint32_t i = 0; i < num_rival_got; i++)
        blocks_expose(&handle, rival_got[i], RIVAL, EXPOSED_TO(1, 6));
}

static const struct rival exposers[] = {{"takes over and exposes", take_over_and_expose, true}, {NULL, NULL, false}};

// Only a death in the middle of it shows: the next recovery does not find the block.
static void reclaim_in_two_moves(const struct scene *scene, struct world *world)
{
    for (uint32_t block = 0; block < strlen(scene->before); block++) {
        const uint64_t cell = atomic_load(&world->cells[block]);
        if (cell_held_by(cell, MINE)) {
            atomic_store(&world->cells[block], cell_freed(cell));
            if (cell_state(cell) != CELL_OWNED)
                atomic_store(&world->cells[block], cell_in_state(cell, CELL_QUARANTINED));
        }
    }
}

// ---- the ring, the status word, the doorbell

static void push_tail_first(const struct scene *scene, struct world *world)
{
    (void)scene;
    const uint64_t tail = atomic_load(&world->ring.tail);
    atomic_store(&world->ring.tail, tail + 1);
    memcpy(ring_record(&my_end, tail), my_records, RECORD_BYTES);
}

static void commit_first(const struct scene *scene, struct world *world)
{
    (void)scene;
    while (ring_pending(&my_end, 1) > 0) {
        unsigned char record[RECORD_BYTES];
        memcpy(record, ring_record(&my_end, atomic_load(&world->ring.head)), RECORD_BYTES);
        ring_commit(&my_end, 1);
        work_on(world, record);
    }
}

static void advance_in_halves(const struct scene *scene, struct world *world)
{
    volatile uint32_t *halves = (volatile uint32_t *)&world->words[SLOT];
    const struct status_table table = table_of(world);
    halves[0] = (uint32_t)TARGET;
    halves[1] = (uint32_t)(TARGET >> 32);
    status_mark(&table, SLOT, 0);
    status_mark(&table, SLOT, 1);
}

static void mark_first(const struct scene *scene, struct world *world)
{
    const struct status_table table = table_of(world);
    status_mark(&table, SLOT, 0);
    advance(scene, world);
}

static void advance_blindly(const struct scene *scene, struct world *world)
{
    const uint64_t word = status_load(&(struct status_table){.words = world->words}, SLOT);
    if (word < TARGET)
        atomic_store(&world->words[SLOT], TARGET);
}

static void end_sleep_before_wake(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct doorbell *bell = &world->bell;
    atomic_fetch_add(&bell->sequence, 1);
    if ((atomic_load(&bell->state) & DOORBELL_KIND_MASK) == DOORBELL_ASLEEP) {
        atomic_store(&bell->state, atomic_load(&bell->state) & ~DOORBELL_KIND_MASK);
        syscall(SYS_futex, &bell->sequence, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
}

static void disarm_before_write(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct doorbell *bell = &world->bell;
    const uint64_t one = 1;
    atomic_fetch_add(&bell->sequence, 1);
    if ((atomic_load(&bell->state) & DOORBELL_KIND_MASK) == DOORBELL_ARMED) {
        atomic_store(&bell->state, atomic_load(&bell->state) & ~DOORBELL_KIND_MASK);
        (void)!write(event_fd, &one, sizeof one);
    }
}

// ---- a direct write, with one of its steps left out or in another's place

static void say_first(struct direct_write *w)
{
    if (!claim_take(w->claim, w->there.epoch, w->writer) || !direct_look(w))
        return;
    direct_say(w);
    direct_copy(w);
    claim_give_back(w->claim, w->there.epoch, w->writer, false);
}

static void tell_the_destination_first(struct direct_write *w)
{
    if (!claim_take(w->claim, w->there.epoch, w->writer) || !direct_look(w))
        return;
    direct_copy(w);
    claim_tell_length(w->claim, w->num_rows);
    status_make_whole(w->there.status, w->there.slot, w->there.epoch, PHASE_WAITING, WRITTEN_NS);
    word_raise(&w->destination[DESTINATION_SENT], w->end);
    const struct direct_progress p = direct_progress(w);
    bool has_risen;
    direct_raise(w, &w->there, DIRECT_THEIR_WORD, &p, w->end, WRITTEN_NS, &has_risen);
    direct_raise(w, &w->here, DIRECT_OWN_WORD, &p, p.least, WRITTEN_NS, &has_risen);
    claim_give_back(w->claim, w->there.epoch, w->writer, false);
}

static void write_without_the_claim(struct direct_write *w)
{
    claim_take(w->claim, w->there.epoch, w->writer);
    direct_write_claimed(w);
    claim_give_back(w->claim, w->there.epoch, w->writer, false);
}

static void write_before_the_claim(struct direct_write *w)
{
    if (direct_look(w))
        direct_copy(w);
    direct_write(w);
}

static void give_back_by_a_store(struct direct_write *w)
{
    if (!claim_take(w->claim, w->there.epoch, w->writer))
        return;
    direct_write_claimed(w);
    atomic_store(w->claim, claim_word(w->there.epoch, CLAIM_OPEN, 0));
}

static void keep_what_was_revoked(struct direct_write *w)
{
    if (!claim_take(w->claim, w->there.epoch, w->writer))
        return;
    direct_write_claimed(w);
    claim_move(w->claim, claim_word(w->there.epoch, CLAIM_WRITING, w->writer),
               claim_word(w->there.epoch, CLAIM_OPEN, 0));
}

static void tell_although_refused(struct direct_write *w)
{
    if (!claim_take(w->claim, w->there.epoch, w->writer))
        return;
    direct_write_claimed(w);
    bool has_risen;
    const struct direct_progress p = direct_progress(w);
    direct_raise(w, &w->there, DIRECT_THEIR_WORD, &p, p.least, WRITTEN_NS, &has_risen);
    claim_give_back(w->claim, w->there.epoch, w->writer, false);
}

static void count_before_it_is_whole(struct direct_write *w)
{
    if (!claim_take(w->claim, w->there.epoch, w->writer) || !direct_look(w))
        return;
    direct_copy(w);
    word_raise(&w->destination[DESTINATION_SENT], w->end);
    direct_say(w);
    claim_give_back(w->claim, w->there.epoch, w->writer, w->is_whole);
}

static void make_whole_before_the_rows(struct direct_write *w)
{
    if (!claim_take(w->claim, w->there.epoch, w->writer) || !direct_look(w))
        return;
    status_make_whole(w->there.status, w->there.slot, w->there.epoch, PHASE_WAITING, WRITTEN_NS);
    direct_write_claimed(w);
    claim_give_back(w->claim, w->there.epoch, w->writer, w->is_whole);
}

#define WRONG_WRITE(name)                                                                                              \
    static void rows_##name(const struct scene *scene, struct world *world)                                            \
    {                                                                                                                  \
        (void)scene;                                                                                                   \
        write_rows_by(world, name);                                                                                    \
    }

WRONG_WRITE(say_first)
WRONG_WRITE(tell_the_destination_first)
WRONG_WRITE(write_without_the_claim)
WRONG_WRITE(write_before_the_claim)
WRONG_WRITE(give_back_by_a_store)
WRONG_WRITE(keep_what_was_revoked)
WRONG_WRITE(tell_although_refused)
WRONG_WRITE(count_before_it_is_whole)
WRONG_WRITE(make_whole_before_the_rows)

// ---- a grant that is bound with one of its steps in another's place

static unsigned count_before_the_record(struct grant_bind *b)
{
    bind_store(&b->tables->slots[SLOT_NUM_DESTINATIONS], 1);
    return bind_grant(b);
}

static unsigned join_before_it_is_bound(struct grant_bind *b)
{
    if (!bind_move(&b->tables->slots[SLOT_JOINED_BY], JOINED_BY_NOBODY, JOINED_BY_CLIENT))
        return 0;
    b->num_blocks = 0;
    bind_note(b);
    return BIND_BOUND;
}

static unsigned bind_by_a_store(struct grant_bind *b)
{
    word64 *bound = &b->tables->meetings[MEETING_BOUND];
    b->remote_slot = 0;
    b->remote_epoch = GRANT_EPOCH;
    if (bind_load(bound) != GRANT_EPOCH << 1 || !bind_read(b) || !bind_holds(b))
        return 0;
    bind_store(bound, GRANT_EPOCH << 1); // so whoever has come between is forgotten
    return bind_grant(b);
}

#define WRONG_BIND(name)                                                                                               \
    static void grant_##name(const struct scene *scene, struct world *world)                                           \
    {                                                                                                                  \
        (void)scene;                                                                                                   \
        bind_by(world, name);                                                                                          \
    }

WRONG_BIND(count_before_the_record)
WRONG_BIND(join_before_it_is_bound)
WRONG_BIND(bind_by_a_store)

static void open_before_the_record(const struct scene *scene, struct world *world)
{
    const struct status_table table = table_of(world);
    word_raise(&world->record[SLOT_RELEASED_EPOCH], EPOCH);
    status_open(&table, SLOT, NOW_NS);
    open_slot(scene, world);
}

static const struct scene broken_scenes[] = {
    {"broken: the count before the destination", BIND_SCENE(grant_count_before_the_record), .broken_in = BOUNDARIES,
     .given = "free"},
    {"broken: joined before it is bound", BIND_SCENE(grant_join_before_it_is_bound), .broken_in = BOUNDARIES,
     .given = "free"},
    {"broken: bound by a store", BIND_SCENE(grant_bind_by_a_store), .broken_in = RIVALS, .shows_anywhere = true,
     .given = "free", .rivals = who_bind},
    {"broken: the epoch before its record", .broken_in = BOUNDARIES, .followed = 1, .prepare = prepare_slot,
     .operate = open_before_the_record, .recover = open_slot, .inspect = inspect_slot, .outcome = outcome_of_slot,
     .judge = judge_slot},
    {"broken: the word before the rows", WRITE_SCENE(rows_say_first), .broken_in = BOUNDARIES, .before = "0",
     .after = "5", .given = "open"},
    {"broken: the destination's word first", WRITE_SCENE(rows_tell_the_destination_first), .broken_in = BOUNDARIES,
     .before = "0", .after = "5", .given = "open"},
    {"broken: written without the claim", WRITE_SCENE(rows_write_without_the_claim), .broken_in = BOUNDARIES,
     .before = "3", .after = "5", .given = "ended"},
    {"broken: written before the claim", WRITE_SCENE(rows_write_before_the_claim), .broken_in = BOUNDARIES,
     .before = "0", .after = "5", .given = "open"},
    {"broken: a claim given back by a store", WRITE_SCENE(rows_give_back_by_a_store), .broken_in = RIVALS,
     .shows_anywhere = true, .before = "0", .after = "5", .given = "open", .rivals = who_end},
    {"broken: a claim kept that was revoked", WRITE_SCENE(rows_keep_what_was_revoked), .broken_in = RIVALS,
     .shows_anywhere = true, .before = "0", .after = "5", .given = "open", .rivals = who_end},
    {"broken: told although refused", WRITE_SCENE(rows_tell_although_refused), .broken_in = RIVALS,
     .shows_anywhere = true, .before = "0", .after = "5", .given = "open", .rivals = who_end},
    {"broken: counted before it is whole", WRITE_SCENE(rows_count_before_it_is_whole), .broken_in = BOUNDARIES | RIVALS,
     .shows_anywhere = true, .before = "0", .after = "5", .given = "open", .rivals = who_end},
    {"broken: whole before the rows", WRITE_SCENE(rows_make_whole_before_the_rows), .broken_in = BOUNDARIES,
     .before = "0", .after = "5", .given = "open", .rivals = who_end},
    {"broken: a free list in two stores", .broken_in = BOUNDARIES | KILLS | NESTED, .prepare = prepare_list,
     .operate = use_list, .recover = recover_list, .inspect = inspect_nothing, .outcome = outcome_of_nothing,
     .judge = judge_list},
    {"broken: an owner in two stores", BLOCKS, .broken_in = BOUNDARIES | KILLS, .operate = acquire_in_two_stores,
     .before = ".m.o", .after = ".mmo", .moves = TAKE, .recovery = RECLAIM},
    {"broken: look, then store", BLOCKS, .broken_in = RIVALS, .operate = look_then_store, .before = ".m.o",
     .after = ".mmo", .moves = TAKE, .recovery = RECLAIM},
    {"broken: the cell before the exposure word", BLOCKS, .broken_in = BOUNDARIES, .operate = expose_cell_first,
     .before = ".m.o", .after = ".e.o", .moves = EXPOSE, .recovery = RECLAIM_FENCED},
    {"broken: two processes that expose", CELLS_AND(recover_blocks, exposers), .broken_in = RIVALS, .operate = expose,
     .before = ".m", .after = ".e", .given = "m", .moves = EXPOSE, .recovery = RECLAIM},
    {"broken: reclaim in two moves", CELLS(reclaim_in_two_moves), .broken_in = BOUNDARIES | NESTED,
     .operate = quarantine, .before = ".e", .after = ".e", .given = "", .moves = 0, .recovery = RECLAIM},
    {"broken: the tail before the record", PUSH, .broken_in = BOUNDARIES | KILLS, .operate = push_tail_first,
     .before = "2", .given = "1", .after = "3"},
    {"broken: the commit before the work", POP, .broken_in = BOUNDARIES | KILLS, .operate = commit_first, .before = "1",
     .given = "0", .after = "1"},
    {"broken: a word in two halves", STATUS(UINT32_MAX), .broken_in = BOUNDARIES, .operate = advance_in_halves,
     .recover = advance, .before = "1", .after = "2"},
    {"broken: the bit before the word", STATUS(UINT32_MAX), .broken_in = BOUNDARIES, .operate = mark_first,
     .recover = advance, .before = "1", .after = "2"},
    {"broken: a word looked at, then stored", STATUS(UINT32_MAX), .broken_in = RIVALS, .operate = advance_blindly,
     .recover = advance, .before = "1", .after = "2", .rivals = writers},
    {"broken: the sleep ended before the wake", BELL, .broken_in = BOUNDARIES | KILLS, .operate = end_sleep_before_wake,
     .given = "asleep"},
    {"broken: the arming ended before the write", BELL, .broken_in = BOUNDARIES | KILLS, .operate = disarm_before_write,
     .given = "armed"},
};

#endif

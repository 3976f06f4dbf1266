// A direct write, and whoever ends its request in the middle. What holds at every boundary: a row of the destination
// changes only under the claim, and no word says that a row is there before it is (R28, R32); the encode side's word is
// never behind the destination's, nor does it, or `sent`, count all rows before the destination is whole, and one that
// is whole never fails for itself (R36). When its writer is dead, its claim is ended and nobody else's (R33).
//
// In some scenes the request has a second destination, which is whole by then, or has no row yet.
#ifndef EMBRIDGE_TESTS_NATIVE_SCENES_DIRECT_H
#define EMBRIDGE_TESTS_NATIVE_SCENES_DIRECT_H

#include "single_step.h"

#define THERE_EPOCH 9
#define WRITE_ROWS 5
#define ROW_BYTES 8
#define WRITER 0x01000003u
#define OTHER_WRITER 0x01000002u // who had the entry before
#define LANE 3
#define WRITTEN_NS 777

// The blocks lie apart, and in no order: rows 0, 1 in block 3, rows 2, 3 in block 1, row 4 in block 2.
static const uint64_t write_blocks[] = {3, 1, 2};

static uint64_t row_of(uint64_t row) { return UINT64_C(0x1111111111111111) * (row + 1); }

static uint64_t *row_at(struct world *world, uint64_t row)
{
    return &world->payload[write_blocks[row / BLOCK_ROWS] * BLOCK_ROWS + row % BLOCK_ROWS];
}

static struct status_table own_table(const struct world *world)
{
    return (struct status_table){.words = (word64 *)world->words, .stamps = (word64 *)world->stamps,
                                 .dirty = (word64 *)world->dirty, .num_slots = SLOTS_PER_PAGE, .num_views = NUM_VIEWS};
}

static struct status_table their_table(const struct world *world)
{
    return (struct status_table){.words = (word64 *)world->there, .stamps = (word64 *)world->stamps_there,
                                 .dirty = (word64 *)world->dirty_there, .num_slots = SLOTS_PER_PAGE,
                                 .num_views = NUM_VIEWS};
}

static void follow(const struct scene *scene, struct world *world);

static bool has_ended_it; // a rival, the request whose claim it was

static uint64_t sent_of(const struct world *world) { return world->destinations[DESTINATION_SENT]; }

// Whether there is a second destination, and it has all rows; whether it has none.
static bool has_other(const struct scene *scene) { return scene->given[1] == '2'; }
static bool lacks_other(const struct scene *scene) { return scene->given[1] == '0'; }

// `before`: how many rows are sent; `after`: how many are granted; `given`: the claim, o(pen), e(nded), or of an older
// epoch, then whether there is a second destination, and it has all rows (2), or none (0).
static void prepare_write(const struct scene *scene, struct world *world)
{
    memset((void *)world, 0, sizeof *world);
    has_ended_it = false;
    atomic_store(&world->words[0], status_word(WRITE_EPOCH, 1, 0));
    atomic_store(&world->there[1], status_word(THERE_EPOCH, 1, 0));
    for (uint64_t k = 0; k < sizeof write_blocks / sizeof *write_blocks; k++)
        atomic_store(&world->granted[k], UINT64_C(5) << 32 | write_blocks[k]);
    const uint64_t sent = (uint64_t)(scene->before[0] - '0');
    for (uint64_t row = 0; row < sent; row++)
        *row_at(world, row) = row_of(row);
    atomic_store(&world->destinations[DESTINATION_SENT], sent);
    atomic_store(&world->destinations[DESTINATION_GRANTED_TOKENS], (uint64_t)(scene->after[0] - '0'));
    atomic_store(&world->destinations[DESTINATION_FIRST_GRANT], 2);
    const uint64_t count = 1 + (has_other(scene) || lacks_other(scene));
    atomic_store(&world->record[SLOT_REQUIRED], count);
    atomic_store(&world->record[SLOT_NUM_DESTINATIONS], count);
    atomic_store(&world->destinations[DESTINATION_WORDS + DESTINATION_SENT], has_other(scene) ? WRITE_ROWS : 0);
    atomic_store(&world->destinations[DESTINATION_WORDS + DESTINATION_FIRST_GRANT], WRITE_ROWS);
    const uint64_t epoch = scene->given[0] == 'p' ? THERE_EPOCH - 1 : THERE_EPOCH;
    atomic_store(&world->claim[0], claim_word(epoch, scene->given[0] == 'e' ? CLAIM_ENDED : CLAIM_OPEN, 0));
    atomic_store(&world->claim[1], LANE);
    for (uint64_t row = 0; row < WRITE_ROWS; row++)
        world->source[row] = row_of(row);
    if (scene->operate == follow) {
        atomic_store(&world->words[0], status_word(WRITE_EPOCH, PHASE_SUCCESS, WRITE_ROWS));
        atomic_store(&world->there[1], status_word(THERE_EPOCH, 1, 0) | WHOLE_BIT);
        atomic_store(&world->claim[1], (uint64_t)WRITE_ROWS << CLAIM_LANE_BITS | LANE);
    }
}

static uint64_t scene_clock(struct direct_write *write)
{
    (void)write;
    return WRITTEN_NS;
}

static void write_rows_by(struct world *world, void (*write)(struct direct_write *))
{
    const struct status_table own = own_table(world), theirs = their_table(world);
    static const struct direct_column columns[] = {{0, ROW_BYTES}};
    // in two pieces, of which the second begins in the middle of a block
    const uint64_t spans[] = {0, 3, (uintptr_t)&world->source[0], 3, WRITE_ROWS, (uintptr_t)&world->source[3]};
    struct direct_write w = {
        .claim = world->claim,
        .writer = WRITER,
        .there = {&theirs, 1, THERE_EPOCH},
        .payload = (unsigned char *)world->payload,
        .aux_offset = offsetof(struct world, aux_there) - offsetof(struct world, payload),
        .aux_bytes = 8,
        .num_blocks = NUM_WRITE_BLOCKS,
        .block_size = BLOCK_ROWS,
        .here = {&own, 0, WRITE_EPOCH},
        .record = world->record,
        .destinations = world->destinations,
        .destination = world->destinations,
        .blocks = world->granted,
        .most_destinations = 2,
        .window = NUM_WRITE_BLOCKS,
        .num_writes = &world->counters[0],
        .bytes_written = &world->counters[1],
        .tokens_written = &world->counters[2],
        .aux = world->source,
        .num_rows = WRITE_ROWS,
        .columns = columns,
        .num_columns = 1,
        .spans = spans,
        .num_spans = 2,
        .clock = scene_clock,
    };
    write(&w);
}

static void write_rows(const struct scene *scene, struct world *world)
{
    (void)scene;
    write_rows_by(world, direct_write);
}

static void follow(const struct scene *scene, struct world *world)
{
    (void)scene;
    write_rows_by(world, direct_follow);
}

// The launcher of the language node, when the writer is dead; and the encode node's poller, which tells what is true.
static void recover_write(const struct scene *scene, struct world *world)
{
    (void)scene;
    const uint64_t writer = atomic_load(&world->claim[0]) & UINT32_MAX;
    const uint64_t state = atomic_load(&world->claim[0]) >> CLAIM_WRITER_BITS & 0xF;
    if (writer == WRITER && (state == CLAIM_WRITING || state == CLAIM_REVOKED))
        atomic_store(&world->claim[0], claim_word(THERE_EPOCH, CLAIM_ENDED, 0));
    const struct status_table own = own_table(world), theirs = their_table(world);
    const uint64_t word = status_load(&own, 0);
    status_obey(&theirs, 1, THERE_EPOCH, status_phase(word), status_sent(word), WRITTEN_NS);
}

static uint64_t num_there(struct world *world)
{
    uint64_t row = 0;
    while (row < WRITE_ROWS && *row_at(world, row) == row_of(row))
        row++;
    return row;
}

static bool is_held(const struct world *world)
{
    const uint64_t claim = world->claim[0];
    return claim == claim_word(THERE_EPOCH, CLAIM_WRITING, WRITER) ||
           claim == claim_word(THERE_EPOCH, CLAIM_REVOKED, WRITER);
}

static const char *inspect_write(const struct scene *scene, bool recovering, const struct world *last,
                                 const struct world *now)
{
    static struct world look;
    memcpy((void *)&look, now, sizeof look);
    const uint64_t there = num_there(&look), own = now->words[0], theirs = now->there[1];
    const size_t written = offsetof(struct world, end_of_payload) - offsetof(struct world, payload);
    if (memcmp(last->payload, now->payload, written) != 0 && !(is_held(last) && is_held(now)))
        return fault("a row was written under the claim %llx", (ull)now->claim[0]);
    const uint64_t sent = sent_of(now), said = status_sent(theirs);
    if (sent > there || status_sent(own) > sent)
        return fault("%llu rows are there, sent is %llu, the word is %llx", (ull)there, (ull)sent, (ull)own);
    const bool is_whole = theirs & WHOLE_BIT, was_whole = last->there[1] & WHOLE_BIT;
    if (is_whole && there < WRITE_ROWS)
        return fault("%llu rows are there, and it is whole: %llx", (ull)there, (ull)theirs);
    if (was_whole && !is_whole && status_phase(theirs) < FIRST_TERMINAL_PHASE)
        return fault("%llx is whole no more: %llx", (ull)last->there[1], (ull)theirs);
    if (was_whole && status_phase(theirs) == PHASE_FAILED && status_phase(own) != PHASE_FAILED)
        return fault("a whole one has failed for itself: %llx", (ull)theirs);
    if (sent == WRITE_ROWS && last->destinations[DESTINATION_SENT] < WRITE_ROWS && !is_whole)
        return fault("all rows are counted at %llx", (ull)theirs);
    const bool behind = status_phase(own) == PHASE_FAILED ? status_phase(theirs) == PHASE_SUCCESS
                                                          : said > (lacks_other(scene) ? sent : status_sent(own));
    if (behind || (status_phase(theirs) == PHASE_SUCCESS && status_phase(own) != PHASE_SUCCESS))
        return fault("the destination has heard %llx, the word is %llx", (ull)theirs, (ull)own);
    const uint64_t from = last->claim[0], to = now->claim[0];
    const bool taken = from == claim_word(THERE_EPOCH, CLAIM_OPEN, 0) && is_held(now);
    const uint64_t back = from >> 32 == to >> 32 ? CLAIM_OPEN : (to >> 32 & 0xF);
    const bool given = is_held(last) && to == claim_word(THERE_EPOCH, back, 0);
    if (from != to && !taken && !given && !recovering)
        return fault("the claim went from %llx to %llx", (ull)from, (ull)to);
    if (to == claim_word(THERE_EPOCH, CLAIM_OPEN, 0) && from == claim_word(THERE_EPOCH, CLAIM_REVOKED, WRITER))
        return fault("a claim that was revoked is open");
    if ((now->claim[1] & 0xFFFF) != LANE || now->claim[1] >> 16 > WRITE_ROWS)
        return fault("the lane and the length are %llx", (ull)now->claim[1]);
    if ((theirs & UINT32_MAX) > 0 && now->claim[1] >> 16 != WRITE_ROWS)
        return fault("%llx is told, the length is not", (ull)theirs);
    return NULL;
}

static const char *outcome_of_write(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    static struct world look;
    memcpy((void *)&look, ended, sizeof look);
    const uint64_t granted = (uint64_t)(scene->after[0] - '0'), sent = (uint64_t)(scene->before[0] - '0');
    if (is_held(ended))
        return fault("the claim is held still: %llx", (ull)ended->claim[0]);
    const bool may_write = scene->given[0] == 'o';
    if (!rival) {
        const uint64_t expected = may_write ? granted : sent, least = lacks_other(scene) ? 0 : expected;
        const enum phase phase = lacks_other(scene)       ? PHASE_WAITING
                                        : expected == WRITE_ROWS ? PHASE_SUCCESS
                                                                 : PHASE_TRANSFERRING;
        const uint64_t word = status_word(WRITE_EPOCH, phase, least);
        if (sent_of(ended) != expected || (may_write && ended->words[0] != word) || num_there(&look) < expected)
            return fault("%llu sent, the word is %llx", (ull)sent_of(ended), (ull)ended->words[0]);
        if (may_write && status_sent(ended->there[1]) != expected)
            return fault("the destination has heard of %llu", (ull)status_sent(ended->there[1]));
        if (scene->operate == follow && ended->there[1] != status_word(THERE_EPOCH, PHASE_SUCCESS, WRITE_ROWS))
            return fault("the destination has heard %llx", (ull)ended->there[1]);
        if (lacks_other(scene) && !(ended->there[1] & WHOLE_BIT))
            return fault("the destination is not whole: %llx", (ull)ended->there[1]);
    }
    if (status_phase(ended->words[0]) == PHASE_FAILED && status_phase(ended->there[1]) == PHASE_SUCCESS)
        return fault("the destination has heard %llx of a request that has failed", (ull)ended->there[1]);
    if (status_phase(ended->there[1]) == PHASE_FAILED && status_phase(ended->words[0]) == PHASE_SUCCESS)
        return fault("the destination has failed, the word is %llx", (ull)ended->words[0]);
    if (has_ended_it && ended->claim[0] != claim_word(THERE_EPOCH, CLAIM_ENDED, 0))
        return fault("the claim that was revoked is %llx", (ull)ended->claim[0]);
    return NULL;
}

// What the dead leave: nobody holds the claim, and what the words say is there.
static const char *judge_write(const struct scene *scene, const struct world *killed, struct world *recovered)
{
    (void)scene;
    const uint64_t own = recovered->words[0], theirs = recovered->there[1];
    if (is_held(recovered))
        return fault("the claim of the dead is %llx", (ull)recovered->claim[0]);
    if (killed->claim[0] == claim_word(THERE_EPOCH, CLAIM_OPEN, 0) && recovered->claim[0] != killed->claim[0])
        return fault("nobody's claim has become %llx", (ull)recovered->claim[0]);
    if (num_there(recovered) < status_sent(theirs) || num_there(recovered) < sent_of(recovered))
        return fault("the destination has heard %llx", (ull)theirs);
    if (status_phase(own) == PHASE_SUCCESS && status_phase(theirs) != PHASE_SUCCESS)
        return fault("the destination does not hear of %llx", (ull)own);
    return NULL;
}

// ---- who else is there

// The language node's poller: the request has ended.
static void revoke_it(struct world *world)
{
    const uint64_t claim = atomic_load(&world->claim[0]);
    const bool held = is_held(world);
    atomic_store(&world->claim[0],
                 held ? claim_word(THERE_EPOCH, CLAIM_REVOKED, WRITER) : claim_word(THERE_EPOCH, CLAIM_ENDED, 0));
    has_ended_it = claim >> 36 == THERE_EPOCH;
}

// The encode side has failed, and the language node has not heard of it.
static void fail_it(struct world *world)
{
    const struct status_table own = own_table(world);
    has_ended_it = false;
    status_advance(&own, 0, WRITE_EPOCH, PHASE_FAILED, 0, WRITTEN_NS);
}

// The language node's poller would fail the request, and revokes the claim if it may.
static void fail_there(struct world *world)
{
    const struct status_table theirs = their_table(world);
    has_ended_it = false;
    if (status_advance(&theirs, 1, THERE_EPOCH, PHASE_FAILED, 0, WRITTEN_NS))
        revoke_it(world);
}

static const struct rival who_end[] = {
    {"revokes the claim", revoke_it, false},
    {"fails the request", fail_it, false},
    {"fails the destination", fail_there, false},
    {NULL, NULL, false},
};

#define WRITE_SCENE(which)                                                                                             \
    .followed = UINT32_MAX, .prepare = prepare_write, .operate = which, .recover = recover_write,                      \
    .inspect = inspect_write, .outcome = outcome_of_write, .judge = judge_write

static const struct scene direct_scenes[] = {
    {"write all", WRITE_SCENE(write_rows), .before = "0", .after = "5", .given = "open", .rivals = who_end},
    {"write some", WRITE_SCENE(write_rows), .before = "0", .after = "3", .given = "open", .rivals = who_end},
    {"write the rest", WRITE_SCENE(write_rows), .before = "3", .after = "5", .given = "open", .rivals = who_end},
    {"write to the last of two", WRITE_SCENE(write_rows), .before = "3", .after = "5", .given = "o2",
     .rivals = who_end},
    {"write to the first of two", WRITE_SCENE(write_rows), .before = "3", .after = "5", .given = "o0",
     .rivals = who_end},
    {"follow", WRITE_SCENE(follow), .before = "5", .after = "5", .given = "e2", .rivals = who_end},
    {"write under an ended claim", WRITE_SCENE(write_rows), .before = "3", .after = "5", .given = "ended"},
    {"write under an older claim", WRITE_SCENE(write_rows), .before = "3", .after = "5", .given = "past"},
};

#endif

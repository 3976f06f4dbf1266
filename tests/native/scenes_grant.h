// A scheduler's client that posts a grant, one that takes everything back at a request's end, and one that withdraws a
// grant to which nobody has come; it may die between any two steps, and others may be faster. What holds at every
// boundary: a claim is open only when all that a writer needs to know is written down and the blocks are exposed (R30,
// R37), a post is entered only then, a slot is released when nothing of its request is left (R78), and no block comes
// free to whose grant an encoder may bind itself (R34).
#ifndef EMBRIDGE_TESTS_NATIVE_SCENES_GRANT_H
#define EMBRIDGE_TESTS_NATIVE_SCENES_GRANT_H

#include "grant.h"
#include "scenes_bind.h"
#include "scenes_status.h"

#define GRANT_OWNER cell_owner(0, GRANT_EPOCH)
#define NEXT_OWNER cell_owner(1, 1)
#define GRANT_NS 900
#define IS_UNTOLD (GRANT_EPOCH << TOLD_BITS | TOLD_UNTOLD)
#define IS_RELEASED (GRANT_EPOCH << TOLD_BITS | TOLD_RELEASED)
#define IS_TOLD (GRANT_EPOCH << TOLD_BITS | 2)

static const uint32_t grant_blocks[BIND_WINDOW] = {3, 1};
static struct blocks grant_pool; // the traced process's own handle
static bool has_stolen;          // a rival has a block that was the request's
static bool has_bound;           // an encoder is bound to the grant

static struct grant_tables grant_tables_of(struct world *world, const struct status_table *status, struct blocks *pool)
{
    static uint64_t advice[4];
    *pool = (struct blocks){.cells = world->cells, .exposure = world->exposure, .num_blocks = NUM_WRITE_BLOCKS};
    blocks_use_advice(pool, advice);
    return (struct grant_tables){
        .blocks = pool,
        .status = status,
        .slots = world->record,
        .windows = world->bind.window,
        .claims = world->claim,
        .meetings = world->bind.meeting,
        .posts = world->bind.posts,
        .slot_words = SLOT_WORDS,
        .window = BIND_WINDOW,
        .num_buckets = 1,
    };
}

static struct own_grant grant_of_world(const struct grant_tables *tables)
{
    return (struct own_grant){.tables = tables, .room = GRANT_ROOM, .epoch = GRANT_EPOCH, .node_id = bind_own.id,
                              .incarnation = bind_own.incarnation, .blocks = grant_blocks, .num_blocks = BIND_WINDOW,
                              .num_tokens = GRANT_TOKENS};
}

static void post_it(const struct scene *scene, struct world *world)
{
    (void)scene;
    const struct status_table status = table_of(world);
    const struct grant_tables tables = grant_tables_of(world, &status, &grant_pool);
    struct own_grant grant = grant_of_world(&tables);
    grant_post(&grant, GRANT_NS);
}

static void take_it_back(const struct scene *scene, struct world *world)
{
    (void)scene;
    const struct status_table status = table_of(world);
    const struct grant_tables tables = grant_tables_of(world, &status, &grant_pool);
    struct own_grant grant = grant_of_world(&tables);
    grant_release(&grant, GRANT_NS);
}

static void withdraw_it(const struct scene *scene, struct world *world)
{
    (void)scene;
    const struct status_table status = table_of(world);
    const struct grant_tables tables = grant_tables_of(world, &status, &grant_pool);
    struct own_grant grant = grant_of_world(&tables);
    grant_withdraw(&grant, GRANT_NS);
}

// `given`: it is to be (p)osted, or it was, and (w)aits or has (e)nded.
static void prepare_grant(const struct scene *scene, struct world *world)
{
    memset((void *)world, 0, sizeof *world);
    has_stolen = has_bound = false;
    for (size_t k = 0; k < BIND_WINDOW; k++)
        world->cells[grant_blocks[k]] = GRANT_OWNER | CELL_OWNED;
    world->record[SLOT_TOLD] = IS_UNTOLD;
    world->words[0] = status_word(GRANT_EPOCH, PHASE_BOOTSTRAPPING, 0);
    world->claim[0] = claim_word(GRANT_EPOCH, CLAIM_SHUT, 0);
    world->bind.meeting[MEETING_EPOCH] = GRANT_EPOCH - 1; // of the request before
    if (scene->given[0] == 'p')
        return;
    post_it(scene, world);
    if (scene->given[0] == 'w')
        return;
    world->words[0] = status_word(GRANT_EPOCH, PHASE_SUCCESS, GRANT_TOKENS);
    world->claim[0] = claim_word(GRANT_EPOCH, CLAIM_ENDED, 0);
}

// The poller, when the client is dead: the claim, the blocks, the post.
static void recover_grant(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct blocks pool = {.cells = world->cells, .exposure = world->exposure, .num_blocks = NUM_WRITE_BLOCKS};
    uint64_t advice[4] = {0};
    blocks_use_advice(&pool, advice);
    bind_move(&world->claim[0], claim_word(GRANT_EPOCH, CLAIM_SHUT, 0), claim_word(GRANT_EPOCH, CLAIM_ENDED, 0));
    bind_move(&world->claim[0], claim_word(GRANT_EPOCH, CLAIM_OPEN, 0), claim_word(GRANT_EPOCH, CLAIM_ENDED, 0));
    blocks_reclaim(&pool, GRANT_OWNER, false);
    post_take_off(world->bind.posts, post_of_ours());
}

static bool is_posted(const struct world *world)
{
    for (size_t k = 0; k < BUCKET_POSTS; k++)
        if (world->bind.posts[k] == post_of_ours())
            return true;
    return false;
}

static bool is_open(const struct world *world) { return world->claim[0] == claim_word(GRANT_EPOCH, CLAIM_OPEN, 0); }

static uint32_t num_in(const struct world *world, enum cell_state state)
{
    uint32_t count = 0;
    for (size_t k = 0; k < BIND_WINDOW; k++)
        count += cell_held_by(world->cells[grant_blocks[k]], GRANT_OWNER) &&
                 cell_state(world->cells[grant_blocks[k]]) == state;
    return count;
}

static bool is_recorded(const struct world *world)
{
    return world->bind.window[0] == grant_blocks[0] && world->bind.window[1] == grant_blocks[1] &&
           world->record[SLOT_GRANTED] == (UINT64_C(2) << 32 | GRANT_TOKENS);
}

static bool is_written_down(const struct world *world)
{
    const word64 *meeting = world->bind.meeting;
    return meeting[MEETING_ROOM] == GRANT_ROOM && meeting[MEETING_NODE_ID] == bind_own.id &&
           meeting[MEETING_INCARNATION] == bind_own.incarnation &&
           meeting[MEETING_GRANTED] == (UINT64_C(2) << 32 | GRANT_TOKENS) && meeting[MEETING_BOUND] >> 1 == GRANT_EPOCH;
}

static const char *inspect_grant(const struct scene *scene, bool recovering, const struct world *from,
                                 const struct world *to)
{
    if (recovering)
        return NULL;
    if (to->record[SLOT_GRANTED] != 0 && !is_recorded(to))
        return fault("it says that it has granted what does not stand in its window");
    if (num_in(to, CELL_EXPOSED) > num_in(from, CELL_EXPOSED) && !is_recorded(to))
        return fault("a block is exposed that is not recorded");
    if (to->bind.meeting[MEETING_EPOCH] == GRANT_EPOCH && !is_written_down(to))
        return fault("what is granted is not written down whole");
    if (is_open(to) && !is_open(from) &&
        (to->bind.meeting[MEETING_EPOCH] != GRANT_EPOCH || (num_in(to, CELL_EXPOSED) < BIND_WINDOW && !has_stolen)))
        return fault("a claim is offered before all is ready for a writer");
    if (is_posted(to) && !is_posted(from) && to->claim[0] == claim_word(GRANT_EPOCH, CLAIM_SHUT, 0))
        return fault("a grant is posted before its claim is offered");
    if (to->record[SLOT_TOLD] != from->record[SLOT_TOLD] &&
        (num_in(to, CELL_EXPOSED) || num_in(to, CELL_OWNED) || is_posted(to) || scene->given[0] == 'p'))
        return fault("a slot is released of which something is left");
    if (scene->given[0] == 'w' && num_in(to, CELL_EXPOSED) < num_in(from, CELL_EXPOSED) &&
        (has_bound || is_open(to) || to->bind.meeting[MEETING_BOUND] != (GRANT_EPOCH << 1 | 1)))
        return fault("a block comes free to whose grant an encoder may be bound");
    if (to->record[SLOT_RELEASED_EPOCH] == GRANT_EPOCH && to->record[SLOT_TOLD] != IS_RELEASED)
        return fault("an epoch counts as released that is not");
    return NULL;
}

static const char *outcome_of_grant(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    const bool was_over = scene->given[0] != 'p';
    if (!rival && was_over)
        return ended->record[SLOT_RELEASED_EPOCH] == GRANT_EPOCH && num_in(ended, CELL_EXPOSED) == 0 &&
                       !is_posted(ended)
                   ? NULL
                   : fault("it is not given back");
    if (!rival)
        return is_open(ended) && is_posted(ended) && num_in(ended, CELL_EXPOSED) == BIND_WINDOW
                   ? NULL
                   : fault("it is not posted");
    if (has_bound)
        return is_open(ended) && is_posted(ended) && num_in(ended, CELL_EXPOSED) == BIND_WINDOW &&
                       ended->record[SLOT_TOLD] == IS_UNTOLD
                   ? NULL
                   : fault("a grant is withdrawn to which an encoder is bound");
    if (has_stolen && !cell_held_by(ended->cells[grant_blocks[1]], NEXT_OWNER))
        return fault("a block of another request was moved: %llx", (ull)ended->cells[grant_blocks[1]]);
    if (rival->takes_over && is_open(ended))
        return fault("a claim is open that was ended");
    if (ended->record[SLOT_TOLD] == IS_TOLD && ended->record[SLOT_RELEASED_EPOCH] == GRANT_EPOCH)
        return fault("a slot is released that the node has");
    return NULL;
}

static const char *judge_grant(const struct scene *scene, const struct world *killed, struct world *recovered)
{
    (void)scene, (void)killed;
    if (is_open(recovered) || is_posted(recovered))
        return fault("the grant can be found still");
    for (uint32_t state = CELL_OWNED; state <= CELL_QUARANTINED; state++)
        if (num_in(recovered, (enum cell_state)state))
            return fault("a block is held in the name of the dead");
    return NULL;
}

// ---- who else is there

// The poller ends the request, and its second block is another's.
static void end_the_request(struct world *world)
{
    struct blocks pool = {.cells = world->cells, .exposure = world->exposure, .num_blocks = NUM_WRITE_BLOCKS};
    uint64_t advice[4] = {0};
    uint64_t cell = 0;
    blocks_use_advice(&pool, advice);
    recover_grant(NULL, world);
    cell = world->cells[grant_blocks[1]];
    has_stolen = cell_state(cell) == CELL_FREE &&
                 blocks_move(&pool, grant_blocks[1], &cell, (cell & CELL_GENERATION_MASK) | NEXT_OWNER | CELL_OWNED);
}

static void tell_the_node(struct world *world)
{
    bind_move(&world->record[SLOT_TOLD], IS_UNTOLD, IS_TOLD);
}

static void bind_an_encoder(struct world *world)
{
    has_bound = bind_move(&world->bind.meeting[MEETING_BOUND], GRANT_EPOCH << 1, GRANT_EPOCH << 1 | 1);
}

static const struct rival who_binds[] = {
    {"binds an encoder", bind_an_encoder, false}, {"tells the node", tell_the_node, false}, {NULL, NULL, false}};
static const struct rival who_ends[] = {{"ends the request", end_the_request, true}, {NULL, NULL, false}};
static const struct rival who_tells[] = {{"tells the node", tell_the_node, false}, {NULL, NULL, false}};

#define GRANT_SCENE(which)                                                                                             \
    .followed = UINT32_MAX, .prepare = prepare_grant, .operate = which, .recover = recover_grant,                      \
    .inspect = inspect_grant, .outcome = outcome_of_grant, .judge = judge_grant

static const struct scene grant_scenes[] = {
    {"grant", GRANT_SCENE(post_it), .given = "posted", .rivals = who_ends},
    {"give back", GRANT_SCENE(take_it_back), .given = "ended", .rivals = who_tells},
    {"withdraw", GRANT_SCENE(withdraw_it), .given = "waiting", .rivals = who_binds},
};

#endif

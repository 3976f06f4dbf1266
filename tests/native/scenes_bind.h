// An encoder that binds its slot to a grant, and whoever is faster at some step. What holds at every boundary: the slot
// is joined only to a grant that is marked, and bound to it for as long as there is one, and the destination is written
// only then (R38, R79, R81); its count says that it is there when it is whole, and the post is taken off after that.
// Where the grant is over between the two, whoever has ended it tells this node, which finds the mark.
#ifndef EMBRIDGE_TESTS_NATIVE_SCENES_BIND_H
#define EMBRIDGE_TESTS_NATIVE_SCENES_BIND_H

#include "single_step.h"

#define GRANT_EPOCH 5
#define GRANT_ROOM UINT64_C(0xFEDCBA9876543210)
#define GRANT_TOKENS 3
#define JOINED_BY_BOOTSTRAP 2

static const uint64_t bind_blocks[BIND_WINDOW] = {3, 1};
static const struct node_name bind_own = {7, 3}, bind_there = {8, 9};

static uint64_t post_of_ours(void)
{
    return post_of_grant(GRANT_ROOM * POST_SPREAD >> (64 - POST_TAG_BITS), 0, GRANT_EPOCH);
}

static void write_down(struct world *world, uint64_t epoch, uint64_t room, const uint64_t *blocks)
{
    struct bind_world *b = &world->bind;
    const uint64_t words[] = {0, room, bind_own.id, bind_own.incarnation, UINT64_C(2) << 32 | GRANT_TOKENS, epoch << 1};
    atomic_store(&b->claim[0], claim_word(epoch, CLAIM_SHUT, 0));
    for (size_t k = 0; k < BIND_WINDOW; k++)
        atomic_store(&b->window[k], blocks[k]);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        atomic_store(&b->meeting[i], words[i]);
    atomic_store(&b->meeting[MEETING_EPOCH], epoch);
    atomic_store(&b->claim[0], claim_word(epoch, CLAIM_OPEN, 0));
}

// `given`: nobody has the grant, or (t)aken: another encoder.
static void prepare_bind(const struct scene *scene, struct world *world)
{
    memset((void *)world, 0, sizeof *world);
    struct bind_world *b = &world->bind;
    write_down(world, GRANT_EPOCH, GRANT_ROOM, bind_blocks);
    if (scene->given[0] == 't')
        atomic_store(&b->meeting[MEETING_BOUND], GRANT_EPOCH << 1 | 1);
    atomic_store(&b->posts[2], post_of_ours());
    atomic_store(&b->peer[PEER_NODE_ID], bind_there.id);
    atomic_store(&b->peer[PEER_INCARNATION], bind_there.incarnation);
    atomic_store(&b->peer[PEER_STATE], REGISTERED_STATE);
    atomic_store(&b->record[SLOT_TOLD], WRITE_EPOCH << TOLD_BITS | TOLD_UNTOLD);
}

static void bind_by(struct world *world, unsigned (*bind)(struct grant_bind *))
{
    struct bind_world *b = &world->bind;
    static uint64_t seen[1];
    uint64_t blocks[BIND_WINDOW];
    const struct bind_tables tables = {
        .there = bind_there,
        .posts = b->posts,
        .meetings = b->meeting,
        .claims = b->claim,
        .windows = b->window,
        .num_buckets = 1,
        .num_slots_there = 1,
        .window_there = BIND_WINDOW,
        .num_blocks = NUM_WRITE_BLOCKS,
        .block_size = BLOCK_ROWS,
        .own = bind_own,
        .slots = b->record,
        .destinations = b->destination,
        .grants = b->grants,
        .peers = b->peer,
        .tombstones = &b->tombstone,
        .finders = &b->finder,
        .num_slots = 1,
        .slot_words = SLOT_JOINED_BY + 1,
        .destinations_words = DESTINATION_WORDS,
        .window = BIND_WINDOW,
        .num_peers = 1,
        .peer_words = PEER_REGISTRATION + 1,
        .num_peer_slots = 1,
        .seen = seen,
    };
    struct grant_bind call = {.tables = &tables, .room = GRANT_ROOM, .epoch = WRITE_EPOCH, .blocks = blocks};
    bind(&call);
}

static void bind_it(const struct scene *scene, struct world *world)
{
    (void)scene;
    bind_by(world, bind_grant);
}

// The language node's scheduler: the request is over.
static void recover_bind(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct bind_world *b = &world->bind;
    bind_move(&b->claim[0], claim_word(GRANT_EPOCH, CLAIM_OPEN, 0), claim_word(GRANT_EPOCH, CLAIM_ENDED, 0));
    post_take_off(b->posts, post_of_ours());
}

static bool is_whole(const struct bind_world *b)
{
    return b->destination[DESTINATION_REMOTE_EPOCH] == GRANT_EPOCH &&
           b->destination[DESTINATION_GRANTED_TOKENS] == GRANT_TOKENS &&
           b->destination[DESTINATION_WRITTEN_BY] == WRITTEN_BY_CLIENT && b->record[SLOT_REQUIRED] == 1 &&
           b->grants[0] == bind_blocks[0] && b->grants[1] == bind_blocks[1];
}

static bool is_ours(const struct bind_world *b) { return b->record[SLOT_JOINED_BY] == JOINED_BY_CLIENT; }

static const char *inspect_bind(const struct scene *scene, bool recovering, const struct world *last,
                                const struct world *now)
{
    (void)scene;
    const struct bind_world *from = &last->bind, *to = &now->bind;
    const uint64_t bound = from->ended_as ? from->ended_as : from->meeting[MEETING_BOUND];
    if (!is_ours(from) && is_ours(to) && bound != (GRANT_EPOCH << 1 | 1))
        return fault("the slot is joined to a grant that is bound to nobody: %llx", (ull)bound);
    if (!is_ours(from) && is_ours(to) && from->finder != GRANT_EPOCH << FINDER_SLOT_BITS)
        return fault("the slot is joined to a grant that is not marked: %llx", (ull)from->finder);
    const bool is_noted = memcmp((const void *)from->destination, (const void *)to->destination,
                                 sizeof from->destination) != 0 ||
                          memcmp((const void *)from->grants, (const void *)to->grants, sizeof from->grants) != 0;
    if (is_noted && (!is_ours(from) || from->record[SLOT_NUM_DESTINATIONS]))
        return fault("a destination is written that is another's, or is there");
    if (to->record[SLOT_NUM_DESTINATIONS] && !is_whole(to))
        return fault("a destination is there and is not whole");
    if (to->posts[2] == 0 && from->posts[2] != 0 && !to->record[SLOT_NUM_DESTINATIONS] && !recovering)
        return fault("a post is taken off before the destination is there");
    return NULL;
}

static const char *outcome_of_bind(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    const struct bind_world *b = &ended->bind;
    const uint64_t bound = b->meeting[MEETING_BOUND];
    const bool may = scene->given[0] != 't';
    if (!rival && (is_ours(b) != may || (b->record[SLOT_NUM_DESTINATIONS] == 1) != may || (b->posts[2] == 0) != may))
        return fault("the slot is joined by %llu", (ull)b->record[SLOT_JOINED_BY]);
    if (is_ours(b) && (!b->record[SLOT_NUM_DESTINATIONS] || b->others_grant))
        return fault("the slot is bound to a grant that is another's");
    if (!is_ours(b) && may && !b->others_grant && bound == (GRANT_EPOCH << 1 | 1))
        return fault("the grant stays bound to nobody");
    if (b->meeting[MEETING_EPOCH] != GRANT_EPOCH && bound != (GRANT_EPOCH + 1) << 1)
        return fault("the next grant is bound by who has looked at this one: %llx", (ull)bound);
    return NULL;
}

static const char *judge_bind(const struct scene *scene, const struct world *killed, struct world *recovered)
{
    (void)scene;
    (void)killed;
    const struct bind_world *b = &recovered->bind;
    if (b->posts[2] != 0 || b->claim[0] == claim_word(GRANT_EPOCH, CLAIM_OPEN, 0))
        return fault("the grant can be found still");
    return b->record[SLOT_NUM_DESTINATIONS] && !is_whole(b) ? fault("a destination is there and is not whole") : NULL;
}

// ---- who else is there

static void bind_another(struct world *world)
{
    world->bind.others_grant = bind_move(&world->bind.meeting[MEETING_BOUND], GRANT_EPOCH << 1, GRANT_EPOCH << 1 | 1);
}

static void join_by_the_bootstrap(struct world *world)
{
    bind_move(&world->bind.record[SLOT_JOINED_BY], JOINED_BY_NOBODY, JOINED_BY_BOOTSTRAP);
}

// The language node's scheduler ends the request, and its slot is another room's.
static void grant_to_another(struct world *world)
{
    static const uint64_t blocks[BIND_WINDOW] = {2, 0};
    world->bind.ended_as = world->bind.meeting[MEETING_BOUND];
    recover_bind(NULL, world);
    write_down(world, GRANT_EPOCH + 1, GRANT_ROOM + 1, blocks);
}

static const struct rival who_bind[] = {
    {"binds another encoder", bind_another, false},
    {"joins the slot", join_by_the_bootstrap, false},
    {"grants the next epoch", grant_to_another, false},
    {NULL, NULL, false},
};

#define BIND_SCENE(which)                                                                                              \
    .followed = UINT32_MAX, .prepare = prepare_bind, .operate = which, .recover = recover_bind,                        \
    .inspect = inspect_bind, .outcome = outcome_of_bind, .judge = judge_bind

static const struct scene bind_scenes[] = {
    {"bind", BIND_SCENE(bind_it), .given = "free", .rivals = who_bind},
    {"bind what another has", BIND_SCENE(bind_it), .given = "taken"},
};

#endif

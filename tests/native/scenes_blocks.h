// Owner cells: each operation of blocks.h, from states that are written as one letter a block.
//
//   .  free          m e q  owned, exposed, quarantined by MINE, whose process is stepped and dies
//                    o x    owned, exposed by OTHER, who lives
//                    p      quarantined by EARLIER, an older epoch of the same slot
#ifndef EMBRIDGE_TESTS_NATIVE_SCENES_BLOCKS_H
#define EMBRIDGE_TESTS_NATIVE_SCENES_BLOCKS_H

#include "single_step.h"

#define MINE cell_owner(3, 7)
#define EARLIER cell_owner(3, 6)
#define OTHER cell_owner(4, 7)
#define RIVAL cell_owner(5, 1)
#define LAST_GENERATION (CELL_GENERATION_MASK >> CELL_GENERATION_SHIFT) // the next acquire passes the end

#define EXPOSED_TO(peer, session) ((uint64_t)(peer) << 32 | (session))
#define OLD_EXPOSURE EXPOSED_TO(1, 4)
#define NEW_EXPOSURE EXPOSED_TO(1, 5)
#define FENCED_BELOW 5

// The moves of a cell.
enum { TAKE = 1, FREE_OWNED = 2, EXPOSE = 4, FREE_EXPOSED = 8, QUARANTINE = 16, FREE_QUARANTINED = 32 };

// What the poller runs over a dead client's request: the encode side; the language side, before the other side has
// acknowledged the abort, after that, and after a fence.
enum recovery { RECLAIM_SOURCE, RECLAIM, RECLAIM_ACKNOWLEDGED, RECLAIM_FENCED };

static struct blocks mine; // the traced process's own handle
static uint32_t given[MAX_SCENE_BLOCKS], num_given;
static uint32_t rival_got[MAX_SCENE_BLOCKS], num_rival_got;

static uint64_t owner_of_letter(char letter)
{
    return strchr("meq", letter) ? MINE : strchr("ox", letter) ? OTHER : letter == 'p' ? EARLIER : 0;
}

static enum cell_state state_of_letter(char letter)
{
    if (letter == '.')
        return CELL_FREE;
    return strchr("mo", letter) ? CELL_OWNED : strchr("ex", letter) ? CELL_EXPOSED : CELL_QUARANTINED;
}

static struct blocks blocks_of(const struct scene *scene, struct world *world, uint64_t *advice)
{
    struct blocks handle = {.cells = world->cells, .exposure = world->exposure};
    handle.num_blocks = (uint32_t)strlen(scene->before);
    for (uint32_t i = 0; i < blocks_advice_words(handle.num_blocks); i++)
        advice[i] = 0;
    blocks_use_advice(&handle, advice);
    return handle;
}

static void prepare_blocks(const struct scene *scene, struct world *world)
{
    static uint64_t advice[4];
    memset((void *)world, 0, sizeof *world);
    mine = blocks_of(scene, world, advice);
    num_given = num_rival_got = 0;
    for (uint32_t block = 0; block < mine.num_blocks; block++) {
        const char letter = scene->before[block];
        const uint64_t generation = (LAST_GENERATION - block % 3) << CELL_GENERATION_SHIFT;
        world->cells[block] = generation | owner_of_letter(letter) | state_of_letter(letter);
        world->exposure[block] = OLD_EXPOSURE;
        if (letter == 'p' || strchr("mo", letter)) // what an owned block was exposed to once means nothing
            world->exposure[block] = letter == 'p' ? EXPOSED_TO(1, 3) : EXPOSED_TO(2, 9);
        if (scene->given && strchr(scene->given, letter))
            given[num_given++] = block;
    }
    if (scene->has_looked)
        blocks_look_at_all(&mine);
}

// ---- what is done

static void acquire(const struct scene *scene, struct world *world)
{
    const uint32_t want = (uint32_t)scene->given[0] - '0';
    world->num_got = blocks_acquire(&mine, MINE, want, 0, world->got);
}

static void release(const struct scene *scene, struct world *world)
{
    (void)scene, (void)world;
    for (uint32_t i = 0; i < num_given; i++)
        blocks_release(&mine, given[i], MINE);
}

static void expose(const struct scene *scene, struct world *world)
{
    (void)scene, (void)world;
    for (uint32_t i = 0; i < num_given; i++)
        blocks_expose(&mine, given[i], MINE, NEW_EXPOSURE);
}

static void quarantine(const struct scene *scene, struct world *world)
{
    (void)scene, (void)world;
    for (uint32_t i = 0; i < num_given; i++)
        blocks_quarantine(&mine, given[i], MINE);
}

static void use(const struct scene *scene, struct world *world)
{
    acquire(scene, world);
    for (uint32_t i = 0; i < world->num_got; i++)
        blocks_expose(&mine, world->got[i], MINE, NEW_EXPOSURE);
    blocks_release(&mine, world->got[0], MINE);
    blocks_quarantine(&mine, world->got[1], MINE);
}

// A process that begins anew: its handle believes nothing.
static void recover_blocks(const struct scene *scene, struct world *world)
{
    static uint64_t advice[4];
    struct blocks handle = blocks_of(scene, world, advice);
    blocks_reclaim(&handle, MINE, scene->recovery != RECLAIM_SOURCE);
    if (scene->recovery == RECLAIM_ACKNOWLEDGED)
        blocks_end_quarantine(&handle, MINE);
    if (scene->recovery == RECLAIM_FENCED)
        blocks_end_exposure(&handle, ~UINT64_C(0) << 32, EXPOSED_TO(1, 0), FENCED_BELOW);
}

// ---- what holds

static unsigned move_of(uint64_t from, uint64_t to)
{
    const uint64_t next = (from + (UINT64_C(1) << CELL_GENERATION_SHIFT)) & CELL_GENERATION_MASK;
    if (cell_state(from) == CELL_FREE)
        return to == (next | MINE | CELL_OWNED) ? TAKE : 0;
    if (to == cell_freed(from)) {
        const unsigned moves[] = {0, FREE_OWNED, FREE_EXPOSED, FREE_QUARANTINED};
        return moves[cell_state(from)];
    }
    if (to == cell_in_state(from, CELL_EXPOSED) && cell_state(from) == CELL_OWNED)
        return EXPOSE;
    return to == cell_in_state(from, CELL_QUARANTINED) && cell_state(from) == CELL_EXPOSED ? QUARANTINE : 0;
}

static bool fence_ends(uint64_t cell, uint64_t exposure)
{
    return cell_state(cell) == CELL_QUARANTINED && exposure >> 32 == 1 && (exposure & UINT32_MAX) < FENCED_BELOW;
}

// One instruction moves one cell, by a move that is allowed and only of those that MINE holds (a fence: of any), or
// stores one exposure word.
static const char *inspect_blocks(const struct scene *scene, bool recovering, const struct world *last,
                                  const struct world *now)
{
    const unsigned recovery_moves[] = {
        [RECLAIM_SOURCE] = FREE_OWNED | FREE_EXPOSED,
        [RECLAIM] = FREE_OWNED | QUARANTINE,
        [RECLAIM_ACKNOWLEDGED] = FREE_OWNED | QUARANTINE | FREE_QUARANTINED,
        [RECLAIM_FENCED] = FREE_OWNED | QUARANTINE | FREE_QUARANTINED,
    };
    const unsigned allowed = recovering ? recovery_moves[scene->recovery] : scene->moves;
    unsigned num_changed = 0;
    for (uint32_t block = 0; block < strlen(scene->before); block++) {
        const uint64_t from = last->cells[block], to = now->cells[block];
        if (last->exposure[block] != now->exposure[block]) {
            num_changed++;
            // Of a free or an owned block nobody reads it, so one that has just lost the block does no harm.
            const bool is_read = cell_state(from) == CELL_EXPOSED || cell_state(from) == CELL_QUARANTINED;
            if (now->exposure[block] != NEW_EXPOSURE || !(allowed & EXPOSE) || (is_read && !cell_held_by(from, MINE)))
                return fault("block %u: cell %llx, exposure %llx", block, (ull)from, (ull)now->exposure[block]);
        }
        if (from == to)
            continue;
        const unsigned move = move_of(from, to);
        num_changed++;
        if (!(move & allowed))
            return fault("block %u went from %llx to %llx", block, (ull)from, (ull)to);
        const bool ended = scene->recovery == RECLAIM_FENCED && fence_ends(from, last->exposure[block]);
        if (move != TAKE && !ended && !cell_held_by(from, MINE))
            return fault("block %u was not ours: %llx", block, (ull)from);
        if (move == EXPOSE && last->exposure[block] != NEW_EXPOSURE)
            return fault("block %u is exposed, its exposure word is %llx", block, (ull)last->exposure[block]);
    }
    return num_changed > 1 ? fault("%u words changed at once", num_changed) : NULL;
}

static const char *outcome_of_blocks(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    for (uint32_t i = 0; i < num_rival_got; i++)
        if (!cell_held_by(ended->cells[rival_got[i]], RIVAL))
            return fault("block %u was taken from the rival: %llx", rival_got[i], (ull)ended->cells[rival_got[i]]);
    if (rival && rival->takes_over)
        return NULL;
    for (uint32_t i = 0; scene->operate == acquire && i < ended->num_got; i++)
        if (!cell_held_by(ended->cells[ended->got[i]], MINE))
            return fault("block %u is ours and its cell says %llx", ended->got[i], (ull)ended->cells[ended->got[i]]);
    for (uint32_t block = 0; !rival && scene->after[block]; block++) {
        const char letter = scene->after[block];
        const uint64_t cell = ended->cells[block];
        if ((cell & CELL_OWNER_MASK) != owner_of_letter(letter) || cell_state(cell) != state_of_letter(letter))
            return fault("block %u ends as %llx, not as %c", block, (ull)cell, letter);
    }
    return NULL;
}

// What recovery is to make of a cell, whenever its holder died.
static uint64_t recovered_cell(enum recovery recovery, uint64_t cell, uint64_t exposure)
{
    if (cell_held_by(cell, MINE)) {
        if (cell_state(cell) == CELL_OWNED || (recovery == RECLAIM_SOURCE && cell_state(cell) == CELL_EXPOSED))
            return cell_freed(cell);
        if (recovery == RECLAIM_ACKNOWLEDGED)
            return cell_freed(cell);
        cell = cell_in_state(cell, CELL_QUARANTINED);
    }
    return recovery == RECLAIM_FENCED && fence_ends(cell, exposure) ? cell_freed(cell) : cell;
}

static const char *judge_blocks(const struct scene *scene, const struct world *killed, struct world *recovered)
{
    static uint64_t advice[4];
    struct blocks handle = blocks_of(scene, recovered, advice);
    uint32_t num_free = 0, got[MAX_SCENE_BLOCKS];
    for (uint32_t block = 0; block < handle.num_blocks; block++) {
        const uint64_t cell = recovered->cells[block], was = killed->cells[block];
        const uint64_t right = recovered_cell((enum recovery)scene->recovery, was, killed->exposure[block]);
        if (cell != right)
            return fault("block %u was %llx, is %llx and should be %llx", block, (ull)was, (ull)cell, (ull)right);
        if (cell_held_by(cell, MINE) && cell_state(cell) != CELL_QUARANTINED)
            return fault("block %u is still held by the dead: %llx", block, (ull)cell);
        if ((cell_state(cell) == CELL_FREE) != ((cell & CELL_OWNER_MASK) == 0))
            return fault("block %u is free and has an owner, or neither: %llx", block, (ull)cell);
        num_free += cell_state(cell) == CELL_FREE;
    }
    // All that is free can be had, once each: a block that was given twice would not be held by whom it was given to.
    const uint32_t num = blocks_acquire(&handle, RIVAL, handle.num_blocks, 0, got);
    if (num != num_free)
        return fault("%u blocks are free, %u can be had", num_free, num);
    for (uint32_t i = 0; i < num; i++)
        if (!blocks_release(&handle, got[i], RIVAL))
            return fault("block %u was given twice", got[i]);
    return NULL;
}

// ---- who else is there

static struct blocks rival_handle(struct world *world)
{
    static uint64_t advice[4];
    struct blocks handle = {.cells = world->cells, .exposure = world->exposure, .num_blocks = mine.num_blocks};
    memset(advice, 0, sizeof advice);
    blocks_use_advice(&handle, advice);
    return handle;
}

static void take_all(struct world *world)
{
    struct blocks handle = rival_handle(world);
    num_rival_got = blocks_acquire(&handle, RIVAL, handle.num_blocks, 0, rival_got);
}

static void take_and_release_all(struct world *world)
{
    struct blocks handle = rival_handle(world);
    take_all(world);
    for (; num_rival_got > 0; num_rival_got--)
        blocks_release(&handle, rival_got[num_rival_got - 1], RIVAL);
}

static void reclaim_and_take_all(struct world *world)
{
    struct blocks handle = rival_handle(world);
    blocks_reclaim(&handle, MINE, true);
    blocks_end_quarantine(&handle, MINE);
    take_all(world);
}

static const struct rival block_rivals[] = {
    {"takes all", take_all, false},
    {"takes and releases all", take_and_release_all, false},
    {"reclaims and takes all", reclaim_and_take_all, true},
    {NULL, NULL, false},
};

#define CELLS_AND(how, who)                                                                                            \
    .followed = UINT32_MAX, .prepare = prepare_blocks, .recover = how, .inspect = inspect_blocks,                      \
    .outcome = outcome_of_blocks, .judge = judge_blocks, .rivals = who
#define CELLS(how) CELLS_AND(how, block_rivals)
#define BLOCKS CELLS(recover_blocks)
#define O31 "ooooooooooooooooooooooooooooooo"

static const struct scene block_scenes[] = {
    {"acquire one", BLOCKS, .operate = acquire, .before = "..", .after = "m.", .given = "1", .moves = TAKE,
     .recovery = RECLAIM, .has_looked = true},
    {"acquire a run", BLOCKS, .operate = acquire, .before = "o....", .after = "omm..", .given = "2", .moves = TAKE,
     .recovery = RECLAIM_ACKNOWLEDGED},
    {"acquire from holes", BLOCKS, .operate = acquire, .before = ".moe.qp.", .after = "mmoemqp.", .given = "2",
     .moves = TAKE, .recovery = RECLAIM_ACKNOWLEDGED},
    {"acquire more than there is", BLOCKS, .operate = acquire, .before = ".o.x.", .after = "momxm", .given = "5",
     .moves = TAKE, .recovery = RECLAIM_SOURCE},
    {"acquire across words", BLOCKS, .operate = acquire, .before = O31 O31 "o..o", .after = O31 O31 "ommo",
     .given = "2", .moves = TAKE, .recovery = RECLAIM, .has_looked = true},
    {"release", BLOCKS, .operate = release, .before = ".moe.qpm", .after = "..o..qp.", .given = ".meqo",
     .moves = FREE_OWNED | FREE_EXPOSED, .recovery = RECLAIM_SOURCE},
    {"expose", BLOCKS, .operate = expose, .before = "moeqp", .after = "eoeqp", .given = ".meqo", .moves = EXPOSE,
     .recovery = RECLAIM_FENCED},
    {"quarantine", BLOCKS, .operate = quarantine, .before = ".moeqpe", .after = "..oqqpq", .given = ".meqo",
     .moves = FREE_OWNED | QUARANTINE, .recovery = RECLAIM},
    {"use: acquire, expose, release, quarantine", BLOCKS, .operate = use, .before = ".o..", .after = "eo.q",
     .given = "3", .moves = TAKE | EXPOSE | FREE_EXPOSED | QUARANTINE, .recovery = RECLAIM_FENCED},
    {"reclaim, source", BLOCKS, .operate = recover_blocks, .before = ".meoqpxe", .after = "...oqpx.",
     .moves = FREE_OWNED | FREE_EXPOSED, .recovery = RECLAIM_SOURCE},
    {"reclaim, quarantine", BLOCKS, .operate = recover_blocks, .before = ".meoqpxe", .after = "..qoqpxq",
     .moves = FREE_OWNED | QUARANTINE, .recovery = RECLAIM},
    {"reclaim, end_quarantine", BLOCKS, .operate = recover_blocks, .before = ".meoqpxe", .after = "...o.px.",
     .moves = FREE_OWNED | QUARANTINE | FREE_QUARANTINED, .recovery = RECLAIM_ACKNOWLEDGED},
    {"reclaim, end_exposure", BLOCKS, .operate = recover_blocks, .before = ".meoqpxe", .after = "...o..x.",
     .moves = FREE_OWNED | QUARANTINE | FREE_QUARANTINED, .recovery = RECLAIM_FENCED},
};

#endif

// A publisher, an evictor and a reader of a shelf, and whoever comes between. What holds at every boundary: heads only
// rise (R39), a block goes from nobody to somebody and back (R44), and an item that is READY is whole: its key, its
// number, its blocks and its rows (R40, R84). A pin that holds is of rows that stay (R41, R43).
#ifndef EMBRIDGE_TESTS_NATIVE_SCENES_SHELF_H
#define EMBRIDGE_TESTS_NATIVE_SCENES_SHELF_H

#include "single_step.h"

#define OUR_LANE 3
#define OTHERS_LANE 4
#define OUR_KEY 1
#define NEW_ROWS 50 // of our key; 40 are the old ones
#define CAT UINT64_C(0x746163)

static uint64_t shelf_costs[6 * SHELF_WAYS + 3];
static uint32_t pin_counts[SHELF_WAYS];

static struct shelf shelf_of(struct world *world)
{
    struct shelf_world *w = &world->shelf;
    return (struct shelf){.record = w->record, .heads = w->heads, .items = w->items, .cells = w->cells,
                          .uses = w->uses, .ledgers = w->ledgers, .num_entries = SHELF_WAYS,
                          .num_blocks = NUM_SHELF_BLOCKS, .num_readers = 2, .ledger_words = SHELF_WAYS,
                          .costs = shelf_costs};
}

static struct shelf_key key_number(uint64_t number)
{
    return (struct shelf_key){.hash = {number, number}, .bytes = 3, .words = {CAT + number}};
}

// Publish a key, in one block whose rows are this value. False: it was not.
static bool publish_by(struct world *world, uint64_t number, uint64_t rows, uint64_t lane, uint64_t now_ns)
{
    struct shelf s = shelf_of(world);
    struct shelf_publication p = {.key = key_number(number), .blocks = 1, .bytes = 8, .rows = 1, .width = rows,
                                  .dtype = 1, .lane = lane, .now_ns = now_ns, .replaces = true};
    if (shelf_begin(&s, &p) != SHELF_BEGUN)
        return false;
    atomic_store(&world->shelf.rows[p.first], rows);
    return shelf_show(&s, &p);
}

// Our key and another one lie on the shelf, which has no block left; `given`: (f)ree, the other one is not there;
// (m)oves: it is there no more, and our key lies behind it, so that its next item comes to lie before it.
static void prepare_shelf(const struct scene *scene, struct world *world)
{
    memset((void *)world, 0, sizeof *world);
    memset(pin_counts, 0, sizeof pin_counts);
    atomic_store(&world->shelf.record[SHELF_READERS], 2);
    if (scene->given[0] == 'm')
        CHECK(publish_by(world, OUR_KEY + 1, 60, OTHERS_LANE, 1), "the other key is not there");
    CHECK(publish_by(world, OUR_KEY, 40, OTHERS_LANE, 1), "our key is not there");
    if (scene->given[0] == 'm') {
        struct shelf s = shelf_of(world);
        const struct shelf_key key = key_number(OUR_KEY + 1);
        CHECK(shelf_unpublish(&s, &key) == 1 && head_state(world->shelf.heads[0]) == SHELF_OVER, "it is there still");
        return;
    }
    if (scene->given[0] != 'f')
        CHECK(publish_by(world, OUR_KEY + 1, 60, OTHERS_LANE, 2), "the other key is not there");
}

static void publish_it(const struct scene *scene, struct world *world)
{
    (void)scene;
    publish_by(world, OUR_KEY, NEW_ROWS, OUR_LANE, 9);
}

static void retire_it(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct shelf s = shelf_of(world);
    const struct shelf_key key = key_number(OUR_KEY);
    world->num_got = shelf_unpublish(&s, &key);
}

static struct shelf_reader reader_of(struct world *world, uint32_t number)
{
    struct shelf_reader reader = {
        .shelf = shelf_of(world), .ledger = world->shelf.ledgers + number * SHELF_WAYS, .counts = pin_counts};
    reader.shelf.ledgers = NULL;
    return reader;
}

static void pin_it(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct shelf_reader reader = reader_of(world, 0);
    const struct shelf_key key = key_number(OUR_KEY);
    struct shelf_found found;
    if (shelf_pin(&reader, &key, 9, &found)) {
        world->num_got = 1;
        world->got[0] = (uint32_t)found.words[ITEM_FIRST];
        world->got[1] = (uint32_t)found.words[ITEM_WIDTH];
    }
}

// All are dead but whoever makes room.
static void recover_shelf(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct shelf s = shelf_of(world);
    shelf_bury_publisher(&s, OUR_LANE);
    shelf_bury_reader(&s, 0);
    shelf_bury_reader(&s, 1);
    shelf_sweep(&s);
}

static const char *what_is_torn(const struct world *now)
{
    const struct shelf_world *w = &now->shelf;
    for (uint32_t e = 0; e < SHELF_WAYS; e++) {
        const word64 *item = &w->items[e * ITEM_WORDS];
        if (head_state(w->heads[e]) != SHELF_READY)
            continue;
        const uint64_t generation = head_generation(w->heads[e]), first = item[ITEM_FIRST];
        const uint64_t number = item[ITEM_HASH], rows = item[ITEM_WIDTH];
        const struct shelf_key key = key_number(number);
        if (!item_has(item, &key) || item[ITEM_NUMBER] <= generation)
            return fault("entry %u is ready, and its record is not whole", e);
        if (first >= NUM_SHELF_BLOCKS || w->cells[first] != shelf_cell(generation, e))
            return fault("entry %u is ready, and its block %llu is not its own", e, (ull)first);
        if (w->rows[first] != rows || (number == OUR_KEY) != (rows < 60))
            return fault("entry %u is ready, and its rows are %llu", e, (ull)w->rows[first]);
    }
    return NULL;
}

static const char *inspect_shelf(const struct scene *scene, bool recovering, const struct world *last,
                                 const struct world *now)
{
    (void)scene;
    (void)recovering;
    const struct shelf_world *from = &last->shelf, *to = &now->shelf;
    for (uint32_t e = 0; e < SHELF_WAYS; e++)
        if (to->heads[e] >> SHELF_LANE_BITS < from->heads[e] >> SHELF_LANE_BITS)
            return fault("the head of entry %u falls from %llx to %llx", e, (ull)from->heads[e], (ull)to->heads[e]);
    for (uint32_t b = 0; b < NUM_SHELF_BLOCKS; b++)
        if (from->cells[b] != to->cells[b] && from->cells[b] && to->cells[b])
            return fault("block %u is taken from its owner %llx", b, (ull)from->cells[b]);
    return what_is_torn(now);
}

// Whether that reader pins the item that has the block.
static bool is_pinned_there(const struct world *world, uint32_t reader, uint32_t block)
{
    const uint64_t cell = world->shelf.cells[block], entry = cell & ((1u << SHELF_ENTRY_BITS) - 1);
    return cell && world->shelf.ledgers[reader * SHELF_WAYS + entry] == cell >> SHELF_ENTRY_BITS;
}

static const char *outcome_of_publish(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    (void)scene;
    unsigned num_ours = 0;
    for (uint32_t e = 0; e < SHELF_WAYS; e++)
        num_ours += head_state(ended->shelf.heads[e]) == SHELF_READY &&
                    ended->shelf.items[e * ITEM_WORDS + ITEM_HASH] == OUR_KEY;
    if (num_ours > 1 || (!rival && num_ours != 1))
        return fault("%u items of our key are there", num_ours);
    return what_is_torn(ended);
}

static const char *outcome_of_retire(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    (void)scene;
    if (!rival && ended->num_got != 1)
        return fault("%u items of our key were retired", ended->num_got);
    return what_is_torn(ended);
}

static void replace_ours(struct world *world) { publish_by(world, OUR_KEY, NEW_ROWS + 1, OTHERS_LANE, 10); }

static const char *outcome_of_pin(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    const bool is_there = !rival || (rival->act == replace_ours && scene->given[0] == 'm'); // all the time
    if (is_there && !ended->num_got)
        return fault("our key is not found");
    if (!ended->num_got)
        return what_is_torn(ended);
    const uint32_t block = ended->got[0];
    if (block >= NUM_SHELF_BLOCKS || !is_pinned_there(ended, 0, block) || ended->shelf.rows[block] != ended->got[1] ||
        ended->got[1] >= 60)
        return fault("what was pinned is in block %u, and its rows are %llu", block, (ull)ended->shelf.rows[block]);
    return what_is_torn(ended);
}

static const char *judge_shelf(const struct scene *scene, const struct world *killed, struct world *recovered)
{
    (void)scene;
    (void)killed;
    for (uint32_t e = 0; e < SHELF_WAYS; e++) {
        const enum shelf_state state = head_state(recovered->shelf.heads[e]);
        if (state != SHELF_READY && state != SHELF_OVER)
            return fault("entry %u is neither ready nor over: %d", e, state);
    }
    for (uint32_t b = 0; b < NUM_SHELF_BLOCKS; b++) {
        const uint64_t cell = recovered->shelf.cells[b], entry = cell & ((1u << SHELF_ENTRY_BITS) - 1);
        const uint64_t ready = cell >> SHELF_ENTRY_BITS << SHELF_STATE_BITS | SHELF_READY;
        if (cell && recovered->shelf.heads[entry] >> SHELF_LANE_BITS != ready)
            return fault("block %u has an owner that is gone: %llx", b, (ull)cell);
    }
    return what_is_torn(recovered);
}

// ---- who else is there

static void unpublish_ours(struct world *world)
{
    const uint32_t got = world->num_got;
    retire_it(NULL, world);
    world->num_got = got;
}

// What is retired is another key's at once.
static void use_the_room(struct world *world)
{
    unpublish_ours(world);
    publish_by(world, OUR_KEY + 2, 70, OTHERS_LANE, 11);
    publish_by(world, OUR_KEY + 3, 80, OTHERS_LANE, 12);
}

static void clear_all(struct world *world)
{
    struct shelf s = shelf_of(world);
    shelf_clear(&s);
}

static void pin_ours(struct world *world)
{
    memset(pin_counts, 0, sizeof pin_counts);
    struct shelf_reader reader = reader_of(world, 1);
    const struct shelf_key key = key_number(OUR_KEY);
    struct shelf_found found;
    shelf_pin(&reader, &key, 10, &found);
}

static const struct rival who_shelves[] = {
    {"publishes our key anew", replace_ours, false}, {"retires our key", unpublish_ours, false},
    {"uses its room", use_the_room, false},          {"clears the shelf", clear_all, false},
    {"pins our key", pin_ours, false},               {NULL, NULL, false},
};

#define SHELF_SCENE(which, outcome_of)                                                                                 \
    .followed = 1, .prepare = prepare_shelf, .operate = which, .recover = recover_shelf, .inspect = inspect_shelf,     \
    .outcome = outcome_of, .judge = judge_shelf, .rivals = who_shelves

static const struct scene shelf_scenes[] = {
    {"publish where there is room", SHELF_SCENE(publish_it, outcome_of_publish), .given = "free"},
    {"publish where others go", SHELF_SCENE(publish_it, outcome_of_publish), .given = "taken"},
    {"retire", SHELF_SCENE(retire_it, outcome_of_retire), .given = "taken"},
    {"pin", SHELF_SCENE(pin_it, outcome_of_pin), .given = "taken"},
    {"pin what moves", SHELF_SCENE(pin_it, outcome_of_pin), .given = "moves"},
};

// ---- broken in one place each

static void publish_before_the_rows(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct shelf s = shelf_of(world);
    struct shelf_publication p = {.key = key_number(OUR_KEY), .blocks = 1, .bytes = 8, .rows = 1, .width = NEW_ROWS,
                                  .dtype = 1, .lane = OUR_LANE, .now_ns = 9, .replaces = true};
    if (shelf_begin(&s, &p) == SHELF_BEGUN && shelf_show(&s, &p))
        atomic_store(&world->shelf.rows[p.first], NEW_ROWS);
}

static void pin_without_a_second_look(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct shelf s = shelf_of(world);
    const struct shelf_key key = key_number(OUR_KEY);
    struct shelf_found found;
    if (!shelf_find(&s, &key, 9, &found))
        return;
    atomic_store(&world->shelf.ledgers[found.entry], found.generation);
    world->num_got = 1;
    world->got[0] = (uint32_t)found.words[ITEM_FIRST];
    world->got[1] = (uint32_t)found.words[ITEM_WIDTH];
}

// It looks for pins, and retires then.
static void retire_behind_the_scan(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct shelf s = shelf_of(world);
    const struct shelf_key key = key_number(OUR_KEY);
    struct shelf_found found;
    if (!shelf_find(&s, &key, 9, &found) || shelf_is_pinned(&s, found.entry, found.generation))
        return;
    const uint64_t head = shelf_look_at(&s, found.entry);
    shelf_move(&s, found.entry, head, head_in_state(head, SHELF_RETIRED));
    shelf_free_blocks(&s, found.entry, found.generation);
    world->num_got = 1;
}

// Whose pin was taken has no rows any more.
static const char *outcome_for_the_pinned(const struct scene *scene, const struct rival *rival,
                                          const struct world *ended)
{
    for (uint32_t e = 0; e < SHELF_WAYS; e++)
        if (ended->shelf.ledgers[SHELF_WAYS + e] &&
            !is_pinned_there(ended, 1, (uint32_t)ended->shelf.items[e * ITEM_WORDS + ITEM_FIRST]))
            return fault("entry %u is pinned, and its block is free", e);
    return outcome_of_retire(scene, rival, ended);
}

static const struct scene broken_shelf_scenes[] = {
    {"broken: shown before its rows", SHELF_SCENE(publish_before_the_rows, outcome_of_publish),
     .broken_in = BOUNDARIES, .given = "taken"},
    {"broken: pinned without a second look", SHELF_SCENE(pin_without_a_second_look, outcome_of_pin),
     .broken_in = RIVALS, .shows_anywhere = true, .given = "taken"},
    {"broken: retired behind the scan", SHELF_SCENE(retire_behind_the_scan, outcome_for_the_pinned),
     .broken_in = RIVALS, .shows_anywhere = true, .given = "taken"},
};

#endif

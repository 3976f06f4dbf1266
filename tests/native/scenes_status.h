// Status words, and what tells of them: stamps and dirty bits.
//
// The writer that dies is the poller, whose successor scans and raises the word to the same value again (`open`: the
// client, and the next one opens the slot's next epoch). Whoever waits for news finds it by a scan at once, and by the
// bits after the next change.
#ifndef EMBRIDGE_TESTS_NATIVE_SCENES_STATUS_H
#define EMBRIDGE_TESTS_NATIVE_SCENES_STATUS_H

#include "single_step.h"

#define SLOT 5
#define NEIGHBOUR 6
#define EPOCH UINT64_C(256) // its low 8 bits are 0: stamps of epoch 255 are older
#define OPENED_NS UINT64_C(1000)
#define NOW_NS UINT64_C(2000)
#define RIVAL_NS UINT64_C(3000)
#define TARGET status_word(EPOCH, scene->after[0] - '0', 20)

static uint64_t rival_word; // as the rival left it

static struct status_table table_of(const struct world *world)
{
    struct world *shared = (struct world *)world;
    return (struct status_table){shared->words, shared->stamps, shared->dirty, SLOTS_PER_PAGE, NUM_VIEWS};
}

// `before` and `after`: the phase. The neighbour's bit stands in view 1, and is to stay.
static void prepare_status(const struct scene *scene, struct world *world)
{
    memset((void *)world, 0, sizeof *world);
    const struct status_table table = table_of(world);
    atomic_store(&world->words[SLOT], status_word(EPOCH - 1, 0, 0));
    for (uint64_t phase = 1; phase < NUM_PHASES; phase++) // what a late writer of the epoch before left
        status_stamp(&table, SLOT, EPOCH - 1, phase, 500);
    status_open(&table, SLOT, OPENED_NS);
    status_stamp(&table, SLOT, EPOCH - 1, 2, 600);
    status_advance(&table, SLOT, EPOCH, (uint64_t)(scene->before[0] - '0'), 10, OPENED_NS);
    // What a writer left that was 255 epochs late: in 8 bits, it is of the next one.
    atomic_store(&world->stamps[SLOT * NUM_PHASES + 4], (EPOCH + 1) << STAMP_NS_BITS | 700);
    atomic_store(&world->dirty[0], 0);
    atomic_store(&world->dirty[1], UINT64_C(1) << NEIGHBOUR);
}

// ---- what is done

static void advance(const struct scene *scene, struct world *world)
{
    const struct status_table table = table_of(world);
    status_advance(&table, SLOT, EPOCH, status_phase(TARGET), TARGET & UINT32_MAX, NOW_NS);
}

static void open_next(const struct scene *scene, struct world *world)
{
    (void)scene;
    const struct status_table table = table_of(world);
    status_open(&table, SLOT, NOW_NS);
}

static void mark(const struct scene *scene, struct world *world)
{
    (void)scene;
    const struct status_table table = table_of(world);
    status_mark(&table, SLOT, 1);
}

static void raise_word(const struct scene *scene, struct world *world) { word_raise(&world->words[SLOT], TARGET); }

static void take_bits(const struct scene *scene, struct world *world)
{
    (void)scene;
    const struct status_table table = table_of(world);
    const uint32_t page = 0;
    world->num_got = (uint32_t)status_changed(&table, 1, &page, 1, world->got, NULL, MAX_SCENE_BLOCKS);
}

// ---- what holds

static const char *inspect_status(const struct scene *scene, bool recovering, const struct world *last,
                                  const struct world *now)
{
    (void)recovering;
    const struct status_table table = table_of(now);
    const uint64_t from = last->words[SLOT], to = now->words[SLOT];
    const bool opens = scene->operate == open_next, ended = status_phase(from) >= FIRST_TERMINAL_PHASE;
    const uint64_t allowed = opens ? status_word(status_epoch(from) + 1, 0, 0) : TARGET;
    if (to != from && (to != allowed || to < from || (ended && !opens)))
        return fault("the word went from %llx to %llx", (ull)from, (ull)to);
    if (memcmp(last->words, now->words, sizeof now->words) != 0 && to == from)
        return fault("another slot's word changed");
    for (unsigned view = 0; view < NUM_VIEWS; view++) {
        const uint64_t bits = now->dirty[view], set = bits & ~last->dirty[view], taken = last->dirty[view] & ~bits;
        if ((set & ~(UINT64_C(1) << SLOT)) || (taken && scene->operate != take_bits) || (set && opens))
            return fault("view %u: bits %llx set, %llx taken", view, (ull)set, (ull)taken);
        if (set && scene->operate != mark && to < TARGET)
            return fault("view %u: the bit is set, the word is still %llx", view, (ull)to);
    }
    uint64_t times[NUM_PHASES];
    status_stamps(&table, SLOT, times);
    for (uint64_t phase = 1; phase < NUM_PHASES; phase++) {
        const bool entered = status_epoch(to) == EPOCH && phase <= status_phase(to);
        const bool told = times[phase] == NOW_NS || times[phase] == OPENED_NS || times[phase] == RIVAL_NS;
        if (times[phase] && !(entered && told))
            return fault("word %llx: phase %llu was entered at %llu", (ull)to, (ull)phase, (ull)times[phase]);
    }
    return NULL;
}

static const char *outcome_of_status(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    const uint64_t word = ended->words[SLOT];
    if (rival) {
        const bool over = status_phase(rival_word) >= FIRST_TERMINAL_PHASE || status_epoch(rival_word) > EPOCH;
        const bool stays = over && scene->operate != open_next;
        if (word < rival_word || (stays && word != rival_word))
            return fault("%llx became %llx", (ull)rival_word, (ull)word);
        return NULL;
    }
    if (scene->operate == open_next)
        return word == status_word(EPOCH + 1, 0, 0) ? NULL : fault("opened as %llx", (ull)word);
    if (scene->operate == take_bits) {
        const bool right = ended->num_got == 1 && ended->got[0] == NEIGHBOUR && ended->dirty[1] == 0;
        return right ? NULL : fault("%u taken", ended->num_got);
    }
    const uint64_t mine = UINT64_C(1) << SLOT;
    const bool in_0 = ended->dirty[0] & mine, in_1 = ended->dirty[1] & mine, raises = scene->operate != mark;
    const bool both = scene->operate != raise_word && raises;
    if ((raises && word != TARGET) || in_0 != both || in_1 != (both || !raises))
        return fault("the word ends as %llx, its bits as %d and %d", (ull)word, in_0, in_1);
    return NULL;
}

// A scan sees what stands there, whatever the bits say; the next change is seen by them.
static const char *judge_status(const struct scene *scene, const struct world *killed, struct world *recovered)
{
    const struct status_table table = table_of(recovered);
    const uint64_t word = recovered->words[SLOT], old = killed->words[SLOT];
    uint64_t seen[SLOTS_PER_PAGE];
    uint32_t out[SLOTS_PER_PAGE];
    const uint32_t page = 0;
    const bool opens = scene->operate == open_next, raises = scene->operate == advance || scene->operate == raise_word;
    const bool open = status_epoch(word) == EPOCH && status_phase(old) < FIRST_TERMINAL_PHASE;
    if (word < old || (raises && open && word < TARGET))
        return fault("the word was %llx and is %llx", (ull)old, (ull)word);
    const uint64_t later = status_epoch(word) - status_epoch(old); // 2 where the second opening died, too
    if (opens && (word != status_word(status_epoch(word), 0, 0) || later < 1 || later > 2))
        return fault("%llx was opened as %llx", (ull)old, (ull)word);
    for (uint32_t slot = 0; slot < SLOTS_PER_PAGE; slot++)
        seen[slot] = slot == SLOT ? status_word(EPOCH, 0, 0) : 0;
    if (status_compare(&table, &page, 1, seen, out, SLOTS_PER_PAGE) != 1 || out[0] != SLOT || seen[SLOT] != word)
        return fault("a scan does not find %llx", (ull)word);
    const uint64_t epoch = status_epoch(word);
    const bool changes = status_advance(&table, SLOT, epoch, 4, UINT32_MAX, NOW_NS);
    if (changes == (status_phase(word) >= FIRST_TERMINAL_PHASE))
        return fault("%llx is terminal and changed, or is not and did not", (ull)word);
    for (uint32_t view = 0; changes && view < NUM_VIEWS; view++) {
        const size_t num = status_changed(&table, view, &page, 1, out, NULL, SLOTS_PER_PAGE);
        if (num == 0 || out[0] != SLOT)
            return fault("view %u: the bit of the next change is not set", view);
    }
    return NULL;
}

// ---- who else is there

static void raise_a_little(struct world *world)
{
    const struct status_table table = table_of(world);
    status_advance(&table, SLOT, EPOCH, 2, 15, RIVAL_NS);
    rival_word = status_load(&table, SLOT);
}

static void raise_past(struct world *world)
{
    const struct status_table table = table_of(world);
    status_advance(&table, SLOT, EPOCH, 2, 30, RIVAL_NS);
    rival_word = status_load(&table, SLOT);
}

static void end_it(struct world *world)
{
    const struct status_table table = table_of(world);
    status_advance(&table, SLOT, EPOCH, 4, 12, RIVAL_NS);
    rival_word = status_load(&table, SLOT);
}

static void open_another(struct world *world)
{
    const struct status_table table = table_of(world);
    status_open(&table, SLOT, RIVAL_NS);
    rival_word = status_load(&table, SLOT);
}

static void take_all_bits(struct world *world)
{
    const struct status_table table = table_of(world);
    const uint32_t page = 0;
    uint32_t out[SLOTS_PER_PAGE];
    for (uint32_t view = 0; view < NUM_VIEWS; view++)
        status_changed(&table, view, &page, 1, out, NULL, SLOTS_PER_PAGE);
    rival_word = status_load(&table, SLOT);
}

static const struct rival writers[] = {
    {"raises it", raise_a_little, false},
    {"raises it further", raise_past, false},
    {"ends it", end_it, false},
    {"opens the next epoch", open_another, false},
    {"takes the bits", take_all_bits, false},
    {NULL, NULL, false},
};
static const struct rival late_writers[] = {
    {"raises it", raise_a_little, false}, {"ends it", end_it, false}, {NULL, NULL, false}};

#define STATUS(times)                                                                                                  \
    .followed = times,      .prepare = prepare_status, .inspect = inspect_status, .outcome = outcome_of_status,        \
    .judge = judge_status

static const struct scene status_scenes[] = {
    {"advance to the next phase", STATUS(UINT32_MAX), .operate = advance, .recover = advance, .before = "1",
     .after = "2", .rivals = writers},
    {"advance within a phase", STATUS(UINT32_MAX), .operate = advance, .recover = advance, .before = "2", .after = "2",
     .rivals = writers},
    {"advance to the end", STATUS(UINT32_MAX), .operate = advance, .recover = advance, .before = "2", .after = "3",
     .rivals = writers},
    {"raise", STATUS(UINT32_MAX), .operate = raise_word, .recover = raise_word, .before = "1", .after = "2"},
    {"mark", STATUS(UINT32_MAX), .operate = mark, .recover = mark, .before = "1", .after = "1", .rivals = writers},
    {"take bits", STATUS(UINT32_MAX), .operate = take_bits, .recover = take_bits, .before = "1", .after = "1"},
    {"open", STATUS(1), .operate = open_next, .recover = open_next, .before = "3", .after = "0"},
    {"open over a live epoch", STATUS(1), .operate = open_next, .recover = open_next, .before = "2", .after = "0",
     .rivals = late_writers},
};

#endif

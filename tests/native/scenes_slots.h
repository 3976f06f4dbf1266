// A slot's next epoch, opened by its client, which may die between any two steps; then the next client opens it. What
// holds at every boundary: nothing of the epoch before changes until that is released, and whoever finds an epoch open,
// or a record that is about the next one, finds all that belongs to it (P11, R16, R78).
#ifndef EMBRIDGE_TESTS_NATIVE_SCENES_SLOTS_H
#define EMBRIDGE_TESTS_NATIVE_SCENES_SLOTS_H

#include "scenes_status.h"

#define NEXT_EPOCH (EPOCH + 1)
#define RECORD_LANE 3
#define RECORD_TOTAL 40
#define OLD_WORD UINT64_C(0x7777)

static uint64_t value_of(size_t word)
{
    return word == SLOT_LANE ? RECORD_LANE : word == SLOT_TOTAL ? RECORD_TOTAL : word == SLOT_EPOCH ? 0 : 100 + word;
}

static void prepare_slot(const struct scene *scene, struct world *world)
{
    (void)scene;
    memset((void *)world, 0, sizeof *world);
    atomic_store(&world->words[SLOT], status_word(EPOCH, 3, 20));
    for (size_t i = 0; i < SLOT_WORDS; i++)
        atomic_store(&world->record[i], OLD_WORD);
    atomic_store(&world->record[SLOT_EPOCH], EPOCH);
    atomic_store(&world->record[SLOT_RELEASED_EPOCH], EPOCH - 1);
    for (size_t i = 0; i < MAX_BLANKS * BLANK_WORDS; i++)
        atomic_store(&world->blank[i], OLD_WORD);
    atomic_store(&world->claim[0], claim_word(EPOCH, CLAIM_ENDED, 0));
    atomic_store(&world->claim[1], OLD_WORD);
}

static uint64_t open_it(struct world *world)
{
    const struct status_table table = table_of(world);
    uint64_t values[SLOT_WORDS];
    for (size_t i = 0; i < SLOT_WORDS; i++)
        values[i] = value_of(i);
    const struct slot_opening opening = {.values = values, .is_untold = true, .record = {world->record, SLOT_WORDS},
                                         .blanks = {{world->blank, BLANK_WORDS},
                                                    {world->blank + BLANK_WORDS, BLANK_WORDS}},
                                         .claim = world->claim};
    return slot_open(&table, SLOT, &opening, NOW_NS);
}

static void open_slot(const struct scene *scene, struct world *world)
{
    (void)scene;
    open_it(world);
}

// What is missing of an epoch that a record is about.
static const char *missing(const struct world *now, uint64_t epoch)
{
    for (size_t i = 0; i < SLOT_WORDS; i++) {
        const uint64_t told = epoch << TOLD_BITS | TOLD_UNTOLD;
        const uint64_t value = i == SLOT_EPOCH ? epoch : i == SLOT_TOLD ? told : value_of(i);
        if (i != SLOT_RELEASED_EPOCH && now->record[i] != value)
            return fault("epoch %llu: word %zu of the record is %llx", (ull)epoch, i, (ull)now->record[i]);
    }
    for (size_t i = 0; i < MAX_BLANKS * BLANK_WORDS; i++)
        if (now->blank[i] != 0)
            return fault("epoch %llu: word %zu of its tables is %llx", (ull)epoch, i, (ull)now->blank[i]);
    if (now->claim[0] != claim_word(epoch, CLAIM_SHUT, 0))
        return fault("epoch %llu: its claim is %llx", (ull)epoch, (ull)now->claim[0]);
    if (now->claim[1] != (RECORD_TOTAL << CLAIM_LANE_BITS | RECORD_LANE))
        return fault("epoch %llu: its claim is of %llx", (ull)epoch, (ull)now->claim[1]);
    return NULL;
}

static const char *inspect_slot(const struct scene *scene, bool recovering, const struct world *last,
                                const struct world *now)
{
    (void)scene, (void)recovering;
    const uint64_t open = status_epoch(now->words[SLOT]), about = now->record[SLOT_EPOCH];
    const uint64_t released = now->record[SLOT_RELEASED_EPOCH];
    if (released < last->record[SLOT_RELEASED_EPOCH] || released > open)
        return fault("epoch %llu is open, %llu is released", (ull)open, (ull)released);
    for (size_t i = 0; i < SLOT_WORDS; i++)
        if (now->record[i] != last->record[i] && i != SLOT_RELEASED_EPOCH && released < open)
            return fault("epoch %llu is not released, its word %zu changes", (ull)open, i);
    if (memcmp((const void *)now->blank, (const void *)last->blank, sizeof now->blank) != 0 && released < open)
        return fault("epoch %llu is not released, its tables change", (ull)open);
    if (open > EPOCH && released < open && about != open)
        return fault("epoch %llu is open, the record is about %llu", (ull)open, (ull)about);
    return about > EPOCH && about > released ? missing(now, about) : NULL;
}

static const char *outcome_of_slot(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    (void)scene, (void)rival;
    return status_epoch(ended->words[SLOT]) == NEXT_EPOCH ? missing(ended, NEXT_EPOCH) : "it is not open";
}

static const char *judge_slot(const struct scene *scene, const struct world *killed, struct world *recovered)
{
    (void)scene;
    const uint64_t open = status_epoch(recovered->words[SLOT]), before = status_epoch(killed->words[SLOT]);
    if (open != before + 1 && open != before + 2) // where the second opening died, too
        return fault("after %llu comes %llu", (ull)before, (ull)open);
    if (recovered->record[SLOT_RELEASED_EPOCH] >= open)
        return fault("%llu is open and released", (ull)open);
    return missing(recovered, open);
}

static const struct scene slot_scenes[] = {
    {"lease", .followed = 1, .prepare = prepare_slot, .operate = open_slot, .recover = open_slot,
     .inspect = inspect_slot, .outcome = outcome_of_slot, .judge = judge_slot},
};

#endif

// usage: cells STEPS SEED
//
// Several owners acquire, expose, release and quarantine blocks; they die and leave their blocks to whoever finds
// them; fences end exposures. What stands in a block is written by plain accesses, so two owners at once are a data
// race, and so is a block that goes to the next owner without its order. The generations pass 2^18.
#include "support.h"

#include "blocks.h"

#define NUM_BLOCKS 200 // not a multiple of 64
#define NUM_OWNERS 3
#define PEER_SHIFT 32

static struct blocks table;
static word64 cells[NUM_BLOCKS], exposure[NUM_BLOCKS];
static uint64_t content[NUM_BLOCKS], num_acquired[NUM_BLOCKS]; // the owner's: plain
static word64 dead[NUM_OWNERS];                                // an owner whose blocks nobody has reclaimed yet
static word64 num_ended, num_stale;
static uint64_t steps, seed;

static const uint64_t FIRST_GENERATION = (UINT64_C(1) << CELL_GENERATION_BITS) - 3;

static struct blocks new_handle(void)
{
    struct blocks handle = table;
    blocks_use_advice(&handle, allocate(blocks_advice_words(NUM_BLOCKS) * sizeof(uint64_t)));
    return handle;
}

static uint64_t exposure_to(uint64_t peer, uint64_t session) { return (peer + 1) << PEER_SHIFT | session; }

static void fence(struct blocks *handle, uint64_t peer, uint64_t below)
{
    blocks_end_exposure(handle, ~UINT64_C(0) << PEER_SHIFT, exposure_to(peer, 0), below);
}

// What the cell says of a block that `owner` holds.
static void check_held(const struct blocks *handle, uint32_t block, uint64_t owner, uint64_t tag)
{
    const uint64_t cell = blocks_cell(handle, block);
    CHECK(cell_held_by(cell, owner), "block %u: cell %llx is not that of owner %llx", block, (ull)cell, (ull)owner);
    CHECK(content[block] == tag, "block %u: somebody else wrote %llx", block, (ull)content[block]);
}

static void *live(void *argument)
{
    const uint64_t slot = (uint64_t)(uintptr_t)argument;
    struct blocks handle = new_handle();
    uint64_t random = seeded(seed, slot), epoch = 1, session = 1, owner = cell_owner(slot, epoch);
    uint32_t held[NUM_BLOCKS], num_held = 0, got[NUM_BLOCKS], num_quarantined = 0;
    uint64_t tag[NUM_BLOCKS];
    for (uint64_t step = 0; step < steps; step++) {
        const uint32_t at = num_held ? (uint32_t)draw_below(&random, num_held) : 0;
        const uint32_t block = num_held ? held[at] : 0;
        const uint64_t choice = draw_below(&random, 64);
        if (choice < 24) {
            const uint32_t want = 1 + (uint32_t)draw_below(&random, choice < 2 ? NUM_BLOCKS : 12);
            const uint32_t lowest = (uint32_t)draw_below(&random, choice < 12 ? 1 : NUM_BLOCKS + 1);
            const uint32_t num = blocks_acquire(&handle, owner, want, lowest, got);
            CHECK(num <= want, "%u for %u", num, want);
            for (uint32_t i = 0; i < num; i++) {
                CHECK(got[i] >= lowest && got[i] < NUM_BLOCKS, "block %u", got[i]);
                num_acquired[got[i]]++;
                content[got[i]] = tag[got[i]] = draw(&random);
                held[num_held++] = got[i];
                CHECK(num_held <= NUM_BLOCKS, "more blocks than there are");
            }
        } else if (choice < 36 && num_held) {
            check_held(&handle, block, owner, tag[block]);
            CHECK(blocks_expose(&handle, block, owner, exposure_to(slot, session)), "block %u was not exposed", block);
        } else if (choice < 56 && num_held) {
            check_held(&handle, block, owner, tag[block]);
            const bool exposed = cell_state(blocks_cell(&handle, block)) == CELL_EXPOSED;
            content[block] = 0;
            if (choice < 50) {
                CHECK(blocks_release(&handle, block, owner), "block %u was not released", block);
            } else {
                CHECK(blocks_quarantine(&handle, block, owner) == exposed, "block %u: quarantine", block);
                num_quarantined += exposed;
            }
            held[at] = held[--num_held];
        } else if (choice < 58 && num_quarantined) {
            if (choice & 1)
                blocks_end_quarantine(&handle, owner);
            else
                fence(&handle, slot, ++session);
            num_quarantined = 0;
        } else if (choice < 60) {
            // Hands off what is another's, or nobody's.
            const uint32_t other = (uint32_t)draw_below(&random, NUM_BLOCKS);
            bool mine = false;
            for (uint32_t i = 0; i < num_held; i++)
                mine |= held[i] == other;
            if (!mine && num_quarantined == 0) {
                CHECK(!blocks_release(&handle, other, owner) && !blocks_quarantine(&handle, other, owner),
                      "block %u was not ours", other);
                atomic_fetch_add(&num_stale, 1);
            }
        } else if (choice < 61) {
            // Die where this stands; the next life is another owner.
            uint64_t none = 0;
            if (atomic_compare_exchange_strong(&dead[slot], &none, owner)) {
                owner = cell_owner(slot, ++epoch);
                num_held = num_quarantined = 0;
                atomic_fetch_add(&num_ended, 1);
            }
        } else {
            // Two may find the same death: reclaiming is idempotent.
            const uint64_t whose = draw_below(&random, NUM_OWNERS), found = atomic_load(&dead[whose]);
            if (found) {
                dawdle(&random);
                blocks_reclaim(&handle, found, step & 1);
                if (step & 2)
                    blocks_end_quarantine(&handle, found);
                else
                    fence(&handle, whose, UINT64_C(1) << PEER_SHIFT);
                uint64_t expected = found;
                atomic_compare_exchange_strong(&dead[whose], &expected, 0);
            }
        }
        dawdle(&random);
    }
    for (uint32_t i = 0; i < num_held; i++)
        check_held(&handle, held[i], owner, tag[held[i]]);
    blocks_reclaim(&handle, owner, true);
    blocks_end_quarantine(&handle, owner);
    free(handle.believed_free);
    return NULL;
}

static atomic_bool over;

static void *observe(void *argument)
{
    uint64_t random = seeded(seed, 99), *num_exposed = argument;
    while (!atomic_load(&over)) {
        const uint32_t block = (uint32_t)draw_below(&random, NUM_BLOCKS);
        const uint64_t cell = blocks_cell(&table, block);
        const uint64_t slot = cell >> CELL_STATE_BITS & ((1u << CELL_SLOT_BITS) - 1);
        if (cell_state(cell) == CELL_FREE)
            CHECK((cell & CELL_OWNER_MASK) == 0, "free block %u has an owner: %llx", block, (ull)cell);
        if (cell_state(cell) == CELL_EXPOSED || cell_state(cell) == CELL_QUARANTINED) {
            const uint64_t word = atomic_load_explicit(&exposure[block], memory_order_acquire);
            if (blocks_cell(&table, block) == cell) {
                CHECK(word >> PEER_SHIFT == slot + 1, "block %u of %llu exposed as %llx", block, (ull)slot, (ull)word);
                ++*num_exposed;
            }
        }
        dawdle(&random);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    steps = argument(argc, argv, 1, 20000), seed = argument(argc, argv, 2, 1);
    table = (struct blocks){.cells = cells, .exposure = exposure, .num_blocks = NUM_BLOCKS};
    for (uint32_t block = 0; block < NUM_BLOCKS; block++)
        atomic_store(&cells[block], FIRST_GENERATION << CELL_GENERATION_SHIFT);
    uint64_t num_exposed = 0, total = 0;
    pthread_t owners[NUM_OWNERS], observer;
    start(&observer, observe, &num_exposed);
    for (uintptr_t i = 0; i < NUM_OWNERS; i++)
        start(&owners[i], live, (void *)i);
    for (unsigned i = 0; i < NUM_OWNERS; i++)
        pthread_join(owners[i], NULL);
    atomic_store(&over, true);
    pthread_join(observer, NULL);

    struct blocks handle = new_handle();
    for (unsigned i = 0; i < NUM_OWNERS; i++) {
        const uint64_t found = atomic_load(&dead[i]);
        if (found)
            blocks_reclaim(&handle, found, true), blocks_end_quarantine(&handle, found);
        fence(&handle, i, UINT64_C(1) << PEER_SHIFT); // what was found quarantined, and left so
    }
    uint32_t counts[4];
    blocks_counts(&handle, counts);
    CHECK(counts[CELL_FREE] == NUM_BLOCKS, "free %u owned %u exposed %u quarantined %u", counts[0], counts[1],
          counts[2], counts[3]);
    for (uint32_t block = 0; block < NUM_BLOCKS; block++) {
        const uint64_t generation = (FIRST_GENERATION + num_acquired[block]) << CELL_GENERATION_SHIFT;
        CHECK(atomic_load(&cells[block]) == generation, "block %u: %llu acquires, cell %llx", block,
              (ull)num_acquired[block], (ull)atomic_load(&cells[block]));
        total += num_acquired[block];
    }
    CHECK(num_acquired[0] > 3, "the generation did not wrap: %llu acquires of block 0", (ull)num_acquired[0]);
    printf("%llu acquires, %llu deaths, %llu refusals, %llu looks at exposed blocks\n", (ull)total,
           (ull)atomic_load(&num_ended), (ull)atomic_load(&num_stale), (ull)num_exposed);
    free(handle.believed_free);
    return 0;
}

// Message passing over an owner cell: the exposure word is stored before the cell.
//
// FORBIDDEN: the cell is seen exposed, with an exposure word that is older than this exposure.
//
// -DBREAK_CELL_FIRST: the cell becomes exposed before the exposure word is stored.
#include "litmus.h"

#include "blocks.h"

#define IN_A_ROW 16

static word64 cell, exposure;
static word64 done; // the iterations that the owner has come to the end of
static uint64_t num_exposed, num_newer, num_other;

static struct blocks new_handle(void)
{
    struct blocks handle = {.cells = &cell, .exposure = &exposure, .num_blocks = 1};
    blocks_use_advice(&handle, allocate(2 * sizeof(uint64_t)));
    return handle;
}

static uint64_t generation_of(uint64_t word) { return word >> CELL_GENERATION_SHIFT; }

static void *own(void *argument)
{
    struct side *side = argument;
    struct blocks handle = new_handle();
    for (uint64_t i = 0; meet(side, i); i++) {
        for (unsigned n = 0; n < IN_A_ROW; n++) {
            const uint64_t owner = cell_owner(i & 0xFFFF, n + 1);
            uint32_t index;
            CHECK(blocks_acquire(&handle, owner, 1, 0, &index) == 1, "not free");
            const uint64_t mine = generation_of(blocks_cell(&handle, 0));
#ifdef BREAK_CELL_FIRST
            blocks_change(&handle, 0, owner, 1u << CELL_OWNED, CELL_EXPOSED);
            atomic_store(&exposure, mine);
#else
            CHECK(blocks_expose(&handle, 0, owner, mine), "not exposed");
#endif
            for (uint64_t pauses = draw(&side->random) >> 40 & 31; pauses > 0; pauses--)
                spin_pause();
            CHECK(blocks_release(&handle, 0, owner), "not released");
        }
        atomic_store(&done, i + 1);
    }
    free(handle.believed_free);
    return NULL;
}

static void *look(void *argument)
{
    struct side *side = argument;
    struct blocks handle = new_handle();
    for (uint64_t i = 0; meet(side, i); i++) {
        for (unsigned looks = 0; atomic_load(&done) < i + 1;) {
            const uint64_t seen = blocks_cell(&handle, 0);
            const uint64_t word = atomic_load_explicit(&exposure, memory_order_relaxed);
            if (cell_state(seen) != CELL_EXPOSED) {
                num_other++;
                if (num_other % 16 == 0)
                    wait_a_little(&looks);
                continue;
            }
            // The generations wrap: the difference with its sign. A newer one is legal, the owner has gone on.
            const uint64_t difference = (word - generation_of(seen)) << CELL_GENERATION_SHIFT;
            const int64_t ahead = (int64_t)difference >> CELL_GENERATION_SHIFT;
            num_exposed++;
            num_newer += ahead > 0;
            if (ahead < 0)
                atomic_fetch_add(&num_forbidden, 1);
        }
    }
    free(handle.believed_free);
    return NULL;
}

int main(int argc, char **argv)
{
    atomic_store(&cell, CELL_GENERATION_MASK - (UINT64_C(100) << CELL_GENERATION_SHIFT));
    atomic_store(&exposure, generation_of(atomic_load(&cell)));
    litmus(argc, argv, own, look);
    printf("seen exposed: %llu, of them with a newer exposure: %llu; seen otherwise: %llu\n", (ull)num_exposed,
           (ull)num_newer, (ull)num_other);
    return verdict();
}

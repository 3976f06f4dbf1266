// Message passing over a status word: the rows are written before `sent` is raised, also those that go past the cache.
//
// FORBIDDEN: `sent` is seen, but one of the rows that it counts is not there, or not wholly.
//
// -DBREAK_SENT_FIRST: `sent` is raised before the row is copied.
#include "litmus.h"

#include "copy.h"
#include "status.h"

#define NUM_ROWS 8
#define ROW_BYTES 256
#define LARGE_ROW_BYTES NON_TEMPORAL_BYTES
#define LARGE_EVERY 256

static struct status_table table;
static unsigned char *rows, *source, *large_rows, *large_source;
static uint64_t num_rows, num_large, num_looks;

static void raise_sent(uint64_t epoch, uint64_t sent)
{
    CHECK(status_advance(&table, 0, epoch, 2, sent, 1), "not raised");
}

static void *send(void *argument)
{
    struct side *side = argument;
    for (uint64_t i = 0; meet(side, i); i++) {
        const bool large = i % LARGE_EVERY == LARGE_EVERY - 1;
        const size_t bytes = large ? LARGE_ROW_BYTES : ROW_BYTES;
        unsigned char *from = large ? large_source : source, *to = large ? large_rows : rows;
        for (size_t at = 0; at < bytes; at += 8)
            memcpy(from + at, &i, 8);
        for (uint64_t row = 0; row < (large ? 1 : NUM_ROWS); row++) {
            const struct move move = {(int64_t)(row * bytes), 0, (int64_t)bytes};
#ifdef BREAK_SENT_FIRST
            raise_sent(i + 1, row + 1);
            copy_moves(to, from, &move, 1);
#else
            copy_moves(to, from, &move, 1);
            raise_sent(i + 1, row + 1);
#endif
            for (uint64_t pauses = draw(&side->random) >> 40 & 3; pauses > 0; pauses--)
                spin_pause();
        }
    }
    return NULL;
}

static void *receive(void *argument)
{
    struct side *side = argument;
    // This side opens the epochs, between the last look at the old rows and the next meeting.
    CHECK(status_open(&table, 0, 1) == 1, "the first epoch");
    for (uint64_t i = 0; meet(side, i); i++) {
        const bool large = i % LARGE_EVERY == LARGE_EVERY - 1;
        const size_t bytes = large ? LARGE_ROW_BYTES : ROW_BYTES;
        const unsigned char *at = large ? large_rows : rows;
        const uint64_t all = large ? 1 : NUM_ROWS;
        uint64_t seen = 0;
        for (unsigned looks = 0; seen < all;) {
            const uint64_t word = status_load(&table, 0), sent = word & UINT32_MAX;
            num_looks++;
            CHECK(status_epoch(word) == i + 1 && sent >= seen, "word %llx", (ull)word);
            if (sent == seen) {
                wait_a_little(&looks);
                continue;
            }
            // The newest first, from its end: what was written last.
            for (uint64_t row = sent; row-- > seen;) {
                bool old = false;
                for (size_t byte = bytes; byte; byte -= 8)
                    old |= *(const volatile uint64_t *)(at + row * bytes + byte - 8) != i;
                if (old)
                    atomic_fetch_add(&num_forbidden, 1);
            }
            seen = sent;
        }
        num_rows += large ? 0 : all;
        num_large += large;
        CHECK(status_open(&table, 0, 1) == i + 2, "epoch %llu", (ull)i + 2);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    word64 *stamps = allocate(SLOTS_PER_PAGE * NUM_PHASES * 8);
    table = (struct status_table){allocate(SLOTS_PER_PAGE * 8), stamps, allocate(8), 64, 1};
    rows = allocate(NUM_ROWS * ROW_BYTES), source = allocate(ROW_BYTES);
    large_rows = allocate(LARGE_ROW_BYTES), large_source = allocate(LARGE_ROW_BYTES);
    memset(rows, 0xFF, NUM_ROWS * ROW_BYTES);
    memset(large_rows, 0xFF, LARGE_ROW_BYTES);
    litmus(argc, argv, send, receive);
    printf("rows looked at: %llu, and %llu past the cache; looks: %llu\n", (ull)num_rows, (ull)num_large,
           (ull)num_looks);
    return verdict();
}

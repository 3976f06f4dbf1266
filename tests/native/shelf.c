// usage: shelf PUBLICATIONS SEED
//
// Two publishers and two readers of a small shelf, each with a thread: what a reader has pinned is whole, of its key,
// and never older than before. Rows are written and read by plain accesses, so a missing order between them, heads,
// pins and cells is a data race.
#include "support.h"

#define SHELF_WAYS 2
#include "shelf_pins.h"
#include "shelf_publish.h"

#define NUM_ENTRIES (2 * SHELF_WAYS)
#define NUM_BLOCKS 5
#define NUM_KEYS 4
#define NUM_PUBLISHERS 2
#define NUM_READERS 2
#define BLOCK_WORDS 8

struct shared {
    word64 record[SHELF_READERS + 1], heads[NUM_ENTRIES], items[NUM_ENTRIES * ITEM_WORDS], cells[NUM_BLOCKS];
    word64 uses[NUM_ENTRIES], ledgers[NUM_READERS * NUM_ENTRIES];
    uint64_t rows[NUM_BLOCKS * BLOCK_WORDS];
    word64 num_done; // publishers
};

struct job {
    struct shared *shared;
    uint64_t number, count, seed, done;
};

static struct shelf shelf_of(struct shared *shared)
{
    return (struct shelf){.record = shared->record, .heads = shared->heads, .items = shared->items,
                          .cells = shared->cells, .uses = shared->uses, .ledgers = shared->ledgers,
                          .num_entries = NUM_ENTRIES, .num_blocks = NUM_BLOCKS, .num_readers = NUM_READERS,
                          .ledger_words = NUM_ENTRIES};
}

static struct shelf_key key_number(uint64_t number)
{
    return (struct shelf_key){.hash = {number, number / 2}, .bytes = 8, .words = {number}};
}

static void *publish(void *argument)
{
    struct job *job = argument;
    struct shelf shelf = shelf_of(job->shared);
    uint64_t random = seeded(job->seed, job->number);
    shelf.costs = allocate((6 * NUM_ENTRIES + 3) * sizeof *shelf.costs);
    for (uint64_t version = 1; version <= job->count; version++) {
        const uint64_t number = draw_below(&random, NUM_KEYS), blocks = 1 + draw_below(&random, 3);
        const uint64_t what = number << 32 | version << 1 | job->number;
        struct shelf_publication p = {.key = key_number(number), .blocks = blocks, .bytes = 1, .rows = what,
                                      .lane = job->number, .now_ns = version, .replaces = draw_below(&random, 4) > 0};
        if (shelf_begin(&shelf, &p) == SHELF_BEGUN) {
            for (uint64_t i = 0; i < blocks * BLOCK_WORDS; i++)
                job->shared->rows[p.first * BLOCK_WORDS + i] = what;
            dawdle(&random);
            if (draw_below(&random, 16) == 0) {
                shelf_drop(&shelf, &p);
            } else {
                CHECK(shelf_show(&shelf, &p), "the entry of a living publisher was taken");
                job->done++;
            }
        }
        if (draw_below(&random, 32) == 0)
            shelf_unpublish(&shelf, &p.key);
        if (draw_below(&random, 128) == 0)
            shelf_clear(&shelf);
        dawdle(&random);
    }
    atomic_fetch_add(&job->shared->num_done, 1);
    free(shelf.costs);
    return NULL;
}

static void *look(void *argument)
{
    struct job *job = argument;
    uint32_t counts[NUM_ENTRIES] = {0};
    struct shelf_reader reader = {.shelf = shelf_of(job->shared),
                                  .ledger = job->shared->ledgers + job->number * NUM_ENTRIES, .counts = counts};
    uint64_t random = seeded(job->seed, 100 + job->number), last[NUM_KEYS] = {0};
    while (atomic_load(&job->shared->num_done) < NUM_PUBLISHERS) {
        const uint64_t number = draw_below(&random, NUM_KEYS);
        const struct shelf_key key = key_number(number);
        struct shelf_found found;
        if (shelf_pin(&reader, &key, 1, &found)) {
            const uint64_t *words = found.words, *rows = &job->shared->rows[words[ITEM_FIRST] * BLOCK_WORDS];
            CHECK(words[ITEM_ROWS] >> 32 == number, "it is another key's");
            CHECK(words[ITEM_NUMBER] >= last[number], "number %llu after %llu", (ull)words[ITEM_NUMBER],
                  (ull)last[number]);
            last[number] = words[ITEM_NUMBER];
            for (uint64_t i = 0; i < words[ITEM_BLOCKS] * BLOCK_WORDS; i++)
                CHECK(rows[i] == words[ITEM_ROWS], "row %llu of %llx is %llx", (ull)i, (ull)words[ITEM_ROWS],
                      (ull)rows[i]);
            job->done++;
            dawdle(&random);
            shelf_unpin(&reader, found.entry);
        }
        dawdle(&random);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    const uint64_t count = argument(argc, argv, 1, 5000), seed = argument(argc, argv, 2, 1);
    struct shared *shared = allocate(sizeof *shared);
    struct job jobs[NUM_PUBLISHERS + NUM_READERS];
    pthread_t threads[NUM_PUBLISHERS + NUM_READERS];
    atomic_store(&shared->record[SHELF_READERS], NUM_READERS);
    for (uint64_t i = 0; i < NUM_PUBLISHERS + NUM_READERS; i++) {
        const bool publishes = i < NUM_PUBLISHERS;
        jobs[i] = (struct job){.shared = shared, .number = publishes ? i : i - NUM_PUBLISHERS, .count = count,
                               .seed = seed};
        start(&threads[i], publishes ? publish : look, &jobs[i]);
    }
    for (uint64_t i = 0; i < NUM_PUBLISHERS + NUM_READERS; i++)
        pthread_join(threads[i], NULL);
    struct shelf shelf = shelf_of(shared);
    shelf_clear(&shelf);
    for (uint32_t entry = 0; entry < NUM_ENTRIES; entry++)
        CHECK(head_state(shared->heads[entry]) == SHELF_OVER, "entry %u is not over", entry);
    for (uint32_t block = 0; block < NUM_BLOCKS; block++)
        CHECK(shared->cells[block] == 0, "block %u is not free", block);
    CHECK(jobs[0].done && jobs[1].done, "nothing was published");
    printf("%llu published, %llu read\n", (ull)(jobs[0].done + jobs[1].done), (ull)(jobs[2].done + jobs[3].done));
    free(shared);
    return 0;
}

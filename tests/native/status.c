// usage: status PASSES SEED
//
// Each slot has an owner that opens and ends it and a worker that lands rows and raises `sent`, all at once, through
// the last epochs there are, until every slot is retired. Three observers look on:
//   view 0   takes dirty bits: whatever change a writer had finished before the look is seen by it; the rows that
//            `sent` tells of, and the record of the epoch, are there (read by plain accesses: else a data race);
//   view 1   the same for what it sees, without looking at how far the writers are;
//   a scan   compares all words, and reads the stamps.
// None of them ever sees a word decrease, or a terminal phase change within its epoch.
#include "support.h"

#include "status.h"

#define NUM_SLOTS 128
#define NUM_PAGES (NUM_SLOTS / SLOTS_PER_PAGE)
#define NUM_VIEWS 2
#define NUM_WRITERS 2 // each owns every other slot, and is the worker of the rest
#define NUM_EPOCHS 12
#define NUM_ROWS 6
#define BEFORE_FIRST (MAX_EPOCH - NUM_EPOCHS)
#define TERMINAL(word) (status_phase(word) >= FIRST_TERMINAL_PHASE)

static struct status_table table;
static uint64_t rows[NUM_SLOTS][NUM_EPOCHS + 1][NUM_ROWS], record[NUM_SLOTS][NUM_EPOCHS + 1]; // plain
static word64 finished[NUM_SLOTS][NUM_WRITERS]; // the last change whose writer has come back from it
static atomic_int num_running;
static atomic_bool over;
static const uint32_t all_pages[] = {0, 1, 77}; // one of them out of range

static uint64_t row_content(uint32_t slot, uint64_t epoch, uint64_t row)
{
    return (epoch * NUM_SLOTS + slot) * 64 + row + 1;
}

static uint64_t nth(uint64_t epoch) { return epoch - BEFORE_FIRST; }

static bool advance(unsigned me, uint32_t slot, uint64_t epoch, uint64_t phase, uint64_t sent)
{
    if (!status_advance(&table, slot, epoch, phase, sent, (uint64_t)monotonic_ns()))
        return false;
    atomic_store(&finished[slot][me], status_word(epoch, phase, sent));
    return true;
}

struct writer {
    unsigned me;
    uint64_t seed, num_changes;
};

static void own(struct writer *writer, uint64_t *random, uint32_t slot, uint32_t *num_retired)
{
    const uint64_t word = status_load(&table, slot), epoch = status_epoch(word);
    if (epoch == BEFORE_FIRST || TERMINAL(word)) {
        if (epoch == MAX_EPOCH) {
            CHECK(status_open(&table, slot, 1) == 0, "slot %u has no epoch left", slot);
            CHECK(status_load(&table, slot) == word, "slot %u: a refused opening changed it", slot);
            ++*num_retired;
            return;
        }
        record[slot][nth(epoch + 1)] = row_content(slot, epoch + 1, 60);
        CHECK(status_open(&table, slot, (uint64_t)monotonic_ns()) == epoch + 1, "slot %u did not open", slot);
        writer->num_changes++;
        CHECK(!advance(writer->me, slot, epoch, 4, UINT32_MAX), "slot %u: an old epoch was raised", slot); // P17
    } else if (draw_below(random, 6) == 0) {
        // End it, wherever its worker is just now.
        uint64_t seen = word;
        while (!TERMINAL(seen)) {
            writer->num_changes += advance(writer->me, slot, epoch, 4, seen & UINT32_MAX);
            seen = status_load(&table, slot);
        }
        CHECK(!advance(writer->me, slot, epoch, 4, UINT32_MAX), "slot %u changed after its end", slot);
    }
}

static void work(struct writer *writer, uint32_t slot)
{
    const uint64_t word = status_load(&table, slot), epoch = status_epoch(word), sent = word & UINT32_MAX;
    if (epoch == BEFORE_FIRST || TERMINAL(word))
        return;
    if (sent < NUM_ROWS)
        rows[slot][nth(epoch)][sent] = row_content(slot, epoch, sent);
    const uint64_t next = sent < NUM_ROWS ? sent + 1 : sent;
    writer->num_changes += advance(writer->me, slot, epoch, next == NUM_ROWS ? 3 : 2, next);
}

static void *write_words(void *argument)
{
    struct writer *writer = argument;
    uint64_t random = seeded(writer->seed, writer->me);
    for (uint32_t num_retired = 0; num_retired < NUM_SLOTS / NUM_WRITERS;) {
        num_retired = 0;
        for (uint32_t slot = 0; slot < NUM_SLOTS; slot++) {
            if (slot % NUM_WRITERS == writer->me)
                own(writer, &random, slot, &num_retired);
            else
                work(writer, slot);
        }
        dawdle(&random);
    }
    atomic_fetch_sub(&num_running, 1);
    return NULL;
}

// A word, by an observer that has last seen `before`.
static void see(uint32_t slot, uint64_t before, uint64_t word)
{
    const uint64_t epoch = status_epoch(word), sent = word & UINT32_MAX;
    CHECK(word >= before, "slot %u went from %llx to %llx", slot, (ull)before, (ull)word);
    CHECK(word == before || !TERMINAL(before) || status_epoch(before) < epoch,
          "slot %u changed after its end: %llx to %llx", slot, (ull)before, (ull)word);
    if (epoch == BEFORE_FIRST)
        return;
    CHECK(record[slot][nth(epoch)] == row_content(slot, epoch, 60), "slot %u, word %llx: no record", slot, (ull)word);
    CHECK(sent <= NUM_ROWS, "slot %u: %llu sent", slot, (ull)sent);
    for (uint64_t row = 0; row < sent; row++)
        CHECK(rows[slot][nth(epoch)][row] == row_content(slot, epoch, row), "slot %u, word %llx: row %llu is not there",
              slot, (ull)word, (ull)row);
}

struct observer {
    uint32_t view;
    uint64_t num_seen;
    uint64_t seen[NUM_SLOTS];
};

static void *take_bits(void *argument)
{
    struct observer *observer = argument;
    for (bool last = false; !last;) {
        last = atomic_load(&over);
        uint64_t at_least[NUM_SLOTS] = {0};
        if (observer->view == 0 || last)
            for (uint32_t slot = 0; slot < NUM_SLOTS; slot++)
                for (unsigned writer = 0; writer < NUM_WRITERS; writer++) {
                    const uint64_t word = atomic_load(&finished[slot][writer]);
                    at_least[slot] = word > at_least[slot] ? word : at_least[slot];
                }
        uint32_t changed[NUM_SLOTS];
        uint64_t words[NUM_SLOTS];
        // Room for one page only: the other's bits stay for the next call.
        for (unsigned page = 0; page < 3; page++) {
            const size_t num =
                status_changed(&table, observer->view, all_pages + page, 3 - page, changed, words, SLOTS_PER_PAGE);
            for (size_t i = 0; i < num; i++) {
                const uint64_t word = words[i];
                see(changed[i], observer->seen[changed[i]], word);
                observer->seen[changed[i]] = word;
                observer->num_seen++;
            }
        }
        for (uint32_t slot = 0; slot < NUM_SLOTS; slot++)
            CHECK(observer->seen[slot] >= at_least[slot], "view %u, slot %u: change %llx is lost, %llx was seen last",
                  observer->view, slot, (ull)at_least[slot], (ull)observer->seen[slot]);
        sched_yield();
    }
    for (uint32_t slot = 0; slot < NUM_SLOTS; slot++)
        CHECK(observer->seen[slot] == status_load(&table, slot), "view %u, slot %u ends as %llx, seen %llx",
              observer->view, slot, (ull)status_load(&table, slot), (ull)observer->seen[slot]);
    return NULL;
}

static void *scan(void *argument)
{
    struct observer *observer = argument;
    const uint64_t began = (uint64_t)monotonic_ns();
    while (!atomic_load(&over)) {
        uint64_t before[NUM_SLOTS];
        uint32_t changed[NUM_SLOTS];
        for (uint32_t slot = 0; slot < NUM_SLOTS; slot++)
            before[slot] = observer->seen[slot];
        const size_t num = status_compare(&table, all_pages, 3, observer->seen, changed, NUM_SLOTS);
        for (size_t i = 0; i < num; i++) {
            see(changed[i], before[changed[i]], observer->seen[changed[i]]);
            uint64_t times[NUM_PHASES];
            status_stamps(&table, changed[i], times);
            const uint64_t now = (uint64_t)monotonic_ns();
            for (int phase = 0; phase < NUM_PHASES; phase++)
                CHECK((times[phase] == 0 && phase > 0) || (times[phase] + 1000000000 > began && times[phase] <= now),
                      "slot %u, phase %d entered at %llu", changed[i], phase, (ull)times[phase]);
            observer->num_seen++;
        }
        sched_yield();
    }
    return NULL;
}

int main(int argc, char **argv)
{
    const uint64_t passes = argument(argc, argv, 1, 2), seed = argument(argc, argv, 2, 1);
    for (uint64_t pass = 0; pass < passes; pass++) {
        table = (struct status_table){
            .words = allocate(NUM_SLOTS * 8),
            .stamps = allocate(NUM_SLOTS * NUM_PHASES * 8),
            .dirty = allocate(NUM_VIEWS * NUM_PAGES * 8),
            .num_slots = NUM_SLOTS,
            .num_views = NUM_VIEWS,
        };
        struct observer observers[3] = {{.view = 0}, {.view = 1}, {.view = 2}};
        for (uint32_t slot = 0; slot < NUM_SLOTS; slot++) {
            atomic_store(&table.words[slot], status_word(BEFORE_FIRST, 4, 0));
            for (unsigned i = 0; i < 3; i++)
                observers[i].seen[slot] = status_word(BEFORE_FIRST, 4, 0);
            for (unsigned epoch = 0; epoch <= NUM_EPOCHS; epoch++) {
                record[slot][epoch] = 0;
                for (unsigned row = 0; row < NUM_ROWS; row++)
                    rows[slot][epoch][row] = 0;
            }
            for (unsigned writer = 0; writer < NUM_WRITERS; writer++)
                atomic_store(&finished[slot][writer], 0);
        }
        atomic_store(&num_running, NUM_WRITERS);
        atomic_store(&over, false);
        struct writer writers[NUM_WRITERS];
        pthread_t writing[NUM_WRITERS], observing[3];
        for (unsigned i = 0; i < 3; i++)
            start(&observing[i], i < 2 ? take_bits : scan, &observers[i]);
        for (unsigned i = 0; i < NUM_WRITERS; i++) {
            writers[i] = (struct writer){.me = i, .seed = seed + pass};
            start(&writing[i], write_words, &writers[i]);
        }
        for (unsigned i = 0; i < NUM_WRITERS; i++)
            pthread_join(writing[i], NULL);
        atomic_store(&over, true);
        for (unsigned i = 0; i < 3; i++)
            pthread_join(observing[i], NULL);
        for (uint32_t slot = 0; slot < NUM_SLOTS; slot++)
            CHECK(status_epoch(status_load(&table, slot)) == MAX_EPOCH, "slot %u is not retired", slot);
        printf("%llu changes; seen by the views %llu and %llu, by the scan %llu\n",
               (ull)(writers[0].num_changes + writers[1].num_changes), (ull)observers[0].num_seen,
               (ull)observers[1].num_seen, (ull)observers[2].num_seen);
        free(table.words);
        free(table.stamps);
        free(table.dirty);
    }
    return 0;
}

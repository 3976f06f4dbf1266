// usage: ring RECORDS SEED
//
// A producer and a consumer, each with a thread: every record comes once, in order and whole, whatever the batches,
// also where the positions pass 2^64. The records are read and written by plain accesses, so a missing order between
// them and the positions is a data race.
#include "support.h"

#include "ring.h"

struct job {
    struct ring_header *header;
    unsigned char *records;
    struct doorbell *bell; // NULL: the consumer polls
    uint64_t capacity, first, count, seed;
};

static struct ring end_of(const struct job *job, const word64 *other)
{
    return (struct ring){job->header, job->records, job->capacity, atomic_load(other)};
}

static uint64_t content(uint64_t number, unsigned word) { return number * 8 + word + 1; }

static void *produce(void *argument)
{
    const struct job *job = argument;
    struct ring ring = end_of(job, &job->header->head);
    uint64_t random = seeded(job->seed, 1), done = 0, refused = 0;
    uint64_t *batch = allocate(2 * job->capacity * RECORD_BYTES);
    unsigned looks = 0;
    while (done < job->count) {
        const uint64_t left = job->count - done, size = 1 + draw_below(&random, 2 * job->capacity),
                       want = size < left ? size : left;
        for (uint64_t i = 0; i < want; i++)
            for (unsigned word = 0; word < RECORD_WORDS; word++)
                batch[i * RECORD_WORDS + word] = content(done + i, word);
        const int64_t pushed = ring_push(&ring, batch, want);
        CHECK(pushed >= 0 && (uint64_t)pushed <= want, "pushed %lld of %llu", (long long)pushed, (ull)want);
        done += (uint64_t)pushed;
        refused += want - (uint64_t)pushed;
        if (pushed && job->bell)
            CHECK(doorbell_ring(job->bell, -1) == 0, "the ring failed");
        if (!pushed)
            wait_a_little(&looks);
        dawdle(&random);
    }
    CHECK(atomic_load(&job->header->num_refused) == refused, "%llu refused", (ull)refused);
    free(batch);
    return NULL;
}

static void *consume(void *argument)
{
    const struct job *job = argument;
    struct ring ring = end_of(job, &job->header->tail);
    uint64_t random = seeded(job->seed, 2), done = 0;
    unsigned looks = 0;
    while (done < job->count) {
        const uint64_t want = 1 + draw_below(&random, job->capacity);
        int64_t pending = ring_pending(&ring, want);
        if (pending == 0 && job->bell) {
            pending = ring_wait(&ring, job->bell, monotonic_ns() + INT64_C(20000000000), want % 3 * 2000);
            CHECK(pending != 0, "no record came after %llu: a lost wake-up", (ull)done);
        }
        CHECK(pending >= 0 && (uint64_t)pending <= job->count - done, "%lld pending", (long long)pending);
        if (pending == 0)
            wait_a_little(&looks);
        const uint64_t take = (uint64_t)pending < want ? (uint64_t)pending : want;
        for (uint64_t i = 0; i < take; i++) {
            const uint64_t *record = (const uint64_t *)ring_record(&ring, job->first + done + i);
            for (unsigned word = 0; word < RECORD_WORDS; word++)
                CHECK(record[word] == content(done + i, word), "record %llu, word %u: %llu", (ull)(done + i), word,
                      (ull)record[word]);
        }
        ring_commit(&ring, take);
        done += take;
        dawdle(&random);
    }
    CHECK(ring_pending(&ring, 1) == 0, "more than was produced");
    return NULL;
}

// Positions that no two ends could have written: refused, and nothing is touched.
static void look_at_damage(struct job *job)
{
    const uint64_t record[RECORD_WORDS] = {0};
    for (uint64_t off = 1; off <= UINT64_MAX / 2; off *= 2) {
        atomic_store(&job->header->head, job->first);
        atomic_store(&job->header->tail, job->first + job->capacity + off);
        struct ring producer = end_of(job, &job->header->head), consumer = end_of(job, &job->header->tail);
        CHECK(ring_push(&producer, record, 1) == -1, "tail %llu too far", (ull)off);
        CHECK(ring_pending(&consumer, 1) == -1, "tail %llu too far", (ull)off);
    }
}

int main(int argc, char **argv)
{
    const uint64_t records = argument(argc, argv, 1, 20000), seed = argument(argc, argv, 2, 1);
    const uint64_t capacities[] = {RING_MIN_CAPACITY, 8, 64};
    for (unsigned run = 0; run < 6; run++) {
        struct doorbell *bell = allocate(DOORBELL_BYTES);
        struct job job = {.capacity = capacities[run % 3], .count = records / 6, .seed = seed + run};
        atomic_store(&bell->sequence, UINT32_MAX - 20);
        job.bell = run % 2 ? bell : NULL;
        job.first = run < 3 ? UINT64_C(0) - 1 - records / 12 : UINT64_C(0) - job.capacity - run;
        job.header = allocate(RING_HEADER_BYTES);
        job.records = allocate(job.capacity * RECORD_BYTES);
        CHECK(ring_capacity_is_valid(job.capacity), "capacity");
        ring_format(job.header, job.capacity);
        atomic_store(&job.header->head, job.first);
        atomic_store(&job.header->tail, job.first);
        pthread_t producer, consumer;
        start(&producer, produce, &job);
        start(&consumer, consume, &job);
        pthread_join(producer, NULL);
        pthread_join(consumer, NULL);
        CHECK(atomic_load(&job.header->tail) == job.first + job.count, "the tail");
        CHECK(atomic_load(&job.header->head) == job.first + job.count, "the head");
        printf("capacity %llu, %s: %llu records from position %llu, %llu refused\n", (ull)job.capacity,
               job.bell ? "asleep" : "polling", (ull)job.count, (ull)job.first,
               (ull)atomic_load(&job.header->num_refused));
        look_at_damage(&job);
        free(job.header);
        free(job.records);
        free(bell);
    }
    return 0;
}

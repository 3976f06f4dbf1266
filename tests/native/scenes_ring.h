// The ring: a producer that dies in a push and whose successor pushes again what it was about to, and a consumer that
// dies anywhere between its look and its commit, and whose successor begins at the head.
//
// Records are numbered from 1, and record n is at position FIRST + n - 1 until something is pushed twice. Positions
// pass 2^64, and the records the end of the ring.
#ifndef EMBRIDGE_TESTS_NATIVE_SCENES_RING_H
#define EMBRIDGE_TESTS_NATIVE_SCENES_RING_H

#include "single_step.h"

#define FIRST (UINT64_MAX - 3)

static struct ring my_end; // the traced process's own
static uint64_t my_records[RING_CAPACITY * RECORD_WORDS], num_mine, num_before;

static uint64_t record_word(uint64_t number, unsigned word) { return number << 8 | word; }

static void write_records(uint64_t *records, uint64_t from, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        for (unsigned word = 0; word < RECORD_WORDS; word++)
            records[i * RECORD_WORDS + word] = record_word(from + i, word);
}

// The record's number, or 0 where it is not whole.
static uint64_t number_of(const unsigned char *record)
{
    uint64_t words[RECORD_WORDS];
    memcpy(words, record, sizeof words);
    for (unsigned word = 0; word < RECORD_WORDS; word++)
        if (words[word] != record_word(words[0] >> 8, word))
            return 0;
    return words[0] >> 8;
}

static struct ring end_of(struct world *world)
{
    return (struct ring){&world->ring, world->records, RING_CAPACITY, atomic_load(&world->ring.head)};
}

// `before` and `given`: how many records are there, and how many the producer has in hand.
static void prepare_ring(const struct scene *scene, struct world *world)
{
    memset((void *)world, 0, sizeof *world);
    num_before = (uint64_t)(scene->before[0] - '0'), num_mine = (uint64_t)(scene->given[0] - '0');
    ring_format(&world->ring, RING_CAPACITY);
    atomic_store(&world->ring.head, FIRST);
    atomic_store(&world->ring.tail, FIRST);
    my_end = end_of(world);
    write_records(my_records, 1, num_before);
    ring_push(&my_end, my_records, num_before);
    my_end = end_of(world);
    write_records(my_records, num_before + 1, num_mine);
}

// ---- what is done

static void push(const struct scene *scene, struct world *world)
{
    (void)scene, (void)world;
    ring_push(&my_end, my_records, num_mine);
}

static void push_one(const struct scene *scene, struct world *world)
{
    (void)scene, (void)world;
    ring_push(&my_end, my_records, 1);
}

static void push_again(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct ring end = end_of(world);
    ring_push(&end, my_records, num_mine);
}

// Work that may be done twice, as all that records ask for: only the first time counts.
static void work_on(struct world *world, const unsigned char *record)
{
    const uint64_t number = number_of(record);
    if (number == 0 || number > world->last_worked + 1)
        world->misworked = true;
    else if (number == world->last_worked + 1)
        world->last_worked = number;
}

static void pop_all(struct ring *end, struct world *world)
{
    for (int64_t pending; (pending = ring_pending(end, 2)) > 0;) {
        unsigned char records[2][RECORD_BYTES];
        const uint64_t head = atomic_load_explicit(&end->header->head, memory_order_relaxed);
        const uint64_t take = pending < 2 ? 1 : 2;
        for (uint64_t i = 0; i < take; i++)
            memcpy(records[i], ring_record(end, head + i), RECORD_BYTES);
        for (uint64_t i = 0; i < take; i++)
            work_on(world, records[i]);
        ring_commit(end, take);
    }
}

static void pop(const struct scene *scene, struct world *world)
{
    (void)scene;
    pop_all(&my_end, world);
}

static void pop_again(const struct scene *scene, struct world *world)
{
    (void)scene;
    struct ring end = end_of(world);
    pop_all(&end, world);
}

// ---- what holds

static const char *inspect_records(const struct world *last, const struct world *now)
{
    const uint64_t head = atomic_load(&now->ring.head), tail = atomic_load(&now->ring.tail);
    const uint64_t published = atomic_load(&last->ring.tail);
    if (tail - head > RING_CAPACITY || now->misworked)
        return fault("head %llu, tail %llu, a record torn or early: %d", (ull)head, (ull)tail, now->misworked != 0);
    for (uint64_t position = head; position != tail; position++) {
        const size_t at = (position & (RING_CAPACITY - 1)) * RECORD_BYTES;
        if (number_of(now->records + at) == 0)
            return fault("the record at %llu is not whole", (ull)position);
        const bool was_there = published - position - 1 < RING_CAPACITY;
        if (was_there && memcmp(now->records + at, last->records + at, RECORD_BYTES) != 0)
            return fault("the record at %llu was written over", (ull)position);
    }
    return NULL;
}

static const char *inspect_push(const struct scene *scene, bool recovering, const struct world *last,
                                const struct world *now)
{
    (void)scene, (void)recovering;
    const uint64_t rise = atomic_load(&now->ring.tail) - atomic_load(&last->ring.tail);
    if (atomic_load(&now->ring.head) != atomic_load(&last->ring.head) || rise > num_mine ||
        atomic_load(&now->ring.num_refused) - atomic_load(&last->ring.num_refused) > num_mine)
        return fault("the tail rose by %lld, or what is not the producer's changed", (long long)rise);
    return inspect_records(last, now);
}

static const char *inspect_pop(const struct scene *scene, bool recovering, const struct world *last,
                               const struct world *now)
{
    (void)scene, (void)recovering;
    const uint64_t head = atomic_load(&now->ring.head), rise = head - atomic_load(&last->ring.head);
    if (atomic_load(&now->ring.tail) != atomic_load(&last->ring.tail) || rise > 2)
        return fault("the head rose by %lld, or the tail changed", (long long)rise);
    if (head - FIRST > now->last_worked)
        return fault("%llu records are consumed, the work of %llu is done", (ull)(head - FIRST), (ull)now->last_worked);
    return inspect_records(last, now);
}

// All records come, whole and in order; what does not fit the successor keeps, and pushes when there is room.
static const char *judge_ring(const struct scene *scene, const struct world *killed, struct world *recovered)
{
    (void)killed;
    pop_again(scene, recovered);
    // Of what was there before, nothing may be missing: the difference would pass 0.
    while (!recovered->misworked && recovered->last_worked - num_before < num_mine) {
        struct ring end = end_of(recovered);
        const uint64_t next = recovered->last_worked - num_before, left = num_mine - next;
        if (ring_push(&end, my_records + next * RECORD_WORDS, left) != (int64_t)left)
            return fault("the ring is empty and does not take %llu records", (ull)left);
        pop_again(scene, recovered);
    }
    if (recovered->misworked || recovered->last_worked < num_before + num_mine)
        return fault("%llu records worked on; %s", (ull)recovered->last_worked,
                     recovered->misworked ? "one was torn or early" : "one is missing");
    if (atomic_load(&recovered->ring.head) != atomic_load(&recovered->ring.tail))
        return fault("records are left in an empty ring");
    return NULL;
}

static const char *outcome_of_ring(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    const uint64_t tail = atomic_load(&ended->ring.tail) - FIRST, refused = atomic_load(&ended->ring.num_refused);
    if (!rival && tail != (uint64_t)(scene->after[0] - '0'))
        return fault("%llu records came out", (ull)tail);
    if (!rival && num_mine == 0 && ended->last_worked != tail)
        return fault("%llu of %llu records worked on", (ull)ended->last_worked, (ull)tail);
    if (num_mine && tail + refused != num_before + num_mine)
        return fault("%llu records in, %llu refused", (ull)tail, (ull)refused);
    return NULL;
}

// ---- the other end

static void consume_all(struct world *world) { pop_again(NULL, world); }

static void consume_one(struct world *world)
{
    struct ring end = end_of(world);
    if (ring_pending(&end, 1) > 0) {
        work_on(world, ring_record(&end, atomic_load(&world->ring.head)));
        ring_commit(&end, 1);
    }
}

static void produce_more(struct world *world)
{
    uint64_t more[2 * RECORD_WORDS];
    struct ring end = end_of(world);
    write_records(more, num_before + 1, 2);
    ring_push(&end, more, 2);
}

static const struct rival consumers[] = {
    {"consumes all", consume_all, false}, {"consumes one", consume_one, false}, {NULL, NULL, false}};
static const struct rival producers[] = {{"produces more", produce_more, false}, {NULL, NULL, false}};

#define PUSH                                                                                                           \
    .followed = 1, .prepare = prepare_ring, .recover = push_again, .inspect = inspect_push,                            \
    .outcome = outcome_of_ring, .judge = judge_ring, .rivals = consumers
#define POP                                                                                                            \
    .followed = UINT32_MAX, .prepare = prepare_ring, .recover = pop_again, .inspect = inspect_pop,                     \
    .outcome = outcome_of_ring, .judge = judge_ring, .rivals = producers

static const struct scene ring_scenes[] = {
    {"push one", PUSH, .operate = push_one, .before = "2", .given = "1", .after = "3"},
    {"push past the end", PUSH, .operate = push, .before = "2", .given = "3", .after = "5"},
    {"push what does not fit", PUSH, .operate = push, .before = "7", .given = "3", .after = "8"},
    {"push into a full ring", PUSH, .operate = push, .before = "8", .given = "2", .after = "8"},
    {"pop: peek, work, commit", POP, .operate = pop, .before = "5", .given = "0", .after = "5"},
};

#endif

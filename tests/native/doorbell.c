// usage: doorbell ROUNDS SEED
//
// One and two ringers, and a waiter that sleeps on the futex, or on an eventfd, or does either by chance: no wake-up
// is lost. A ringer posts only after its last post was consumed, so a lost one leaves all of them waiting, and the
// waiter's deadline ends the program. Both numbers in the bell pass their ends.
#include "support.h"

#include <poll.h>
#include <sys/eventfd.h>

#include "doorbell.h"

#define LOST_AFTER_NS INT64_C(20000000000)
#define FIRST_SEQUENCE (UINT32_MAX - 100)

enum way { ASLEEP, ARMED, EITHER };

struct job {
    struct doorbell *bell;
    int event_fd;
    enum way way;
    unsigned num_ringers;
    uint64_t rounds, seed;
    uint64_t message; // one ringer's, plain: the ring publishes it
    word64 posted[2], consumed[2];
};

struct ringer {
    struct job *job;
    unsigned me;
};

static void *ring_it(void *argument)
{
    const struct ringer *ringer = argument;
    struct job *job = ringer->job;
    uint64_t random = seeded(job->seed, ringer->me);
    unsigned looks = 0;
    for (uint64_t round = 1; round <= job->rounds; round++) {
        if (job->num_ringers == 1)
            job->message = round;
        // Relaxed: the bell orders it.
        atomic_store_explicit(&job->posted[ringer->me], round, memory_order_relaxed);
        CHECK(doorbell_ring(job->bell, job->event_fd) == 0, "the ring failed");
        while (atomic_load(&job->consumed[ringer->me]) < round)
            wait_a_little(&looks);
        dawdle(&random);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    const uint64_t rounds = argument(argc, argv, 1, 2000), seed = argument(argc, argv, 2, 1);
    for (unsigned run = 0; run < 6; run++) {
        struct job job = {.bell = allocate(DOORBELL_BYTES), .way = run % 3, .num_ringers = 1 + run / 3};
        job.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        job.rounds = rounds / 6, job.seed = seed + run;
        atomic_store(&job.bell->sequence, FIRST_SEQUENCE);
        atomic_store(&job.bell->state, UINT32_MAX - 64 * DOORBELL_ARMING + 1);
        uint64_t random = seeded(seed + run, 9), num_slept = 0, num_armed = 0, consumed[2] = {0};
        struct ringer ringers[2] = {{&job, 0}, {&job, 1}};
        pthread_t threads[2];
        for (unsigned i = 0; i < job.num_ringers; i++)
            start(&threads[i], ring_it, &ringers[i]);
        while (consumed[0] + consumed[1] < job.num_ringers * job.rounds) {
            const uint32_t seen = doorbell_sequence(job.bell);
            bool any = false;
            for (unsigned i = 0; i < job.num_ringers; i++) {
                // One ringer's rounds are the rings; two are told apart by what they posted.
                const uint64_t rung = job.num_ringers == 1
                                          ? (uint32_t)(seen - FIRST_SEQUENCE)
                                          : atomic_load_explicit(&job.posted[i], memory_order_relaxed);
                if (rung == consumed[i])
                    continue;
                CHECK(rung == consumed[i] + 1, "%llu after %llu", (ull)rung, (ull)consumed[i]);
                CHECK(job.num_ringers > 1 || job.message == rung, "message %llu at ring %llu", (ull)job.message,
                      (ull)rung);
                atomic_store(&job.consumed[i], consumed[i] = rung);
                any = true;
            }
            dawdle(&random);
            if (any)
                continue;
            const bool arm = job.way == ARMED || (job.way == EITHER && draw_below(&random, 2));
            const int64_t deadline = monotonic_ns() + LOST_AFTER_NS;
            if (arm) {
                if (doorbell_arm(job.bell, seen)) {
                    struct pollfd look = {.fd = job.event_fd, .events = POLLIN};
                    const int ready = poll(&look, 1, (int)(LOST_AFTER_NS / 1000000));
                    CHECK(ready == 1, "a wake-up was lost: armed at %u, now %u", seen, doorbell_sequence(job.bell));
                    num_armed++;
                }
                uint64_t count;
                (void)!read(job.event_fd, &count, sizeof count);
                doorbell_disarm(job.bell);
            } else if (draw_below(&random, 4)) {
                const int result = doorbell_sleep(job.bell, seen, deadline);
                CHECK(result == 0, "a wake-up was lost: asleep at %u, now %u", seen, doorbell_sequence(job.bell));
                num_slept++;
            } else {
                CHECK(doorbell_wait(job.bell, seen, deadline, 2000) != seen, "a wake-up was lost at %u", seen);
            }
        }
        for (unsigned i = 0; i < job.num_ringers; i++)
            pthread_join(threads[i], NULL);
        printf("%u ringers: %llu rounds, %llu sleeps, %llu armed\n", job.num_ringers, (ull)job.rounds, (ull)num_slept,
               (ull)num_armed);
        // A deadline that is over, or was never to be: no sleep, and no overflow.
        const uint32_t now = doorbell_sequence(job.bell);
        CHECK(doorbell_sleep(job.bell, now, 0) == ETIMEDOUT, "a sleep of no time");
        CHECK(doorbell_sleep(job.bell, now - 1, INT64_MAX) == 0, "a sleep for what is there");
        CHECK((atomic_load(&job.bell->state) & DOORBELL_KIND_MASK) == DOORBELL_AWAKE, "left awake");
        close(job.event_fd);
        free(job.bell);
    }
    return 0;
}

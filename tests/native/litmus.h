// Two threads that meet before each iteration, go on after random delays, and count what they saw.
#ifndef EMBRIDGE_TESTS_NATIVE_LITMUS_H
#define EMBRIDGE_TESTS_NATIVE_LITMUS_H

#include "support.h"

struct side {
    unsigned me; // 0 or 1
    uint64_t random;
    uint64_t iterations;
    int64_t end_ns;
};

static word64 met[2 * LINE_BYTES / 8]; // how far each side is, on a line of its own
static word64 last_iteration = UINT64_MAX;
static word64 num_forbidden;

// Wait for the other side, then be late by a random time. False when it is over: all iterations are done, the time is
// up, or the forbidden outcome was seen.
static inline bool meet(struct side *side, uint64_t iteration)
{
    unsigned looks = 0;
    if (side->me == 0 && (iteration == side->iterations || atomic_load(&num_forbidden) ||
                          (iteration % 64 == 0 && monotonic_ns() > side->end_ns)))
        atomic_store(&last_iteration, iteration);
    atomic_store(&met[side->me * LINE_BYTES / 8], iteration + 1);
    while (atomic_load(&met[!side->me * LINE_BYTES / 8]) < iteration + 1)
        if (++looks % 4096)
            spin_pause();
        else
            sched_yield();
    if (atomic_load(&last_iteration) == iteration)
        return false;
    // About a cycle each: as wide as a line's way between two cores, so that either side may come first, or both at
    // once.
    for (uint64_t cycles = draw(&side->random) >> 40 & 2047; cycles > 0; cycles--)
        __asm__ volatile("");
    return true;
}

// Keep a thread to a core of its own, if there are two: on one core the two would see each other at switches only.
static inline void keep_apart(pthread_t thread, int me)
{
    cpu_set_t allowed, mine;
    CPU_ZERO(&mine);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2)
        return;
    for (int core = 0, nth = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, &allowed) && nth++ == me)
            CPU_SET(core, &mine);
    pthread_setaffinity_np(thread, sizeof mine, &mine); // a favour: without it, it takes longer
}

// usage: PROGRAM ITERATIONS SEED SECONDS. Returns the iterations that were done.
static inline uint64_t litmus(int argc, char **argv, void *(*left)(void *), void *(*right)(void *))
{
    const uint64_t iterations = argument(argc, argv, 1, 100000), seed = argument(argc, argv, 2, 1);
    const int64_t end_ns = monotonic_ns() + (int64_t)argument(argc, argv, 3, 60) * 1000000000;
    struct side sides[2] = {{0, seeded(seed, 1), iterations, end_ns}, {1, seeded(seed, 2), iterations, end_ns}};
    pthread_t threads[2];
    start(&threads[0], left, &sides[0]);
    start(&threads[1], right, &sides[1]);
    keep_apart(threads[0], 0);
    keep_apart(threads[1], 1);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    return atomic_load(&last_iteration);
}

static inline int verdict(void)
{
    printf("forbidden: %llu\n", (ull)atomic_load(&num_forbidden));
    return atomic_load(&num_forbidden) != 0;
}

#endif

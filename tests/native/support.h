// What the programs under tests/native share. Include it first: it can weaken the memory orders of what follows.
//
//   -DBREAK_RELEASE   every release is relaxed: x86 does not show it, ThreadSanitizer does
//   -DBREAK_SEQ_CST   every sequentially consistent access is relaxed: x86 shows it, as store buffering
//
// The programs themselves synchronise by the plain C11 operations (atomic_load and its like), which neither touches.
#ifndef EMBRIDGE_TESTS_NATIVE_SUPPORT_H
#define EMBRIDGE_TESTS_NATIVE_SUPPORT_H

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef BREAK_RELEASE
#define memory_order_release memory_order_relaxed
#define memory_order_acq_rel memory_order_acquire
#endif
#ifdef BREAK_SEQ_CST
#define memory_order_seq_cst memory_order_relaxed
#endif

#include "shared.h"

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not: %s: ", __FILE__, __LINE__, #condition);                                       \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

typedef unsigned long long ull;

// xorshift64*: each thread has its own.
static inline uint64_t draw(uint64_t *random)
{
    *random ^= *random >> 12;
    *random ^= *random << 25;
    *random ^= *random >> 27;
    return *random * UINT64_C(0x2545F4914F6CDD1D);
}

static inline uint64_t draw_below(uint64_t *random, uint64_t limit) { return (draw(random) >> 33) % limit; }

static inline uint64_t seeded(uint64_t seed, uint64_t stream)
{
    uint64_t random = seed * UINT64_C(0x9E3779B97F4A7C15) + stream * UINT64_C(0xBF58476D1CE4E5B9) + 1;
    for (int i = 0; i < 4; i++)
        draw(&random);
    return random;
}

// Be late by a random time: mostly a little, at times by a visit of the scheduler.
static inline void dawdle(uint64_t *random)
{
    const uint64_t pauses = draw(random) >> 40 & 63;
    if (pauses & 1)
        for (uint64_t i = 0; i < pauses; i++)
            spin_pause();
    else if (pauses == 62)
        sched_yield();
}

// One look of a loop that waits for another thread: cores may be fewer than threads.
static inline void wait_a_little(unsigned *looks)
{
    if (++*looks % 128)
        spin_pause();
    else
        sched_yield();
}

static inline void *allocate(size_t bytes)
{
    void *memory = aligned_alloc(LINE_BYTES, (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES);
    CHECK(memory != NULL, "no memory");
    for (size_t i = 0; i < bytes; i++)
        ((unsigned char *)memory)[i] = 0;
    return memory;
}

static inline void start(pthread_t *thread, void *(*run)(void *), void *argument)
{
    CHECK(pthread_create(thread, NULL, run, argument) == 0, "no thread");
}

static inline uint64_t argument(int argc, char **argv, int index, uint64_t otherwise)
{
    return argc > index ? strtoull(argv[index], NULL, 0) : otherwise;
}

#endif

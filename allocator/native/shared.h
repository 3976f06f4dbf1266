// What every structure in shared memory rests on: one kind of atomic word, a monotonic clock, a pause, and the rule
// for spinning.
//
// Nothing under native/ includes Python.h: the same code can be compiled into a plain C program, and there run in
// threads under ThreadSanitizer, which sees no races between processes. For that reason, too, there are no bare
// fences: every ordering is on an access.
//
// Both ends of an acquire/release pair carry the same banner, `SYNC <name>`.
#ifndef EMBRIDGE_NATIVE_SHARED_H
#define EMBRIDGE_NATIVE_SHARED_H

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

// A lock-based "atomic" would keep its lock in one process, and its holder may be killed.
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && sizeof(_Atomic uint64_t) == 8, "64-bit atomics must be lock-free");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && sizeof(_Atomic uint32_t) == 4, "32-bit atomics must be lock-free");

#define LINE_BYTES 64 // what two processes must not share unless they mean to

typedef _Atomic uint64_t word64;
typedef _Atomic uint32_t word32;

// Tell the core that this is a spin: it yields its pipeline to a sibling, and leaves the loop without a flush.
static inline void spin_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static inline int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

#define AFFINITY_CHECK_NS 10000000

// Whether to spin at all: with one core, whom we wait for cannot run while we do. Asked of the kernel at most once
// per 10 ms.
static inline bool may_spin(int64_t now_ns)
{
    static _Thread_local int64_t next_check_ns = INT64_MIN;
    static _Thread_local bool several_cores = true;
    if (now_ns >= next_check_ns) {
        cpu_set_t cores;
        // A failure means that the mask does not fit: more than 1024 cores.
        several_cores = sched_getaffinity(0, sizeof cores, &cores) != 0 || CPU_COUNT(&cores) > 1;
        next_check_ns = now_ns + AFFINITY_CHECK_NS;
    }
    return several_cores;
}

// Store `value` if it is greater than what stands there.
static inline bool word_raise(word64 *word, uint64_t value)
{
    // SYNC word: release, so that who loads the value sees what was written before it; sequentially consistent, for two
    // who raise a word each and then look at the other's.
    uint64_t current = atomic_load_explicit(word, memory_order_relaxed);
    while (current < value) {
        if (atomic_compare_exchange_weak_explicit(word, &current, value, memory_order_seq_cst, memory_order_relaxed))
            return true;
    }
    return false;
}

#endif

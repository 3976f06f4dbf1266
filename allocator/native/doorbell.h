// A doorbell: one line by which any number of ringers wake one waiter.
//
//   +0   sequence:u32    rises by one with every ring; the futex word
//   +4   state:u32       kind:2 (0 awake, 1 asleep on the futex, 2 eventfd armed), above it the number of the arming
//   +8   spared:u32      the waiter need not hear of what another one will see who is awake (`direct_ring`)
//   +12  unused to 64
//
// No wake-up is lost. The ringer moves `sequence` and then reads `state`; the waiter writes `state` and then reads
// `sequence` again. All four are sequentially consistent, so of two who cross, at least one sees the other: the
// waiter finds a new sequence and does not sleep, or the ringer finds it asleep or armed. Between that look and the
// sleep the kernel compares `sequence` once more. The futex is not private: the waiter lives in another process.
//
// Why a SIGKILL between any two instructions is safe. A waiter killed asleep or armed leaves that state behind, and a
// ring costs one system call more. A ringer killed before its wake leaves the state as it was, *asleep* or *armed*,
// so that the next ring, by whomever, wakes: only the waiter ends its sleep, and a ringer ends an arming only after
// it has written to the eventfd. (The other way round, one killed in between would leave a waiter asleep that looks
// awake, and no ring would ever wake it.) The number of the arming keeps a ringer that was slow from ending the next
// arming instead of the one it served.
#ifndef EMBRIDGE_NATIVE_DOORBELL_H
#define EMBRIDGE_NATIVE_DOORBELL_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shared.h"

#define DOORBELL_BYTES 64
#define DOORBELL_KIND_MASK 3u
#define DOORBELL_ARMING 4u // one arming, in `state`
#define SPIN_LOOKS 16      // looks between two readings of the clock

enum doorbell_kind { DOORBELL_AWAKE, DOORBELL_ASLEEP, DOORBELL_ARMED };

struct doorbell {
    word32 sequence;
    word32 state;
    word32 spared;
};

_Static_assert(sizeof(struct doorbell) == 12, "sequence, state and spared are neighbours");

static inline uint32_t doorbell_sequence(struct doorbell *bell)
{
    // SYNC bell: acquire; who sees this ring sees what was stored before it.
    return atomic_load_explicit(&bell->sequence, memory_order_acquire);
}

// Whether the waiter is awake. Who has rung before it asks may go away: the waiter finds the new sequence before it
// sleeps.
static inline bool doorbell_is_awake(struct doorbell *bell)
{
    // SYNC bell: seq_cst, behind the ring.
    return (atomic_load_explicit(&bell->state, memory_order_seq_cst) & DOORBELL_KIND_MASK) == DOORBELL_AWAKE;
}

// Say whether the waiter may be spared (the waiter only). Relaxed: it is a hint.
static inline void doorbell_spare(struct doorbell *bell, bool is_spared)
{
    atomic_store_explicit(&bell->spared, is_spared, memory_order_relaxed);
}

static inline bool doorbell_is_spared(struct doorbell *bell)
{
    return atomic_load_explicit(&bell->spared, memory_order_relaxed) != 0;
}

static inline bool doorbell_set_kind(struct doorbell *bell, enum doorbell_kind kind)
{
    // Only the waiter comes here; a ringer changes `state` only from the arming that it served, which this
    // overwrites.
    uint32_t state = atomic_load_explicit(&bell->state, memory_order_relaxed);
    uint32_t arming = (state & ~DOORBELL_KIND_MASK) + (kind == DOORBELL_ARMED ? DOORBELL_ARMING : 0);
    // SYNC sleep: seq_cst, against the ringer's read of `state`.
    atomic_store_explicit(&bell->state, arming | kind, memory_order_seq_cst);
    return (state & DOORBELL_KIND_MASK) == DOORBELL_ARMED;
}

// Wake the waiter, if it sleeps. Returns 0, or the errno of a system call that failed; `woke` says whether it slept
// where this process can wake it.
static inline int doorbell_ring_sleeper(struct doorbell *bell, int event_fd, bool *woke)
{
    *woke = false;
    // SYNC bell: release (part of seq_cst), publishes what the waiter is woken for.
    // SYNC sleep: seq_cst, before the read of `state`.
    atomic_fetch_add_explicit(&bell->sequence, 1, memory_order_seq_cst);
    uint32_t state = atomic_load_explicit(&bell->state, memory_order_seq_cst);
    switch (state & DOORBELL_KIND_MASK) {
    case DOORBELL_ASLEEP:
        *woke = true;
        return syscall(SYS_futex, &bell->sequence, FUTEX_WAKE, INT_MAX, NULL, NULL, 0) < 0 ? errno : 0;
    case DOORBELL_ARMED: {
        const uint64_t one = 1;
        if (event_fd < 0)
            return 0; // this process has no descriptor for it: left for one that has
        *woke = true;
        while (write(event_fd, &one, sizeof one) < 0) {
            if (errno == EAGAIN)
                break; // the counter is full, so it is readable
            if (errno != EINTR)
                return errno;
        }
        // Relaxed: it publishes nothing. It fails where another ringer, or the waiter, was first, and then is not
        // needed.
        atomic_compare_exchange_strong_explicit(&bell->state, &state, (state & ~DOORBELL_KIND_MASK) | DOORBELL_AWAKE,
                                                memory_order_relaxed, memory_order_relaxed);
        return 0;
    }
    default:
        return 0;
    }
}

static inline int doorbell_ring(struct doorbell *bell, int event_fd)
{
    bool woke;
    return doorbell_ring_sleeper(bell, event_fd, &woke);
}

// Wake a client of which a request has succeeded: its caller, if he sleeps on the futex; else its library thread, too,
// unless that is spared and he is awake (`direct_ring`, for a process that has their descriptors). Returns 0, or an
// errno.
static inline int doorbell_ring_client(struct doorbell *caller, int caller_fd, struct doorbell *library, int library_fd)
{
    bool woke;
    const int error = doorbell_ring_sleeper(caller, -1, &woke);
    if (woke || (doorbell_is_spared(library) && doorbell_is_awake(caller)))
        return error;
    const int first = doorbell_ring(caller, caller_fd); // an armed eventfd
    const int second = doorbell_ring(library, library_fd);
    return first != 0 ? first : second;
}

// Sleep until the sequence is not `seen`, the deadline (CLOCK_MONOTONIC) is over, or a signal comes. Returns 0,
// ETIMEDOUT or EINTR.
static inline int doorbell_sleep(struct doorbell *bell, uint32_t seen, int64_t deadline_ns)
{
    const struct timespec deadline = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
    int result = 0;
    doorbell_set_kind(bell, DOORBELL_ASLEEP);
    // SYNC sleep: the second look, after `state` was published. SYNC bell: acquire.
    while (result == 0 && atomic_load_explicit(&bell->sequence, memory_order_seq_cst) == seen) {
        if (syscall(SYS_futex, &bell->sequence, FUTEX_WAIT_BITSET, seen, &deadline, NULL, FUTEX_BITSET_MATCH_ANY) < 0 &&
            errno != EAGAIN)
            result = errno;
    }
    doorbell_set_kind(bell, DOORBELL_AWAKE);
    return result;
}

// Spin, then sleep, until the sequence is not `seen`, the deadline is over, or a signal comes. Returns the sequence.
static inline uint32_t doorbell_wait(struct doorbell *bell, uint32_t seen, int64_t deadline_ns, int64_t spin_ns)
{
    int64_t now = monotonic_ns();
    if (spin_ns > 0 && may_spin(now)) {
        const int64_t spin_end = deadline_ns - now < spin_ns ? deadline_ns : now + spin_ns;
        do {
            for (int look = 0; look < SPIN_LOOKS; look++) {
                const uint32_t sequence = doorbell_sequence(bell);
                if (sequence != seen)
                    return sequence;
                spin_pause();
            }
            now = monotonic_ns();
        } while (now < spin_end);
    }
    doorbell_sleep(bell, seen, deadline_ns);
    return doorbell_sequence(bell);
}

// Have the next ring written to the eventfd. False, and not armed, when the sequence is no longer `seen`.
static inline bool doorbell_arm(struct doorbell *bell, uint32_t seen)
{
    doorbell_set_kind(bell, DOORBELL_ARMED);
    // SYNC sleep: the second look. SYNC bell: acquire.
    if (atomic_load_explicit(&bell->sequence, memory_order_seq_cst) == seen)
        return true;
    doorbell_set_kind(bell, DOORBELL_AWAKE);
    return false;
}

static inline void doorbell_disarm(struct doorbell *bell) { doorbell_set_kind(bell, DOORBELL_AWAKE); }

#endif

// A ring of 64-byte records from one producer to one consumer.
//
//   +0     capacity:u64      a power of two, 2 to 2^20; written once
//   +64    head:u64          records consumed since the ring was made; the consumer's line
//   +128   tail:u64          records produced since the ring was made; the producer's line
//   +136   num_refused:u64   records that found the ring full; the producer's, too
//   +192   record[capacity], 64 bytes each; record n lies at n & (capacity - 1)
//
// Invariants. head <= tail <= head + capacity, modulo 2^64; each is written by one process and only rises. The
// records in [head, tail) belong to the consumer, the others to the producer.
//
// Why a SIGKILL between any two instructions is safe: one store publishes a record, one store consumes it. A producer
// that dies before its store has written where nobody looks, and the next one writes there again. A consumer that
// dies before `commit` has changed nothing, and the next one sees the same records.
//
// Each end keeps the other's position as it last saw it, and looks at the other's line only when that is not enough.
// What it keeps is a lower bound, for positions only rise; whatever comes out of shared memory is checked before it
// is used.
#ifndef EMBRIDGE_NATIVE_RING_H
#define EMBRIDGE_NATIVE_RING_H

#include <string.h>

#include "doorbell.h"
#include "shared.h"

#define RECORD_WORDS 8
#define RECORD_BYTES (8 * RECORD_WORDS)
#define RING_HEADER_BYTES (3 * LINE_BYTES)
#define RING_MIN_CAPACITY UINT64_C(2)
#define RING_MAX_CAPACITY (UINT64_C(1) << 20)

struct ring_header {
    _Alignas(LINE_BYTES) word64 capacity;
    _Alignas(LINE_BYTES) word64 head;
    _Alignas(LINE_BYTES) word64 tail;
    word64 num_refused;
};

_Static_assert(sizeof(struct ring_header) == RING_HEADER_BYTES && offsetof(struct ring_header, num_refused) == 136,
               "the header is three lines");

// One end's view of a ring.
struct ring {
    struct ring_header *header;
    unsigned char *records;
    uint64_t capacity; // checked when the end was made; what stands in the header later is not looked at
    uint64_t other;    // the other end's position as it was last seen
};

static inline bool ring_capacity_is_valid(uint64_t capacity)
{
    return capacity >= RING_MIN_CAPACITY && capacity <= RING_MAX_CAPACITY && (capacity & (capacity - 1)) == 0;
}

static inline void ring_format(struct ring_header *header, uint64_t capacity)
{
    atomic_store_explicit(&header->head, 0, memory_order_relaxed);
    atomic_store_explicit(&header->tail, 0, memory_order_relaxed);
    atomic_store_explicit(&header->num_refused, 0, memory_order_relaxed);
    // SYNC capacity: release; who sees the capacity sees an empty ring.
    atomic_store_explicit(&header->capacity, capacity, memory_order_release);
}

static inline unsigned char *ring_record(const struct ring *ring, uint64_t position)
{
    return ring->records + (position & (ring->capacity - 1)) * RECORD_BYTES;
}

// ---- the producer

// How many records fit, or -1 where the header is damaged. Looks at the consumer's line only if fewer than `want` are
// known to fit.
static inline int64_t ring_room(struct ring *ring, uint64_t want)
{
    const uint64_t tail = atomic_load_explicit(&ring->header->tail, memory_order_relaxed); // our own
    uint64_t used = tail - ring->other;
    if (used > ring->capacity || ring->capacity - used < want) {
        // SYNC head: acquire; the consumer has read the records that we are about to write over.
        ring->other = atomic_load_explicit(&ring->header->head, memory_order_acquire);
        used = tail - ring->other;
    }
    return used > ring->capacity ? -1 : (int64_t)(ring->capacity - used);
}

// Append as many of the records as fit, and count those that do not. Returns how many, or -1 where the header is
// damaged.
static inline int64_t ring_push(struct ring *ring, const void *records, uint64_t count)
{
    const int64_t room = ring_room(ring, count);
    if (room < 0)
        return -1;
    const uint64_t num = count < (uint64_t)room ? count : (uint64_t)room;
    const uint64_t tail = atomic_load_explicit(&ring->header->tail, memory_order_relaxed);
    const uint64_t to_end = ring->capacity - (tail & (ring->capacity - 1)), first = num < to_end ? num : to_end;
    memcpy(ring_record(ring, tail), records, first * RECORD_BYTES);
    if (num > first)
        memcpy(ring->records, (const unsigned char *)records + first * RECORD_BYTES, (num - first) * RECORD_BYTES);
    if (num < count) // one writer: no read-modify-write needed
        atomic_store_explicit(&ring->header->num_refused,
                              atomic_load_explicit(&ring->header->num_refused, memory_order_relaxed) + count - num,
                              memory_order_relaxed);
    // SYNC tail: release; who sees the new tail sees the records.
    if (num)
        atomic_store_explicit(&ring->header->tail, tail + num, memory_order_release);
    return (int64_t)num;
}

// ---- the consumer

// How many records are there, or -1 where the header is damaged. Looks at the producer's line only if fewer than
// `want` are known.
static inline int64_t ring_pending(struct ring *ring, uint64_t want)
{
    const uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_relaxed); // our own
    uint64_t pending = ring->other - head;
    if (pending > ring->capacity || pending < want) {
        // SYNC tail: acquire; the records up to the tail that we see are written.
        ring->other = atomic_load_explicit(&ring->header->tail, memory_order_acquire);
        pending = ring->other - head;
    }
    return pending > ring->capacity ? -1 : (int64_t)pending;
}

// Consume `count` records, which the caller knows to be there.
static inline void ring_commit(struct ring *ring, uint64_t count)
{
    const uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_relaxed);
    // SYNC head: release; our reads of the records come before the producer's next writes there.
    atomic_store_explicit(&ring->header->head, head + count, memory_order_release);
}

// Wait until a record is there, the deadline is over, or a signal comes. Returns what `ring_pending` does.
static inline int64_t ring_wait(struct ring *ring, struct doorbell *bell, int64_t deadline_ns, int64_t spin_ns)
{
    int64_t now = monotonic_ns(), pending;
    if (spin_ns > 0 && may_spin(now)) {
        const int64_t spin_end = deadline_ns - now < spin_ns ? deadline_ns : now + spin_ns;
        do {
            for (int look = 0; look < SPIN_LOOKS; look++) {
                if ((pending = ring_pending(ring, 1)) != 0)
                    return pending;
                spin_pause();
            }
            now = monotonic_ns();
        } while (now < spin_end);
    }
    for (int slept = 0;;) {
        const uint32_t seen = doorbell_sequence(bell); // before the look: a ring after it ends the sleep
        if ((pending = ring_pending(ring, 1)) != 0 || slept != 0)
            return pending;
        slept = doorbell_sleep(bell, seen, deadline_ns);
    }
}

#endif

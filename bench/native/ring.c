// ring one_way N BATCH | round_trip N | line N: the ring between two C processes, and a bare cache line.
#include "common.h"
#include "ring.h"

#define CAPACITY 1024
#define RING_BYTES (RING_HEADER_BYTES + CAPACITY * RECORD_BYTES)

static struct ring ring_at(unsigned char *memory)
{
    return (struct ring){
        .header = (struct ring_header *)(void *)memory, .records = memory + RING_HEADER_BYTES, .capacity = CAPACITY};
}

static void take(struct ring *ring, uint64_t most, unsigned char *into, uint64_t *left)
{
    const int64_t pending = ring_pending(ring, most);
    const uint64_t count = (uint64_t)pending < most ? (uint64_t)pending : most;
    const uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_relaxed);
    for (uint64_t i = 0; i < count; i++)
        memcpy(into + i * RECORD_BYTES, ring_record(ring, head + i), RECORD_BYTES);
    __asm__ volatile("" ::"r"(into) : "memory"); // the copy is wanted
    if (count)
        ring_commit(ring, count);
    *left -= count;
}

static void one_way(unsigned char *memory, uint64_t num, uint64_t batch)
{
    unsigned char *records = calloc(batch, RECORD_BYTES);
    const int64_t begun = monotonic_ns();
    struct ring ring = ring_at(memory);
    const pid_t child = fork_child();
    pin(child == 0);
    if (child == 0) {
        for (uint64_t left = num; left;)
            left -= (uint64_t)ring_push(&ring, records, left < batch ? left : batch);
        _exit(0);
    }
    for (uint64_t left = num; left;)
        take(&ring, left < batch ? left : batch, records, &left);
    printf("rate %.4f\n", (double)num / (double)(monotonic_ns() - begun) * 1e3);
    join_child(child);
}

static void round_trip(unsigned char *memory, size_t num)
{
    int64_t *stamps = calloc(num, sizeof *stamps);
    unsigned char record[RECORD_BYTES] = {0};
    struct ring there = ring_at(memory), back = ring_at(memory + RING_BYTES);
    const pid_t child = fork_child();
    pin(child == 0);
    for (size_t i = 0; i < num; i++) {
        struct ring *in = child == 0 ? &there : &back, *out = child == 0 ? &back : &there;
        if (child != 0) {
            stamps[i] = monotonic_ns();
            ring_push(out, record, 1);
        }
        for (uint64_t left = 1; left;)
            take(in, 1, record, &left);
        if (child == 0)
            ring_push(out, record, 1);
    }
    if (child == 0)
        _exit(0);
    join_child(child);
    print_quantiles_us(stamps, num);
}

static void line(unsigned char *memory, size_t num)
{
    int64_t *stamps = calloc(num, sizeof *stamps);
    word64 *ball = (word64 *)(void *)(memory + RING_HEADER_BYTES); // 0, where the header is not
    const pid_t child = fork_child();
    pin(child == 0);
    const uint64_t mine = child == 0;
    for (uint64_t i = 0; i < num; i++) {
        stamps[i] = monotonic_ns();
        while (atomic_load_explicit(ball, memory_order_acquire) != 2 * i + mine)
            ;
        atomic_store_explicit(ball, 2 * i + mine + 1, memory_order_release);
    }
    if (child == 0)
        _exit(0);
    join_child(child);
    print_quantiles_us(stamps, num);
}

int main(int argc, char **argv)
{
    unsigned char *memory = shared_memory(2 * RING_BYTES);
    const uint64_t num = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    ring_format((struct ring_header *)(void *)memory, CAPACITY);
    ring_format((struct ring_header *)(void *)(memory + RING_BYTES), CAPACITY);
    if (argc == 4 && strcmp(argv[1], "one_way") == 0)
        one_way(memory, num, strtoull(argv[3], NULL, 10));
    else if (argc == 3 && strcmp(argv[1], "round_trip") == 0)
        round_trip(memory, num);
    else if (argc == 3 && strcmp(argv[1], "line") == 0)
        line(memory, num);
    else
        return 2;
    return 0;
}

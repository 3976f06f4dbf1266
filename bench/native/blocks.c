// blocks HOW N COUNT: two processes take and give back COUNT of 65536 blocks, N times each. HOW: bitmap, one bit a
// block and no owner (what a dead process held is lost), or cells.
#include "common.h"
#include "blocks.h"

#define NUM_BLOCKS 65536
#define NUM_WORDS (NUM_BLOCKS / 64)

// Take `want` bits, whole words at a time, wherever they are.
static uint32_t bitmap_take(word64 *free_bits, uint32_t want, uint32_t *out, uint32_t *at)
{
    uint32_t taken = 0;
    for (uint32_t looked = 0; looked < NUM_WORDS && taken < want; looked++) {
        uint64_t bits = atomic_load_explicit(&free_bits[*at], memory_order_relaxed), mine;
        do {
            mine = 0;
            uint64_t left = bits;
            for (uint32_t n = taken; left && n < want; n++, left &= left - 1)
                mine |= left & -left;
        } while (mine && !atomic_compare_exchange_weak_explicit(&free_bits[*at], &bits, bits & ~mine,
                                                                memory_order_acquire, memory_order_relaxed));
        for (; mine; mine &= mine - 1)
            out[taken++] = *at * 64 + (uint32_t)__builtin_ctzll(mine);
        if (taken < want)
            *at = (*at + 1) % NUM_WORDS;
    }
    return taken;
}

static void bitmap_give(word64 *free_bits, const uint32_t *indices, uint32_t count)
{
    for (uint32_t i = 0; i < count;) {
        const uint32_t word = indices[i] / 64;
        uint64_t bits = 0;
        for (; i < count && indices[i] / 64 == word; i++)
            bits |= UINT64_C(1) << indices[i] % 64;
        atomic_fetch_or_explicit(&free_bits[word], bits, memory_order_release);
    }
}

static void contend(bool owners, word64 *words, size_t num, uint32_t count, word64 *gate, int64_t *stamps)
{
    uint32_t *out = calloc(count, sizeof *out), at = 0;
    memset(words, owners ? 0 : 0xFF, owners ? 16 * NUM_BLOCKS : NUM_BLOCKS / 8);
    const pid_t child = fork_child();
    pin(child == 0);
    struct blocks blocks = {.cells = words, .exposure = words + NUM_BLOCKS, .num_blocks = NUM_BLOCKS};
    blocks_use_advice(&blocks, calloc(blocks_advice_words(NUM_BLOCKS), 8));
    const uint64_t owner = cell_owner(child == 0, 1);
    atomic_fetch_add(gate, 1);
    while (atomic_load(gate) % 2)
        ;
    for (size_t i = 0; i < num; i++) {
        stamps[i] = monotonic_ns();
        if (owners) {
            const uint32_t taken = blocks_acquire(&blocks, owner, count, 0, out);
            for (uint32_t k = 0; k < taken; k++)
                blocks_release(&blocks, out[k], owner);
        } else {
            bitmap_give(words, out, bitmap_take(words, count, out, &at));
        }
    }
    if (child == 0)
        _exit(0);
    join_child(child);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    const size_t num = strtoull(argv[2], NULL, 10);
    int64_t *stamps = calloc(num, sizeof *stamps);
    word64 *gate = shared_memory(LINE_BYTES), *words = shared_memory(16 * NUM_BLOCKS);
    contend(strcmp(argv[1], "cells") == 0, words, num, (uint32_t)strtoul(argv[3], NULL, 10), gate, stamps);
    print_quantiles_us(stamps, num);
    return 0;
}

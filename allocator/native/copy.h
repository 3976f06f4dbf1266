// Copying between mappings: past the cache where a move is large.
//
// A plain memcpy first reads each destination line into the cache, and what it writes pushes out what was there. Rows
// that go to another process are not read here again: non-temporal stores write whole lines, and more than double the
// speed of a cold copy. Measured on one core of an AMD EPYC, GB/s, cold (and hot, in the cache already):
//
//                          64 KiB      128 KiB     1 MiB       8 MiB
//   memcpy                 12 (51)     12 (52)     11 (43)     11 (36)
//   one stream, AVX2       23 (28)     24 (28)     25 (28)     25 (28)
//   two streams, SSE2      20          22          24          24
//   two streams, AVX2      22          24          26          26
//
// NON_TEMPORAL_BYTES lies between the two: a block of rows (896 KiB for 128 tokens of 3584 bfloat16) goes past the
// cache, what is small enough to be in one already does not.
#ifndef EMBRIDGE_NATIVE_COPY_H
#define EMBRIDGE_NATIVE_COPY_H

#include <string.h>

#include "shared.h"

#define NON_TEMPORAL_BYTES (256 << 10)

struct move {
    int64_t destination;
    int64_t source;
    int64_t bytes;
};

static inline bool move_is_valid(const struct move *move, uint64_t destination_bytes, uint64_t source_bytes)
{
    // As unsigned, a negative number is greater than any size; and nothing is added that could overflow.
    const uint64_t bytes = (uint64_t)move->bytes, to = (uint64_t)move->destination, from = (uint64_t)move->source;
    return bytes <= destination_bytes && to <= destination_bytes - bytes && bytes <= source_bytes &&
           from <= source_bytes - bytes;
}

#if defined(__x86_64__)
#include <immintrin.h>

// Both copy [0, half) and [half, 2 * half) line by line, in turns: two streams keep more lines on their way than one
// does. `to` is aligned to a line, `half` is a multiple of one.

static inline void stream_halves_sse2(unsigned char *to, const unsigned char *from, size_t half)
{
    for (size_t at = 0; at < half; at += LINE_BYTES) {
        for (size_t i = at; i <= at + half; i += half) {
            __m128i line[4];
            for (int k = 0; k < 4; k++)
                line[k] = _mm_loadu_si128((const __m128i *)(from + i + 16 * k));
            for (int k = 0; k < 4; k++)
                _mm_stream_si128((__m128i *)(to + i + 16 * k), line[k]);
        }
    }
}

__attribute__((target("avx2"))) static inline void stream_halves_avx2(unsigned char *to, const unsigned char *from,
                                                                      size_t half)
{
    for (size_t at = 0; at < half; at += LINE_BYTES) {
        for (size_t i = at; i <= at + half; i += half) {
            __m256i low = _mm256_loadu_si256((const __m256i *)(from + i));
            __m256i high = _mm256_loadu_si256((const __m256i *)(from + i + 32));
            _mm256_stream_si256((__m256i *)(to + i), low);
            _mm256_stream_si256((__m256i *)(to + i + 32), high);
        }
    }
}

static inline void copy_past_cache(unsigned char *to, const unsigned char *from, size_t bytes)
{
    const size_t head = -(uintptr_t)to % LINE_BYTES, half = (bytes - head) / (2 * LINE_BYTES) * LINE_BYTES;
    memcpy(to, from, head);
    if (__builtin_cpu_supports("avx2"))
        stream_halves_avx2(to + head, from + head, half);
    else
        stream_halves_sse2(to + head, from + head, half);
    memcpy(to + head + 2 * half, from + head + 2 * half, bytes - head - 2 * half);
}

// SYNC status: non-temporal stores are ordered by nothing but this: without it the release store that says that the
// rows are there could be seen before them.
static inline void copy_finish(void) { _mm_sfence(); }
#else
static inline void copy_past_cache(unsigned char *to, const unsigned char *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

static inline void copy_finish(void) {}
#endif

// Copy one piece; what is large goes past the cache. The two may overlap: two views of one mapping are common. Before
// it is told to anybody: `copy_finish`.
static inline void copy_bytes(unsigned char *to, const unsigned char *from, size_t bytes)
{
    const uintptr_t distance = to > from ? (uintptr_t)to - (uintptr_t)from : (uintptr_t)from - (uintptr_t)to;
    if (bytes >= NON_TEMPORAL_BYTES && distance >= bytes)
        copy_past_cache(to, from, bytes);
    else
        memmove(to, from, bytes);
}

// Carry out moves that were checked.
static inline void copy_moves(unsigned char *destination, const unsigned char *source, const struct move *moves,
                              size_t count)
{
    for (size_t i = 0; i < count; i++)
        copy_bytes(destination + moves[i].destination, source + moves[i].source, (size_t)moves[i].bytes);
    copy_finish();
}

#endif

// Copying between mappings: past the cache where a move is large.
//
// A plain memcpy first reads each destination line into the cache, and what it writes pushes out what was there. Rows
// that go to another process are not read here again: non-temporal stores write whole lines, and about double the
// speed of a large cold copy. Below NON_TEMPORAL_BYTES the data may well be in a cache, where memcpy is faster.
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

#define STREAM_BYTES 256 // a step of the streaming loops: 4 lines

// `to` is aligned to a line, `bytes` is a multiple of STREAM_BYTES.
static inline void stream_sse2(unsigned char *to, const unsigned char *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += LINE_BYTES) {
        __m128i a = _mm_loadu_si128((const __m128i *)(from + i)), b = _mm_loadu_si128((const __m128i *)(from + i + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + i + 32)),
                d = _mm_loadu_si128((const __m128i *)(from + i + 48));
        _mm_stream_si128((__m128i *)(to + i), a);
        _mm_stream_si128((__m128i *)(to + i + 16), b);
        _mm_stream_si128((__m128i *)(to + i + 32), c);
        _mm_stream_si128((__m128i *)(to + i + 48), d);
    }
}

__attribute__((target("avx2"))) static inline void stream_avx2(unsigned char *to, const unsigned char *from,
                                                               size_t bytes)
{
    for (size_t i = 0; i < bytes; i += STREAM_BYTES) {
        __m256i row[STREAM_BYTES / 32];
        for (int k = 0; k < STREAM_BYTES / 32; k++)
            row[k] = _mm256_loadu_si256((const __m256i *)(from + i + 32 * k));
        for (int k = 0; k < STREAM_BYTES / 32; k++)
            _mm256_stream_si256((__m256i *)(to + i + 32 * k), row[k]);
    }
}

static inline void copy_past_cache(unsigned char *to, const unsigned char *from, size_t bytes)
{
    const size_t head = -(uintptr_t)to % LINE_BYTES, body = (bytes - head) / STREAM_BYTES * STREAM_BYTES;
    memcpy(to, from, head);
    if (__builtin_cpu_supports("avx2"))
        stream_avx2(to + head, from + head, body);
    else
        stream_sse2(to + head, from + head, body);
    memcpy(to + head + body, from + head + body, bytes - head - body);
}

// Non-temporal stores are ordered by nothing but this: without it a later release store could be seen before the
// rows.
static inline void copy_finish(void) { _mm_sfence(); }
#else
static inline void copy_past_cache(unsigned char *to, const unsigned char *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

static inline void copy_finish(void) {}
#endif

// Carry out moves that were checked. Ranges may overlap: two views of one mapping are common.
static inline void copy_moves(unsigned char *destination, const unsigned char *source, const struct move *moves,
                              size_t count)
{
    for (size_t i = 0; i < count; i++) {
        unsigned char *to = destination + moves[i].destination;
        const unsigned char *from = source + moves[i].source;
        const size_t bytes = (size_t)moves[i].bytes;
        const uintptr_t distance = to > from ? (uintptr_t)to - (uintptr_t)from : (uintptr_t)from - (uintptr_t)to;
        if (bytes >= NON_TEMPORAL_BYTES && distance >= bytes)
            copy_past_cache(to, from, bytes);
        else
            memmove(to, from, bytes);
    }
    copy_finish();
}

#endif

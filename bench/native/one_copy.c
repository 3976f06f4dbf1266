// The floor of every benchmark that moves rows: one copy by one thread, as memcpy does it, and past the cache. Which is
// the fastest depends on size, machine, and on how much of the source is still in a cache.
// Compiled to a shared library and called without the GIL. Sizes are in bytes; source and destination do not overlap.

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

void copy_plain(void *to, const void *from, size_t size) { memcpy(to, from, size); }

// One stream, whose source is fetched a KiB ahead.
void copy_one_stream(void *to, const void *from, size_t size) {
    uint8_t *out = to;
    const uint8_t *in = from;
    size_t head = (size_t)(-(intptr_t)out & 63);
    if (head > size) head = size;
    memcpy(out, in, head);
    out += head, in += head, size -= head;
    for (; size >= 256; size -= 256, out += 256, in += 256) {
        _mm_prefetch((const char *)in + 1024, _MM_HINT_NTA);
        _mm_prefetch((const char *)in + 1088, _MM_HINT_NTA);
        _mm_prefetch((const char *)in + 1152, _MM_HINT_NTA);
        _mm_prefetch((const char *)in + 1216, _MM_HINT_NTA);
        for (int at = 0; at < 256; at += 16)
            _mm_stream_si128((__m128i *)(out + at), _mm_loadu_si128((const __m128i *)(in + at)));
    }
    _mm_sfence();
    memcpy(out, in, size);
}

// The two halves in turns, line by line, which keeps more lines on their way.
__attribute__((target("avx2"))) static void copy_halves(uint8_t *out, const uint8_t *in, size_t half) {
    for (size_t at = 0; at < half; at += 64)
        for (size_t i = at; i <= at + half; i += half) {
            const __m256i low = _mm256_loadu_si256((const __m256i *)(in + i));
            const __m256i high = _mm256_loadu_si256((const __m256i *)(in + i + 32));
            _mm256_stream_si256((__m256i *)(out + i), low);
            _mm256_stream_si256((__m256i *)(out + i + 32), high);
        }
}

void copy_two_streams(void *to, const void *from, size_t size) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if (!__builtin_cpu_supports("avx2") || size < 256) {
        copy_one_stream(to, from, size);
        return;
    }
    const size_t head = (size_t)(-(intptr_t)out & 63), half = (size - head) / 128 * 64;
    memcpy(out, in, head);
    copy_halves(out + head, in + head, half);
    _mm_sfence();
    memcpy(out + head + 2 * half, in + head + 2 * half, size - head - 2 * half);
}

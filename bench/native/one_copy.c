// The floor of every benchmark that moves rows: one copy by one thread, as memcpy does it, and past the cache.
// Compiled to a shared library and called without the GIL. Sizes are in bytes; source and destination do not overlap.

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

void copy_plain(void *to, const void *from, size_t size) { memcpy(to, from, size); }

// Four streams of a quarter page each time round keep more lines on their way than one: the fastest that one thread does here.
void copy_streaming(void *to, const void *from, size_t size) {
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

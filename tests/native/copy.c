// usage: copy MOVES SEED
//
// Copies of every kind of size and alignment, at the threshold from which they go past the cache, against memcpy; both
// streams, where the processor has them; overlaps against memmove. Everything around a copy stays as it was. The last
// byte of a page is the last byte of a copy, and the page after it cannot be touched.
#include "support.h"

#include <sys/mman.h>

#include "copy.h"

#define ROOM (NON_TEMPORAL_BYTES + (16 << 10))
#define MARGIN 256

static unsigned char *source, *destination, *expected; // ROOM bytes each, with a forbidden page behind

static unsigned char *guarded(void)
{
    unsigned char *memory = mmap(NULL, ROOM + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && mprotect(memory + ROOM, 4096, PROT_NONE) == 0, "no memory");
    return memory;
}

// Copy within one arena or between two, and compare all around the place, and at times all there is.
static void check(unsigned char *into, const unsigned char *from, size_t to, size_t at, size_t bytes, bool everything)
{
    memcpy(expected, into, ROOM);
    memmove(expected + to, from + at, bytes);
    const struct move moves[] = {{(int64_t)to, (int64_t)at, (int64_t)bytes}, {0, 0, 0}};
    CHECK(move_is_valid(moves, ROOM, ROOM) && move_is_valid(moves + 1, 0, 0), "%zu bytes from %zu to %zu", bytes, at,
          to);
    copy_moves(into, from, moves, 2);
    const size_t low = everything || to < MARGIN ? 0 : to - MARGIN;
    const size_t high = everything || to + bytes + MARGIN > ROOM ? ROOM : to + bytes + MARGIN;
    CHECK(memcmp(into + low, expected + low, high - low) == 0, "%zu bytes from %zu to %zu", bytes, at, to);
}

static void fill(uint64_t *random)
{
    for (size_t i = 0; i < ROOM; i++) {
        source[i] = (unsigned char)(draw(random) >> 32);
        destination[i] = (unsigned char)i;
    }
}

static void look_at_moves(void)
{
    const int64_t odd[] = {INT64_MIN, INT64_MIN + 1, -1, 0, 1, 99, 100, 101, INT64_MAX - 1, INT64_MAX};
    for (unsigned i = 0; i < 1000; i++) {
        const struct move move = {odd[i % 10], odd[i / 10 % 10], odd[i / 100]};
        bool fits = move.bytes >= 0 && move.destination >= 0 && move.source >= 0 && move.bytes <= 100;
        fits = fits && move.destination <= 100 - move.bytes && move.source <= 100 - move.bytes;
        CHECK(move_is_valid(&move, 100, 100) == fits, "%lld bytes from %lld to %lld", (long long)move.bytes,
              (long long)move.source, (long long)move.destination);
    }
}

int main(int argc, char **argv)
{
    const uint64_t num_moves = argument(argc, argv, 1, 300), seed = argument(argc, argv, 2, 1);
    uint64_t random = seeded(seed, 0), past_cache = 0;
    source = guarded(), destination = guarded(), expected = guarded();
    fill(&random);
    look_at_moves();
    for (size_t bytes = 0; bytes <= 130; bytes++)
        for (size_t align = 0; align < 4; align++)
            check(destination, source, 64 + align * 13, 64 + align * 7, bytes, false);
    for (uint64_t i = 0; i < num_moves; i++) {
        // Around the threshold, and by chance around two lines more, where both streams end.
        const size_t bytes =
            NON_TEMPORAL_BYTES - 132 + draw_below(&random, 264) + draw_below(&random, 2) * 2 * LINE_BYTES;
        size_t to = i % LINE_BYTES, at = draw_below(&random, 2 * LINE_BYTES);
        if (i % 3 == 1)
            to = ROOM - bytes;
        if (i % 3 == 2)
            at = ROOM - bytes;
        check(destination, source, to, at, bytes, i % 8 == 0);
        past_cache += bytes >= NON_TEMPORAL_BYTES;
    }
    for (uint64_t i = 0; i < num_moves / 4 + 1; i++) {
        // Within one arena: both overlap, or touch.
        const size_t distance = draw_below(&random, 8000), low = draw_below(&random, 100);
        const size_t bytes = i % 2 ? NON_TEMPORAL_BYTES + draw_below(&random, 200) : distance + draw_below(&random, 2);
        const bool up = draw_below(&random, 2);
        check(source, source, up ? low + distance : low, up ? low : low + distance, bytes, true);
    }
#if defined(__x86_64__)
    fill(&random);
    for (size_t half = 0; half <= 8 * LINE_BYTES; half += LINE_BYTES) {
        for (size_t at = 0; at < LINE_BYTES; at++) {
            memcpy(expected, destination, ROOM);
            memcpy(expected + 128, source + at, 2 * half);
            stream_halves_sse2(destination + 128, source + at, half);
            copy_finish();
            CHECK(memcmp(destination, expected, 4096) == 0, "SSE2: twice %zu bytes from %zu", half, at);
            if (!__builtin_cpu_supports("avx2"))
                continue;
            for (size_t i = 0; i < 2 * half; i++)
                destination[128 + i] = 0;
            stream_halves_avx2(destination + 128, source + at, half);
            copy_finish();
            CHECK(memcmp(destination, expected, 4096) == 0, "AVX2: twice %zu bytes from %zu", half, at);
        }
    }
#endif
    printf("%llu copies at the threshold, %llu of them past the cache\n", (ull)num_moves, (ull)past_cache);
    return 0;
}

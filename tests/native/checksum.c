// usage: checksum ROUNDS SEED
//
// The processor's instruction against the tables, and both against the definition bit by bit, at every small length and
// alignment, from any register; in parts as in one. The last byte of a page is the last byte read: the page after it
// cannot be.
#include "support.h"

#include <sys/mman.h>

#include "checksum.h"

#define ROOM 8192

static uint32_t by_definition(uint32_t state, const unsigned char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        state ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            state = state >> 1 ^ (state & 1 ? CHECKSUM_POLYNOMIAL : 0);
    }
    return state;
}

static void check(uint32_t state, const unsigned char *bytes, size_t count)
{
    const uint32_t expected = by_definition(state, bytes, count);
    CHECK(checksum_by_tables(state, bytes, count) == expected, "tables: %zu bytes", count);
    if (checksum_has_instruction())
        CHECK(checksum_by_instruction(state, bytes, count) == expected, "instruction: %zu bytes", count);
    CHECK(checksum_extend(~state, bytes, count) == ~expected, "%zu bytes", count);
}

int main(int argc, char **argv)
{
    const uint64_t rounds = argument(argc, argv, 1, 300), seed = argument(argc, argv, 2, 1);
    uint64_t random = seeded(seed, 0);
    unsigned char *memory = mmap(NULL, ROOM + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && mprotect(memory + ROOM, 4096, PROT_NONE) == 0, "no memory");
    checksum_prepare();
    for (size_t i = 0; i < ROOM; i++)
        memory[i] = (unsigned char)(draw(&random) >> 32);
    CHECK(checksum_extend(0, (const unsigned char *)"123456789", 9) == UINT32_C(0xE3069283), "the known value");
    for (size_t count = 0; count <= 70; count++)
        for (size_t at = 0; at < 9; at++)
            check((uint32_t)draw(&random), memory + at, count);
    for (uint64_t i = 0; i < rounds; i++) {
        const size_t count = draw_below(&random, ROOM + 1), cut = draw_below(&random, count + 1);
        const unsigned char *bytes = memory + (i % 2 ? ROOM - count : draw_below(&random, ROOM - count + 1));
        check((uint32_t)draw(&random), bytes, count);
        const uint32_t whole = checksum_extend(0, bytes, count);
        const uint32_t parts = checksum_extend(checksum_extend(0, bytes, cut), bytes + cut, count - cut);
        CHECK(parts == whole, "%zu + %zu", cut, count - cut);
    }
    const int64_t odd[] = {INT64_MIN, -1, 0, 1, 9, 10, 11, 100, 101, INT64_MAX};
    for (unsigned i = 0; i < 1000; i++) {
        const struct column column = {odd[i % 10], odd[i / 10 % 10]};
        const uint64_t rows = (uint64_t)odd[i / 100];
        bool fits = column.offset >= 0 && column.row_bytes >= 0 && column.offset <= 100;
        const unsigned __int128 bytes = (unsigned __int128)rows * (uint64_t)column.row_bytes;
        fits = fits && bytes <= 100 - (uint64_t)column.offset;
        CHECK(column_is_valid(&column, rows, 100) == fits, "%llu rows of %lld from %lld", (ull)rows,
              (long long)column.row_bytes, (long long)column.offset);
    }
    const struct column last[] = {{ROOM - 100, 10}, {ROOM - 40, 4}};
    CHECK(checksum_rows(0, memory, last, 2, 10) != 0, "up to the last byte");
    printf("%llu rounds%s\n", (ull)rounds, checksum_has_instruction() ? ", by the instruction, too" : "");
    return 0;
}

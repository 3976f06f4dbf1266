// CRC-32C (Castagnoli), by the processor's own instruction where it has one, else by tables.
//
//   checksum_extend(c, bytes, n)      the checksum of what had checksum c, followed by these n bytes; c = 0 for nothing
//
// It is the checksum of RFC 3720: reflected polynomial 0x82F63B78, all ones before and after, so that
// checksum_extend(0, "123456789", 9) is 0xE3069283 and leading zeros count. It finds every burst of up to 32 bits, and
// any other change but for one in 2**32; against somebody who means to deceive it is of no use.
//
// Memory that others may write meanwhile is read once, byte by byte or word by word: the checksum is then that of
// something in between, and nothing else happens.
#ifndef EMBRIDGE_CHECKSUM_H
#define EMBRIDGE_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

#define CHECKSUM_POLYNOMIAL UINT32_C(0x82F63B78)

// Entry [k][b]: what byte b does to the checksum from k bytes further on.
static uint32_t checksum_tables[8][256];

// Once, before any other call of this file.
static inline void checksum_prepare(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t rest = byte;
        for (int bit = 0; bit < 8; bit++)
            rest = rest >> 1 ^ (rest & 1 ? CHECKSUM_POLYNOMIAL : 0);
        checksum_tables[0][byte] = rest;
    }
    for (int k = 1; k < 8; k++)
        for (int byte = 0; byte < 256; byte++) {
            const uint32_t before = checksum_tables[k - 1][byte];
            checksum_tables[k][byte] = before >> 8 ^ checksum_tables[0][before & 0xFF];
        }
}

// These three take and return the register, which is the complement of the checksum.

static inline uint32_t checksum_by_tables(uint32_t state, const unsigned char *bytes, size_t count)
{
    for (; count >= 8; count -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        word ^= state; // little-endian, as all that embridge runs on
        state = 0;
        for (int k = 0; k < 8; k++)
            state ^= checksum_tables[7 - k][word >> 8 * k & 0xFF];
    }
    while (count-- > 0)
        state = state >> 8 ^ checksum_tables[0][(state ^ *bytes++) & 0xFF];
    return state;
}

#if defined(__x86_64__)

static inline bool checksum_has_instruction(void) { return __builtin_cpu_supports("sse4.2"); }

__attribute__((target("sse4.2"))) static inline uint32_t
checksum_by_instruction(uint32_t state, const unsigned char *bytes, size_t count)
{
    uint64_t wide = state;
    for (; count >= 8; count -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    state = (uint32_t)wide;
    while (count-- > 0)
        state = _mm_crc32_u8(state, *bytes++);
    return state;
}

#elif defined(__aarch64__)

static inline bool checksum_has_instruction(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }

__attribute__((target("+crc"))) static inline uint32_t
checksum_by_instruction(uint32_t state, const unsigned char *bytes, size_t count)
{
    for (; count >= 8; count -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        __asm__("crc32cx %w0, %w0, %x1" : "+r"(state) : "r"(word));
    }
    while (count-- > 0)
        __asm__("crc32cb %w0, %w0, %w1" : "+r"(state) : "r"((uint32_t)*bytes++));
    return state;
}

#else

static inline bool checksum_has_instruction(void) { return false; }

static inline uint32_t checksum_by_instruction(uint32_t state, const unsigned char *bytes, size_t count)
{
    return checksum_by_tables(state, bytes, count);
}

#endif

static inline uint32_t checksum_extend(uint32_t checksum, const unsigned char *bytes, size_t count)
{
    return ~(checksum_has_instruction() ? checksum_by_instruction(~checksum, bytes, count)
                                        : checksum_by_tables(~checksum, bytes, count));
}

// One buffer of rows: where the first one begins, and the bytes of each.
struct column {
    int64_t offset, row_bytes;
};

// Whether so many rows of it lie within `limit` bytes.
static inline bool column_is_valid(const struct column *column, uint64_t rows, uint64_t limit)
{
    if (column->offset < 0 || column->row_bytes < 0 || (uint64_t)column->offset > limit)
        return false;
    const uint64_t room = limit - (uint64_t)column->offset;
    return column->row_bytes == 0 || rows <= room / (uint64_t)column->row_bytes;
}

// Row by row, of each row one column after the other: so the checksum of rows [0, n) goes on to that of [0, n + m).
static inline uint32_t checksum_rows(uint32_t checksum, const unsigned char *memory, const struct column *columns,
                                     size_t count, uint64_t rows)
{
    for (uint64_t row = 0; row < rows; row++)
        for (size_t i = 0; i < count; i++) {
            const uint64_t row_bytes = (uint64_t)columns[i].row_bytes;
            const unsigned char *bytes = memory + (uint64_t)columns[i].offset + row * row_bytes;
            checksum = checksum_extend(checksum, bytes, (size_t)row_bytes);
        }
    return checksum;
}

#endif

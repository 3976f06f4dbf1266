// Rows of words, as the slots' records are, and which of them have changed since their reader looked last.
//
//   table    [row][words]     a row a slot; 64 rows are a page
//
// The reader keeps one word a row: a hash of the words that it goes by. What was written before the look is in the
// hash; what is written meanwhile is in it or in the next. One word that differs always gives another hash, several
// that differ do but for a chance of 2^-64. A row of zeroes has the hash 0, so that a reader that begins with zeroes
// finds every row that anybody has written.
#ifndef EMBRIDGE_NATIVE_ROWS_H
#define EMBRIDGE_NATIVE_ROWS_H

#include "shared.h"

#define ROWS_A_PAGE 64
#define ROW_HASH_FACTOR UINT64_C(0x9E3779B97F4A7C15)

struct row_table {
    const word64 *words;
    uint32_t num_rows;
    uint32_t row_words;
};

static inline uint64_t row_hash(const word64 *words, uint32_t count)
{
    uint64_t hash = 0;
    for (uint32_t i = 0; i < count; i++) {
        // SYNC word: acquire; what a word says of others was written before it.
        hash = (hash ^ atomic_load_explicit(&words[i], memory_order_acquire)) * ROW_HASH_FACTOR;
        hash ^= hash >> 32;
    }
    return hash;
}

// Compare words [first, first + count) of every row of `pages` with `seen`; the rows that differ go into `out` and are
// updated in `seen`. Stops when `out` is full.
static inline size_t rows_changed(const struct row_table *table, uint32_t first, uint32_t count, const uint32_t *pages,
                                  size_t num_pages, uint64_t *seen, uint32_t *out, size_t room)
{
    size_t found = 0;
    for (size_t i = 0; i < num_pages; i++) {
        const uint32_t page = pages[i];
        if (page >= table->num_rows / ROWS_A_PAGE) // the caller has checked, but the array may be shared
            continue;
        for (uint32_t row = page * ROWS_A_PAGE; row < (page + 1) * ROWS_A_PAGE; row++) {
            const uint64_t hash = row_hash(table->words + (size_t)row * table->row_words + first, count);
            if (hash == seen[row])
                continue;
            if (found == room)
                return found;
            seen[row] = hash;
            out[found++] = row;
        }
    }
    return found;
}

#endif

// What both processes of a round call for every request, the same for all contenders: marking rows, checking them, the
// credits that bound how many are in flight; and one wake-up, which is a floor of its own. Compiled to a shared
// library. Words lie in shared memory; sizes are in elements of 16 bits.

#include <linux/futex.h>
#include <limits.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

struct bell {
    _Atomic uint32_t count; // rings, or requests that have ended
    _Atomic uint32_t waits; // somebody sleeps: without it no ring needs the kernel
};

static void sleep_while(struct bell *bell, uint32_t count)
{
    atomic_store(&bell->waits, 1);
    if (atomic_load(&bell->count) == count) // announced before this look, so a ring after it sees the announcement
        syscall(SYS_futex, &bell->count, FUTEX_WAIT, count, NULL, NULL, 0);
    atomic_store(&bell->waits, 0);
}

static void wake(struct bell *bell)
{
    if (atomic_load(&bell->waits))
        syscall(SYS_futex, &bell->count, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void ring(struct bell *bell)
{
    atomic_fetch_add(&bell->count, 1);
    wake(bell);
}

// The number of rings, as soon as it is not `seen`.
uint32_t wait_for_ring(struct bell *bell, uint32_t seen)
{
    uint32_t count;
    while ((count = atomic_load(&bell->count)) == seen)
        sleep_while(bell, seen);
    return count;
}

// Returns when fewer than `in_flight` of `sent` requests have not ended.
void wait_for_credit(struct bell *ended, uint32_t sent, uint32_t in_flight)
{
    uint32_t count;
    while (sent - (count = atomic_load(&ended->count)) >= in_flight)
        sleep_while(ended, count);
}

// One more has ended. Who waits is woken once for `at_once` of them, and for the last: a wake-up costs more than a
// small request.
void give_credit(struct bell *ended, uint32_t at_once, uint32_t total)
{
    const uint32_t count = atomic_fetch_add(&ended->count, 1) + 1;
    if (count % at_once == 0 || count == total)
        wake(ended);
}

void write_rows(uint16_t *rows, size_t tokens, size_t hidden, uint16_t tag)
{
    for (size_t i = 0; i < tokens * hidden; i++)
        rows[i] = tag;
}

// Reads a word of every line, so that the caches hold these lines and no others.
uint64_t sweep(const uint64_t *memory, size_t words)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < words; i += 8)
        sum += memory[i];
    return sum;
}

void write_ends(uint16_t *rows, size_t tokens, size_t hidden, uint16_t tag)
{
    write_rows(rows, 1, hidden, tag);
    write_rows(rows + (tokens - 1) * hidden, 1, hidden, tag);
}

int ends_are(const uint16_t *rows, size_t tokens, size_t hidden, uint16_t tag)
{
    const uint16_t *last = rows + (tokens - 1) * hidden;
    return rows[0] == tag && rows[hidden - 1] == tag && last[0] == tag && last[hidden - 1] == tag;
}

// wake N: round trip of two C processes that sleep on a futex each, and nothing else.
#include "common.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>

static void ring(word32 *word)
{
    atomic_fetch_add_explicit(word, 1, memory_order_release);
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void wait_for(word32 *word, uint32_t seen)
{
    while (atomic_load_explicit(word, memory_order_acquire) == seen)
        syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
}

int main(int argc, char **argv)
{
    const size_t num = argc == 2 ? strtoull(argv[1], NULL, 10) : 2;
    int64_t *stamps = calloc(num, sizeof *stamps);
    unsigned char *memory = shared_memory(2 * LINE_BYTES);
    word32 *there = (word32 *)(void *)memory, *back = (word32 *)(void *)(memory + LINE_BYTES);
    const pid_t child = fork_child();
    for (uint32_t i = 0; i < num; i++) {
        if (child == 0) {
            wait_for(there, i);
            ring(back);
        } else {
            stamps[i] = monotonic_ns();
            ring(there);
            wait_for(back, i);
        }
    }
    if (child == 0)
        _exit(0);
    join_child(child);
    print_quantiles_us(stamps, num);
    return 0;
}

// What the floors share: shared memory, a second process, and percentiles.
#ifndef EMBRIDGE_BENCH_COMMON_H
#define EMBRIDGE_BENCH_COMMON_H

#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shared.h"

static inline void *shared_memory(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return memory;
}

// Two who spin on one core are each other's noise: the parent takes the first allowed core, the child the second.
static inline void pin(int which)
{
    cpu_set_t allowed, mine;
    CPU_ZERO(&mine);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2)
        return;
    for (int core = 0; core < CPU_SETSIZE; core++) {
        if (CPU_ISSET(core, &allowed) && which-- == 0)
            CPU_SET(core, &mine);
    }
    sched_setaffinity(0, sizeof mine, &mine);
}

// fork, with a child that does not outlive its parent.
static inline pid_t fork_child(void)
{
    const pid_t child = fork();
    if (child < 0) {
        perror("fork");
        exit(1);
    }
    if (child == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return child;
}

static inline void join_child(pid_t child)
{
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        exit(1);
}

static inline int compare_i64(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

// p50 and p99, in us, of what passed between one stamp and the next.
static inline void print_quantiles_us(int64_t *stamps, size_t count)
{
    for (size_t i = 0; i + 1 < count; i++)
        stamps[i] = stamps[i + 1] - stamps[i];
    qsort(stamps, count - 1, sizeof *stamps, compare_i64);
    printf("p50 %.4f\np99 %.4f\n", (double)stamps[(count - 1) / 2] / 1e3, (double)stamps[(count - 1) * 99 / 100] / 1e3);
}

#endif

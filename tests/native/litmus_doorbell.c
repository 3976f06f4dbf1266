// Store buffering at the doorbell: the ringer stores `sequence` and loads `state`, the waiter stores `state` and loads
// `sequence`.
//
// FORBIDDEN: the ringer sees the waiter awake, and the waiter sees the old sequence and sleeps, or stays armed.
//
// The kernel's part is played here: its own comparison would hide what the two do wrong. A sleep lasts until the
// ringer has come back, so a sleeper that it saw awake would sleep for ever.
//
// -DBREAK_SEQ_CST: the four accesses are relaxed. -DBREAK_SECOND_LOOK: the waiter does not look again.
#include "litmus.h"

#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>

static long play_kernel(long number, ...);
#define syscall play_kernel
#include "doorbell.h"
#undef syscall

#include <sys/eventfd.h>

static struct doorbell *bell;
static int event_fd;
static word64 rung;      // how many iterations the ringer has come back from
static bool slept, woke; // of this iteration: each written by one side, and read by the waiter when the ringer is back
static uint64_t iteration_now, outcomes[2][2][2]; // [armed][the waiter slept][the ringer woke it]

static void wait_for_the_ringer(void)
{
    for (unsigned looks = 0; atomic_load(&rung) < iteration_now + 1;)
        wait_a_little(&looks);
}

static long play_kernel(long number, ...)
{
    va_list arguments;
    va_start(arguments, number);
    CHECK(number == SYS_futex && va_arg(arguments, word32 *) == &bell->sequence, "system call %ld", number);
    const int operation = va_arg(arguments, int);
    va_end(arguments);
    if (operation == FUTEX_WAKE) {
        woke = true;
        return 1;
    }
    slept = true;
    wait_for_the_ringer();
    return 0;
}

static void sleep_once(uint32_t seen)
{
#ifdef BREAK_SECOND_LOOK
    (void)seen;
    doorbell_set_kind(bell, DOORBELL_ASLEEP);
    play_kernel(SYS_futex, &bell->sequence, FUTEX_WAIT_BITSET);
    doorbell_set_kind(bell, DOORBELL_AWAKE);
#else
    CHECK(doorbell_sleep(bell, seen, INT64_MAX) == 0, "the sleep failed");
#endif
}

static bool arm(uint32_t seen)
{
#ifdef BREAK_SECOND_LOOK
    (void)seen;
    doorbell_set_kind(bell, DOORBELL_ARMED);
    return true;
#else
    return doorbell_arm(bell, seen);
#endif
}

static void *wait_for_it(void *argument)
{
    struct side *side = argument;
    for (uint64_t i = 0; iteration_now = i, meet(side, i); i++) {
        const bool by_arming = i & 1;
        if (by_arming)
            slept = arm((uint32_t)i);
        else
            sleep_once((uint32_t)i);
        wait_for_the_ringer();
        uint64_t count;
        if (by_arming)
            woke = read(event_fd, &count, sizeof count) == sizeof count;
        doorbell_disarm(bell);
        outcomes[by_arming][slept][woke]++;
        if (slept && !woke)
            atomic_fetch_add(&num_forbidden, 1);
        slept = woke = false;
    }
    return NULL;
}

static void *ring_it(void *argument)
{
    struct side *side = argument;
    for (uint64_t i = 0; meet(side, i); i++) {
        CHECK(doorbell_ring(bell, event_fd) == 0, "the ring failed");
        atomic_store(&rung, i + 1);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    bell = allocate(DOORBELL_BYTES);
    event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    litmus(argc, argv, wait_for_it, ring_it);
    for (unsigned armed = 0; armed < 2; armed++)
        printf("%s: %llu slept and woken, %llu seen but did not sleep, %llu neither, %llu slept and not woken\n",
               armed ? "armed" : "asleep", (ull)outcomes[armed][1][1], (ull)outcomes[armed][0][1],
               (ull)outcomes[armed][0][0], (ull)outcomes[armed][1][0]);
    return verdict();
}

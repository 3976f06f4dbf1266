// The doorbell: a ringer that dies while a waiter sleeps, polls an armed eventfd, or is awake; and a waiter that dies.
//
// The waiter is real, and so are the futex and the eventfd. Wherever the ringer dies, the waiter is awake, or the next
// ring wakes it; whatever a waiter leaves behind, the next one is woken by the next ring.
#ifndef EMBRIDGE_TESTS_NATIVE_SCENES_DOORBELL_H
#define EMBRIDGE_TESTS_NATIVE_SCENES_DOORBELL_H

#include "single_step.h"

#include <poll.h>
#include <sys/eventfd.h>

#define LOST_AFTER_NS INT64_C(20000000000)
#define LAST_SEQUENCE UINT32_MAX
#define LAST_ARMING (UINT32_MAX & ~DOORBELL_KIND_MASK)

static int event_fd = -1;
static pid_t waiter; // 0: none

static bool is_readable(void)
{
    struct pollfd look = {.fd = event_fd, .events = POLLIN};
    return poll(&look, 1, 0) == 1;
}

// How many sleep on the bell. They are moved to another word and back, which wakes nobody; while they sleep, and the
// ringer stands still, neither word changes.
static long num_asleep(struct doorbell *bell)
{
    const uint32_t sequence = atomic_load(&bell->sequence);
    const long moved = syscall(SYS_futex, &bell->sequence, FUTEX_CMP_REQUEUE, 0, INT_MAX, &bell->state, sequence);
    CHECK(moved >= 0, "FUTEX_CMP_REQUEUE: %d", errno);
    if (moved == 0)
        return 0;
    const uint32_t state = atomic_load(&bell->state);
    const long back = syscall(SYS_futex, &bell->state, FUTEX_CMP_REQUEUE, 0, INT_MAX, &bell->sequence, state);
    CHECK(moved == back, "%ld sleepers moved, %ld back", moved, back);
    return back;
}

static bool is_ringer(const struct scene *scene) { return scene->given != NULL; }

// `given`: what the waiter does, "asleep", "armed", "full" (an eventfd that takes no more), or "" for nothing.
static bool waits(const struct scene *scene, const char *how)
{
    return is_ringer(scene) && strcmp(scene->given, how) == 0;
}

static void prepare_bell(const struct scene *scene, struct world *world)
{
    memset((void *)world, 0, sizeof *world);
    struct doorbell *bell = &world->bell;
    event_fd = event_fd < 0 ? eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) : event_fd;
    CHECK(event_fd >= 0, "eventfd: %d", errno);
    atomic_store(&bell->sequence, LAST_SEQUENCE);
    atomic_store(&bell->state, LAST_ARMING);
    if (waits(scene, "asleep")) {
        waiter = fork();
        CHECK(waiter >= 0, "fork: %d", errno);
        if (waiter == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            _exit(doorbell_sleep(bell, LAST_SEQUENCE, monotonic_ns() + LOST_AFTER_NS));
        }
        for (unsigned looks = 127; num_asleep(bell) == 0;)
            wait_a_little(&looks);
    }
    if (waits(scene, "armed") || waits(scene, "full"))
        CHECK(doorbell_arm(bell, LAST_SEQUENCE), "not armed");
    if (waits(scene, "full")) {
        const uint64_t most = UINT64_MAX - 1;
        CHECK(write(event_fd, &most, sizeof most) == sizeof most, "eventfd: %d", errno);
    }
}

static void clear_bell(void)
{
    uint64_t count;
    int status;
    (void)!read(event_fd, &count, sizeof count);
    if (waiter) {
        kill(waiter, SIGKILL);
        reap(waiter, &status);
        waiter = 0;
    }
}

// ---- what is done

static void ring(const struct scene *scene, struct world *world)
{
    (void)scene;
    doorbell_ring(&world->bell, event_fd);
}

static void ring_without(const struct scene *scene, struct world *world)
{
    (void)scene;
    doorbell_ring(&world->bell, -1);
}

static void sleep_a_moment(const struct scene *scene, struct world *world)
{
    (void)scene;
    doorbell_sleep(&world->bell, LAST_SEQUENCE, 0);
}

static void arm_and_disarm(const struct scene *scene, struct world *world)
{
    (void)scene;
    doorbell_arm(&world->bell, LAST_SEQUENCE);
    doorbell_arm(&world->bell, LAST_SEQUENCE - 1);
    doorbell_arm(&world->bell, LAST_SEQUENCE);
    doorbell_disarm(&world->bell);
}

// ---- what holds

// A ringer moves the sequence by one, and ends only an arming, and that only when the eventfd says so. Who sleeps in
// the kernel does not look awake: else no ring would ever wake it.
static const char *inspect_bell(const struct scene *scene, bool recovering, const struct world *last,
                                const struct world *now)
{
    const uint32_t from = atomic_load(&last->bell.state), to = atomic_load(&now->bell.state);
    const uint32_t rise = atomic_load(&now->bell.sequence) - atomic_load(&last->bell.sequence);
    const bool rings = is_ringer(scene) || recovering, asleep = waiter && num_asleep(&stage->world.bell) > 0;
    if (rise > 1 || (rise && !rings))
        return fault("the sequence rose by %u", rise);
    if (rings && from != to && to != (from & ~DOORBELL_KIND_MASK) && !waiter)
        return fault("a ringer moved the state from %x to %x", from, to);
    if (asleep && (to & DOORBELL_KIND_MASK) != DOORBELL_ASLEEP)
        return fault("the waiter sleeps, the state is %x", to);
    const bool armed = waits(scene, "armed") || waits(scene, "full");
    if (armed && (to & DOORBELL_KIND_MASK) != DOORBELL_ARMED && !is_readable())
        return fault("the waiter polls, the state is %x and the eventfd is not readable", to);
    return NULL;
}

// After the ring of another.
static const char *judge_bell(const struct scene *scene, const struct world *killed, struct world *recovered)
{
    struct doorbell *bell = &recovered->bell;
    uint64_t count;
    int status = 0;
    const uint32_t sequence = atomic_load(&bell->sequence), before = atomic_load(&killed->bell.sequence);
    if (sequence - before - 1 > 1) // two, where the second ringer died
        return fault("the sequence was %u and is %u", before, sequence);
    if (waiter) {
        if (num_asleep(bell) > 0)
            return fault("the waiter was not woken, the state is %x", atomic_load(&bell->state));
        reap(waiter, &status);
        waiter = 0;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            return fault("the waiter did not return well: %x", status);
    }
    if ((waits(scene, "armed") || waits(scene, "full")) && !is_readable())
        return fault("the waiter polls, and the eventfd is not readable");
    (void)!read(event_fd, &count, sizeof count);
    // The same waiter, or the next: it is woken again.
    if (!doorbell_arm(bell, doorbell_sequence(bell)) || doorbell_ring(bell, event_fd) != 0 || !is_readable())
        return fault("the next waiter is not woken, the state is %x", atomic_load(&bell->state));
    return NULL;
}

static const char *outcome_of_bell(const struct scene *scene, const struct rival *rival, const struct world *ended)
{
    (void)rival;
    const uint32_t rings = atomic_load(&ended->bell.sequence) - LAST_SEQUENCE;
    return rings == is_ringer(scene) ? NULL : fault("%u rings", rings);
}

#define BELL                                                                                                           \
    .live = true, .prepare = prepare_bell, .recover = ring, .clear = clear_bell, .inspect = inspect_bell,              \
    .outcome = outcome_of_bell, .judge = judge_bell

static const struct scene bell_scenes[] = {
    {"ring, nobody waits", BELL, .operate = ring, .given = ""},
    {"ring a sleeper", BELL, .operate = ring, .given = "asleep"},
    {"ring an eventfd", BELL, .operate = ring, .given = "armed"},
    {"ring an eventfd that is full", BELL, .operate = ring, .given = "full"},
    {"ring without the eventfd", BELL, .operate = ring_without, .given = "armed"},
    {"sleep", BELL, .operate = sleep_a_moment},
    {"arm, disarm", BELL, .operate = arm_and_disarm},
};

#endif

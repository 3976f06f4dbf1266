// A process that runs one instruction at a time under ptrace, on shared memory that this one looks at between any two.
//
// What stands in the mapping when the process is stopped is what a SIGKILL there leaves to the others: they see its
// stores, never its registers. So one walk through an operation shows all the states in which it can die.
#ifndef EMBRIDGE_TESTS_NATIVE_SINGLE_STEP_H
#define EMBRIDGE_TESTS_NATIVE_SINGLE_STEP_H

#include "support.h"

#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#endif

#include "bind.h"
#include "blocks.h"
#include "direct.h"
#include "doorbell.h"
#include "ring.h"
#define SHELF_WAYS 2 // of the one set of its scenes
#include "shelf_pins.h"
#include "shelf_publish.h"
#include "slots.h"
#include "status.h"

#define MAX_SCENE_BLOCKS 66
#define RING_CAPACITY 8
#define NUM_VIEWS 2
#define NUM_WRITE_BLOCKS 4
#define BLOCK_ROWS 2
#define BIND_WINDOW 2
#define WRITE_EPOCH 7 // of this node's request
#define BLANK_WORDS 2
#define NUM_SHELF_BLOCKS 2
#define MAX_STEPS 20000
#define CANNOT 77 // the exit status where processes cannot be stepped here

// What two nodes have of one grant: the language node first.
struct bind_world {
    word64 posts[BUCKET_POSTS];
    word64 meeting[MEETING_WORDS];
    word64 claim[CLAIM_WORDS];
    word64 window[BIND_WINDOW];
    word64 record[SLOT_JOINED_BY + 1];
    word64 destination[DESTINATION_WORDS];
    word64 grants[BIND_WINDOW];
    word64 peer[PEER_REGISTRATION + 1];
    word64 tombstone;
    word64 finder;
    uint64_t others_grant; // a rival has it
    uint64_t ended_as;     // what the grant was bound to when its scheduler ended it; 0: it has not
};

struct shelf_world {
    word64 record[SHELF_READERS + 1];
    word64 heads[SHELF_WAYS];
    word64 items[SHELF_WAYS * ITEM_WORDS];
    word64 cells[NUM_SHELF_BLOCKS];
    word64 uses[SHELF_WAYS];
    word64 ledgers[2 * SHELF_WAYS]; // of the reader that is stepped, and of another one
    word64 rows[NUM_SHELF_BLOCKS];
};

// Everything that is shared, in one piece that can be copied and compared. The structures of the core come first; what
// follows are the results that an operation hands to its caller, and the memory of the deliberately broken ones.
struct world {
    struct ring_header ring;
    _Alignas(LINE_BYTES) unsigned char records[RING_CAPACITY * RECORD_BYTES];
    _Alignas(LINE_BYTES) struct doorbell bell;
    _Alignas(LINE_BYTES) word64 words[SLOTS_PER_PAGE];
    word64 stamps[SLOTS_PER_PAGE * NUM_PHASES];
    word64 dirty[NUM_VIEWS];
    word64 cells[MAX_SCENE_BLOCKS];
    word64 exposure[MAX_SCENE_BLOCKS];
    // of a direct write: what the language node has of it, and the encode node
    word64 claim[CLAIM_WORDS];
    word64 there[SLOTS_PER_PAGE];
    word64 stamps_there[SLOTS_PER_PAGE * NUM_PHASES];
    word64 dirty_there[NUM_VIEWS];
    // of a slot that is opened, or whose rows are written
    word64 record[SLOT_WORDS];
    word64 blank[MAX_BLANKS * BLANK_WORDS];
    uint64_t payload[NUM_WRITE_BLOCKS * BLOCK_ROWS];
    uint64_t aux_there[NUM_WRITE_BLOCKS];
    uint64_t end_of_payload;
    word64 granted[NUM_WRITE_BLOCKS];
    word64 destinations[2 * DESTINATION_WORDS];
    word64 counters[3];
    uint64_t source[8];
    struct bind_world bind;
    struct shelf_world shelf;
    uint32_t got[MAX_SCENE_BLOCKS];
    uint32_t num_got;
    uint64_t last_worked;   // the highest record number whose work is done
    uint64_t misworked;     // a record came torn, or before one that should have come first
    uint32_t first_free;
    uint32_t next_free[MAX_SCENE_BLOCKS];
    uint32_t holder[MAX_SCENE_BLOCKS];
};

enum mode { BOUNDARIES = 1, KILLS = 2, RIVALS = 4, NESTED = 8 };

struct scene;

struct rival {
    const char *name;
    void (*act)(struct world *);
    bool takes_over; // it treats the traced process as dead, so what that believes to hold is no longer its own
};

// One operation from one state. A claim returns NULL, or in words what does not hold.
struct scene {
    const char *name;
    unsigned broken_in; // 0; or the modes in which this deliberately broken one must be found out
    bool live;          // it moves kernel objects, too: a copy of the memory is not the whole state
    unsigned followed;  // how many deaths inside recovery are followed; those of blocks: all that can be reached
    void (*prepare)(const struct scene *, struct world *);
    void (*operate)(const struct scene *, struct world *);
    void (*recover)(const struct scene *, struct world *);
    void (*clear)(void);
    // What one instruction may change, of the operation or of the recovery.
    const char *(*inspect)(const struct scene *, bool recovering, const struct world *last, const struct world *now);
    // What stands there when the operation is through; `rival` is who came between, or NULL.
    const char *(*outcome)(const struct scene *, const struct rival *rival, const struct world *ended);
    // What recovery makes of it. It may try out what it is given.
    const char *(*judge)(const struct scene *, const struct world *killed, struct world *recovered);
    const struct rival *rivals;
    // Of blocks: a letter each, before and after; those that the operation is given; the moves it may make; which
    // recovery; whether the handle has looked at the cells before.
    const char *before, *after, *given;
    unsigned moves;
    int recovery;
    bool has_looked;
    bool shows_anywhere; // a broken one that a few boundaries suffice to find out
};

static struct stage {
    word32 begun, ended;
    struct world world;
} *stage;

__attribute__((format(printf, 1, 2))) static const char *fault(const char *format, ...)
{
    static char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return text;
}

static void set_up_stage(void)
{
    stage = mmap(NULL, sizeof *stage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(stage != MAP_FAILED, "no shared memory");
    // One core for both: each step is a switch, and between cores it takes three times as long.
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one); // a favour
}

static void reap(pid_t child, int *status)
{
    while (waitpid(child, status, 0) < 0)
        CHECK(errno == EINTR, "waitpid: %d", errno);
}

// One instruction on.
static void step(pid_t child)
{
    int status;
    CHECK(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0, "PTRACE_SINGLESTEP: %d", errno);
    reap(child, &status);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP, "not stopped by a step: %x", status);
}

static bool has_ended(void) { return atomic_load(&stage->ended); }

static void kill_it(pid_t child)
{
    int status;
    CHECK(kill(child, SIGKILL) == 0, "SIGKILL: %d", errno);
    reap(child, &status);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "it did not die of it: %x", status);
}

// Let it go on to the end of the operation.
static void let_go(pid_t child)
{
    int status;
    CHECK(ptrace(PTRACE_CONT, child, NULL, NULL) == 0, "PTRACE_CONT: %d", errno);
    reap(child, &status);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "it did not end well: %x", status);
}

// A child that stands before the first instruction of `run`.
static pid_t begin(const struct scene *scene, void (*run)(const struct scene *, struct world *))
{
    int status;
    atomic_store(&stage->begun, 0);
    atomic_store(&stage->ended, 0);
    const pid_t child = fork();
    CHECK(child >= 0, "fork: %d", errno);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(CANNOT);
        syscall(SYS_kill, getpid(), SIGSTOP);
        atomic_store(&stage->begun, 1);
        run(scene, &stage->world);
        atomic_store(&stage->ended, 1);
        _exit(0);
    }
    reap(child, &status);
    CHECK(WIFSTOPPED(status), "%s: the child is not traced: %x", scene->name, status);
    while (!atomic_load(&stage->begun))
        step(child);
    return child;
}

// Why no process can be stepped here, or NULL.
static const char *why_not(void)
{
#if defined(__aarch64__)
    // A step clears the exclusive monitor, so that a compare-and-swap made of two instructions would be tried for ever.
    if (!(getauxval(AT_HWCAP) & HWCAP_ATOMICS))
        return "this processor has no compare-and-swap in one instruction";
#elif !defined(__x86_64__)
    return "PTRACE_SINGLESTEP was tried on x86-64 and aarch64 only";
#endif
    int status;
    const pid_t child = fork();
    CHECK(child >= 0, "fork: %d", errno);
    if (child == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0)
            syscall(SYS_kill, getpid(), SIGSTOP);
        _exit(CANNOT);
    }
    reap(child, &status);
    if (!WIFSTOPPED(status))
        return "PTRACE_TRACEME is not permitted";
    const bool stepped = ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0;
    if (stepped)
        reap(child, &status);
    kill_it(child);
    return stepped ? NULL : "PTRACE_SINGLESTEP is not permitted";
}

#endif

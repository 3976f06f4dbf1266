// How requests ended and how long they took, counted in words of shared memory: a row for each of those who see ends.
//
//   row    reasons [16]   failed requests, by the code of their failure; 0 unused
//          paths [4][2]   by the way of their rows: requests that reached a destination, and their tokens
//          rounds         grants that carried blocks to them
//          succeeded      requests
//          (spare)
//          times [4][22]  of those that succeeded, how long phase 0, 1 and 2 lasted, and all of it:
//                         how many took at most TIME_BOUNDS_NS[i], and longer than all; then their sum in ns
//
// Every word only rises, by additions: a reader may be between two of one request, and a writer that is killed there
// leaves a request counted in part. Nothing goes by these words; they are for who watches.
#ifndef EMBRIDGE_NATIVE_ENDS_H
#define EMBRIDGE_NATIVE_ENDS_H

#include "status.h"

#define NUM_TIME_BOUNDS 20
#define TIME_WORDS (NUM_TIME_BOUNDS + 2)
#define NUM_TIMES 4 // phases before the end, and from the opening to it
#define END_REASONS 16
#define END_PATHS 4
#define END_PATH_DIRECT 0 // of `Path` (ends.py)

enum end_words {
    END_REASON,
    END_DELIVERY = END_REASON + END_REASONS,
    END_ROUNDS = END_DELIVERY + 2 * END_PATHS,
    END_SUCCEEDED,
    END_TIMES = 32,
    END_WORDS = 128
};

_Static_assert(END_SUCCEEDED < END_TIMES && END_TIMES + NUM_TIMES * TIME_WORDS <= END_WORDS, "a row holds all");

#define MICROSECONDS(count) (UINT64_C(1000) * (count))
static const uint64_t TIME_BOUNDS_NS[NUM_TIME_BOUNDS] = {
    MICROSECONDS(25),      MICROSECONDS(50),      MICROSECONDS(100),      MICROSECONDS(250),     MICROSECONDS(500),
    MICROSECONDS(1000),    MICROSECONDS(2500),    MICROSECONDS(5000),     MICROSECONDS(10000),   MICROSECONDS(25000),
    MICROSECONDS(50000),   MICROSECONDS(100000),  MICROSECONDS(250000),   MICROSECONDS(500000),  MICROSECONDS(1000000),
    MICROSECONDS(2500000), MICROSECONDS(5000000), MICROSECONDS(10000000), MICROSECONDS(30000000),
    MICROSECONDS(60000000),
};

static inline void end_add(word64 *word, uint64_t count)
{
    // Relaxed: nothing hangs on a counter.
    atomic_fetch_add_explicit(word, count, memory_order_relaxed);
}

// Count one time of `times[TIME_WORDS]`.
static inline void end_time(word64 *times, uint64_t ns)
{
    size_t bucket = 0;
    while (bucket < NUM_TIME_BOUNDS && ns > TIME_BOUNDS_NS[bucket])
        bucket++;
    end_add(&times[bucket], 1);
    end_add(&times[NUM_TIME_BOUNDS + 1], ns);
}

// Count a request that has succeeded in a row. False, and nothing is counted: its slot has another epoch by now.
static inline bool end_success(const struct status_table *status, uint32_t slot, uint64_t epoch, uint64_t path,
                               uint64_t rounds, word64 *row)
{
    uint64_t entered[NUM_PHASES];
    status_stamps(status, slot, entered);
    const uint64_t word = status_load(status, slot);
    if (status_epoch(word) != epoch || entered[PHASE_SUCCESS] == 0)
        return false;
    word64 *times = row + END_TIMES;
    uint64_t left = entered[PHASE_SUCCESS];
    for (int phase = PHASE_SUCCESS - 1; phase >= 0; phase--) {
        if (entered[phase] == 0) // a phase that was passed over took no time
            continue;
        end_time(times + phase * TIME_WORDS, left > entered[phase] ? left - entered[phase] : 0);
        left = entered[phase];
    }
    const uint64_t success = entered[PHASE_SUCCESS]; // who said so may have looked at the clock before it was opened
    end_time(times + (NUM_TIMES - 1) * TIME_WORDS, success > left ? success - left : 0);
    end_add(row + END_DELIVERY + 2 * path, 1);
    end_add(row + END_DELIVERY + 2 * path + 1, status_sent(word));
    end_add(row + END_ROUNDS, rounds);
    end_add(row + END_SUCCEEDED, 1);
    return true;
}

#endif

// A direct write: rows of one request, from where they lie straight into blocks of a language node on this host.
//
// Step by step, in this order (R28 to R33, R36):
//
//   length      how many rows there are to be, in this side's slot, if it does not say so yet
//   take        the claim of the destination's slot, from open to writing
//   look        how far rows were sent and are granted, and into which blocks: under the claim, never carried over
//   copy        rows, and the auxiliary words with the first of them
//   whole       if all rows are there: the destination's status word says so, unless it has ended
//   say         `sent`, then this side's status word, which decides, then the destination's; nothing, if the claim is
//               revoked by now
//   give back   the claim; ended, if all rows are there (R81)
//   ring        the destination's scheduler
//
// A writer that finds its claim revoked at the end has written into blocks that were in quarantine for it.
//
// A request may have several destinations, each written in a call of its own. This side's word is then as far as the
// least of them; whoever finds that all have all rows raises it to Success, and has the others follow
// (`direct_follow`): their words are whole, so none of them has ended otherwise. Two threads that write to one each
// store how far they came before they look at the others; the encode node's poller, which is kicked, looks after both.
//
// Why a SIGKILL between any two instructions is safe: rows are there before any word says so, and the blocks are nobody
// else's as long as the claim stands; whoever hears of the death ends it (claims.h). A death between the two status
// words leaves a Success of which the destination has not heard: the encode node's poller tells it. A death between
// `sent` and this side's word leaves rows that are there and that the word does not count. The poller raises the word
// for them if it looks before it hears of the death; else it fails the request, and nobody counts them. A destination
// that was made whole before the death takes what that poller tells, whatever its own node would rather.
//
// Where a test asks (`before`), a write says before each of its steps which one that is, and can be ended there.
#ifndef EMBRIDGE_NATIVE_DIRECT_H
#define EMBRIDGE_NATIVE_DIRECT_H

#include "claims.h"
#include "copy.h"
#include "doorbell.h"
#include "populate.h"
#include "records.h"
#include "status.h"

#define MOST_COLUMNS 16
#define LEAST_POPULATED (256 << 10) // bytes; what is less is left to page faults
#define GRANT_INDEX_MASK UINT32_MAX // of a granted block: `session:32 | index:32`

// What a write is about to do.
enum direct_step {
    DIRECT_TOTAL,
    DIRECT_TAKE,
    DIRECT_LOOK,
    DIRECT_READY,
    DIRECT_AUX,  // of this block
    DIRECT_COPY, // into this block, this row to that row of the request
    DIRECT_COPIED,
    DIRECT_LENGTH,
    DIRECT_WHOLE,
    DIRECT_SENT,
    DIRECT_MOVED,
    DIRECT_COUNT,
    DIRECT_OWN_WORD,   // to this phase
    DIRECT_THEIR_WORD, // to this phase
    DIRECT_GIVE_BACK,
    DIRECT_RING,
    DIRECT_DONE,
};

// One buffer of rows.
struct direct_column {
    uint64_t offset;    // in the destination's payload
    uint64_t row_bytes; // of one token
};

// Rows [first, end) as they lie in this process: a span is these two, then the address of row `first` of each column.
#define SPAN_FIRST 0
#define SPAN_END 1
#define SPAN_ADDRESSES 2

struct direct_side {
    const struct status_table *status;
    uint32_t slot;
    uint64_t epoch;
};

struct direct_write {
    // the language node
    word64 *claim;
    uint32_t writer;
    struct direct_side there;
    unsigned char *payload;
    _Atomic uint32_t *populated; // of each block, so many of its rows, from the first on, were populated here; or NULL
    uint64_t aux_offset, aux_bytes, num_blocks, block_size;
    unsigned char *bells; // of the callers of all lanes, then of their library threads
    uint64_t num_lanes;
    // this node
    struct direct_side here;
    word64 *record;             // of the slot
    const word64 *destinations; // of the slot, `most_destinations` of them
    word64 *destination;        // to which of them the rows go
    const word64 *blocks;       // of request block k: entry k % window
    uint64_t most_destinations, window;
    word64 *num_writes, *bytes_written, *tokens_written;
    const void *aux;
    // the rows
    uint64_t num_rows; // of the request
    const struct direct_column *columns;
    size_t num_columns;
    const uint64_t *spans; // in order, without a gap
    size_t num_spans;
    bool is_held; // the claim was taken before, and the rows may lie there already
    // who asks for the time, and who looks on, if anybody does
    uint64_t (*clock)(struct direct_write *);
    bool (*before)(struct direct_write *, enum direct_step, uint64_t, uint64_t, uint64_t);
    // what came of it
    uint64_t first, end; // rows that were written
    uint64_t bad_block;  // that block was granted and is outside of the pool, if `is_bad`
    bool is_bad;
    bool is_whole;       // all rows are at this destination, and it will not fail for itself
    bool is_told;        // false: the request has failed, and the destination was told nothing
    bool is_stopped;     // by `before`, or because `clock` failed
};

static inline bool direct_may(struct direct_write *w, enum direct_step step, uint64_t a, uint64_t b, uint64_t c)
{
    if (__builtin_expect(w->before == NULL, true))
        return true;
    const bool may = w->before(w, step, a, b, c);
    w->is_stopped |= !may;
    return may;
}

static inline uint64_t direct_word(const word64 *word) { return atomic_load_explicit(word, memory_order_acquire); }

static inline const uint64_t *direct_span(const struct direct_write *w, size_t i)
{
    return w->spans + i * (SPAN_ADDRESSES + w->num_columns);
}

// The destination's block of request block k. False: it is outside of the pool.
static inline bool direct_block(struct direct_write *w, uint64_t k, uint64_t *block)
{
    *block = atomic_load_explicit(&w->blocks[k % w->window], memory_order_acquire) & GRANT_INDEX_MASK;
    if (*block < w->num_blocks)
        return true;
    w->bad_block = *block;
    w->is_bad = true;
    return false;
}

// Look how far rows were sent, and how far they may be written. False: nothing is to be done.
static inline bool direct_look(struct direct_write *w)
{
    const uint64_t given = w->num_spans ? direct_span(w, w->num_spans - 1)[SPAN_END] : 0;
    // SYNC grant: acquire; the blocks were entered before the tokens rose.
    const uint64_t tokens = direct_word(&w->destination[DESTINATION_GRANTED_TOKENS]);
    w->first = w->end = direct_word(&w->destination[DESTINATION_SENT]);
    if (w->num_spans == 0 || w->first < direct_span(w, 0)[SPAN_FIRST])
        return false;
    const uint64_t limit = given < tokens ? given : tokens;
    if (w->first >= limit)
        return false;
    const uint64_t word = status_load(w->there.status, w->there.slot);
    if (status_epoch(word) != w->there.epoch || status_phase(word) >= FIRST_TERMINAL_PHASE)
        return false; // it has ended there
    w->end = limit;
    return true;
}

// Have this process's page table filled for rows [at, at + count) of the pool, where this has not been done yet.
static inline void direct_populate(struct direct_write *w, uint64_t at, uint64_t count)
{
    const uint64_t bs = w->block_size, end = at + count;
    uint64_t row_bytes = 0;
    for (size_t c = 0; c < w->num_columns; c++)
        row_bytes += w->columns[c].row_bytes;
    if (w->populated == NULL || row_bytes * count < LEAST_POPULATED)
        return;
    for (uint64_t block = at / bs, high; at < end; at = high, block++) {
        high = (block + 1) * bs < end ? (block + 1) * bs : end;
        if (atomic_load_explicit(&w->populated[block], memory_order_relaxed) < high - block * bs)
            break;
    }
    if (at >= end)
        return;
    for (size_t c = 0; c < w->num_columns; c++) {
        const uint64_t size = w->columns[c].row_bytes;
        populate_around(w->payload + w->columns[c].offset + at * size, (end - at) * size);
    }
    for (uint64_t block = at / bs; block * bs < end; block++) {
        const uint64_t rows = end - block * bs < bs ? end - block * bs : bs;
        // two threads may write here: the one that says less costs the next write a call
        if (atomic_load_explicit(&w->populated[block], memory_order_relaxed) < rows)
            atomic_store_explicit(&w->populated[block], (uint32_t)rows, memory_order_relaxed);
    }
}

static inline bool direct_copy(struct direct_write *w)
{
    const uint64_t bs = w->block_size;
    size_t i = 0;
    for (uint64_t row = w->first; row < w->end;) {
        while (direct_span(w, i)[SPAN_END] <= row)
            i++;
        const uint64_t *span = direct_span(w, i), limit = span[SPAN_END] < w->end ? span[SPAN_END] : w->end;
        uint64_t block, next, high = (row / bs + 1) * bs;
        if (!direct_block(w, row / bs, &block))
            return false;
        // neighbours go as one; where somebody looks on, block by block
        for (next = block + 1; w->before == NULL && high < limit; high += bs, next++) {
            uint64_t found;
            if (!direct_block(w, high / bs, &found))
                return false;
            if (found != next)
                break;
        }
        high = high < limit ? high : limit;
        const uint64_t at = block * bs + row % bs;
        if (!direct_may(w, DIRECT_COPY, block, row, high))
            return false;
        direct_populate(w, at, high - row);
        for (size_t c = 0; c < w->num_columns; c++) {
            const uint64_t size = w->columns[c].row_bytes;
            unsigned char *to = w->payload + w->columns[c].offset + at * size;
            const unsigned char *from = (const unsigned char *)(uintptr_t)span[SPAN_ADDRESSES + c];
            from += (row - span[SPAN_FIRST]) * size;
            if (from != to) // else they were made in place
                copy_bytes(to, from, (high - row) * size);
        }
        if (!direct_may(w, DIRECT_COPIED, block, row, high))
            return false;
        row = high;
    }
    copy_finish();
    return true;
}

// How far a request is at all its destinations together, as the encode node's poller reckons it (R18).
struct direct_progress {
    uint64_t least;     // of the destinations' `sent`; one that has not come counts as 0
    bool has_all;       // destinations
    bool is_in_rounds;  // they have what was granted first, and for one of them that was not all
};

static inline struct direct_progress direct_progress(const struct direct_write *w)
{
    const uint64_t required = direct_word(&w->record[SLOT_REQUIRED]), total = w->num_rows;
    uint64_t count = direct_word(&w->record[SLOT_NUM_DESTINATIONS]);
    count = count < w->most_destinations ? count : w->most_destinations;
    struct direct_progress p = {.least = UINT64_MAX, .has_all = required > 0 && count >= required};
    bool is_less = false, is_there = count > 0;
    for (uint64_t d = 0; d < count; d++) {
        const word64 *words = &w->destinations[d * DESTINATION_WORDS];
        // SYNC word: sequentially consistent; of two that write to one each, at least one sees both.
        const uint64_t sent = atomic_load_explicit(&words[DESTINATION_SENT], memory_order_seq_cst);
        const uint64_t first = direct_word(&words[DESTINATION_FIRST_GRANT]);
        p.least = sent < p.least ? sent : p.least;
        is_less |= first < total;
        is_there &= first > 0 && sent >= (first < total ? first : total);
    }
    p.least = p.has_all ? p.least : 0;
    p.is_in_rounds = p.has_all && is_less && is_there;
    return p;
}

// Raise a status word to `sent` rows, through the phases in their order, as the pollers do (R18). False: stopped;
// `has_risen` says whether it is of that epoch still and has not failed.
static inline bool direct_raise(struct direct_write *w, const struct direct_side *side, enum direct_step step,
                                const struct direct_progress *p, uint64_t sent, uint64_t now_ns, bool *has_risen)
{
    const uint64_t total = w->num_rows, least = p->has_all ? PHASE_WAITING : PHASE_BOOTSTRAPPING;
    if (p->has_all) {
        if (!direct_may(w, step, PHASE_WAITING, 0, 0))
            return false;
        status_advance(side->status, side->slot, side->epoch, PHASE_WAITING, 0, now_ns);
    }
    if (p->is_in_rounds) {
        if (!direct_may(w, step, PHASE_TRANSFERRING, 0, 0))
            return false;
        status_advance(side->status, side->slot, side->epoch, PHASE_TRANSFERRING, sent < total ? sent : total, now_ns);
    }
    uint64_t word = status_load(side->status, side->slot);
    if (status_epoch(word) == side->epoch && status_phase(word) < FIRST_TERMINAL_PHASE) {
        const uint64_t now = status_phase(word) > least ? status_phase(word) : least;
        const uint64_t phase = total > 0 && p->least >= total ? PHASE_SUCCESS : now;
        if (!direct_may(w, step, phase, 0, 0))
            return false;
        status_advance(side->status, side->slot, side->epoch, phase, sent, now_ns);
        word = status_load(side->status, side->slot);
    }
    *has_risen = status_epoch(word) == side->epoch && status_phase(word) != PHASE_FAILED;
    return true;
}

// Raise both words: this side's, which decides, and then the destination's. False: stopped, or the request has failed.
static inline bool direct_raise_both(struct direct_write *w, uint64_t now_ns)
{
    const struct direct_progress p = direct_progress(w);
    bool has_risen = false;
    if (!direct_raise(w, &w->here, DIRECT_OWN_WORD, &p, p.least, now_ns, &has_risen) || !has_risen)
        return false; // has_risen false: the request has ended as Failed
    return direct_raise(w, &w->there, DIRECT_THEIR_WORD, &p, w->end, now_ns, &has_risen);
}

// Say that the rows are there: on this side, which decides, and then at the destination.
static inline void direct_say(struct direct_write *w)
{
    const uint64_t now_ns = w->clock(w), end = w->end;
    w->end = w->first; // while nothing is said
    if (w->is_stopped || !claim_stands(w->claim, w->there.epoch, w->writer))
        return; // it has failed there, and this side will hear why: until then these rows are to be sent
    if (!direct_may(w, DIRECT_LENGTH, w->num_rows, 0, 0))
        return;
    claim_tell_length(w->claim, w->num_rows); // a retry goes by it
    if (end == w->num_rows) {
        const bool has_all = direct_word(&w->record[SLOT_NUM_DESTINATIONS]) >= direct_word(&w->record[SLOT_REQUIRED]);
        const uint64_t least = has_all ? PHASE_WAITING : PHASE_BOOTSTRAPPING;
        if (!direct_may(w, DIRECT_WHOLE, least, 0, 0))
            return;
        if (!status_make_whole(w->there.status, w->there.slot, w->there.epoch, least, now_ns))
            return; // it has ended there
        w->is_whole = true;
    }
    if (!direct_may(w, DIRECT_SENT, end, 0, 0))
        return;
    w->end = end;
    word_raise(&w->destination[DESTINATION_SENT], end);
    if (!direct_may(w, DIRECT_MOVED, 0, 0, 0))
        return;
    word_raise(&w->record[SLOT_MOVED_NS], now_ns);
    if (!direct_may(w, DIRECT_COUNT, 0, 0, 0))
        return;
    uint64_t bytes = 0;
    for (size_t c = 0; c < w->num_columns; c++)
        bytes += w->columns[c].row_bytes;
    atomic_fetch_add_explicit(w->num_writes, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(w->bytes_written, (end - w->first) * bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(w->tokens_written, end - w->first, memory_order_relaxed);
    w->is_told = direct_raise_both(w, now_ns);
}

static inline void direct_write_claimed(struct direct_write *w)
{
    if (!direct_may(w, DIRECT_LOOK, 0, 0, 0) || !direct_look(w))
        return;
    const uint64_t end = w->end;
    w->end = w->first; // nothing is there yet
    if (!direct_may(w, DIRECT_READY, end, 0, 0))
        return;
    word_raise(&w->record[SLOT_READY], end);
    if (w->first == 0) {
        uint64_t block;
        if (!direct_block(w, 0, &block) || !direct_may(w, DIRECT_AUX, block, 0, 0))
            return;
        memcpy(w->payload + w->aux_offset + block * w->aux_bytes, w->aux, w->aux_bytes);
    }
    w->end = end;
    if (!direct_copy(w)) {
        w->end = w->first;
        return;
    }
    direct_say(w);
}

// Wake the client of the destination's slot: its caller, if the request has succeeded and he sleeps on the futex; else
// its library thread, which goes on and wakes its caller. Where the library thread has nothing to do with a success, it
// sleeps on while the caller is awake.
static inline void direct_ring(struct direct_write *w)
{
    const uint64_t lane = claim_lane(w->claim);
    if (lane >= w->num_lanes)
        return;
    struct doorbell *caller = (struct doorbell *)(void *)(w->bells + lane * DOORBELL_BYTES);
    struct doorbell *library = (struct doorbell *)(void *)(w->bells + (w->num_lanes + lane) * DOORBELL_BYTES);
    bool is_left = true;
    if (status_phase(status_load(w->there.status, w->there.slot)) == PHASE_SUCCESS) {
        bool woke;
        doorbell_ring_sleeper(caller, -1, &woke);
        is_left = !woke && !(doorbell_is_spared(library) && doorbell_is_awake(caller));
    }
    if (is_left)
        doorbell_ring(library, -1);
}

// Write what is granted of the spans; what came of it is in `w`.
static inline void direct_write(struct direct_write *w)
{
    w->first = w->end = 0;
    w->is_bad = w->is_whole = w->is_told = w->is_stopped = false;
    const uint64_t word = status_load(w->here.status, w->here.slot);
    if (status_epoch(word) != w->here.epoch || status_phase(word) >= FIRST_TERMINAL_PHASE)
        return; // it has ended
    word64 *total = &w->record[SLOT_TOTAL];
    if (atomic_load_explicit(total, memory_order_relaxed) != w->num_rows) {
        if (!direct_may(w, DIRECT_TOTAL, w->num_rows, 0, 0))
            return;
        atomic_store_explicit(total, w->num_rows, memory_order_release);
    }
    if (!w->is_held && (!direct_may(w, DIRECT_TAKE, 0, 0, 0) || !claim_take(w->claim, w->there.epoch, w->writer)))
        return;
    direct_write_claimed(w);
    if (!direct_may(w, DIRECT_GIVE_BACK, 0, 0, 0))
        return;
    claim_give_back(w->claim, w->there.epoch, w->writer, w->is_whole && w->end == w->num_rows);
    if (w->is_told && direct_may(w, DIRECT_RING, 0, 0, 0))
        direct_ring(w);
    direct_may(w, DIRECT_DONE, 0, 0, 0);
}

// Have a destination follow that is whole, when this side has decided: it hears of the Success, and is rung. No claim
// is needed, because nothing is written.
static inline void direct_follow(struct direct_write *w)
{
    w->is_told = w->is_stopped = false;
    const uint64_t now_ns = w->clock(w), own = status_load(w->here.status, w->here.slot);
    const uint64_t theirs = status_load(w->there.status, w->there.slot);
    if (w->is_stopped || status_epoch(own) != w->here.epoch || status_phase(own) != PHASE_SUCCESS)
        return;
    if (status_epoch(theirs) != w->there.epoch || status_phase(theirs) >= FIRST_TERMINAL_PHASE)
        return; // it has heard
    const struct direct_progress p = direct_progress(w);
    if (!direct_raise(w, &w->there, DIRECT_THEIR_WORD, &p, status_sent(own), now_ns, &w->is_told))
        w->is_told = false;
    if (w->is_told && direct_may(w, DIRECT_RING, 0, 0, 0))
        direct_ring(w);
    direct_may(w, DIRECT_DONE, 0, 0, 0);
}

#endif

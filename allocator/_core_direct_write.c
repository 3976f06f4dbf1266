// A write of a DirectWriter: the binding of native/direct.h.
#include "_core_untold.h"

#include <string.h>

#include "native/direct.h"

#define SPANS_ON_STACK 64         // in words
#define KEEP_GIL_BYTES (16 << 10) // so few bytes are copied before the GIL could be given away and taken back

struct call {
    struct direct_write write; // first: what a callback is given is this
    DirectWriter *self;
    PyThreadState *without_gil; // while the GIL is given away
    PyObject *error[3];         // why it was stopped
};

static void take_gil(struct call *call)
{
    if (call->without_gil != NULL)
        PyEval_RestoreThread(call->without_gil);
}

static void give_gil(struct call *call)
{
    if (call->without_gil != NULL)
        call->without_gil = PyEval_SaveThread();
}

static void keep_error(struct call *call)
{
    if (call->error[0] == NULL)
        PyErr_Fetch(&call->error[0], &call->error[1], &call->error[2]);
    else
        PyErr_Clear();
}

static uint64_t real_clock(struct direct_write *write)
{
    (void)write;
    return (uint64_t)monotonic_ns();
}

static uint64_t given_clock(struct direct_write *write)
{
    struct call *call = (struct call *)(void *)write;
    take_gil(call);
    uint64_t now_ns = 0;
    PyObject *said = PyObject_CallNoArgs(call->self->clock);
    if (said == NULL || take_u64(said, &now_ns) < 0) {
        keep_error(call);
        write->is_stopped = true;
    }
    Py_XDECREF(said);
    give_gil(call);
    return now_ns;
}

static bool say_before(struct direct_write *write, enum direct_step step, uint64_t a, uint64_t b, uint64_t c)
{
    struct call *call = (struct call *)(void *)write;
    take_gil(call);
    PyObject *before = call->self->before;
    PyObject *said = NULL;
    if (before != NULL) { // else it was taken away meanwhile
        Py_INCREF(before);
        said = PyObject_CallFunction(before, "iIKKK", (int)step, (unsigned int)write->here.slot, (unsigned long long)a,
                                     (unsigned long long)b, (unsigned long long)c);
        Py_DECREF(before);
        if (said == NULL)
            keep_error(call);
    }
    const bool may = before == NULL || said != NULL;
    Py_XDECREF(said);
    give_gil(call);
    return may;
}

// Where this write finds the words of its request, on both sides. -1: its destination's slot is none.
static int find_request(const DirectWriter *self, struct direct_write *w, uint32_t slot, uint64_t epoch, uint32_t d)
{
    word64 *record = (word64 *)(void *)self->words[OWN_SLOTS]->first + slot * self->slot_words;
    word64 *all = (word64 *)(void *)self->words[OWN_DESTINATIONS]->first + slot * self->destinations_words;
    word64 *destination = all + d * DESTINATION_WORDS;
    word64 *counters = (word64 *)(void *)self->words[OWN_METRICS]->first + self->metrics_at;
    const uint64_t remote_slot = atomic_load_explicit(&destination[DESTINATION_REMOTE_SLOT], memory_order_acquire);
    const uint64_t window = atomic_load_explicit(&destination[DESTINATION_WINDOW], memory_order_acquire);
    if (remote_slot >= self->tables[THEIRS]->table.num_slots || window > self->window_blocks / (d + 1)) {
        PyErr_Format(PyExc_IndexError, "destination: slot %llu, window %llu is none", (unsigned long long)remote_slot,
                     (unsigned long long)window);
        return -1;
    }
    w->claim = (word64 *)(void *)self->words[CLAIMS]->first + remote_slot * CLAIM_WORDS;
    w->writer = self->writer;
    w->there = (struct direct_side){
        .status = &self->tables[THEIRS]->table,
        .slot = (uint32_t)remote_slot,
        .epoch = atomic_load_explicit(&destination[DESTINATION_REMOTE_EPOCH], memory_order_acquire)};
    w->here = (struct direct_side){.status = &self->tables[OWN]->table, .slot = slot, .epoch = epoch};
    w->record = record;
    w->destinations = all;
    w->destination = destination;
    w->most_destinations = self->destinations_words / DESTINATION_WORDS;
    w->window = window ? window : 1; // 0: it has not joined yet
    w->blocks = (word64 *)(void *)self->words[OWN_GRANTS]->first + slot * self->window_blocks + d * window;
    w->payload = self->payload->address;
    w->populated = self->populated;
    w->aux_offset = self->aux_offset;
    w->aux_bytes = self->aux_bytes;
    w->num_blocks = self->num_blocks;
    w->block_size = self->block_size;
    w->bells = self->bells;
    w->num_lanes = self->num_lanes;
    w->num_writes = &counters[METRIC_WRITES];
    w->bytes_written = &counters[METRIC_BYTES_WRITTEN];
    w->tokens_written = &counters[METRIC_TOKENS_WRITTEN];
    w->aux = (const unsigned char *)(const void *)record + self->aux_at;
    w->clock = self->clock == NULL ? real_clock : given_clock;
    w->before = self->before == NULL ? NULL : say_before;
    return 0;
}

static int check_columns(const DirectWriter *self, const Array *columns, struct direct_column *checked)
{
    const size_t count = columns->length / 2;
    if (columns->length % 2 != 0 || count == 0 || count > MOST_COLUMNS)
        return PyErr_Format(PyExc_ValueError, "columns: %zu words are not at most %d pairs", columns->length,
                            MOST_COLUMNS), -1;
    memcpy(checked, columns->data, count * sizeof *checked);
    const uint64_t rows = self->num_blocks * self->block_size, size = self->payload->size;
    for (size_t c = 0; c < count; c++) {
        if (checked[c].offset > size || checked[c].row_bytes > (size - checked[c].offset) / rows)
            return PyErr_Format(PyExc_IndexError, "column %zu: %llu rows of %llu bytes from %llu are outside of %llu",
                                c, (unsigned long long)rows, (unsigned long long)checked[c].row_bytes,
                                (unsigned long long)checked[c].offset, (unsigned long long)size), -1;
    }
    return 0;
}

// In order, without a gap, and of this request. `rows` are how many they hold.
static int check_spans(const struct direct_write *w, uint64_t *rows)
{
    for (size_t i = 0; i < w->num_spans; i++) {
        const uint64_t *span = direct_span(w, i);
        const uint64_t before = i ? direct_span(w, i - 1)[SPAN_END] : span[SPAN_FIRST];
        if (span[SPAN_FIRST] != before || span[SPAN_END] <= before || span[SPAN_END] > w->num_rows)
            return PyErr_Format(PyExc_ValueError, "span %zu: rows %llu to %llu after %llu, of %llu", i,
                                (unsigned long long)span[SPAN_FIRST], (unsigned long long)span[SPAN_END],
                                (unsigned long long)before, (unsigned long long)w->num_rows), -1;
    }
    *rows = w->num_spans ? direct_span(w, w->num_spans - 1)[SPAN_END] - direct_span(w, 0)[SPAN_FIRST] : 0;
    return 0;
}

// `end`: up to which row; negative where the request has failed, 0 where nothing was written. -1 with an exception.
static int write_checked(struct call *call, uint64_t rows, long long *end)
{
    struct direct_write *w = &call->write;
    DirectWriter *self = call->self;
    uint64_t row_bytes = 0;
    *end = 0;
    for (size_t c = 0; c < w->num_columns; c++)
        row_bytes += w->columns[c].row_bytes;
    if (self->closing) // nobody begins any more
        return 0;
    Py_buffer held; // so that the payload stays while it is written to
    if (PyObject_GetBuffer((PyObject *)self->payload, &held, PyBUF_WRITABLE) < 0)
        return -1;
    self->num_writing++;
    if (row_bytes != 0 && rows > KEEP_GIL_BYTES / row_bytes)
        call->without_gil = PyEval_SaveThread();
    direct_write(w);
    take_gil(call);
    self->num_writing--;
    PyBuffer_Release(&held);
    if (call->error[0] != NULL) {
        PyErr_Restore(call->error[0], call->error[1], call->error[2]);
        return -1;
    }
    if (w->is_bad)
        return PyErr_Format(PyExc_IndexError, "block %llu was granted, of a pool of %llu",
                            (unsigned long long)w->bad_block, (unsigned long long)w->num_blocks), -1;
    if (w->end != w->first)
        *end = w->is_told ? (long long)w->end : -(long long)w->end;
    return 0;
}

int direct_writer_columns(const DirectWriter *self, const Array *given, struct direct_column *columns)
{
    return check_columns(self, given, columns);
}

int direct_writer_send(DirectWriter *self, uint32_t slot, uint64_t epoch, uint64_t total,
                       const struct direct_column *columns, size_t num_columns, const uint64_t *span, long long *end)
{
    struct call call = {.self = self};
    struct direct_write *w = &call.write;
    uint64_t rows;
    if (find_request(self, w, slot, epoch, 0) < 0)
        return -1;
    w->num_rows = total;
    w->columns = columns;
    w->num_columns = num_columns;
    w->spans = span;
    w->num_spans = 1;
    return check_spans(w, &rows) < 0 ? -1 : write_checked(&call, rows, end);
}

// (slot, epoch, total), and the destination, which is the first where it is NULL.
static int take_request(const DirectWriter *self, struct direct_write *w, PyObject *const *args, PyObject *destination)
{
    uint64_t epoch;
    uint32_t slot, d = 0;
    if (take_index(args[0], "slot", self->tables[OWN]->table.num_slots, &slot) < 0 ||
        take_up_to(args[1], "epoch", MAX_EPOCH, &epoch) < 0 ||
        take_up_to(args[2], "total", UINT32_MAX, &w->num_rows) < 0)
        return -1;
    const uint64_t most = self->destinations_words / DESTINATION_WORDS;
    if (destination != NULL && take_index(destination, "destination", (uint32_t)most, &d) < 0)
        return -1;
    return find_request(self, w, slot, epoch, d);
}

PyObject *direct_writer_follow(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    DirectWriter *self = (DirectWriter *)object;
    struct call call = {.self = self};
    if (take_count("follow", nargs, 4) < 0 || take_request(self, &call.write, args, args[3]) < 0)
        return NULL;
    if (self->closing) // it hears by a message
        Py_RETURN_FALSE;
    direct_follow(&call.write);
    if (call.error[0] != NULL) {
        PyErr_Restore(call.error[0], call.error[1], call.error[2]);
        return NULL;
    }
    return PyBool_FromLong(call.write.is_told);
}

PyObject *direct_writer_write(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    DirectWriter *self = (DirectWriter *)object;
    struct call call = {.self = self};
    struct direct_write *w = &call.write;
    struct direct_column checked[MOST_COLUMNS];
    uint64_t on_stack[SPANS_ON_STACK], rows;
    Array columns, spans;
    const int is_held = nargs > 5 ? PyObject_IsTrue(args[5]) : 0;
    if (is_held < 0 || ((nargs < 5 || nargs > 7) && take_count("write", nargs, 5) < 0) ||
        take_request(self, w, args, nargs > 6 ? args[6] : NULL) < 0 ||
        array_open(&columns, args[3], "columns", 8, false) < 0)
        return NULL;
    w->is_held = is_held;
    const int is_good = check_columns(self, &columns, checked);
    w->columns = checked;
    w->num_columns = columns.length / 2;
    PyBuffer_Release(&columns.view);
    if (is_good < 0 || array_open(&spans, args[4], "spans", 8, false) < 0)
        return NULL;
    // a copy, so that nobody can change what was checked
    const size_t words = spans.length, span_words = SPAN_ADDRESSES + w->num_columns;
    uint64_t *copied = words <= SPANS_ON_STACK ? on_stack : PyMem_Malloc(words * sizeof *copied);
    PyObject *result = NULL;
    if (copied == NULL) {
        PyErr_NoMemory();
    } else if (words % span_words != 0) {
        PyErr_Format(PyExc_ValueError, "spans: %zu words are no spans of %zu", words, span_words);
    } else {
        memcpy(copied, spans.data, words * sizeof *copied);
        w->spans = copied;
        w->num_spans = words / span_words;
        long long end;
        if (check_spans(w, &rows) == 0 && write_checked(&call, rows, &end) == 0)
            result = PyLong_FromLongLong(end);
    }
    if (copied != on_stack)
        PyMem_Free(copied);
    PyBuffer_Release(&spans.view);
    return result;
}

// UntoldOpener, UntoldSender and UntoldReceiver: the bindings of native/untold.h, with what lies between.
//
// Each call is what a client does for one request at one time, with the GIL, as it takes less time than to give that
// away; only a write of many bytes gives it away (_core_direct_write.c).
#include "_core_untold.h"

#include <string.h>

#include "native/bind.h"
#include "native/direct.h"
#include "native/ends.h"
#include "native/untold.h"

#define MOST_SLOT_WORDS 128

// What a handle keeps: its native objects, which keep its memory.
#define MOST_KEPT 7

typedef struct {
    PyObject_HEAD
    PyObject *kept[MOST_KEPT];
    PyObject *before; // or NULL
} Keeper;

static void keep(Keeper *self, size_t i, PyObject *object)
{
    Py_INCREF(object);
    self->kept[i] = object;
}

static int keeper_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((Keeper *)object)->before);
    for (size_t i = 0; i < MOST_KEPT; i++)
        Py_VISIT(((Keeper *)object)->kept[i]);
    return 0;
}

static int keeper_clear(PyObject *object)
{
    Py_CLEAR(((Keeper *)object)->before);
    return 0;
}

static void keeper_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    keeper_clear(object);
    for (size_t i = 0; i < MOST_KEPT; i++)
        Py_XDECREF(((Keeper *)object)->kept[i]);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *keeper_watch(PyObject *object, PyObject *before)
{
    return watch_with(&((Keeper *)object)->before, before);
}

static Keeper *keeper_new(PyTypeObject *type)
{
    const allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    return (Keeper *)alloc(type, 0);
}

// The words of a table of at least `least`, one behind the other; NULL with an exception.
static word64 *table_of(PyObject *object, const char *what, uint64_t least)
{
    const Words *words = (const Words *)object;
    if (words->stride == 8 && words->count >= least && least > 0)
        return (word64 *)(void *)words->first;
    PyErr_Format(PyExc_ValueError, "%s: %zu words of stride %zu < %llu of stride 8", what, words->count, words->stride,
                 (unsigned long long)least);
    return NULL;
}

static word64 *own_table_of(PyObject *object, const char *what, uint64_t least)
{
    return require_writable(((Words *)object)->mapping) < 0 ? NULL : table_of(object, what, least);
}

static int take_rooms(struct room_words *rooms, PyObject *object, const char *what)
{
    rooms->words = own_table_of(object, what, 1);
    rooms->count = ((Words *)object)->count;
    return rooms->words == NULL ? -1 : 0;
}

PyObject *outcome_of(uint64_t word, const uint64_t times[NUM_PHASES])
{
    PyObject *stamps = PyTuple_New(NUM_PHASES), *result = NULL;
    for (Py_ssize_t phase = 0; stamps != NULL && phase < NUM_PHASES; phase++) {
        PyObject *time = PyLong_FromUnsignedLongLong(times[phase]);
        if (time == NULL || PyTuple_SetItem(stamps, phase, time) < 0)
            Py_CLEAR(stamps);
    }
    if (stamps != NULL) // numbers: the collector would do so when it comes by
        PyObject_GC_UnTrack(stamps);
    PyObject *said = PyLong_FromUnsignedLongLong(word);
    if (said != NULL && stamps != NULL)
        result = PyTuple_Pack(2, said, stamps);
    Py_XDECREF(said);
    Py_XDECREF(stamps);
    return result;
}

// ---- UntoldOpener

typedef struct {
    Keeper keeper;
    const struct status_table *status;
    word64 *records, *destinations, *staging;
    size_t slot_words, destinations_words, staging_words;
    struct room_words asked, untold, finished;
    uint64_t lane, aux_at, aux_words;
} UntoldOpener;

static PyObject *opener_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"status",   "slots", "destinations", "staging", "asked", "untold",
                            "finished", "lane",  "aux_at",       "aux_words", NULL};
    const core_state *state = state_of_type(type);
    PyTypeObject *const is = state->words;
    PyObject *status, *words[6];
    Py_ssize_t lane, aux_at, aux_words;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!O!O!O!O!nnn:UntoldOpener", names, state->status_table,
                                     &status, is, &words[0], is, &words[1], is, &words[2], is, &words[3], is,
                                     &words[4], is, &words[5], &lane, &aux_at, &aux_words))
        return NULL;
    UntoldOpener *self = (UntoldOpener *)keeper_new(type);
    if (self == NULL)
        return NULL;
    for (size_t i = 0; i < 6; i++)
        keep(&self->keeper, i, words[i]);
    keep(&self->keeper, 6, status);
    self->status = &((StatusTable *)status)->table;
    const uint64_t num_slots = self->status->num_slots;
    self->records = own_table_of(words[0], "slots", num_slots * SLOT_WORDS);
    self->destinations = self->records == NULL ? NULL : own_table_of(words[1], "destinations", num_slots);
    self->staging = self->destinations == NULL ? NULL : own_table_of(words[2], "staging", num_slots);
    if (self->staging == NULL || require_writable(((StatusTable *)status)->mapping) < 0 ||
        take_rooms(&self->asked, words[3], "asked") < 0 || take_rooms(&self->untold, words[4], "untold") < 0 ||
        take_rooms(&self->finished, words[5], "finished") < 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    self->slot_words = ((Words *)words[0])->count / num_slots;
    self->destinations_words = ((Words *)words[1])->count / num_slots;
    self->staging_words = ((Words *)words[2])->count / num_slots;
    self->lane = (uint64_t)lane;
    self->aux_at = (uint64_t)aux_at;
    self->aux_words = (uint64_t)aux_words;
    if (lane < 0 || aux_at < 0 || aux_words < 0 || self->slot_words > MOST_SLOT_WORDS ||
        self->aux_at + self->aux_words > self->slot_words) {
        PyErr_Format(PyExc_ValueError, "lane: %zd, words of a slot: %zu, aux_at: %zd, aux_words: %zd", lane,
                     self->slot_words, aux_at, aux_words);
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *opener_open(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    UntoldOpener *self = (UntoldOpener *)object;
    uint64_t values[MOST_SLOT_WORDS] = {0}, room;
    uint32_t slot;
    Array aux;
    if (take_count("open", nargs, 5) < 0 || take_index(args[0], "slot", self->status->num_slots, &slot) < 0 ||
        take_u64(args[1], &room) < 0 || take_u64(args[2], &values[SLOT_OPENED_NS]) < 0 ||
        take_u64(args[3], &values[SLOT_DEADLINE_NS]) < 0 || array_open(&aux, args[4], "aux", 4, false) < 0)
        return NULL;
    const bool fits = aux.length == 2 * self->aux_words;
    if (fits)
        memcpy(&values[self->aux_at], aux.data, aux.length * 4);
    else
        PyErr_Format(PyExc_ValueError, "aux: %zu words are not %llu", aux.length,
                     (unsigned long long)(2 * self->aux_words));
    PyBuffer_Release(&aux.view);
    if (!fits)
        return NULL;
    values[SLOT_ROOM] = room;
    values[SLOT_LANE] = self->lane;
    values[SLOT_MAY_WRITE] = 1;
    const struct slot_opening opening = {
        .values = values,
        .is_untold = true,
        .record = {self->records + slot * self->slot_words, self->slot_words},
        .blanks = {{self->destinations + slot * self->destinations_words, self->destinations_words},
                   {self->staging + slot * self->staging_words, self->staging_words}},
    };
    room_forget(&self->finished, room);
    room_count(&self->untold, room, 1);
    const uint64_t epoch = slot_open(self->status, slot, &opening, values[SLOT_OPENED_NS]);
    if (epoch == 0) {
        room_count(&self->untold, room, UINT64_MAX);
        return PyLong_FromLong(0);
    }
    const uint64_t asked = room_is_counted(&self->asked, room) ? OPENER_ASKED : 0;
    return PyLong_FromUnsignedLongLong(epoch << OPENER_EPOCH_SHIFT | asked);
}

static PyMethodDef opener_methods[] = {
    {"open", (PyCFunction)(void (*)(void))opener_open, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot opener_slots[] = {
    {Py_tp_doc, "Opens untold requests of an encoder's client."},
    {Py_tp_new, opener_new},
    {Py_tp_dealloc, keeper_dealloc},
    {Py_tp_traverse, keeper_traverse},
    {Py_tp_clear, keeper_clear},
    {Py_tp_methods, opener_methods},
    {0, NULL},
};

PyType_Spec untold_opener_spec = {"embridge.allocator._core.UntoldOpener", sizeof(UntoldOpener), 0,
                                  CORE_TYPE_FLAGS | Py_TPFLAGS_HAVE_GC, opener_slots};

// ---- UntoldSender

typedef struct {
    Keeper keeper;
    DirectWriter *writer; // kept
    PyObject *binder;     // kept
    struct room_words finished, untold;
    struct direct_column columns[MOST_COLUMNS];
    size_t num_columns;
    uint64_t incarnation;
    word64 *meetings, *succeeded, *ends;
} UntoldSender;

struct leave_call {
    struct sender_leave leave; // first: what a callback is given is this
    UntoldSender *self;
};

static PyObject *sender_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"writer", "binder", "columns", "finished", "untold", "ends", NULL};
    const core_state *state = state_of_type(type);
    PyObject *writer, *binder, *columns, *finished, *untold, *ends;
    Array given;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!OO!O!O!:UntoldSender", names, state->direct_writer, &writer,
                                     state->grant_binder, &binder, &columns, state->words, &finished, state->words,
                                     &untold, state->words, &ends))
        return NULL;
    UntoldSender *self = (UntoldSender *)keeper_new(type);
    if (self == NULL)
        return NULL;
    keep(&self->keeper, 0, writer);
    keep(&self->keeper, 1, binder);
    keep(&self->keeper, 2, finished);
    keep(&self->keeper, 3, untold);
    keep(&self->keeper, 4, ends);
    self->writer = (DirectWriter *)writer;
    self->binder = binder;
    const DirectWriter *w = self->writer;
    self->succeeded = (word64 *)(void *)w->words[OWN_METRICS]->first + w->metrics_at + METRIC_SUCCEEDED;
    if (w->metrics_at + METRIC_SUCCEEDED >= w->words[OWN_METRICS]->count || w->slot_words < SLOT_WORDS) {
        PyErr_Format(PyExc_ValueError, "metrics: %zu words; a slot's record: %llu", w->words[OWN_METRICS]->count,
                     (unsigned long long)w->slot_words);
    } else if (take_rooms(&self->finished, finished, "finished") == 0 &&
               take_rooms(&self->untold, untold, "untold") == 0 &&
               (self->ends = own_table_of(ends, "ends", END_WORDS)) != NULL &&
               binder_there(binder, w->tables[OWN]->table.num_slots, w->tables[THEIRS]->table.num_slots,
                            &self->meetings, &self->incarnation) == 0 &&
               array_open(&given, columns, "columns", 8, false) == 0) {
        if (direct_writer_columns(w, &given, self->columns) == 0)
            self->num_columns = given.length / 2;
        PyBuffer_Release(&given.view);
    }
    if (PyErr_Occurred())
        Py_CLEAR(self);
    return (PyObject *)self;
}

static bool say_leave(struct sender_leave *leave, enum leave_step step)
{
    return say_step(((struct leave_call *)(void *)leave)->self->keeper.before, (int)step);
}

// Release a request whose destination has all rows, and count it. What it came to, None, or NULL with an exception.
static PyObject *leave_request(UntoldSender *self, uint64_t room, uint32_t slot, uint64_t epoch)
{
    const DirectWriter *w = self->writer;
    struct leave_call call = {.self = self};
    struct sender_leave *l = &call.leave;
    l->room = room;
    l->slot = slot;
    l->epoch = epoch;
    l->status = &w->tables[OWN]->table;
    l->there = &w->tables[THEIRS]->table;
    l->record = (word64 *)(void *)w->words[OWN_SLOTS]->first + slot * w->slot_words;
    l->destination = (word64 *)(void *)w->words[OWN_DESTINATIONS]->first + slot * w->destinations_words;
    l->meetings = self->meetings;
    l->finished = &self->finished;
    l->untold = &self->untold;
    l->num_slots_there = l->there->num_slots;
    l->incarnation = self->incarnation;
    l->before = self->keeper.before == NULL ? NULL : say_leave;
    const uint64_t word = status_load(l->status, slot);
    uint64_t times[NUM_PHASES];
    status_stamps(l->status, slot, times);
    // another process may end it just now: what is said is what was seen
    const bool has_left = status_phase(word) == PHASE_SUCCESS && sender_leave(l);
    if (l->is_stopped)
        return NULL;
    if (!has_left)
        Py_RETURN_NONE;
    atomic_fetch_add_explicit(self->succeeded, 1, memory_order_relaxed);
    end_success(l->status, slot, epoch, END_PATH_DIRECT, grant_load(&l->record[SLOT_NUM_ROUNDS]), self->ends);
    return outcome_of(word, times);
}

// Bind, write, ring: of what is granted of these rows, up to which row, and what came of the binding. If `may_leave`,
// and the destination has all rows, the request is released, too: then what it came to.
// (peer, room, slot, epoch, total, may_leave, first, end, addresses)
static PyObject *sender_send(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    UntoldSender *self = (UntoldSender *)object;
    uint64_t span[SPAN_ADDRESSES + MOST_COLUMNS], room, epoch, total;
    uint32_t slot;
    unsigned bound;
    const Py_ssize_t words = (Py_ssize_t)(SPAN_ADDRESSES + self->num_columns);
    const struct status_table *status = &self->writer->tables[OWN]->table;
    if (take_count("send", nargs, 6 + words) < 0 || take_u64(args[1], &room) < 0 ||
        take_index(args[2], "slot", status->num_slots, &slot) < 0 ||
        take_up_to(args[3], "epoch", MAX_EPOCH, &epoch) < 0 ||
        take_up_to(args[4], "total", UINT32_MAX, &total) < 0)
        return NULL;
    const int may_leave = PyObject_IsTrue(args[5]);
    if (may_leave < 0)
        return NULL;
    for (Py_ssize_t i = 0; i < words; i++)
        if (take_u64(args[6 + i], &span[i]) < 0)
            return NULL;
    const uint64_t word = status_load(status, slot);
    if (self->writer->closing || status_epoch(word) != epoch || status_phase(word) >= FIRST_TERMINAL_PHASE)
        return PyLong_FromLong(0);
    if (binder_bind_request(self->binder, args[0], room, slot, epoch, &bound) < 0)
        return NULL;
    long long end = 0;
    if ((bound & (BIND_BOUND | BIND_GONE)) == BIND_BOUND &&
        direct_writer_send(self->writer, slot, epoch, total, self->columns, self->num_columns, span, &end) < 0)
        return NULL;
    if (may_leave && end > 0 && (uint64_t)end == total && bound == BIND_BOUND) {
        PyObject *outcome = leave_request(self, room, slot, epoch);
        if (outcome == NULL || outcome != Py_None)
            return outcome;
        Py_DECREF(outcome);
    }
    const unsigned long long said = (unsigned long long)(end < 0 ? -end : end) << SENDER_END_SHIFT;
    return PyLong_FromUnsignedLongLong(said | (end < 0 ? SENDER_FAILED : 0) | bound);
}

static PyObject *sender_leave_request(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    UntoldSender *self = (UntoldSender *)object;
    uint64_t room, epoch;
    uint32_t slot;
    if (take_count("leave", nargs, 3) < 0 || take_u64(args[0], &room) < 0 ||
        take_index(args[1], "slot", self->writer->tables[OWN]->table.num_slots, &slot) < 0 ||
        take_up_to(args[2], "epoch", MAX_EPOCH, &epoch) < 0)
        return NULL;
    return leave_request(self, room, slot, epoch);
}

static PyMethodDef sender_methods[] = {
    {"send", (PyCFunction)(void (*)(void))sender_send, METH_FASTCALL, NULL},
    {"leave", (PyCFunction)(void (*)(void))sender_leave_request, METH_FASTCALL, NULL},
    {"watch", keeper_watch, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot sender_slots[] = {
    {Py_tp_doc, "Sends untold requests of an encoder's client to one language node, and releases them."},
    {Py_tp_new, sender_new},
    {Py_tp_dealloc, keeper_dealloc},
    {Py_tp_traverse, keeper_traverse},
    {Py_tp_clear, keeper_clear},
    {Py_tp_methods, sender_methods},
    {0, NULL},
};

PyType_Spec untold_sender_spec = {"embridge.allocator._core.UntoldSender", sizeof(UntoldSender), 0,
                                  CORE_TYPE_FLAGS | Py_TPFLAGS_HAVE_GC, sender_slots};

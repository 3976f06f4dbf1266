// The binding of native/slots.h: a method of StatusTable, whose word comes last.
#include "_core.h"

#include "native/slots.h"

// What `object`, a `Words` of all slots, has of this one. -1 with an exception: it is none.
static int part_of(core_state *state, PyObject *object, const char *what, const struct status_table *table,
                   uint32_t slot, struct slot_part *part)
{
    if (!Py_IS_TYPE(object, state->words)) {
        PyErr_Format(PyExc_TypeError, "%s: %R is no Words", what, object);
        return -1;
    }
    const Words *words = (const Words *)object;
    if (require_writable(words->mapping) < 0)
        return -1;
    if (words->stride != 8 || words->count % table->num_slots != 0) {
        PyErr_Format(PyExc_ValueError, "%s: %zu words of stride %zu are not as many for each of %lu slots", what,
                     words->count, words->stride, (unsigned long)table->num_slots);
        return -1;
    }
    part->count = words->count / table->num_slots;
    part->words = (word64 *)(void *)words->first + slot * part->count;
    return 0;
}

static int take_blanks(core_state *state, PyObject *blanks, const struct status_table *table, uint32_t slot,
                       struct slot_opening *opening)
{
    if (!PyTuple_Check(blanks)) {
        PyErr_Format(PyExc_TypeError, "blanks: %R is no tuple", blanks);
        return -1;
    }
    const Py_ssize_t count = PyTuple_Size(blanks);
    if (count > MAX_BLANKS) {
        PyErr_Format(PyExc_ValueError, "blanks: %zd > %d", count, MAX_BLANKS);
        return -1;
    }
    for (Py_ssize_t b = 0; b < count; b++)
        if (part_of(state, PyTuple_GetItem(blanks, b), "blanks", table, slot, &opening->blanks[b]) < 0)
            return -1;
    return 0;
}

static PyObject *open_checked(core_state *state, const struct status_table *table, PyObject *const *args,
                              const Array *record)
{
    struct slot_opening opening = {.values = record->data};
    struct slot_part claim = {.words = NULL};
    uint32_t slot;
    uint64_t now_ns, is_untold;
    if (take_index(args[0], "slot", table->num_slots, &slot) < 0 || take_u64(args[1], &now_ns) < 0 ||
        take_up_to(args[4], "is_untold", 1, &is_untold) < 0 ||
        part_of(state, args[2], "records", table, slot, &opening.record) < 0 ||
        take_blanks(state, args[5], table, slot, &opening) < 0 ||
        (args[6] != Py_None && part_of(state, args[6], "claims", table, slot, &claim) < 0))
        return NULL;
    if (record->length != opening.record.count || record->length < SLOT_WORDS)
        return PyErr_Format(PyExc_ValueError, "record: %zu words are not the %zu of a slot", record->length,
                            opening.record.count);
    if (claim.words != NULL && claim.count != CLAIM_WORDS)
        return PyErr_Format(PyExc_ValueError, "claims: %zu words a slot", claim.count);
    opening.is_untold = is_untold != 0;
    opening.claim = claim.words;
    return PyLong_FromUnsignedLongLong(slot_open(table, slot, &opening, now_ns));
}

PyObject *status_open_record(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const StatusTable *status = (StatusTable *)self;
    Array record;
    if (take_count("open_record", nargs, 7) < 0 || require_writable(status->mapping) < 0 ||
        array_open(&record, args[3], "record", 8, false) < 0)
        return NULL;
    PyObject *epoch = open_checked(state_of_type(Py_TYPE(self)), &status->table, args, &record);
    PyBuffer_Release(&record.view);
    return epoch;
}

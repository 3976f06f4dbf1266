// The binding of native/ends.h: a method of StatusTable, and where its words lie.
#include "_core.h"

#include "native/ends.h"

PyObject *status_count_success(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    const StatusTable *status = (StatusTable *)self;
    uint32_t slot, row;
    uint64_t epoch, path, rounds;
    if (take_count("count_success", nargs, 6) < 0 || take_index(args[0], "slot", status->table.num_slots, &slot) < 0 ||
        take_up_to(args[1], "epoch", MAX_EPOCH, &epoch) < 0 || take_up_to(args[2], "path", END_PATHS - 1, &path) < 0 ||
        take_u64(args[3], &rounds) < 0)
        return NULL;
    if (!Py_IS_TYPE(args[4], state_of_type(Py_TYPE(self))->words)) {
        PyErr_Format(PyExc_TypeError, "ends: %R is no Words", args[4]);
        return NULL;
    }
    const Words *ends = (const Words *)args[4];
    if (require_writable(ends->mapping) < 0 || take_index(args[5], "row", ends->count / END_WORDS, &row) < 0)
        return NULL;
    if (ends->stride != 8)
        return PyErr_Format(PyExc_ValueError, "ends: a stride of %zu bytes is not 8", ends->stride);
    word64 *words = (word64 *)(void *)ends->first + (size_t)row * END_WORDS;
    return PyBool_FromLong(end_success(&status->table, slot, epoch, path, rounds, words));
}

int add_end_constants(PyObject *module)
{
    const struct {
        const char *name;
        long value;
    } constants[] = {
        {"END_REASON", END_REASON}, {"END_REASONS", END_REASONS},     {"END_DELIVERY", END_DELIVERY},
        {"END_PATHS", END_PATHS},   {"END_ROUNDS", END_ROUNDS},       {"END_SUCCEEDED", END_SUCCEEDED},
        {"END_TIMES", END_TIMES},   {"NUM_TIMES", NUM_TIMES},         {"TIME_WORDS", TIME_WORDS},
        {"END_WORDS", END_WORDS},
    };
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
            return -1;
    PyObject *bounds = PyTuple_New(NUM_TIME_BOUNDS);
    for (Py_ssize_t i = 0; bounds != NULL && i < NUM_TIME_BOUNDS; i++) {
        PyObject *bound = PyLong_FromUnsignedLongLong(TIME_BOUNDS_NS[i]);
        if (bound == NULL || PyTuple_SetItem(bounds, i, bound) < 0)
            Py_CLEAR(bounds);
    }
    if (bounds == NULL)
        return -1;
    const int added = PyModule_AddObjectRef(module, "TIME_BOUNDS_NS", bounds);
    Py_DECREF(bounds);
    return added;
}

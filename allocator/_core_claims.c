// The moves of native/claims.h.
#include "_core.h"

#include "native/claims.h"

static word64 *claim_of(core_state *state, const char *function, PyObject *const *args, Py_ssize_t nargs)
{
    uint32_t slot;
    if (take_count(function, nargs, 4) < 0)
        return NULL;
    if (!Py_IS_TYPE(args[0], state->words)) {
        PyErr_Format(PyExc_TypeError, "%s: %R is no Words", function, args[0]);
        return NULL;
    }
    const Words *words = (const Words *)args[0];
    if (words->stride != 8 || require_writable(words->mapping) < 0) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_ValueError, "words: a stride of %zu bytes is not 8", words->stride);
        return NULL;
    }
    if (take_index(args[1], "slot", words->count / CLAIM_WORDS, &slot) < 0)
        return NULL;
    return (word64 *)(void *)words->first + (size_t)slot * CLAIM_WORDS;
}

static PyObject *move_claim(PyObject *module, const char *function, PyObject *const *args, Py_ssize_t nargs,
                            bool (*move)(word64 *, uint64_t, uint32_t))
{
    uint64_t epoch, writer;
    word64 *claim = claim_of(PyModule_GetState(module), function, args, nargs);
    if (claim == NULL || take_up_to(args[2], "epoch", MAX_EPOCH, &epoch) < 0 ||
        take_up_to(args[3], "writer", UINT32_MAX, &writer) < 0)
        return NULL;
    return PyBool_FromLong(move(claim, epoch, (uint32_t)writer));
}

PyObject *core_claim_take(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    return move_claim(module, "claim_take", args, nargs, claim_take);
}

static bool claim_reopen(word64 *claim, uint64_t epoch, uint32_t writer)
{
    return claim_give_back(claim, epoch, writer, false);
}

PyObject *core_claim_give_back(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    return move_claim(module, "claim_give_back", args, nargs, claim_reopen);
}

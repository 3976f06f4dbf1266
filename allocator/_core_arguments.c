// From Python arguments to C values, each checked once, here.
#include "_core.h"

#include <math.h>
#include <string.h>

int take_count(const char *function, Py_ssize_t given, Py_ssize_t expected)
{
    if (given == expected)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd positional arguments: %zd given", function, expected, given);
    return -1;
}

int take_u64(PyObject *argument, uint64_t *value)
{
    if (PyLong_Check(argument)) {
        *value = PyLong_AsUnsignedLongLong(argument);
    } else { // NumPy's integers
        PyObject *number = PyNumber_Index(argument);
        if (number == NULL)
            return -1;
        *value = PyLong_AsUnsignedLongLong(number);
        Py_DECREF(number);
    }
    return *value == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

int take_up_to(PyObject *argument, const char *what, uint64_t limit, uint64_t *value)
{
    if (take_u64(argument, value) < 0)
        return -1;
    if (*value <= limit)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: %llu > %llu", what, (unsigned long long)*value, (unsigned long long)limit);
    return -1;
}

int take_index(PyObject *argument, const char *what, uint64_t length, uint32_t *index)
{
    uint64_t value;
    if (take_u64(argument, &value) == 0) {
        if (value < length && value <= UINT32_MAX) {
            *index = (uint32_t)value;
            return 0;
        }
    } else if (!PyErr_ExceptionMatches(PyExc_OverflowError)) {
        return -1;
    }
    PyErr_Clear();
    PyErr_Format(PyExc_IndexError, "%s: %S is outside 0 to %lld", what, argument, (long long)length - 1);
    return -1;
}

#define LONGEST_S 1e9 // about 31 years: for ever, and still far from overflow in nanoseconds

int take_seconds_as_ns(PyObject *argument, const char *what, int64_t *ns)
{
    const double seconds = PyFloat_AsDouble(argument);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    if (isnan(seconds)) {
        PyErr_Format(PyExc_ValueError, "%s: not a number", what);
        return -1;
    }
    *ns = (int64_t)((seconds < 0 ? 0 : seconds > LONGEST_S ? LONGEST_S : seconds) * 1e9);
    return 0;
}

int take_named(const char *function, PyObject *const *args, Py_ssize_t nargs, PyObject *names_given,
               const char *const *names, Py_ssize_t num_names, Py_ssize_t required, PyObject **out)
{
    if (nargs > num_names) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %zd arguments: %zd given", function, num_names, nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < num_names; i++)
        out[i] = i < nargs ? args[i] : NULL;
    const Py_ssize_t num_given = names_given == NULL ? 0 : PyTuple_Size(names_given);
    for (Py_ssize_t k = 0; k < num_given; k++) {
        PyObject *name = PyTuple_GetItem(names_given, k); // borrowed
        Py_ssize_t i = 0;
        while (i < num_names && PyUnicode_CompareWithASCIIString(name, names[i]) != 0)
            i++;
        if (i == num_names || out[i] != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected or repeated argument '%U'", function, name);
            return -1;
        }
        out[i] = args[nargs + k];
    }
    for (Py_ssize_t i = 0; i < required; i++) {
        if (out[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s() is missing the argument '%s'", function, names[i]);
            return -1;
        }
    }
    return 0;
}

int array_open(Array *array, PyObject *buffer, const char *what, size_t item_bytes, bool writable)
{
    if (PyObject_GetBuffer(buffer, &array->view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
        return -1;
    const size_t size = (size_t)array->view.itemsize, bytes = (size_t)array->view.len;
    if ((size != item_bytes && size != 1) || bytes % item_bytes != 0) {
        PyErr_Format(PyExc_ValueError, "%s: %zu bytes in items of %zu, not in items of %zu", what, bytes, size,
                     item_bytes);
    } else if ((uintptr_t)array->view.buf % item_bytes != 0) {
        PyErr_Format(PyExc_ValueError, "%s: its address is not a multiple of %zu", what, item_bytes);
    } else {
        array->data = array->view.buf;
        array->length = bytes / item_bytes;
        return 0;
    }
    PyBuffer_Release(&array->view);
    return -1;
}

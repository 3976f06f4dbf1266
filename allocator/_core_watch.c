// Looking on: what a handle calls before each of its steps, where a test asks for it.
#include "_core.h"

PyObject *watch_with(PyObject **before, PyObject *callback)
{
    PyObject *old = *before;
    *before = callback == Py_None ? NULL : callback;
    Py_XINCREF(*before);
    Py_XDECREF(old);
    Py_RETURN_NONE;
}

bool say_step(PyObject *before, int step)
{
    if (before == NULL) // it was taken away meanwhile
        return true;
    Py_INCREF(before);
    PyObject *said = PyObject_CallFunction(before, "i", step);
    Py_DECREF(before);
    Py_XDECREF(said);
    return said != NULL;
}

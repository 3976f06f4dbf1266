// Turn and TurnTaker: what two threads of one process take before they work on the same requests, and none waits for.
//
// They live in the process's own memory, and the GIL makes each step one: whoever dies takes them along. A taker is a
// context manager in C, because a signal handler may raise between any two steps of Python code, but not between the
// one that enters a `with` block and the one that notes that it is to be left.
#include "_core.h"

typedef struct {
    PyObject_HEAD
    bool is_taken;
} Turn;

typedef struct {
    PyObject_HEAD
    Turn *turn; // owned
    bool has_it;
} TurnTaker;

static PyObject *turn_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Turn", names))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    return allocate(type, 0);
}

static void turn_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc free_it = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_it(self);
    Py_DECREF(type);
}

static PyObject *taker_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"turn", NULL};
    PyObject *turn;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!:TurnTaker", names, state_of_type(type)->turn, &turn))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    TurnTaker *self = (TurnTaker *)allocate(type, 0);
    if (self != NULL) {
        Py_INCREF(turn);
        self->turn = (Turn *)turn;
    }
    return (PyObject *)self;
}

static void taker_give_back(TurnTaker *self)
{
    if (self->has_it) {
        self->has_it = false;
        self->turn->is_taken = false;
    }
}

static void taker_dealloc(PyObject *self)
{
    taker_give_back((TurnTaker *)self);
    Py_XDECREF((PyObject *)((TurnTaker *)self)->turn);
    turn_dealloc(self);
}

static PyObject *taker_enter(PyObject *object, PyObject *unused)
{
    (void)unused;
    TurnTaker *self = (TurnTaker *)object;
    if (!self->turn->is_taken)
        self->has_it = self->turn->is_taken = true;
    return PyBool_FromLong(self->has_it);
}

static PyObject *taker_exit(PyObject *self, PyObject *unused)
{
    (void)unused;
    taker_give_back((TurnTaker *)self);
    Py_RETURN_NONE;
}

static PyType_Slot turn_slots[] = {
    {Py_tp_doc, "What one thread at a time has."},
    {Py_tp_new, turn_new},
    {Py_tp_dealloc, turn_dealloc},
    {0, NULL},
};

PyType_Spec turn_spec = {"embridge.allocator._core.Turn", sizeof(Turn), 0, CORE_TYPE_FLAGS, turn_slots};

static PyMethodDef taker_methods[] = {
    {"__enter__", taker_enter, METH_NOARGS, NULL},
    {"__exit__", taker_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot taker_slots[] = {
    {Py_tp_doc, "Takes a turn for a `with` block, if nobody has it."},
    {Py_tp_new, taker_new},
    {Py_tp_dealloc, taker_dealloc},
    {Py_tp_methods, taker_methods},
    {0, NULL},
};

PyType_Spec turn_taker_spec = {"embridge.allocator._core.TurnTaker", sizeof(TurnTaker), 0, CORE_TYPE_FLAGS,
                               taker_slots};

// PlainRows: whether what a caller gives are rows that need no second look, and where they lie.
//
// It knows nothing of torch but what it is told: the type of a tensor, and of each buffer its dtype and the shape of a
// row. A tensor is asked as Python asks it, by its attributes and methods; what any of them raises means a second look.
#include "_core.h"

#define MOST_TENSORS 8
#define MOST_TAIL 4

enum { DTYPE, SHAPE, IS_CPU, NUM_ATTRIBUTES };
enum { IS_NEG, IS_CONTIGUOUS, DATA_PTR, NUM_METHODS };

typedef struct {
    PyObject *dtype; // owned; NULL: the rows have no such buffer
    Py_ssize_t tail[MOST_TAIL];
    Py_ssize_t num_tail;
} Kind;

typedef struct {
    PyObject_HEAD
    PyObject *type;
    PyObject *attributes[NUM_ATTRIBUTES];
    PyObject *methods[NUM_METHODS];
    Kind kinds[MOST_TENSORS];
    Py_ssize_t num_kinds;
} PlainRows;

static int take_kind(Kind *kind, PyObject *given)
{
    PyObject *dtype, *tail;
    if (given == Py_None)
        return 0;
    if (!PyTuple_Check(given)) {
        PyErr_Format(PyExc_TypeError, "kinds: %R is neither a tuple nor None", given);
        return -1;
    }
    if (!PyArg_ParseTuple(given, "OO!:kind", &dtype, &PyTuple_Type, &tail))
        return -1;
    kind->num_tail = PyTuple_Size(tail);
    if (kind->num_tail > MOST_TAIL) {
        PyErr_Format(PyExc_ValueError, "kinds: a row of %zd dimensions > %d", kind->num_tail, MOST_TAIL);
        return -1;
    }
    for (Py_ssize_t i = 0; i < kind->num_tail; i++) {
        kind->tail[i] = PyLong_AsSsize_t(PyTuple_GetItem(tail, i));
        if (kind->tail[i] == -1 && PyErr_Occurred())
            return -1;
        if (kind->tail[i] < 0) { // -1 is what a failed look at a shape gives, too
            PyErr_Format(PyExc_ValueError, "kinds: a dimension of %zd", kind->tail[i]);
            return -1;
        }
    }
    Py_INCREF(dtype);
    kind->dtype = dtype;
    return 0;
}

static PyObject *rows_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"tensor_type", "kinds", NULL};
    static const char *const attributes[NUM_ATTRIBUTES] = {"dtype", "shape", "is_cpu"};
    static const char *const methods[NUM_METHODS] = {"is_neg", "is_contiguous", "data_ptr"};
    PyObject *tensor, *kinds;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!:PlainRows", names, &PyType_Type, &tensor, &PyTuple_Type,
                                     &kinds))
        return NULL;
    if (PyTuple_Size(kinds) < 1 || PyTuple_Size(kinds) > MOST_TENSORS)
        return PyErr_Format(PyExc_ValueError, "kinds: %zd is outside 1 to %d", PyTuple_Size(kinds), MOST_TENSORS);
    const allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PlainRows *self = (PlainRows *)alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(tensor);
    self->type = tensor;
    self->num_kinds = PyTuple_Size(kinds);
    bool is_taken = true;
    for (size_t i = 0; is_taken && i < NUM_ATTRIBUTES; i++)
        is_taken = (self->attributes[i] = PyUnicode_InternFromString(attributes[i])) != NULL;
    for (size_t i = 0; is_taken && i < NUM_METHODS; i++)
        is_taken = (self->methods[i] = PyObject_GetAttrString(tensor, methods[i])) != NULL;
    for (Py_ssize_t i = 0; is_taken && i < self->num_kinds; i++)
        is_taken = take_kind(&self->kinds[i], PyTuple_GetItem(kinds, i)) == 0;
    if (is_taken && self->kinds[0].dtype == NULL) {
        PyErr_SetString(PyExc_ValueError, "kinds: the first is None; it says how many rows there are");
        is_taken = false;
    }
    if (!is_taken)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int rows_traverse(PyObject *object, visitproc visit, void *arg)
{
    PlainRows *self = (PlainRows *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->type);
    for (size_t i = 0; i < NUM_METHODS; i++)
        Py_VISIT(self->methods[i]);
    for (size_t i = 0; i < MOST_TENSORS; i++)
        Py_VISIT(self->kinds[i].dtype);
    return 0;
}

static int rows_clear(PyObject *object)
{
    PlainRows *self = (PlainRows *)object;
    Py_CLEAR(self->type);
    for (size_t i = 0; i < NUM_ATTRIBUTES; i++)
        Py_CLEAR(self->attributes[i]);
    for (size_t i = 0; i < NUM_METHODS; i++)
        Py_CLEAR(self->methods[i]);
    for (size_t i = 0; i < MOST_TENSORS; i++)
        Py_CLEAR(self->kinds[i].dtype);
    return 0;
}

static void rows_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    rows_clear(object);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *ask(const PlainRows *self, int method, PyObject *tensor)
{
    return PyObject_CallFunctionObjArgs(self->methods[method], tensor, NULL);
}

// What it answers is True or False, as wanted. False, too, with an exception.
static bool says(const PlainRows *self, int method, PyObject *tensor, bool wanted)
{
    PyObject *answer = ask(self, method, tensor);
    const bool is_so = answer == (wanted ? Py_True : Py_False);
    Py_XDECREF(answer);
    return is_so;
}

// `rows`: how many rows it has to have; 0: any number, which is entered.
static bool has_shape(const PlainRows *self, const Kind *kind, PyObject *tensor, Py_ssize_t *rows)
{
    PyObject *shape = PyObject_GetAttr(tensor, self->attributes[SHAPE]);
    bool fits = shape != NULL && PyTuple_Check(shape) && PyTuple_Size(shape) == kind->num_tail + 1;
    if (fits) {
        const Py_ssize_t count = PyLong_AsSsize_t(PyTuple_GetItem(shape, 0));
        fits = count > 0 && (*rows == 0 || *rows == count);
        *rows = count;
    }
    for (Py_ssize_t i = 0; fits && i < kind->num_tail; i++)
        fits = PyLong_AsSsize_t(PyTuple_GetItem(shape, i + 1)) == kind->tail[i];
    Py_XDECREF(shape);
    return fits;
}

static bool has_attribute(const PlainRows *self, int attribute, PyObject *tensor, PyObject *wanted)
{
    PyObject *value = PyObject_GetAttr(tensor, self->attributes[attribute]);
    Py_XDECREF(value); // it is compared, and not looked at
    return value == wanted;
}

// The address of its first row, a new reference; NULL, with an exception or without: it is not plain.
static PyObject *address_of(const PlainRows *self, const Kind *kind, PyObject *tensor, Py_ssize_t *rows)
{
    if ((PyObject *)Py_TYPE(tensor) != self->type || !has_attribute(self, DTYPE, tensor, kind->dtype) ||
        !has_shape(self, kind, tensor, rows) || !has_attribute(self, IS_CPU, tensor, Py_True) ||
        !says(self, IS_NEG, tensor, false) || !says(self, IS_CONTIGUOUS, tensor, true))
        return NULL;
    PyObject *at = ask(self, DATA_PTR, tensor);
    if (at != NULL && PyObject_IsTrue(at) != 1) // zeroes that lie nowhere
        Py_CLEAR(at);
    return at;
}

static PyObject *rows_span(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    const PlainRows *self = (PlainRows *)object;
    PyObject *found[2 + MOST_TENSORS] = {NULL}, *span = NULL;
    Py_ssize_t rows = 0, num_found = 2;
    uint64_t first;
    if (take_count("span", nargs, self->num_kinds + 1) < 0 || take_u64(args[0], &first) < 0)
        return NULL;
    bool is_plain = true;
    for (Py_ssize_t i = 0; is_plain && i < self->num_kinds; i++) {
        if (self->kinds[i].dtype == NULL)
            is_plain = args[i + 1] == Py_None;
        else
            is_plain = (found[num_found++] = address_of(self, &self->kinds[i], args[i + 1], &rows)) != NULL;
    }
    if (!is_plain && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            goto done; // of a signal handler
        PyErr_Clear();
    }
    if (is_plain) {
        found[0] = PyLong_FromUnsignedLongLong(first);
        found[1] = PyLong_FromUnsignedLongLong(first + (uint64_t)rows);
        span = PyList_New(num_found);
        is_plain = span != NULL && found[0] != NULL && found[1] != NULL;
        for (Py_ssize_t i = 0; is_plain && i < num_found; i++) {
            Py_INCREF(found[i]);
            PyList_SetItem(span, i, found[i]);
        }
        if (!is_plain)
            Py_CLEAR(span);
    } else {
        Py_INCREF(Py_None);
        span = Py_None;
    }
done:
    for (Py_ssize_t i = 0; i < num_found; i++)
        Py_XDECREF(found[i]);
    return span;
}

static PyMethodDef rows_methods[] = {
    {"span", (PyCFunction)(void (*)(void))rows_span, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot rows_slots[] = {
    {Py_tp_doc, "Finds rows that need no second look."},
    {Py_tp_new, rows_new},
    {Py_tp_dealloc, rows_dealloc},
    {Py_tp_traverse, rows_traverse},
    {Py_tp_clear, rows_clear},
    {Py_tp_methods, rows_methods},
    {0, NULL},
};

PyType_Spec plain_rows_spec = {"embridge.allocator._core.PlainRows", sizeof(PlainRows), 0,
                               CORE_TYPE_FLAGS | Py_TPFLAGS_HAVE_GC, rows_slots};

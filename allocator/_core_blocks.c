// BlockCells: the bindings of native/blocks.h.
#include "_core.h"

#define MAX_SLOT ((UINT64_C(1) << CELL_SLOT_BITS) - 1)
_Static_assert(CELL_EPOCH_BITS == EPOCH_BITS, "a cell names any epoch of a slot");

static PyObject *blocks_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"mapping", "cells_offset", "exposure_offset", "num_blocks", NULL};
    PyObject *object;
    Py_ssize_t cells, exposure, num_blocks;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!nnn:BlockCells", names, state_of_type(type)->mapping, &object,
                                     &cells, &exposure, &num_blocks))
        return NULL;
    if (num_blocks < 1 || num_blocks > (Py_ssize_t)MAX_BLOCKS)
        return PyErr_Format(PyExc_ValueError, "num_blocks: %zd is outside 1 to %lu", num_blocks,
                            (unsigned long)MAX_BLOCKS);
    Mapping *mapping = (Mapping *)object;
    struct blocks blocks = {.num_blocks = (uint32_t)num_blocks};
    blocks.cells = (word64 *)(void *)mapping_range(mapping, "cells", cells, (uint64_t)num_blocks * 8, 8);
    if (blocks.cells == NULL)
        return NULL;
    blocks.exposure = (word64 *)(void *)mapping_range(mapping, "exposure", exposure, (uint64_t)num_blocks * 8, 8);
    if (blocks.exposure == NULL)
        return NULL;
    BlockCells *self = (BlockCells *)handle_new(type, mapping);
    if (self == NULL)
        return NULL;
    self->blocks = blocks;
    uint64_t *advice = PyMem_Calloc(blocks_advice_words(blocks.num_blocks), sizeof(uint64_t));
    if (advice == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    blocks_use_advice(&self->blocks, advice);
    return (PyObject *)self;
}

static void blocks_dealloc(PyObject *self)
{
    PyMem_Free(((BlockCells *)self)->blocks.believed_free);
    handle_dealloc(self);
}

static Py_ssize_t blocks_length(PyObject *self) { return (Py_ssize_t)((BlockCells *)self)->blocks.num_blocks; }

static int take_owner(PyObject *slot, PyObject *epoch, uint64_t *owner)
{
    uint64_t slot_index, epoch_number;
    if (take_up_to(slot, "slot", MAX_SLOT, &slot_index) < 0 || take_up_to(epoch, "epoch", MAX_EPOCH, &epoch_number) < 0)
        return -1;
    *owner = cell_owner(slot_index, epoch_number);
    return 0;
}

static PyObject *blocks_acquire_some(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    BlockCells *cells = (BlockCells *)self;
    uint64_t owner, want, lowest, at;
    Array out;
    if (take_count("acquire", nargs, 6) < 0 || require_writable(cells->mapping) < 0 ||
        take_owner(args[0], args[1], &owner) < 0 || take_up_to(args[2], "want", UINT32_MAX, &want) < 0 ||
        take_up_to(args[3], "lowest", UINT32_MAX, &lowest) < 0 || take_u64(args[5], &at) < 0 ||
        array_open(&out, args[4], "out", 4, true) < 0)
        return NULL;
    PyObject *result = NULL;
    if (at > out.length || want > out.length - at)
        PyErr_Format(PyExc_IndexError, "out: %llu blocks from position %llu do not fit in %zu items",
                     (unsigned long long)want, (unsigned long long)at, out.length);
    else
        result = PyLong_FromUnsignedLong(
            blocks_acquire(&cells->blocks, owner, (uint32_t)want, (uint32_t)lowest, (uint32_t *)out.data + at));
    PyBuffer_Release(&out.view);
    return result;
}

static PyObject *blocks_find_run(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct blocks *blocks = &((BlockCells *)self)->blocks;
    uint64_t lowest, length;
    if (take_count("find_run", nargs, 2) < 0 || take_up_to(args[0], "lowest", UINT32_MAX, &lowest) < 0 ||
        take_up_to(args[1], "length", UINT32_MAX, &length) < 0)
        return NULL;
    uint32_t start;
    blocks_look_at_all(blocks);
    const bool is_there = length > 0 && blocks_find(blocks, (uint32_t)lowest, (uint32_t)length, &start);
    return PyLong_FromLong(is_there ? (long)start : -1);
}

// `count` of `buffer` from `first` on, each checked: nothing is moved where one of them names no block.
static int take_indices(const struct blocks *blocks, PyObject *buffer, PyObject *first, PyObject *count, Array *indices,
                        const uint32_t **items, uint64_t *num)
{
    uint64_t from;
    if (take_u64(first, &from) < 0 || take_u64(count, num) < 0 || array_open(indices, buffer, "indices", 4, false) < 0)
        return -1;
    if (from > indices->length || *num > indices->length - from) {
        PyErr_Format(PyExc_IndexError, "indices: %llu from position %llu on are more than the %zu given",
                     (unsigned long long)*num, (unsigned long long)from, indices->length);
    } else {
        uint32_t highest = 0;
        *items = (const uint32_t *)indices->data + from;
        for (uint64_t i = 0; i < *num; i++)
            highest = (*items)[i] > highest ? (*items)[i] : highest;
        if (highest < blocks->num_blocks)
            return 0;
        PyErr_Format(PyExc_IndexError, "indices: block %lu is outside 0 to %lu", (unsigned long)highest,
                     (unsigned long)blocks->num_blocks - 1);
    }
    PyBuffer_Release(&indices->view);
    return -1;
}

enum list_operation { EXPOSE, RELEASE, QUARANTINE };

// (indices, first, count, slot, epoch[, exposure])
static PyObject *blocks_each(PyObject *self, const char *function, enum list_operation operation, PyObject *const *args,
                             Py_ssize_t nargs)
{
    BlockCells *cells = (BlockCells *)self;
    struct blocks *blocks = &cells->blocks;
    uint64_t owner, num, exposure = 0, done = 0;
    const uint32_t *items;
    Array indices;
    if (take_count(function, nargs, operation == EXPOSE ? 6 : 5) < 0 || require_writable(cells->mapping) < 0 ||
        take_owner(args[3], args[4], &owner) < 0 || (operation == EXPOSE && take_u64(args[5], &exposure) < 0) ||
        take_indices(blocks, args[0], args[1], args[2], &indices, &items, &num) < 0)
        return NULL;
    for (uint64_t i = 0; i < num; i++) {
        const uint32_t index = items[i];
        if (index >= blocks->num_blocks) // checked above, but the array may be shared
            continue;
        switch (operation) {
        case EXPOSE:
            done += blocks_expose(blocks, index, owner, exposure);
            break;
        case RELEASE:
            done += blocks_release(blocks, index, owner);
            break;
        case QUARANTINE:
            done += blocks_quarantine(blocks, index, owner);
            break;
        }
    }
    PyBuffer_Release(&indices.view);
    return PyLong_FromUnsignedLongLong(done);
}

static PyObject *blocks_expose_each(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return blocks_each(self, "expose", EXPOSE, args, nargs);
}

static PyObject *blocks_release_each(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return blocks_each(self, "release", RELEASE, args, nargs);
}

static PyObject *blocks_quarantine_each(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    return blocks_each(self, "quarantine", QUARANTINE, args, nargs);
}

static PyObject *blocks_reclaim_owner(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    BlockCells *cells = (BlockCells *)self;
    uint64_t owner;
    if (take_count("reclaim", nargs, 3) < 0 || require_writable(cells->mapping) < 0 ||
        take_owner(args[0], args[1], &owner) < 0)
        return NULL;
    const int quarantine_exposed = PyObject_IsTrue(args[2]);
    if (quarantine_exposed < 0)
        return NULL;
    return PyLong_FromUnsignedLong(blocks_reclaim(&cells->blocks, owner, quarantine_exposed));
}

static PyObject *blocks_end_quarantine_of(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    BlockCells *cells = (BlockCells *)self;
    uint64_t owner;
    if (take_count("end_quarantine", nargs, 2) < 0 || require_writable(cells->mapping) < 0 ||
        take_owner(args[0], args[1], &owner) < 0)
        return NULL;
    return PyLong_FromUnsignedLong(blocks_end_quarantine(&cells->blocks, owner));
}

static PyObject *blocks_end_exposure_to(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    BlockCells *cells = (BlockCells *)self;
    uint64_t mask, value, below;
    if (take_count("end_exposure", nargs, 3) < 0 || require_writable(cells->mapping) < 0 ||
        take_u64(args[0], &mask) < 0 || take_u64(args[1], &value) < 0 || take_u64(args[2], &below) < 0)
        return NULL;
    return PyLong_FromUnsignedLong(blocks_end_exposure(&cells->blocks, mask, value, below));
}

static PyObject *blocks_get_cell(PyObject *self, PyObject *argument)
{
    const struct blocks *blocks = &((BlockCells *)self)->blocks;
    uint32_t index;
    if (take_index(argument, "block", blocks->num_blocks, &index) < 0)
        return NULL;
    atomic_thread_fence(memory_order_acquire); // who has read the block looks whose it still is: not before the reads
    const uint64_t cell = blocks_cell(blocks, index);
    return Py_BuildValue("(IKKK)", (unsigned)cell_state(cell), (unsigned long long)(cell >> CELL_STATE_BITS & MAX_SLOT),
                         (unsigned long long)(cell >> (CELL_STATE_BITS + CELL_SLOT_BITS) & MAX_EPOCH),
                         (unsigned long long)(cell >> CELL_GENERATION_SHIFT));
}

static PyObject *blocks_get_exposure(PyObject *self, PyObject *argument)
{
    const struct blocks *blocks = &((BlockCells *)self)->blocks;
    uint32_t index;
    if (take_index(argument, "block", blocks->num_blocks, &index) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(atomic_load_explicit(&blocks->exposure[index], memory_order_acquire));
}

static PyObject *blocks_get_counts(PyObject *self, PyObject *unused)
{
    (void)unused;
    uint32_t counts[4];
    blocks_counts(&((BlockCells *)self)->blocks, counts);
    return Py_BuildValue("(IIII)", counts[CELL_FREE], counts[CELL_OWNED], counts[CELL_EXPOSED],
                         counts[CELL_QUARANTINED]);
}

static PyObject *blocks_count_free(PyObject *self, PyObject *argument)
{
    uint64_t limit;
    if (take_u64(argument, &limit) < 0)
        return NULL;
    return PyLong_FromUnsignedLong(
        blocks_num_free(&((BlockCells *)self)->blocks, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit));
}

static PyMethodDef blocks_methods[] = {
    {"acquire", (PyCFunction)(void (*)(void))blocks_acquire_some, METH_FASTCALL, NULL},
    {"find_run", (PyCFunction)(void (*)(void))blocks_find_run, METH_FASTCALL, NULL},
    {"expose", (PyCFunction)(void (*)(void))blocks_expose_each, METH_FASTCALL, NULL},
    {"release", (PyCFunction)(void (*)(void))blocks_release_each, METH_FASTCALL, NULL},
    {"quarantine", (PyCFunction)(void (*)(void))blocks_quarantine_each, METH_FASTCALL, NULL},
    {"reclaim", (PyCFunction)(void (*)(void))blocks_reclaim_owner, METH_FASTCALL, NULL},
    {"end_quarantine", (PyCFunction)(void (*)(void))blocks_end_quarantine_of, METH_FASTCALL, NULL},
    {"end_exposure", (PyCFunction)(void (*)(void))blocks_end_exposure_to, METH_FASTCALL, NULL},
    {"cell", blocks_get_cell, METH_O, NULL},
    {"exposure", blocks_get_exposure, METH_O, NULL},
    {"counts", blocks_get_counts, METH_NOARGS, NULL},
    {"num_free", blocks_count_free, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot blocks_slots[] = {
    {Py_tp_doc, "One owner cell a block; one compare-and-swap moves a block."},
    {Py_tp_new, blocks_new},
    {Py_tp_dealloc, blocks_dealloc},
    {Py_sq_length, blocks_length},
    {Py_tp_methods, blocks_methods},
    {0, NULL},
};

PyType_Spec block_cells_spec = {"embridge.allocator._core.BlockCells", sizeof(BlockCells), 0, CORE_TYPE_FLAGS,
                                blocks_slots};

// Mapping: bytes of a descriptor, mapped shared; and what the handles into one have in common.
//
// A mapping is unmapped when nothing refers to it any more: no handle and no exported buffer. It can be let go of
// before: private memory then takes its place at the same address, zeroed and not reserved, until that moment. So a
// pointer that somebody still has goes nowhere else, and is no SIGSEGV; and the memory that was mapped is free.
#define _GNU_SOURCE
#include "_core.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "native/populate.h"
#include "native/shared.h"


// ---- handles

core_state *state_of_type(PyTypeObject *type) { return PyType_GetModuleState(type); }

PyObject *handle_new(PyTypeObject *type, Mapping *mapping)
{
    Handle *self = (Handle *)PyType_GenericAlloc(type, 0);
    if (self != NULL) {
        Py_INCREF((PyObject *)mapping);
        self->mapping = mapping;
    }
    return (PyObject *)self;
}

void handle_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF((PyObject *)((Handle *)self)->mapping);
    PyObject_Free(self);
    Py_DECREF(type);
}

unsigned char *mapping_range(const Mapping *mapping, const char *what, Py_ssize_t offset, uint64_t bytes,
                             size_t alignment)
{
    if (mapping->closed)
        PyErr_Format(PyExc_ValueError, "%s: the mapping is closed", what);
    else if (offset < 0 || (size_t)offset > mapping->size || bytes > mapping->size - (size_t)offset)
        PyErr_Format(PyExc_ValueError, "%s: %llu bytes at offset %zd are outside the mapping of %zu bytes", what,
                     (unsigned long long)bytes, offset, mapping->size);
    else if ((size_t)offset % alignment != 0)
        PyErr_Format(PyExc_ValueError, "%s: offset %zd is not a multiple of %zu", what, offset, alignment);
    else
        return mapping->address + offset;
    return NULL;
}

int require_writable(const Mapping *mapping)
{
    if (mapping->writable)
        return 0;
    PyErr_SetString(PyExc_ValueError, "the mapping is read-only: map it with writable=True to change it");
    return -1;
}

// ---- Mapping

static void *map_aligned(int fd, off_t offset, size_t mapped, size_t alignment, int protection)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (alignment <= page)
        return mmap(NULL, mapped, protection, MAP_SHARED, fd, offset);
    // Reserve more than is needed, put the mapping on the aligned address inside, give the rest back.
    const size_t reserved = mapped + alignment - page;
    unsigned char *base = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return MAP_FAILED;
    unsigned char *address = base + (-(uintptr_t)base & (alignment - 1)), *end = address + mapped;
    if (mmap(address, mapped, protection, MAP_SHARED | MAP_FIXED, fd, offset) == MAP_FAILED) {
        const int error = errno;
        munmap(base, reserved);
        errno = error;
        return MAP_FAILED;
    }
    if (address > base)
        munmap(base, (size_t)(address - base));
    if (end < base + reserved)
        munmap(end, (size_t)(base + reserved - end));
    return address;
}

// At just this address, or not at all: nothing that is mapped there is replaced.
static void *map_at(int fd, off_t offset, size_t mapped, void *address, int protection)
{
    void *got = mmap(address, mapped, protection, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, offset);
    if (got != MAP_FAILED && got != address) { // a kernel before 4.17 takes the address for advice
        munmap(got, mapped);
        errno = EEXIST;
        return MAP_FAILED;
    }
    return got;
}

static PyObject *mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "size", "offset", "writable", "alignment", "address", NULL};
    const Py_ssize_t page = sysconf(_SC_PAGESIZE);
    Py_ssize_t size, offset = 0, alignment = page;
    int fd, writable = 1;
    unsigned long long wanted = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "in|$npnK:Mapping", names, &fd, &size, &offset, &writable,
                                     &alignment, &wanted))
        return NULL;
    if (size < 1 || size > PY_SSIZE_T_MAX / 4)
        return PyErr_Format(PyExc_ValueError, "size: %zd bytes, not a size", size);
    if (offset < 0 || offset > PY_SSIZE_T_MAX / 4 || offset % page != 0)
        return PyErr_Format(PyExc_ValueError, "offset: %zd is not a multiple of a page of %zd bytes", offset, page);
    if (alignment < 1 || alignment > PY_SSIZE_T_MAX / 4 || (alignment & (alignment - 1)) != 0)
        return PyErr_Format(PyExc_ValueError, "alignment: %zd is not a power of two", alignment);
    if ((wanted & (unsigned long long)(alignment - 1)) != 0 || wanted % (unsigned long long)page != 0)
        return PyErr_Format(PyExc_ValueError, "address: %llu is not a multiple of the alignment", wanted);
    // Not fstat, for which glibc has a symbol since 2.33 alone: wheels are for 2.28, too.
    struct statx file;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_SIZE, &file) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (file.stx_size < (uint64_t)(offset + size)) { // mmap would succeed, and the first touch beyond it be a SIGBUS
        PyObject *text =
            PyUnicode_FromFormat("mapping of %zd bytes: the file has %lld", offset + size, (long long)file.stx_size);
        PyObject *arguments = text == NULL ? NULL : Py_BuildValue("(iN)", ENXIO, text);
        PyErr_SetObject(PyExc_OSError, arguments);
        Py_XDECREF(arguments);
        return NULL;
    }
    const size_t mapped = ((size_t)size + page - 1) & ~((size_t)page - 1);
    void *address;
    Py_BEGIN_ALLOW_THREADS
    const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    address = wanted != 0 ? map_at(fd, (off_t)offset, mapped, (void *)(uintptr_t)wanted, protection)
                          : map_aligned(fd, (off_t)offset, mapped, (size_t)alignment, protection);
    Py_END_ALLOW_THREADS
    if (address == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    Mapping *self = (Mapping *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        munmap(address, mapped);
        return NULL;
    }
    self->address = address;
    self->size = (size_t)size;
    self->mapped = mapped;
    self->writable = writable;
    return (PyObject *)self;
}

static void mapping_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Mapping *mapping = (Mapping *)self;
    if (mapping->address != NULL)
        munmap(mapping->address, mapping->mapped);
    PyObject_Free(self);
    Py_DECREF(type);
}

static int mapping_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    Mapping *mapping = (Mapping *)self;
    if (mapping->closed) {
        view->obj = NULL;
        PyErr_SetString(PyExc_BufferError, "the mapping is closed");
        return -1;
    }
    if (PyBuffer_FillInfo(view, self, mapping->address, (Py_ssize_t)mapping->size, !mapping->writable, flags) < 0)
        return -1;
    mapping->views++;
    return 0;
}

// 0, or the errno; then it stays mapped.
static int replace_memory(Mapping *mapping, int protection)
{
    if (mapping->released)
        return 0;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(mapping->address, mapping->mapped, protection, flags, -1, 0) == MAP_FAILED)
        return errno;
    mapping->released = true;
    return 0;
}

static int release_memory(Mapping *mapping) { return replace_memory(mapping, PROT_READ | PROT_WRITE); }

static void mapping_releasebuffer(PyObject *self, Py_buffer *view)
{
    (void)view;
    Mapping *mapping = (Mapping *)self;
    if (--mapping->views == 0 && mapping->closed)
        (void)release_memory(mapping); // else with the last reference
}

static PyObject *mapping_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    Mapping *mapping = (Mapping *)self;
    mapping->closed = true;
    if (mapping->views == 0 && (errno = release_memory(mapping)) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromSsize_t(mapping->released ? 0 : mapping->views);
}

static PyObject *mapping_discard(PyObject *self, PyObject *unused)
{
    (void)unused;
    Mapping *mapping = (Mapping *)self;
    mapping->closed = true;
    if ((errno = release_memory(mapping)) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

// As `discard`, in a process that has no use of it: what may be written to counts as memory that this process may want,
// where a machine promises no more than it has (vm.overcommit_memory = 2).
static PyObject *mapping_abandon(PyObject *self, PyObject *unused)
{
    (void)unused;
    Mapping *mapping = (Mapping *)self;
    mapping->closed = true;
    if ((errno = replace_memory(mapping, PROT_NONE)) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

// The whole pages that hold [offset, offset + size).
static int take_pages(const Mapping *mapping, const char *function, PyObject *const *args, Py_ssize_t nargs,
                      PyObject *names_given, unsigned char **address, size_t *bytes)
{
    static const char *const names[] = {"offset", "size"};
    PyObject *given[2];
    if (take_named(function, args, nargs, names_given, names, 2, 2, given) < 0)
        return -1;
    uint64_t offset, size;
    if (take_up_to(given[0], "offset", mapping->size, &offset) < 0 ||
        take_up_to(given[1], "size", mapping->size - offset, &size) < 0)
        return -1;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), first = offset & ~(page - 1);
    const size_t end = size == 0 ? first : (offset + size + page - 1) & ~(page - 1);
    *address = mapping->address + first;
    *bytes = end - first;
    return 0;
}

static int populate(unsigned char *address, size_t bytes, bool writable)
{
    const int error = populate_pages(address, bytes, writable);
    if (error != EINVAL)
        return error;
    // A kernel before 5.14: touch each page by an operation that changes nothing, even while others write there.
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t at = 0; at < bytes; at += page) {
        _Atomic unsigned char *byte = (_Atomic unsigned char *)(address + at);
        if (writable)
            atomic_fetch_or_explicit(byte, 0, memory_order_relaxed);
        else
            (void)atomic_load_explicit(byte, memory_order_relaxed);
    }
    return 0;
}

static PyObject *mapping_populate(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names_given)
{
    const Mapping *mapping = (Mapping *)self;
    unsigned char *address;
    size_t bytes;
    if (take_pages(mapping, "populate", args, nargs, names_given, &address, &bytes) < 0)
        return NULL;
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
    if (bytes != 0)
        error = populate(address, bytes, mapping->writable);
    Py_END_ALLOW_THREADS
    if (error != 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

// Pages are locked as they come. So what the limits say is known at once, and no page is waited for.
static PyObject *mapping_lock(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names_given)
{
    unsigned char *address;
    size_t bytes;
    if (take_pages((Mapping *)self, "lock", args, nargs, names_given, &address, &bytes) < 0)
        return NULL;
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
    if (bytes != 0 && mlock2(address, bytes, MLOCK_ONFAULT) < 0)
        error = errno;
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(error);
}

static PyObject *mapping_advise_huge(PyObject *self, PyObject *unused)
{
    (void)unused;
    const Mapping *mapping = (Mapping *)self;
    return PyLong_FromLong(madvise(mapping->address, mapping->mapped, MADV_HUGEPAGE) < 0 ? errno : 0);
}

static PyObject *mapping_get_size(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(((Mapping *)self)->size);
}

static PyObject *mapping_get_address(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromVoidPtr(((Mapping *)self)->address);
}

static PyMethodDef mapping_methods[] = {
    {"populate", (PyCFunction)(void (*)(void))mapping_populate, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"lock", (PyCFunction)(void (*)(void))mapping_lock, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"advise_huge", mapping_advise_huge, METH_NOARGS, NULL},
    {"close", mapping_close, METH_NOARGS, NULL},
    {"discard", mapping_discard, METH_NOARGS, NULL},
    {"abandon", mapping_abandon, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef mapping_properties[] = {
    {"size", mapping_get_size, NULL, NULL, NULL},
    {"address", mapping_get_address, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot mapping_slots[] = {
    {Py_tp_doc, "A shared mapping of a range of a descriptor's bytes; every view and handle keeps it."},
    {Py_tp_new, mapping_new},
    {Py_tp_dealloc, mapping_dealloc},
    {Py_bf_getbuffer, mapping_getbuffer},
    {Py_bf_releasebuffer, mapping_releasebuffer},
    {Py_tp_methods, mapping_methods},
    {Py_tp_getset, mapping_properties},
    {0, NULL},
};

PyType_Spec mapping_spec = {"embridge.allocator._core.Mapping", sizeof(Mapping), 0, CORE_TYPE_FLAGS, mapping_slots};

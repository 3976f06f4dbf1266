// Filling a process's page table ahead of a copy.
//
// The pages of a payload are there, but each process maps each of them anew when it first goes there. By page faults
// that takes about 1 us for every 4 KiB, in a guest more: longer than the copy of what is on the page. Asked for in one
// call it takes a quarter of that.
#ifndef EMBRIDGE_NATIVE_POPULATE_H
#define EMBRIDGE_NATIVE_POPULATE_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ // Linux 5.14
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

// Whole pages, of a mapping of this process. Returns 0 or errno; EINVAL where the kernel does not know how to.
static inline int populate_pages(unsigned char *address, size_t bytes, bool writable)
{
    int error;
    do
        error = madvise(address, bytes, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) < 0 ? errno : 0;
    while (error == EINTR || error == EAGAIN);
    return error;
}

// The pages on which these bytes lie, to be written to. Where it fails, they come one by one, as they do without it.
static inline void populate_around(unsigned char *first, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)first & ~(page - 1);
    const int before = errno;
    populate_pages((unsigned char *)begin, (((uintptr_t)first + bytes + page - 1) & ~(page - 1)) - begin, true);
    errno = before;
}

#endif

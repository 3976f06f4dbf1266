// What the two bindings of the shelf share.
#ifndef EMBRIDGE_CORE_SHELF_H
#define EMBRIDGE_CORE_SHELF_H

#include "_core.h"

#include "native/shelf.h"

// Each of these returns 0, or -1 with an exception.
// From two arguments, the hash (16 bytes) and the key itself.
HIDDEN int shelf_take_key(PyObject *const *args, struct shelf_key *key);
// From record, heads, items, cells and uses, in this order.
HIDDEN int shelf_take_tables(struct shelf *shelf, Words *const *words, Py_ssize_t num_words, bool is_writable);

#endif

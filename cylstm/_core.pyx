# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=True
"""The bindings: check every array, fill the C structs once, call the core.

All validation of arrays is here, before any memory is touched: the C core trusts its caller.
"""
cimport cython
from cpython.exc cimport PyErr_Occurred
from cpython.object cimport PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport SIZE_MAX, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
cimport numpy as cnp

from cylstm cimport _c

import operator
import os
import sys
import threading
import time
from collections.abc import Mapping

import numpy as np

cnp.import_array()

# Work that takes about 50 microseconds: below it, releasing the GIL costs more than it gains.
cdef size_t GIL_PACK_BYTES = 256 << 10, GIL_STEP_WEIGHTS = 64 << 10
cdef double GIL_FLOPS_SIMD = 2.5e6, GIL_FLOPS_SCALAR = 2.5e5

# What threads of Python share and change without a lock, where there is no GIL to be one.
cdef extern from "<stdatomic.h>" nogil:
    ctypedef int atomic_int
    ctypedef uintptr_t atomic_uintptr_t
    ctypedef int memory_order
    const memory_order memory_order_relaxed, memory_order_release
    int exchange "atomic_exchange" (atomic_int *shared, int value)
    int add "atomic_fetch_add" (atomic_int *shared, int value)
    uintptr_t exchange_pointer "atomic_exchange" (atomic_uintptr_t *shared, uintptr_t value)
    void store "atomic_store_explicit" (atomic_int *shared, int value, memory_order order)
    void store_pointer "atomic_store_explicit" (atomic_uintptr_t *shared, uintptr_t value,
                                                memory_order order)


cpdef str with_article(str word):
    """A name in an error message, of a type as a rule, behind "a" or "an", by how it is spoken."""
    cdef str start = word.lower()
    cdef bint vowel
    if word[:2].isupper() or start[:2] == "nd":  # letter by letter: LSTM, ndarray
        vowel = start.startswith(tuple("aefhilmnorsx"))
    else:
        vowel = start.startswith(tuple("aeiou")) and not start.startswith(("uint", "uni", "use"))
    return ("an " if vowel else "a ") + word


cpdef str kind_of(object value):
    """What a value is that should be something else: "an int"."""
    return with_article(type(value).__name__)


# One extension, since each would link a core, and so a pool, of its own; in parts, each of which
# uses what is above it.
include "_kernels.pxi"
include "_sharing.pxi"
include "_memory.pxi"
include "_dims.pxi"
include "_packs.pxi"
include "_arrays.pxi"
include "_call.pxi"
include "_tangents.pxi"
include "_tape.pxi"
include "_linear.pxi"
include "_optim.pxi"
include "_stream.pxi"
include "_api.pxi"

# Where a user finds them; Cython would have it that they are of this module.
(<PyTypeObject *>Tape).tp_name = "cylstm.Tape"
(<PyTypeObject *>Stream).tp_name = "cylstm.Stream"

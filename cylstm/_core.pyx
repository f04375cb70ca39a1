# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=True
"""The bindings: check every array, fill the C structs once, call the core.

All validation of arrays is here, before any memory is touched: the C core trusts its caller.
"""
cimport cython
from cpython.exc cimport PyErr_Occurred
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc
cimport numpy as cnp

from cylstm cimport _c

import os
import sys
import threading

import numpy as np

cnp.import_array()

# Work that takes about 50 microseconds: below it, letting go of the GIL costs more than it gives.
cdef size_t GIL_PACK_BYTES = 256 << 10, GIL_STEP_WEIGHTS = 64 << 10
cdef double GIL_FLOPS_SIMD = 2.5e6, GIL_FLOPS_SCALAR = 2.5e5
# The most memory that a system can give. Not far beyond it, a size in bytes wraps.
cdef double MOST_BYTES = sys.maxsize

# What threads of Python share and change without a lock, where there is no GIL to be one.
cdef extern from "<stdatomic.h>" nogil:
    ctypedef int atomic_int
    ctypedef uintptr_t atomic_uintptr_t
    ctypedef int memory_order
    const memory_order memory_order_relaxed, memory_order_release
    int exchange "atomic_exchange" (atomic_int *shared, int value)
    uintptr_t exchange_pointer "atomic_exchange" (atomic_uintptr_t *shared, uintptr_t value)
    void store "atomic_store_explicit" (atomic_int *shared, int value, memory_order order)
    void store_pointer "atomic_store_explicit" (atomic_uintptr_t *shared, uintptr_t value,
                                                memory_order order)

include "_kernels.pxi"

# ------------------------------------------------------------------------------- calls


cdef extern from "Python.h":
    # Cython's own declaration would print the exception here, where none can be raised.
    int check_signals "PyErr_CheckSignals" () noexcept


cdef int _poll(void *arg) noexcept nogil:
    with gil:
        return check_signals() != 0


cdef bint _answers_signals() except -1:
    """Whether this is the thread in which Python runs signal handlers.

    The others may not be polled: Python ends a daemon thread that asks for the GIL while the
    interpreter shuts down, and helpers would go on in the memory of a call that is no more.
    """
    return threading.get_ident() == threading.main_thread().ident


cdef int _raise_pending() except -1:
    return -1 if PyErr_Occurred() != NULL else 0


cdef extern from *:
    """
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    /* Ask for huge pages: what is read over and over wants few page translations. */
    static void use_huge_pages(void *start, size_t size)
    {
    #if defined(MADV_HUGEPAGE)
        const uintptr_t huge = (uintptr_t)1 << 21;
        const uintptr_t first = ((uintptr_t)start + huge - 1) & ~(huge - 1);
        const uintptr_t end = ((uintptr_t)start + size) & ~(huge - 1);
        if (first < end) (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
    #else
        (void)start, (void)size;
    #endif
    }
    """
    void use_huge_pages(void *start, size_t size) noexcept nogil


@cython.auto_pickle(False)  # a pointer is of no use elsewhere, and clang won't compile the code
cdef class Spare:
    """One piece of memory that nobody uses, kept for the next that asks for about as much: what
    the system hands out anew it must first fill with zeros, which costs as much as writing it.

    A piece begins with its size.
    """

    cdef atomic_uintptr_t piece

    cdef void *take(self, size_t size) noexcept:
        """What is kept, or NULL where it is too small or far too large, and then let go."""
        cdef void *piece = <void *>exchange_pointer(&self.piece, 0)
        if piece == NULL or size <= (<size_t *>piece)[0] <= 2 * size:
            return piece
        free(piece)
        return NULL

    cdef void keep(self, void *piece) noexcept:
        """Keep it, or nothing where it is NULL, and let go what was kept."""
        free(<void *>exchange_pointer(&self.piece, <uintptr_t>piece))

    def __dealloc__(self):
        self.keep(NULL)


@cython.no_gc
cdef class Memory:
    """Memory for the core, aligned; with the object it is freed, or goes to the spare."""

    cdef void *piece
    cdef void *start
    cdef readonly size_t size
    cdef Spare spare

    def __cinit__(self, size_t size, Spare spare=None):
        self.size, self.spare = size, spare
        if spare is not None:
            self.piece = spare.take(size)
        if self.piece == NULL:
            self.piece = malloc(sizeof(size_t) + _c.CYLSTM_ALIGN + size)
            if self.piece == NULL:
                raise MemoryError(f"no memory for {size} bytes")
            (<size_t *>self.piece)[0] = size
        self.start = <void *>((<uintptr_t>self.piece + sizeof(size_t) + _c.CYLSTM_ALIGN - 1)
                              & ~<uintptr_t>(_c.CYLSTM_ALIGN - 1))
        use_huge_pages(self.start, size)

    cdef cnp.ndarray array(self, tuple shape, int typenum):
        """An array at the start of this memory, which it keeps alive."""
        cdef cnp.npy_intp sizes[5]
        cdef int n = len(shape), k
        for k in range(n):
            sizes[k] = shape[k]
        cdef cnp.ndarray array = cnp.PyArray_SimpleNewFromData(n, sizes, typenum, self.start)
        cnp.set_array_base(array, self)
        return array

    def __dealloc__(self):
        if self.spare is None:
            free(self.piece)
        else:
            self.spare.keep(self.piece)


cdef class Dims:
    """The sizes of an LSTM, and the kernels that serve it."""

    cdef _c.cylstm_dims c
    cdef const _c.cylstm_kernels *kernels
    cdef readonly object dtype
    cdef int typenum
    cdef double gil_flops
    cdef Py_ssize_t L, D, inputs, H, R  # "I" would collide with <complex.h>
    cdef Spare tapes  # of training, which makes one after another; inference lets it go

    def __cinit__(self, layers, directions, input, hidden, proj, bias, dtype, isa=None):
        self.dtype = np.dtype(dtype)
        self.typenum = self.dtype.num
        self.tapes = Spare()
        self.L, self.D, self.inputs, self.H = layers, directions, input, hidden
        self.R = proj or hidden
        self.c = _c.cylstm_dims(layers, directions, input, hidden, proj, bias,
                                8 * self.dtype.itemsize)
        cdef bytes name = (isa or ISA).encode()
        self.kernels = _c.cylstm_find_kernels(name, self.c.bits)
        if self.kernels == NULL:
            raise ValueError(f"isa {isa!r} can't run here, expected one of {ISA_AVAILABLE}")
        self.gil_flops = GIL_FLOPS_SCALAR if name == b"scalar" else GIL_FLOPS_SIMD

    cdef void pack_context(self, _c.cylstm_context *ctx, int threads) noexcept:
        """A context without products, for packing."""
        ctx.kernels = self.kernels
        ctx.threads = threads
        ctx.sgemm = NULL
        ctx.dgemm = NULL
        ctx.poll = NULL
        ctx.poll_arg = NULL

    cdef int fill_context(self, _c.cylstm_context *ctx, int threads, bint polled) except -1:
        self.pack_context(ctx, threads)
        store_pointer(&_last, <uintptr_t>self.kernels, memory_order_relaxed)
        if polled and _answers_signals():
            ctx.poll = _poll
        if _force_blas:
            _load_blas()
            if self.c.bits == 32:
                ctx.sgemm = _sgemm
            else:
                ctx.dgemm = _dgemm
        return 0

    cdef bint fits(self, double T, double B, bint kept, int threads):
        """Whether what the core takes for a call surely has a size: in doubles, which don't
        overflow. `kept` is for a tape and its backward."""
        cdef double L = self.L, D = self.D, inputs = self.inputs, R = self.R
        cdef double H = self.H + 32  # with padding
        cdef double reals = (8 if kept else 4) * L * D * H * B  # states
        reals += (48 * threads + 256) * 4 * H                   # merged inputs
        reals += min(L, 3) * D * R * T * B                      # y, and what is between layers
        if kept:
            reals += L * D * (5 * self.H + R) * T * B + (10 * H + inputs) * (B + 512)
        return reals * (self.c.bits // 8) < MOST_BYTES

    cdef bint releases_gil(self, double rows):
        return _c.cylstm_forward_flops(&self.c, rows) >= self.gil_flops


cpdef int _threads(object threads) except -1:
    """The number of threads of a call: its own or the default."""
    if threads is None:
        return _default_threads
    if isinstance(threads, bool) or not hasattr(threads, "__index__"):
        raise TypeError(f"threads is {threads!r}, expected an integer or None")
    n = threads.__index__()
    if not 1 <= n <= 256:
        raise ValueError(f"threads is {n}, expected 1 to 256")
    return n


@cython.auto_pickle(False)
cdef class Pack:
    """The panels for calls, or those for backward, once they are made."""

    cdef bint backward
    cdef Memory memory
    cdef atomic_int made, used


cdef class Packed:
    """One block of weights as the kernels read it: each of its two packs is made at first need.

    A call of one step uses each weight once. The first to use these reads them raw, for in training
    it may be the only one (`once`); whoever comes next has them packed.
    """

    cdef Dims dims
    cdef cnp.ndarray flat
    cdef Pack forward, backward
    cdef object lock

    def __cinit__(self, Dims dims not None, cnp.ndarray flat not None, tuple spare=None,
                  Packed before=None, int threads=1):
        """Take `flat`. The packs will go into `spare`: `memory` of another, now unread. If the
        block `before` this one was packed for the forward pass, so is this at once: no call waits.
        """
        if flat.dtype != dims.dtype or flat.shape[0] != <Py_ssize_t>_c.cylstm_raw_count(&dims.c):
            raise ValueError(f"flat holds {flat.size} {flat.dtype}, expected all weights, "
                             f"{dims.dtype}")
        self.dims, self.flat, self.lock = dims, flat, threading.Lock()
        self.forward, self.backward = Pack(), Pack()
        self.backward.backward = True
        if spare is not None:
            self.forward.memory, self.backward.memory = spare
        if before is not None and before.forward.made != 0:
            self.read(self.forward, False, threads)

    @property
    def memory(self):
        """The memory of both packs, without the weights that this object keeps alive."""
        with self.lock:
            return self.forward.memory, self.backward.memory

    @property
    def made(self):
        """Whether there is a pack for calls, and one for backward."""
        return self.forward.made != 0, self.backward.made != 0

    cdef const void *read(self, Pack pack, bint once, int threads) except? NULL:
        """The panels of `pack`, made if need be. NULL: read raw weights."""
        if pack.made:
            return pack.memory.start
        if once and not exchange(&pack.used, True):
            return NULL
        with self.lock:
            if not pack.made:
                self.make(pack, threads)
                pack.made = True
        return pack.memory.start

    cdef int make(self, Pack pack, int threads) except -1:
        cdef _c.cylstm_context ctx
        cdef const _c.cylstm_dims *dims = &self.dims.c
        self.dims.pack_context(&ctx, threads)
        if pack.memory is None:
            pack.memory = Memory(_c.cylstm_packed_backward_size(&ctx, dims) if pack.backward
                                 else _c.cylstm_packed_size(&ctx, dims))
        cdef const void *raw = cnp.PyArray_DATA(self.flat)
        cdef void *packed = pack.memory.start
        cdef bint backward = pack.backward
        if pack.memory.size < GIL_PACK_BYTES:
            pack_weights(&ctx, dims, backward, raw, packed)
        else:
            with nogil:
                pack_weights(&ctx, dims, backward, raw, packed)
        return 0


cdef void pack_weights(const _c.cylstm_context *ctx, const _c.cylstm_dims *dims, bint backward,
                       const void *raw, void *packed) noexcept nogil:
    if backward:
        _c.cylstm_pack_backward(ctx, dims, raw, packed)
    else:
        _c.cylstm_pack_weights(ctx, dims, raw, packed)


include "_arrays.pxi"


cdef class Problem:
    """One call's arrays, checked: what forward and backward have in common."""

    cdef Dims dims
    cdef Packed packed
    cdef _c.cylstm_sequence seq
    cdef Py_ssize_t T, B
    cdef bint batched, batch_first
    cdef cnp.ndarray x, h_0, c_0, y, h_n, c_n
    cdef cnp.ndarray lengths
    cdef double rows

    cdef tuple outer(self, Py_ssize_t width):
        """The shape of x or y."""
        if not self.batched:
            return (self.T, width)
        if self.batch_first:
            return (self.B, self.T, width)
        return (self.T, self.B, width)

    cdef tuple state(self, Py_ssize_t width):
        """The shape of a state."""
        cdef Py_ssize_t n = self.dims.L * self.dims.D
        if not self.batched:
            return (n, width)
        return (n, self.B, width)

    cdef void strides(self, cnp.ndarray array, ptrdiff_t *t, ptrdiff_t *b) noexcept:
        """Strides in elements by time and batch."""
        cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(array)
        cdef int time = 1 if self.batched and self.batch_first else 0
        t[0] = cnp.PyArray_STRIDE(array, time) // size
        b[0] = cnp.PyArray_STRIDE(array, 1 - time) // size if self.batched else 0

    cdef int check(self, Packed packed, object x, object states, object lengths,
                   bint batch_first, int threads, bint kept) except -1:
        cdef Dims dims = packed.dims
        self.packed, self.dims, self.batch_first = packed, dims, batch_first
        cdef cnp.ndarray a = _as_array(x, "x", dims)
        cdef int n = cnp.PyArray_NDIM(a)
        if n != 2 and n != 3:
            raise ValueError(f"x has shape {(<object>a).shape}, expected "
                             f"{'(B, T, I)' if batch_first else '(T, B, I)'} or unbatched (T, I) "
                             f"with I = {dims.inputs}")
        self.batched = n == 3
        cdef int time = 1 if self.batched and batch_first else 0
        self.T = cnp.PyArray_DIM(a, time)
        self.B = cnp.PyArray_DIM(a, 1 - time) if self.batched else 1
        if cnp.PyArray_DIM(a, n - 1) != dims.inputs:
            raise ValueError(f"x has shape {(<object>a).shape}, whose last size is "
                             f"{cnp.PyArray_DIM(a, n - 1)}, expected input_size {dims.inputs}")
        if self.T == 0:
            raise ValueError(f"x has shape {(<object>a).shape}: no time steps, expected at least 1")
        if not dims.fits(<double>self.T, <double>self.B, kept, threads):
            raise ValueError(f"x has shape {(<object>a).shape}: too large, the arrays of the call "
                             "would not fit the address space")
        if lengths is not None:
            self.lengths = _check_lengths(lengths, self.T, self.B, self.batched)
            self.rows = float((<object>self.lengths).sum())
        else:
            self.rows = <double>self.T * <double>self.B
        if states is not None:
            if not isinstance(states, (tuple, list)) or len(states) != 2:
                raise TypeError(f"states is a {type(states).__name__}, expected None or a tuple "
                                "(h_0, c_0)")
            self.h_0 = _check_whole(states[0], "h_0", dims, self.state(dims.R))
            self.c_0 = _check_whole(states[1], "c_0", dims, self.state(dims.H))
        self.x = _rows_of(a)
        return 0

    cdef int allocate(self, object out=None) except -1:
        """Outputs, and the struct that points to everything."""
        cdef Dims dims = self.dims
        shape = self.outer(dims.D * dims.R)
        if out is None:
            self.y = np.empty(shape, dims.dtype)
        else:
            self.y = _check_out(out, dims, shape)
            self.x = _apart(self.x, self.y)
            if self.h_0 is not None:
                self.h_0, self.c_0 = _apart(self.h_0, self.y), _apart(self.c_0, self.y)
        self.h_n = np.empty(self.state(dims.R), dims.dtype)
        self.c_n = np.empty(self.state(dims.H), dims.dtype)
        self.seq.T, self.seq.B = self.T, self.B
        self.seq.lengths = NULL
        if self.lengths is not None:
            self.seq.lengths = <const size_t *>cnp.PyArray_DATA(self.lengths)
        self.seq.x = cnp.PyArray_DATA(self.x)
        self.strides(self.x, &self.seq.x_t, &self.seq.x_b)
        self.seq.h_0 = NULL if self.h_0 is None else cnp.PyArray_DATA(self.h_0)
        self.seq.c_0 = NULL if self.c_0 is None else cnp.PyArray_DATA(self.c_0)
        self.seq.y = cnp.PyArray_DATA(self.y)
        self.strides(self.y, &self.seq.y_t, &self.seq.y_b)
        self.seq.h_n = cnp.PyArray_DATA(self.h_n)
        self.seq.c_n = cnp.PyArray_DATA(self.c_n)
        return 0

    cdef int run(self, int threads) except -1:
        cdef _c.cylstm_context ctx
        cdef Dims dims = self.dims
        cdef bint release = dims.releases_gil(self.rows)
        dims.fill_context(&ctx, threads, release)
        if self.B == 0:
            return 0
        cdef Packed weights = self.packed
        cdef bint once = _c.cylstm_reads_raw(&ctx, &dims.c, self.T, self.B)
        cdef const void *packed = weights.read(weights.forward, once, threads)
        self.seq.raw = NULL
        if packed == NULL:
            self.seq.raw = cnp.PyArray_DATA(weights.flat)
            release = release or cnp.PyArray_NBYTES(weights.flat) >= <Py_ssize_t>GIL_PACK_BYTES
        cdef Memory scratch = Memory(_c.cylstm_forward_scratch(&ctx, &dims.c, &self.seq))
        if release:
            with nogil:
                _c.cylstm_forward(&ctx, &dims.c, packed, &self.seq, scratch.start)
            _raise_pending()
        else:
            _c.cylstm_forward(&ctx, &dims.c, packed, &self.seq, scratch.start)
        return 0


def forward(Packed packed not None, x, states, lengths, threads, bint batch_first, out):
    """Inference: (y, (h_n, c_n)), new arrays but for `out`. See LSTM.__call__."""
    cdef Problem p = Problem()
    cdef int n = _threads(threads)
    p.check(packed, x, states, lengths, batch_first, n, False)
    p.allocate(out)
    packed.dims.tapes.keep(NULL)
    p.run(n)
    return p.y, (p.h_n, p.c_n)


# ------------------------------------------------------------------------------- tapes


cdef object _frozen(cnp.ndarray array):
    """A view through a read-only buffer: its `writeable` flag can't be set again."""
    return np.asarray(memoryview(array).toreadonly())


class Gradients:
    """The gradients of one backward pass.

    Attributes
    ----------
    x : array of the shape of x, or None where it was not asked for
    h_0, c_0 : arrays of the shapes of h_n and c_n
    weights : mapping with the names, shapes and order of `LSTM.state_dict()`
    """

    __slots__ = ("c_0", "h_0", "weights", "x")

    def __init__(self, x, h_0, c_0, weights):
        self.x, self.h_0, self.c_0, self.weights = x, h_0, c_0, weights


cdef class Tape:
    """One forward pass, kept for its backward: outputs, gates and cells.

    Attributes
    ----------
    y, h_n, c_n : read-only arrays, as `LSTM.__call__` returns them
    gates : read-only array (L*D, T, B, 4, H), the gates i, f, g, o of every step after their
        activations; unbatched without B
    cells : read-only array (L*D, T, B, H), c of every step

    gates and cells are time-major whatever `batch_first` says, and zero past each length.
    """

    cdef Problem p
    cdef _c.cylstm_tape tape
    cdef Memory memory
    cdef object wrap
    cdef readonly object y, h_n, c_n, gates, cells

    def __cinit__(self, Packed packed not None, wrap, x, states, lengths, threads,
                  bint batch_first, double dropout, draw_key):
        """Run the forward pass. `wrap` makes a mapping of a flat array of weight gradients, and
        `draw_key` gives the key of this call's dropout, once everything else is in order."""
        cdef Problem p = Problem()
        cdef int n = _threads(threads)
        p.check(packed, x, states, lengths, batch_first, n, True)
        p.x = np.array(p.x, order="C", subok=False)
        if p.h_0 is not None:
            p.h_0 = (<object>p.h_0).copy()
            p.c_0 = (<object>p.c_0).copy()
        p.allocate()
        cdef Dims dims = p.dims
        cdef Py_ssize_t LD = dims.L * dims.D, rows = p.T * p.B, width = dims.D * dims.R
        cdef size_t real_size = dims.c.bits // 8, cells = LD * rows * 5 * dims.H * real_size
        cells += -cells % _c.CYLSTM_ALIGN
        self.memory = Memory(cells + (dims.L - 1) * rows * width * real_size, dims.tapes)
        self.tape.cells = self.memory.start
        self.tape.hidden = <char *>self.memory.start + cells
        self.tape.dropout = dropout
        self.tape.dropout_key = draw_key() if dropout > 0 else 0
        p.seq.tape = &self.tape
        p.run(n)
        self.p = p
        self.wrap = wrap
        view = _frozen(self.memory.array((LD, p.T, p.B, 5, dims.H), dims.typenum))
        if not p.batched:
            view = view[:, :, 0]
        self.gates, self.cells = view[..., :4, :], view[..., 4, :]
        self.y, self.h_n, self.c_n = _frozen(p.y), _frozen(p.h_n), _frozen(p.c_n)

    def backward(self, dy=None, dh_n=None, dc_n=None, *, threads=None, bint need_x=True):
        """Return the exact gradients of a loss, given its gradients by y, h_n and c_n.

        May be called again, with the same or other gradients: nothing is used up. The weights
        are those that the forward pass ran with, whatever the LSTM holds by now.

        Parameters
        ----------
        dy : array of the shape of y, or None for zeros. What stands past a length is ignored.
        dh_n, dc_n : arrays of the shapes of h_n and c_n, or None for zeros
        threads : int or None
        need_x : bool
            False leaves out the gradient of x, which then is None; it is a quarter to a third of
            the work, and the first layer of a model has no use for it.

        Returns
        -------
        Gradients : .x, .h_0, .c_0, .weights

        Raises
        ------
        ValueError
            All three gradients are None, or one has the wrong shape.
        TypeError
            A gradient has the wrong dtype or byte order.
        """
        cdef Problem p = self.p
        cdef Dims dims = p.dims
        cdef _c.cylstm_gradients g
        cdef _c.cylstm_context ctx
        cdef int n = _threads(threads)
        cdef cnp.ndarray dy_rows, dh_whole, dc_whole, dx = None, dh_0, dc_0, dweights
        if dy is None and dh_n is None and dc_n is None:
            raise ValueError("backward was given no gradient: expected dy, dh_n or dc_n")
        g.dy = g.dh_n = g.dc_n = g.dx = NULL
        g.dy_t = g.dy_b = g.dx_t = g.dx_b = 0
        if dy is not None:
            dy_rows = _check(dy, "dy", dims, p.outer(dims.D * dims.R))
            g.dy = cnp.PyArray_DATA(dy_rows)
            p.strides(dy_rows, &g.dy_t, &g.dy_b)
        if dh_n is not None:
            dh_whole = _check_whole(dh_n, "dh_n", dims, p.state(dims.R))
            g.dh_n = cnp.PyArray_DATA(dh_whole)
        if dc_n is not None:
            dc_whole = _check_whole(dc_n, "dc_n", dims, p.state(dims.H))
            g.dc_n = cnp.PyArray_DATA(dc_whole)
        dh_0 = np.empty(p.state(dims.R), dims.dtype)
        dc_0 = np.empty(p.state(dims.H), dims.dtype)
        new = np.zeros if p.B == 0 else np.empty
        dweights = new(_c.cylstm_raw_count(&dims.c), dims.dtype)
        if need_x:
            dx = np.empty(p.outer(dims.inputs), dims.dtype)
            g.dx = cnp.PyArray_DATA(dx)
            p.strides(dx, &g.dx_t, &g.dx_b)
        g.dh_0, g.dc_0 = cnp.PyArray_DATA(dh_0), cnp.PyArray_DATA(dc_0)
        g.dweights = cnp.PyArray_DATA(dweights)
        cdef bint release = dims.releases_gil(2 * p.rows)
        dims.fill_context(&ctx, n, release)
        cdef Memory scratch
        cdef Packed weights = p.packed
        cdef bint once
        cdef const void *packed
        cdef _c.cylstm_sequence seq = p.seq  # a copy: other threads may be going backward too
        if p.B:
            once = _c.cylstm_reads_raw(&ctx, &dims.c, p.T, p.B)
            packed = weights.read(weights.backward, once, n)
            seq.raw = cnp.PyArray_DATA(weights.flat) if packed == NULL else NULL
            scratch = Memory(_c.cylstm_backward_scratch(&ctx, &dims.c, &seq))
            if release:
                with nogil:
                    _c.cylstm_backward(&ctx, &dims.c, packed, &seq, &g, scratch.start)
                _raise_pending()
            else:
                _c.cylstm_backward(&ctx, &dims.c, packed, &seq, &g, scratch.start)
        return Gradients(dx, dh_0, dc_0, self.wrap(dweights))


include "_optim.pxi"
include "_stream.pxi"
include "_api.pxi"

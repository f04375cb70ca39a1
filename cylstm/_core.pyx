# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The bindings: check every array, fill the C structs once, call the core.

All validation of arrays is here, before any memory is touched: the C core trusts its caller.
"""
from cpython.exc cimport PyErr_CheckSignals, PyErr_Occurred
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
cimport numpy as cnp

from cylstm cimport _c

import os
import threading

import numpy as np

cnp.import_array()

# Work that takes about 50 microseconds: below it, letting go of the GIL costs more than it gives.
cdef double GIL_FLOPS_SIMD = 2.5e6, GIL_FLOPS_SCALAR = 2.5e5

# --------------------------------------------------------------------------- configuration


cdef list _isas():
    return [_c.cylstm_isa_name(n).decode() for n in range(_c.cylstm_isa_count())]


cdef list _usable_isas():
    return [_c.cylstm_isa_name(n).decode() for n in range(_c.cylstm_isa_count())
            if _c.cylstm_isa_usable(n)]


def _choose_isa():
    """Return (name, why), by CYLSTM_ISA where it is set."""
    name = os.environ.get("CYLSTM_ISA", "")
    if not name:
        return _usable_isas()[0], "the best that this CPU and operating system can run"
    if name not in _isas():
        raise ValueError(f"CYLSTM_ISA={name!r}: no such kernels, expected one of {', '.join(_isas())}")
    if name not in _usable_isas():
        raise ValueError(
            f"CYLSTM_ISA={name!r}: this CPU can't run it, only {', '.join(_usable_isas())}")
    return name, "forced by CYLSTM_ISA"


def _choose_gemm():
    name = os.environ.get("CYLSTM_GEMM", "") or "auto"
    if name not in ("auto", "packed", "blas"):
        raise ValueError(f"CYLSTM_GEMM={name!r}: expected auto, packed or blas")
    return name


ISA, ISA_REASON = _choose_isa()
GEMM = _choose_gemm()
ISA_AVAILABLE = _usable_isas()
cdef bint _force_blas = GEMM == "blas"
cdef _c.cylstm_sgemm *_sgemm = NULL
cdef _c.cylstm_dgemm *_dgemm = NULL
cdef int _default_threads = 1
cdef const _c.cylstm_kernels *_last = NULL
_blas_lock = threading.Lock()


cdef void *_capsule(object module, str name) except NULL:
    """The function pointer that a Cython module exports, if it takes plain C ints."""
    capsule = module.__pyx_capi__[name]
    cdef const char *signature = PyCapsule_GetName(capsule)
    if signature.count(b"int *") < 6:  # a build with 64-bit integers says so in its signature
        raise ImportError(f"SciPy's {name} has the signature {signature.decode()!r}, "
                          "expected one with int arguments; unset CYLSTM_GEMM")
    return PyCapsule_GetPointer(capsule, signature)


cdef int _load_blas() except -1:
    """Take the BLAS out of SciPy, at first need: its import costs more than ours."""
    global _sgemm, _dgemm
    if _sgemm != NULL:
        return 0
    with _blas_lock:
        try:
            from scipy.linalg import cython_blas
        except ImportError as error:
            raise ImportError("CYLSTM_GEMM=blas needs SciPy: pip install scipy") from error
        _dgemm = <_c.cylstm_dgemm *>_capsule(cython_blas, "dgemm")
        _sgemm = <_c.cylstm_sgemm *>_capsule(cython_blas, "sgemm")
    return 0


def _set_default_threads(int n):
    global _default_threads
    _default_threads = n


def _get_default_threads():
    return _default_threads


def _pool_helpers():
    """Helper threads that the pool has started in this process."""
    return _c.cylstm_pool_helpers()


def _last_kernels():
    """Name of the kernel set that the last computing call handed to the core, for tests."""
    return None if _last == NULL else _c.cylstm_kernels_isa(_last).decode()


def _activation(str name, cnp.ndarray x not None, isa=None):
    """sigmoid or tanh of a contiguous 1-D array by the kernels of `isa`, for tests."""
    cdef cnp.ndarray y = np.empty_like(x)
    cdef bytes wanted = (isa or ISA).encode()
    if name not in ("sigmoid", "tanh") or x.ndim != 1 or not x.flags.c_contiguous:
        raise ValueError("expected 'sigmoid' or 'tanh' and a contiguous 1-D array")
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"x is {x.dtype}, expected float32 or float64")
    cdef const _c.cylstm_kernels *kernels = _c.cylstm_find_kernels(wanted, 8 * x.itemsize)
    if kernels == NULL:
        raise ValueError(f"isa {isa!r} can't run here, expected one of {', '.join(ISA_AVAILABLE)}")
    _c.cylstm_apply_activation(kernels, name == "tanh", cnp.PyArray_DATA(x), cnp.PyArray_DATA(y),
                               <size_t>x.size)
    return y


# ------------------------------------------------------------------------------- calls


cdef int _poll(void *arg) noexcept nogil:
    with gil:
        return PyErr_CheckSignals() != 0


cdef int _raise_pending() except -1:
    return -1 if PyErr_Occurred() != NULL else 0


cdef class Memory:
    """Memory for the core, aligned; freed with the object."""

    cdef void *base
    cdef void *start
    cdef readonly size_t size

    def __cinit__(self, size_t size):
        self.size = size
        self.base = malloc(size + _c.CYLSTM_ALIGN)
        if self.base == NULL:
            raise MemoryError(f"no memory for {size} bytes")
        self.start = <void *>((<uintptr_t>self.base + _c.CYLSTM_ALIGN - 1)
                              & ~<uintptr_t>(_c.CYLSTM_ALIGN - 1))

    def __dealloc__(self):
        free(self.base)


cdef class Dims:
    """The sizes of an LSTM, and the kernels that serve it."""

    cdef _c.cylstm_dims c
    cdef const _c.cylstm_kernels *kernels
    cdef readonly object dtype
    cdef int typenum
    cdef double gil_flops
    cdef Py_ssize_t L, D, inputs, H, R  # "I" would collide with <complex.h>

    def __init__(self, layers, directions, input, hidden, proj, bias, dtype, isa=None):
        self.dtype = np.dtype(dtype)
        self.typenum = self.dtype.num
        self.L, self.D, self.inputs, self.H = layers, directions, input, hidden
        self.R = proj or hidden
        self.c = _c.cylstm_dims(layers, directions, input, hidden, proj, bias, 8 * self.dtype.itemsize)
        cdef bytes name = (isa or ISA).encode()
        self.kernels = _c.cylstm_find_kernels(name, self.c.bits)
        if self.kernels == NULL:
            raise ValueError(f"isa {isa!r} can't run here, expected one of {ISA_AVAILABLE}")
        self.gil_flops = GIL_FLOPS_SCALAR if name == b"scalar" else GIL_FLOPS_SIMD

    cdef int fill_context(self, _c.cylstm_context *ctx, int threads, bint polled) except -1:
        global _last
        ctx.kernels = _last = self.kernels
        ctx.threads = threads
        ctx.sgemm = NULL
        ctx.dgemm = NULL
        ctx.poll = NULL
        if polled:
            ctx.poll = _poll
        ctx.poll_arg = NULL
        if _force_blas:
            _load_blas()
            if self.c.bits == 32:
                ctx.sgemm = _sgemm
            else:
                ctx.dgemm = _dgemm
        return 0

    cdef bint releases_gil(self, double rows):
        return _c.cylstm_forward_flops(&self.c, rows) >= self.gil_flops


cdef int _threads(object threads) except -1:
    """The number of threads of a call: its own or the default."""
    if threads is None:
        return _default_threads
    if isinstance(threads, bool) or not hasattr(threads, "__index__"):
        raise TypeError(f"threads is {threads!r}, expected an integer or None")
    n = threads.__index__()
    if not 1 <= n <= 256:
        raise ValueError(f"threads is {n}, expected 1 to 256")
    return n


cdef class Packed:
    """One block of weights as the kernels read it. Immutable once made, but for the backward
    panels, which are added at first need."""

    cdef Dims dims
    cdef object flat
    cdef Memory forward
    cdef Memory backward
    cdef bint has_backward
    cdef object lock

    def __init__(self, Dims dims not None, cnp.ndarray flat not None, Packed spare=None):
        """Pack `flat` for the forward pass, into the memory of `spare`, which nobody reads."""
        cdef _c.cylstm_context ctx
        dims.fill_context(&ctx, 1, False)
        if spare is not None and spare.dims is dims:
            self.forward, self.backward = spare.forward, spare.backward
        else:
            self.forward = Memory(_c.cylstm_packed_size(&ctx, &dims.c))
        self.dims = dims
        self.flat = flat
        self.lock = threading.Lock()
        _c.cylstm_pack_weights(&ctx, &dims.c, cnp.PyArray_DATA(flat), self.forward.start)

    cdef void *for_backward(self) except NULL:
        cdef _c.cylstm_context ctx
        if self.has_backward:
            return self.backward.start
        with self.lock:
            if not self.has_backward:
                self.dims.fill_context(&ctx, 1, False)
                if self.backward is None:
                    self.backward = Memory(_c.cylstm_packed_backward_size(&ctx, &self.dims.c))
                _c.cylstm_pack_backward(&ctx, &self.dims.c, cnp.PyArray_DATA(self.flat),
                                        self.backward.start)
                self.has_backward = True
        return self.backward.start


# ------------------------------------------------------------------------------ arrays


cdef cnp.ndarray _as_array(object value, str name, Dims dims):
    """Any array-like as an array of the right dtype, or an error that says what is wrong."""
    cdef str kind = type(value).__name__
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a {kind}, whose mask would be ignored; expected a {dims.dtype} "
                        "array, such as its filled(0), with lengths")
    if not isinstance(value, np.ndarray):
        try:
            value = None if value is None else np.asarray(value)
        except Exception as error:
            raise TypeError(f"{name} is a {kind} that can't be read as a {dims.dtype} array: "
                            f"{error}") from None
        if value is None:
            raise TypeError(f"{name} is None (NoneType), expected a {dims.dtype} array")
        kind += " that reads as"
    else:
        kind = "array of"
    cdef cnp.ndarray array = value
    if array.dtype.num != dims.typenum:
        raise TypeError(f"{name} is a {kind} {array.dtype}, expected {dims.dtype}; "
                        f"numpy.asarray({name}, '{dims.dtype}') converts it")
    if not array.dtype.isnative:
        raise TypeError(f"{name} is {array.dtype.str}, which is in the other byte order; "
                        f"expected native {dims.dtype}")
    return array


cdef cnp.ndarray _rows_of(cnp.ndarray array):
    """The array itself if its rows are contiguous and aligned, else a copy."""
    cdef int n = cnp.PyArray_NDIM(array), k
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(array)
    if not cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_ALIGNED):
        return np.array(array, order="C", subok=False)
    if cnp.PyArray_DIM(array, n - 1) > 1 and cnp.PyArray_STRIDE(array, n - 1) != size:
        return np.array(array, order="C", subok=False)
    for k in range(n - 1):
        if cnp.PyArray_STRIDE(array, k) % size:
            return np.array(array, order="C", subok=False)
    return array


cdef cnp.ndarray _check(object value, str name, Dims dims, tuple shape):
    """An array of exactly this shape, rows contiguous."""
    cdef cnp.ndarray array = _as_array(value, name, dims)
    if (<object>array).shape != shape:
        raise ValueError(f"{name} has shape {(<object>array).shape}, expected {shape}")
    return _rows_of(array)


cdef cnp.ndarray _check_whole(object value, str name, Dims dims, tuple shape):
    """An array of exactly this shape, contiguous and aligned."""
    cdef cnp.ndarray array = _check(value, name, dims, shape)
    return array if cnp.PyArray_IS_C_CONTIGUOUS(array) else np.ascontiguousarray(array)


cdef object _check_lengths(object lengths, Py_ssize_t T, Py_ssize_t B, bint batched):
    """The lengths as a contiguous array of size_t."""
    if not batched:
        if isinstance(lengths, (list, tuple)) or getattr(lengths, "ndim", 0):
            raise ValueError(f"lengths is {lengths!r}, expected one integer for unbatched input")
        lengths = [lengths]
    try:
        array = np.asarray(lengths)
    except ValueError as error:
        raise ValueError(f"lengths is {lengths!r}, expected integers ({B},): {error}") from None
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("lengths is a MaskedArray, whose mask would be ignored; expected integers")
    if array.size == 0 and isinstance(lengths, (list, tuple)):
        array = array.astype(np.intp)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths is {array.dtype}, expected integers from 0 to {T}")
    if array.shape != (B,):
        raise ValueError(f"lengths has shape {array.shape}, expected ({B},), one for each sequence")
    if B == 0:
        return np.zeros(0, np.uintp)
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > T:
        wrong = low if low < 0 else high
        raise ValueError(f"lengths holds {wrong}, expected 0 to {T}, the steps of x")
    return np.ascontiguousarray(array, dtype=np.uintp)


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

    cdef int check(self, Packed packed, Dims dims, object x, object states, object lengths,
                   bint batch_first) except -1:
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
        # in Python's integers, which don't overflow: the largest array that a call may need
        if int(self.T) * self.B * (5 * dims.L * dims.D * dims.H + dims.D * dims.R + dims.inputs) >> 58:
            raise ValueError(f"x has shape {(<object>a).shape}: too large, an array of the call "
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

    cdef int allocate(self) except -1:
        """Outputs, and the struct that points to everything."""
        cdef Dims dims = self.dims
        self.y = np.empty(self.outer(dims.D * dims.R), dims.dtype)
        self.h_n = np.empty(self.state(dims.R), dims.dtype)
        self.c_n = np.empty(self.state(dims.H), dims.dtype)
        self.seq.T, self.seq.B = self.T, self.B
        self.seq.lengths = (NULL if self.lengths is None
                            else <const size_t *>cnp.PyArray_DATA(self.lengths))
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
        cdef Memory scratch = Memory(_c.cylstm_forward_scratch(&ctx, &dims.c, &self.seq))
        cdef void *packed = self.packed.forward.start
        if release:
            with nogil:
                _c.cylstm_forward(&ctx, &dims.c, packed, &self.seq, scratch.start)
            _raise_pending()
        else:
            _c.cylstm_forward(&ctx, &dims.c, packed, &self.seq, scratch.start)
        return 0


def forward(Packed packed not None, Dims dims not None, x, states, lengths, threads,
            bint batch_first):
    """Inference: (y, (h_n, c_n)), new arrays. See LSTM.__call__."""
    cdef Problem p = Problem()
    cdef int n = _threads(threads)
    p.check(packed, dims, x, states, lengths, batch_first)
    p.allocate()
    p.run(n)
    return p.y, (p.h_n, p.c_n)


# ------------------------------------------------------------------------------- tapes


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
    cdef cnp.ndarray cells_array, hidden
    cdef object wrap
    cdef readonly object y, h_n, c_n, gates, cells

    def __init__(self, Packed packed not None, Dims dims not None, wrap, x, states, lengths,
                 threads, bint batch_first, double dropout, draw_key):
        """Run the forward pass. `wrap` makes a mapping of a flat array of weight gradients, and
        `draw_key` gives the key of this call's dropout, once everything else is in order."""
        cdef Problem p = Problem()
        cdef int n = _threads(threads)
        p.check(packed, dims, x, states, lengths, batch_first)
        p.x = np.array(p.x, order="C", subok=False)
        if p.h_0 is not None:
            p.h_0 = (<object>p.h_0).copy()
            p.c_0 = (<object>p.c_0).copy()
        p.allocate()
        new = np.empty if p.lengths is None else np.zeros
        LD = dims.L * dims.D
        self.cells_array = new((LD, p.T, p.B, 5, dims.H), dims.dtype)
        self.hidden = np.empty((dims.L - 1, p.T, p.B, dims.D * dims.R), dims.dtype)
        self.tape.cells = cnp.PyArray_DATA(self.cells_array)
        self.tape.hidden = cnp.PyArray_DATA(self.hidden)
        self.tape.dropout = dropout
        self.tape.dropout_key = draw_key() if dropout > 0 else 0
        p.seq.tape = &self.tape
        p.run(n)
        self.p = p
        self.wrap = wrap
        view = (<object>self.cells_array).view()
        view.flags.writeable = False
        if not p.batched:
            view = view[:, :, 0]
        self.gates, self.cells = view[..., :4, :], view[..., 4, :]
        self.y, self.h_n, self.c_n = p.y, p.h_n, p.c_n
        for array in (self.y, self.h_n, self.c_n):
            array.flags.writeable = False

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
        cdef cnp.ndarray dy_rows, dh_whole, dc_whole, dx, dh_0, dc_0, dweights
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
        cdef void *packed
        if p.B:
            packed = p.packed.for_backward()
            scratch = Memory(_c.cylstm_backward_scratch(&ctx, &dims.c, &p.seq))
            if release:
                with nogil:
                    _c.cylstm_backward(&ctx, &dims.c, packed, &p.seq, &g, scratch.start)
                _raise_pending()
            else:
                _c.cylstm_backward(&ctx, &dims.c, packed, &p.seq, &g, scratch.start)
        return Gradients(dx, dh_0, dc_0, self.wrap(dweights))


# ----------------------------------------------------------------------------- streams


cdef class Stream:
    """An LSTM that takes its sequence step by step, with its state inside.

    Made by `LSTM.stream`. The results are bit for bit those of one call over the whole sequence.
    New weights of the LSTM are taken at the next step; the state stays. One stream may not be
    used by two threads at once, which is a RuntimeError.
    """

    cdef Dims dims
    cdef object lstm, weights
    cdef Packed packed
    cdef Memory memory
    cdef _c.cylstm_plan *plan
    cdef Py_ssize_t N
    cdef bint batched, busy
    cdef object threads
    cdef int max_threads

    def __init__(self, lstm, Dims dims not None, batch_size=None, threads=None):
        cdef _c.cylstm_context ctx
        self.batched = batch_size is not None
        self.N = batch_size if self.batched else 1
        self.lstm, self.dims, self.threads = lstm, dims, threads
        self.max_threads = _threads(threads)
        dims.fill_context(&ctx, self.max_threads, False)
        self.memory = Memory(_c.cylstm_plan_size(&ctx, &dims.c, self.N))
        self.plan = _c.cylstm_plan_init(&ctx, &dims.c, self.N, self.memory.start)

    @property
    def batch_size(self):
        """The number of streams, or None for a single one without a batch axis."""
        return self.N if self.batched else None

    cdef inline int take(self) except -1:
        """Enter the stream, with the weights that the LSTM has now."""
        if self.busy:
            raise RuntimeError("this stream is in use by another thread; make one for each")
        weights = self.lstm._weights
        if weights is not self.weights:
            self.weights, self.packed = weights, weights.packed
        self.busy = True
        return 0

    cdef inline bint plain(self, object value, int ndim, Py_ssize_t rows, Py_ssize_t width,
                           bint write) noexcept:
        """Whether this is an array that can be used as it stands: (rows, width) or (width,)."""
        if type(value) is not cnp.ndarray:
            return False
        cdef cnp.ndarray a = value
        cdef int flags = cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED
        if write:
            flags |= cnp.NPY_ARRAY_WRITEABLE
        return (cnp.PyArray_TYPE(a) == self.dims.typenum and cnp.PyArray_CHKFLAGS(a, flags)
                and cnp.PyArray_ISNOTSWAPPED(a) and cnp.PyArray_NDIM(a) == ndim
                and cnp.PyArray_DIM(a, ndim - 1) == width
                and (ndim == 1 or cnp.PyArray_DIM(a, ndim - 2) == rows))

    cdef tuple frame(self, Py_ssize_t rows, Py_ssize_t width):
        """The shape of one step's array."""
        if self.batched:
            return (rows, width)
        return (width,)

    cdef int compute(self, Py_ssize_t T, const size_t *active, Py_ssize_t rows, cnp.ndarray x,
                     cnp.ndarray y) except -1:
        """x (T, rows, I) -> y (T, rows, R), both contiguous."""
        cdef _c.cylstm_context ctx
        cdef double work = <double>T * <double>rows
        cdef bint release = self.dims.releases_gil(work)
        cdef int threads = 1
        if release:
            threads = min(self.max_threads, _default_threads if self.threads is None else self.max_threads)
        cdef const void *source = cnp.PyArray_DATA(x)
        cdef void *target = cnp.PyArray_DATA(y)
        cdef void *packed
        self.take()
        try:
            self.dims.fill_context(&ctx, threads, False)
            packed = self.packed.forward.start
            if release:
                with nogil:
                    _c.cylstm_plan_run(self.plan, &ctx, packed, T, active, rows, source, target)
            else:
                _c.cylstm_plan_run(self.plan, &ctx, packed, T, active, rows, source, target)
        finally:
            self.busy = False
        return 0

    def step(self, x_t, out=None, active=None):
        """Take one step.

        Parameters
        ----------
        x_t : array (I,), or (N, I) for a stream of N; with `active`, (len(active), I)
        out : array (R,) or (N, R), written to and returned; may be x_t itself
        active : distinct indices of the streams that take the step; the others stand still

        Returns
        -------
        array (R,) or (N, R): y_t, new unless `out` is given

        Raises
        ------
        ValueError, TypeError
            A wrong shape or dtype, or indices that are out of range or not distinct.
        RuntimeError
            Another thread is inside this stream.
        """
        cdef cnp.npy_intp shape[2]
        cdef Py_ssize_t rows = self.N
        cdef int ndim = 2 if self.batched else 1
        cdef cnp.ndarray indices = None, x, y
        if active is not None:
            indices = self.check_active(active)
            rows = cnp.PyArray_DIM(indices, 0)
        if self.plain(x_t, ndim, rows, self.dims.inputs, False):
            x = x_t
        else:
            x = _check_whole(x_t, "x_t", self.dims, self.frame(rows, self.dims.inputs))
        if out is None:
            shape[0] = rows if self.batched else self.dims.R
            shape[1] = self.dims.R
            y = cnp.PyArray_SimpleNew(ndim, shape, self.dims.typenum)
        else:
            if not self.plain(out, ndim, rows, self.dims.R, True):
                self.check_out(out, self.frame(rows, self.dims.R))
            y = out
            x = apart(x, y)
        self.compute(1, NULL if indices is None else <const size_t *>cnp.PyArray_DATA(indices),
                     rows, x, y)
        return y

    def run(self, block, out=None, active=None):
        """Take the steps of a block: block (T, I) or (T, N, I) -> y (T, R) or (T, N, R).

        The same as T calls of `step`, to the bit. Ctrl-C is answered when the block is done.
        """
        cdef cnp.ndarray indices = None, x, y
        cdef Py_ssize_t rows = self.N, T
        if active is not None:
            indices = self.check_active(active)
            rows = cnp.PyArray_DIM(indices, 0)
        x = _as_array(block, "block", self.dims)
        if cnp.PyArray_NDIM(x) != (3 if self.batched else 2):
            raise ValueError(f"block has shape {(<object>x).shape}, expected "
                             f"{'(T, N, I)' if self.batched else '(T, I)'} with I = {self.dims.inputs}")
        T = cnp.PyArray_DIM(x, 0)
        x = _check_whole(x, "block", self.dims, (T, *self.frame(rows, self.dims.inputs)))
        cdef tuple shape = (T, *self.frame(rows, self.dims.R))
        if out is None:
            y = np.empty(shape, self.dims.dtype)
        else:
            y = self.check_out(out, shape)
            x = apart(x, y)
        if T:
            self.compute(T, NULL if indices is None else <const size_t *>cnp.PyArray_DATA(indices),
                         rows, x, y)
        return y

    cdef cnp.ndarray check_out(self, object out, tuple shape):
        """An array that can be written to as it stands, or what is wrong with it."""
        if type(out) is not cnp.ndarray or out.dtype != self.dims.dtype or not out.dtype.isnative:
            raise TypeError(f"out is {getattr(out, 'dtype', type(out).__name__)}, expected a "
                            f"{self.dims.dtype} array")
        if out.shape != shape or not out.flags.carray:
            raise ValueError(f"out has shape {out.shape} and is "
                             f"{'' if out.flags.writeable else 'not '}writable, expected a "
                             f"contiguous, writable {shape}")
        return out

    cdef cnp.ndarray check_active(self, object active):
        if not self.batched:
            raise ValueError("active was given to a stream without a batch, expected None")
        indices = np.asarray(active)
        if indices.size == 0:
            indices = indices.astype(np.intp)
        if indices.dtype.kind not in "iu":
            raise TypeError(f"active is {indices.dtype}, expected integer indices")
        if indices.ndim != 1:
            raise ValueError(f"active has shape {indices.shape}, expected one axis of indices")
        if indices.size and not (0 <= int(indices.min()) and int(indices.max()) < self.N):
            raise ValueError(f"active holds {indices.tolist()}, expected indices 0 to {self.N - 1}")
        if len(set(indices.tolist())) != indices.size:
            raise ValueError(f"active holds {indices.tolist()}, expected distinct indices")
        return np.ascontiguousarray(indices, dtype=np.uintp)

    @property
    def state(self):
        """(h, c), copies: (L, R) and (L, H), or (L, N, R) and (L, N, H). Settable."""
        cdef Dims d = self.dims
        cdef cnp.ndarray h = np.empty((d.L, self.N, d.R), d.dtype)
        cdef cnp.ndarray c = np.empty((d.L, self.N, d.H), d.dtype)
        self.take()
        _c.cylstm_plan_get_states(self.plan, cnp.PyArray_DATA(h), cnp.PyArray_DATA(c))
        self.busy = False
        return (h, c) if self.batched else (h[:, 0], c[:, 0])

    @state.setter
    def state(self, value):
        cdef Dims d = self.dims
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"state is a {type(value).__name__}, expected a tuple (h, c)")
        middle = (self.N,) if self.batched else ()
        cdef cnp.ndarray h = _check_whole(value[0], "h", d, (d.L, *middle, d.R))
        cdef cnp.ndarray c = _check_whole(value[1], "c", d, (d.L, *middle, d.H))
        self.take()
        _c.cylstm_plan_set_states(self.plan, cnp.PyArray_DATA(h), cnp.PyArray_DATA(c))
        self.busy = False

    def reset(self, indices=None):
        """Set the state to zero: of all streams, or of those named by `indices`."""
        cdef cnp.ndarray rows = None if indices is None else self.check_active(indices)
        cdef size_t *row
        cdef Py_ssize_t k
        self.take()
        if rows is None:
            _c.cylstm_plan_set_states(self.plan, NULL, NULL)
        else:
            row = <size_t *>cnp.PyArray_DATA(rows)
            for k in range(cnp.PyArray_DIM(rows, 0)):
                _c.cylstm_plan_reset_row(self.plan, row[k])
        self.busy = False

    def __reduce__(self):
        return _restore_stream, (self.lstm, self.batch_size, self.threads, self.state)


cdef inline cnp.ndarray apart(cnp.ndarray x, cnp.ndarray y):
    """x, or a copy of it where it shares memory with y: the core reads x while it writes y."""
    cdef char *a = <char *>cnp.PyArray_DATA(x)
    cdef char *b = <char *>cnp.PyArray_DATA(y)
    if a < b + cnp.PyArray_NBYTES(y) and b < a + cnp.PyArray_NBYTES(x):
        return (<object>x).copy()
    return x


def _restore_stream(lstm, batch_size, threads, state):
    stream = lstm.stream(batch_size, threads=threads)
    stream.state = state
    return stream

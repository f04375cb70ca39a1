"""The sizes of an LSTM, its kernels, and how many threads a call has. Part of `_core.pyx`."""


cdef int _fill_context(_c.cylstm_context *ctx, const _c.cylstm_kernels *kernels, int bits,
                       int threads, bint polled) except -1:
    """A context for a call with products."""
    ctx.kernels, ctx.threads = kernels, threads
    ctx.sgemm, ctx.dgemm, ctx.poll, ctx.poll_arg = NULL, NULL, NULL, NULL
    store_pointer(&_last, <uintptr_t>kernels, memory_order_relaxed)
    if polled and _answers_signals():
        ctx.poll = _poll
    if _force_blas:
        _load_blas()
        if bits == 32:
            ctx.sgemm = _sgemm
        else:
            ctx.dgemm = _dgemm
    return 0


cdef class Dims:
    """The sizes of an LSTM, and the kernels that serve it."""

    cdef _c.cylstm_dims c
    cdef const _c.cylstm_kernels *kernels
    cdef readonly object dtype
    cdef int typenum
    cdef double gil_flops
    cdef Py_ssize_t L, D, inputs, H, R  # "I" would collide with <complex.h>

    def __cinit__(self, layers, directions, input, hidden, proj, bias, dtype, isa=None):
        self.dtype = np.dtype(dtype)
        self.typenum = self.dtype.num
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
        return _fill_context(ctx, self.kernels, self.c.bits, threads, polled)

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

"""An affine map and its gradients, on arrays that `linear.py` has checked. Part of `_core.pyx`."""


cdef bint _fill_linear(_c.cylstm_context *ctx, _c.cylstm_linear *c, int threads, cnp.ndarray x,
                       cnp.ndarray weight, tuple others) except -1:
    """The structs of a call with x (N, in) and W (out, in), and whether it should release the GIL.
    All arrays are contiguous and of one dtype; the error is for this package."""
    cdef int num = cnp.PyArray_TYPE(weight), bits = 8 * cnp.PyArray_ITEMSIZE(weight)
    cdef cnp.ndarray array
    for array in (x, weight) + others:
        if cnp.PyArray_TYPE(array) != num or not cnp.PyArray_ISCARRAY_RO(array):
            raise ValueError("expected contiguous arrays of one dtype")
    c.rows, c.inputs = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
    c.outputs = cnp.PyArray_DIM(weight, 0)
    c.weight, c.format = cnp.PyArray_DATA(weight), _c.CYLSTM_AS_COMPUTED
    cdef bint release = 2.0 * c.rows * c.inputs * c.outputs >= GIL_FLOPS_SIMD
    _fill_context(ctx, _c.cylstm_find_kernels(ISA.encode(), bits), bits, threads, release)
    return release


def linear_forward(cnp.ndarray x not None, cnp.ndarray weight not None, cnp.ndarray bias,
                   int threads):
    """Return y (N, out) = x W^T + b for x (N, in), W (out, in), b (out,) or None; no size is 0."""
    cdef _c.cylstm_context ctx
    cdef _c.cylstm_linear c
    cdef bint release = _fill_linear(&ctx, &c, threads, x, weight, () if bias is None else (bias,))
    return _run_linear(&ctx, &c, release, x, bias)


cdef cnp.ndarray _run_linear(const _c.cylstm_context *ctx, const _c.cylstm_linear *c, bint release,
                             cnp.ndarray x, cnp.ndarray bias):
    cdef cnp.npy_intp shape[2]
    shape[0], shape[1] = c.rows, c.outputs
    cdef cnp.ndarray y = cnp.PyArray_SimpleNew(2, shape, cnp.PyArray_TYPE(x))
    cdef Memory scratch = Memory(_c.cylstm_linear_scratch(ctx, c))
    cdef const void *b = NULL if bias is None else cnp.PyArray_DATA(bias)
    cdef const void *rows = cnp.PyArray_DATA(x)
    cdef void *out = cnp.PyArray_DATA(y)
    if release:
        with nogil:
            _c.cylstm_linear_forward(ctx, c, rows, b, out, scratch.start)
        _raise_pending()
    else:
        _c.cylstm_linear_forward(ctx, c, rows, b, out, scratch.start)
    return y


@cython.auto_pickle(False)
cdef class PackedLinear:
    """The matrix of a Linear in a format of fewer bits, as the kernels read it."""

    cdef Memory memory
    cdef _c.cylstm_linear c
    cdef const _c.cylstm_kernels *kernels
    cdef const _c.cylstm_compact_kernels *int8
    cdef const _c.cylstm_compact_kernels *bf16

    def __cinit__(self, Py_ssize_t outputs, Py_ssize_t inputs, str format not None,
                  cnp.ndarray flat not None, int threads):
        """Pack what `flat` begins with: codes (outputs, inputs), and scales if they have some."""
        cdef _c.cylstm_context ctx
        self.c.outputs, self.c.inputs = outputs, inputs
        self.c.format, self.c.wide_inputs = FORMATS[format]
        cdef Py_ssize_t bytes = inputs * outputs * 2
        if self.c.format == _c.CYLSTM_INT8:
            bytes = ((inputs * outputs + 3) // 4 + outputs) * 4
        if self.c.format == _c.CYLSTM_AS_COMPUTED or bytes > cnp.PyArray_NBYTES(flat):
            raise ValueError(f"flat has {cnp.PyArray_NBYTES(flat)} bytes, expected {bytes}")
        self.kernels = _c.cylstm_find_kernels(ISA.encode(), 32)
        if self.c.format == _c.CYLSTM_INT8:
            self.int8 = _find_int8(self.kernels, None)
        if self.c.format == _c.CYLSTM_BFLOAT16_PRODUCTS:
            self.bf16 = _find_bf16(self.kernels)
        self.fill(&ctx, threads, False)
        self.memory = Memory(_c.cylstm_linear_packed_size(&ctx, &self.c))
        cdef const void *raw = cnp.PyArray_DATA(flat)
        cdef void *packed = self.memory.start
        with nogil:
            _c.cylstm_pack_linear(&ctx, &self.c, raw, packed)
        self.c.weight = packed

    cdef int fill(self, _c.cylstm_context *ctx, int threads, bint polled) except -1:
        _fill_context(ctx, self.kernels, 32, threads, polled)
        ctx.int8, ctx.bf16 = self.int8, self.bf16
        return 0

    def without_backward(self):
        """Itself: what has fewer bits has no backward pass."""
        return self

    def forward(self, cnp.ndarray x not None, cnp.ndarray bias, int threads):
        """Return y (N, out) = x W^T + b for float32 x (N, in), b (out,) or None; no size is 0."""
        cdef _c.cylstm_context ctx
        cdef _c.cylstm_linear c = self.c
        if (cnp.PyArray_TYPE(x) != cnp.NPY_FLOAT32 or not cnp.PyArray_ISCARRAY_RO(x)
                or cnp.PyArray_DIM(x, 1) != <Py_ssize_t>c.inputs):
            raise ValueError(f"expected contiguous float32 rows of {c.inputs}")
        c.rows = cnp.PyArray_DIM(x, 0)
        cdef bint release = 2.0 * c.rows * c.inputs * c.outputs >= GIL_FLOPS_SIMD
        self.fill(&ctx, threads, release)
        return _run_linear(&ctx, &c, release, x, bias)


def linear_backward(cnp.ndarray x not None, cnp.ndarray dy not None, cnp.ndarray weight not None,
                    cnp.ndarray dweight not None, bint need_x, int threads):
    """Write dW (out, in) = dy^T x, and return dx (N, in) = dy W or None; no size is 0."""
    cdef _c.cylstm_context ctx
    cdef _c.cylstm_linear c
    cdef _c.cylstm_linear_gradients g
    cdef cnp.ndarray dx = np.empty_like(x) if need_x else None
    cdef bint release = _fill_linear(&ctx, &c, threads, x, weight, (dy, dweight))
    cdef Memory scratch = Memory(_c.cylstm_linear_scratch(&ctx, &c))
    g.x, g.dy = cnp.PyArray_DATA(x), cnp.PyArray_DATA(dy)
    g.dx = cnp.PyArray_DATA(dx) if need_x else NULL
    g.dweight = cnp.PyArray_DATA(dweight)
    if release:
        with nogil:
            _c.cylstm_linear_backward(&ctx, &c, &g, scratch.start)
        _raise_pending()
    else:
        _c.cylstm_linear_backward(&ctx, &c, &g, scratch.start)
    return dx

"""The sizes of a stack, its kernels, and how many threads a call has. Part of `_core.pyx`."""

cdef dict CELLS = {
    "LSTM": _c.CYLSTM_LSTM, "LSTM, f=1-i": _c.CYLSTM_LSTM_COUPLED_F,
    "LSTM, i=1-f": _c.CYLSTM_LSTM_COUPLED_I, "GRU": _c.CYLSTM_GRU,
    "GRU, reset before": _c.CYLSTM_GRU_RESET_BEFORE, "RNN": _c.CYLSTM_RNN}
cdef dict ACTIVATIONS = {
    "sigmoid": _c.CYLSTM_SIGMOID, "tanh": _c.CYLSTM_TANH, "relu": _c.CYLSTM_RELU,
    "hard_sigmoid": _c.CYLSTM_HARD_SIGMOID, "softsign": _c.CYLSTM_SOFTSIGN,
    "softplus": _c.CYLSTM_SOFTPLUS, "affine": _c.CYLSTM_AFFINE,
    "leaky_relu": _c.CYLSTM_LEAKY_RELU, "thresholded_relu": _c.CYLSTM_THRESHOLDED_RELU,
    "scaled_tanh": _c.CYLSTM_SCALED_TANH, "elu": _c.CYLSTM_ELU}
cdef dict NORMS = {None: _c.CYLSTM_NO_NORM, "litert": _c.CYLSTM_LITERT_NORM,
                   "haste": _c.CYLSTM_HASTE_NORM}
cdef dict FORMATS = {  # and whether inputs are wide
    None: (_c.CYLSTM_AS_COMPUTED, False), "bfloat16": (_c.CYLSTM_BFLOAT16, False),
    "bfloat16 products": (_c.CYLSTM_BFLOAT16_PRODUCTS, False), "int8": (_c.CYLSTM_INT8, False),
    "int8, inputs of int16": (_c.CYLSTM_INT8, True)}


cdef int _fill_context(_c.cylstm_context *ctx, const _c.cylstm_kernels *kernels, int bits,
                       int threads, bint polled) except -1:
    """A context for a call with products."""
    ctx.kernels, ctx.threads = kernels, threads
    ctx.sgemm, ctx.dgemm, ctx.poll, ctx.poll_arg = NULL, NULL, NULL, NULL
    ctx.int8, ctx.bf16 = NULL, NULL
    store_pointer(&_last, <uintptr_t>kernels, memory_order_relaxed)
    if polled and _answers_signals():
        ctx.poll = _poll
    if _force_blas:
        if bits == 32:
            ctx.sgemm = _sgemm
        else:
            ctx.dgemm = _dgemm
    return 0


cdef class Dims:
    """The sizes of a stack of layers, its kind of cell, and the kernels that serve it.

    What the core knows of a kind of cell (its gates, its states, the arrays of its weights) is
    read from it here, once.
    """

    cdef _c.cylstm_dims c
    cdef _c.cylstm_cell_shape cell
    cdef const _c.cylstm_kernels *kernels
    cdef const _c.cylstm_compact_kernels *int8  # NULL where weights are not
    cdef const _c.cylstm_compact_kernels *bf16  # NULL where products are not
    cdef readonly object dtype
    cdef int typenum
    cdef double gil_flops
    cdef size_t count  # of all weights, in reals
    cdef Py_ssize_t L, D, inputs, H, R  # "I" would collide with <complex.h>
    cdef str name  # of the kind of cell

    def __cinit__(self, str cell, layers, directions, input, hidden, proj, bias, dtype, isa=None, *,
                  bint reverse=False, tuple activations=(), bint peephole=False, double clip=0,
                  double cell_clip=0, bint proj_bias=False, double proj_clip=0,
                  layer_norm=None, double zoneout=0, format=None, int8=None):
        """`activations` are (name, alpha, beta), of one direction after the other, in the order of
        the cell's equations; a name that is None is that of the equations. Clips of 0 are none.
        `format` is that of the weights, `int8` who multiplies by such, None for the chosen ones."""
        self.dtype = np.dtype(dtype)
        self.typenum = self.dtype.num
        self.L, self.D, self.inputs, self.H = layers, directions, input, hidden
        self.R = proj or hidden
        self.name = cell
        # all other members are 0, and mean the plain cell
        self.c.layers, self.c.directions = layers, directions
        self.c.input, self.c.hidden = input, hidden
        self.c.proj, self.c.bias, self.c.bits = proj, bias, 8 * self.dtype.itemsize
        self.c.cell = CELLS[cell]
        self.c.format, self.c.wide_inputs = FORMATS[format]
        self.c.peephole, self.c.clip, self.c.cell_clip = peephole, clip, cell_clip
        self.c.proj_bias, self.c.proj_clip, self.c.reverse = proj_bias, proj_clip, reverse
        self.c.layer_norm, self.c.zoneout = NORMS[layer_norm], zoneout
        cdef Py_ssize_t each = max(1, len(activations) // directions), n, d, k
        for n in range(len(activations)):
            function, alpha, beta = activations[n]
            if function is not None:
                d, k = n // each, n % each
                self.c.activation[d][k].type = ACTIVATIONS[function]
                self.c.activation[d][k].alpha = alpha
                self.c.activation[d][k].beta = beta
        self.cell = _c.cylstm_find_cell(&self.c)
        self.count = _c.cylstm_raw_count(&self.c)
        cdef bytes name = (isa or ISA).encode()
        self.kernels = _c.cylstm_find_kernels(name, self.c.bits)
        if self.kernels == NULL:
            raise ValueError(f"isa {isa!r} can't run here, expected one of {ISA_AVAILABLE}")
        if self.c.format == _c.CYLSTM_INT8:
            self.int8 = _find_int8(self.kernels, int8)
        if self.c.format == _c.CYLSTM_BFLOAT16_PRODUCTS:
            self.bf16 = _find_bf16(self.kernels)
        self.gil_flops = GIL_FLOPS_SCALAR if name == b"scalar" else GIL_FLOPS_SIMD

    @property
    def weights_size(self):
        """Bytes of the largest of the weights and their two packs, at least those of SIZE_MAX where
        they overflow."""
        cdef _c.cylstm_context ctx
        self.pack_context(&ctx, 1)
        return max(self.count * <object>(self.c.bits // 8),
                   _c.cylstm_packed_size(&ctx, &self.c),
                   _c.cylstm_packed_backward_size(&ctx, &self.c))

    def arrays(self):
        """((name, shape), ...) of all weights, in the order in which they lie."""
        cdef _c.cylstm_array arrays[_c.CYLSTM_ARRAYS]
        cdef size_t layer, direction, n
        cdef list found = []
        for layer in range(self.c.layers):
            for direction in range(self.c.directions):
                end = f"_l{layer}{'_reverse' if direction else ''}"
                for n in range(_c.cylstm_list_arrays(&self.c, layer, direction, arrays)):
                    shape = (arrays[n].rows, arrays[n].columns)
                    found.append((arrays[n].name.decode() + end,
                                  shape if arrays[n].columns else shape[:1]))
        return tuple(found)

    def stored(self):
        """{name: dtype} of the weights that are not of this dtype; bfloat16 as its bits."""
        if self.c.format == _c.CYLSTM_AS_COMPUTED:
            return {}
        kind = np.dtype(np.int8 if self.c.format == _c.CYLSTM_INT8 else np.uint16)
        return {name: kind for name, shape in self.arrays() if len(shape) == 2}

    cdef list check_states(self, object value, str what, str suffix, tuple outer):
        """[h], or [h, c]: the states of this cell, (*outer, width), whole and checked."""
        cdef tuple names = (f"h{suffix}", f"c{suffix}")
        if self.cell.states == 1:
            return [_check_whole(value, names[0], self, (*outer, self.R))]
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            kind = type(value).__name__ + (f" of {len(value)}" if isinstance(value, (tuple, list))
                                           else "")
            raise TypeError(f"{what} is {with_article(kind)}, expected a tuple ({names[0]}, "
                            f"{names[1]})")
        return [_check_whole(value[0], names[0], self, (*outer, self.R)),
                _check_whole(value[1], names[1], self, (*outer, self.H))]

    cdef list new_states(self, tuple outer):
        """Memory for h, or for h and c: (*outer, width) each."""
        cdef cnp.ndarray h = self.empty((*outer, self.R))
        return [h] if self.cell.states == 1 else [h, self.empty((*outer, self.H))]

    cdef cnp.ndarray empty(self, tuple shape):
        """numpy.empty of this dtype, less what it costs to call that."""
        cdef cnp.npy_intp sizes[5]
        cdef int n = len(shape), k
        for k in range(n):
            sizes[k] = shape[k]
        return cnp.PyArray_EMPTY(n, sizes, self.typenum, 0)

    cdef void pack_context(self, _c.cylstm_context *ctx, int threads) noexcept:
        """A context without products, for packing."""
        ctx.kernels = self.kernels
        ctx.threads = threads
        ctx.sgemm = NULL
        ctx.dgemm = NULL
        ctx.poll = NULL
        ctx.poll_arg = NULL
        ctx.int8, ctx.bf16 = self.int8, self.bf16

    cdef int fill_context(self, _c.cylstm_context *ctx, int threads, bint polled) except -1:
        _fill_context(ctx, self.kernels, self.c.bits, threads, polled)
        ctx.int8, ctx.bf16 = self.int8, self.bf16
        return 0

    cdef void drop(self, double p, uint64_t key, const void *raw, void *out, int threads) noexcept:
        """DropConnect, of weights or of their gradients."""
        cdef _c.cylstm_context ctx
        self.pack_context(&ctx, threads)
        if self.count * <size_t>(self.c.bits // 8) < GIL_PACK_BYTES:
            _c.cylstm_drop_recurrent(&ctx, &self.c, p, key, raw, out)
        else:
            with nogil:
                _c.cylstm_drop_recurrent(&ctx, &self.c, p, key, raw, out)

    cdef bint releases_gil(self, double rows):
        return _c.cylstm_forward_flops(&self.c, rows) >= self.gil_flops


cdef void *_state(list states, int n) noexcept:
    """The data of h (0) or c (1), or NULL."""
    if states is None or n >= len(states):
        return NULL
    return cnp.PyArray_DATA(<cnp.ndarray>states[n])


cdef object _as_state(list states):
    """What a user meets: h, or (h, c)."""
    return states[0] if len(states) == 1 else tuple(states)


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

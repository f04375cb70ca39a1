"""Weights as the kernels read them, packed at first need. Part of `_core.pyx`."""


@cython.auto_pickle(False)
cdef class Pack:
    """The panels for calls, or those for backward, once they are made."""

    cdef int kind
    cdef Memory memory
    cdef atomic_int made, used
    cdef Turn turn  # between those who would make it

    def __cinit__(self, int kind):
        self.kind, self.turn = kind, Turn()


@cython.auto_pickle(False)
cdef class Packed:
    """One block of weights as the kernels read it: each of its two packs is made at first need.

    A call of one step uses each weight once. The first to use these reads them raw, for in training
    it may be the only one (`once`); the next call has them packed. What the core reads is
    here and in `dims`, out of reach for Python.
    """

    cdef readonly Dims dims
    cdef Memory raw
    cdef Spares spares
    cdef Pack forward, backward

    def __cinit__(self, Dims dims not None, cnp.ndarray flat not None, Spares spares):
        """Take `flat`, of `aligned_empty`, which changes no more once anything is read."""
        if flat.dtype != dims.dtype or flat.shape[0] != <Py_ssize_t>dims.count:
            raise ValueError(f"flat holds {flat.size} {flat.dtype}, expected all weights, "
                             f"{dims.dtype}")
        self.dims, self.raw, self.spares = dims, cnp.get_array_base(flat), spares
        self.forward, self.backward = Pack(FORWARD), Pack(BACKWARD)

    def follow(self, Packed before not None, int threads):
        """If the block before this one was packed for calls, so is this at once: no call waits."""
        if before.forward.made != 0:
            self.read(self.forward, threads)

    def without_backward(self):
        """The same weights, less the pack for backward, which is made again at need."""
        cdef Packed other = Packed.__new__(Packed, self.dims, self.raw.array(
            (<Py_ssize_t>self.dims.count,), self.dims.typenum), self.spares)
        other.forward = self.forward
        return other

    cdef Packed dropped(self, double p, uint64_t key, int threads):
        """The same weights, of which DropConnect has dropped some."""
        cdef Memory memory = Memory(self.raw.size, self.spares)
        self.dims.drop(p, key, self.raw.start, memory.start, threads)
        return Packed.__new__(Packed, self.dims, memory.array(
            (<Py_ssize_t>self.dims.count,), self.dims.typenum), self.spares)

    @property
    def places(self):
        """Where the packs for calls and for backward lie, None where not made yet; for tests."""
        return [<uintptr_t>pack.memory.start if pack.made else None
                for pack in (self.forward, self.backward)]

    cdef const void *read_once(self, Pack pack, const _c.cylstm_context *ctx, Py_ssize_t T,
                               Py_ssize_t B) except? NULL:
        """The panels of `pack` for one call of so many steps. NULL: read raw weights."""
        if not pack.made and _c.cylstm_reads_raw(ctx, &self.dims.c, T, B):
            if not exchange(&pack.used, True):
                return NULL
        return self.read(pack, ctx.threads)

    cdef const void *read(self, Pack pack, int threads) except NULL:
        """The panels of `pack`, made if need be."""
        if pack.made:
            return pack.memory.start
        with pack.turn.get():
            if not pack.made:
                self.make(pack, threads)
                pack.made = True
        return pack.memory.start

    cdef int make(self, Pack pack, int threads) except -1:
        cdef _c.cylstm_context ctx
        cdef const _c.cylstm_dims *dims = &self.dims.c
        cdef bint backward = pack.kind == BACKWARD
        self.dims.pack_context(&ctx, threads)
        pack.memory = Memory(_c.cylstm_packed_backward_size(&ctx, dims) if backward
                             else _c.cylstm_packed_size(&ctx, dims), self.spares, pack.kind)
        cdef const void *raw = self.raw.start
        cdef void *packed = pack.memory.start
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

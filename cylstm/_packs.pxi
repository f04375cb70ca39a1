"""Weights as the kernels read them, packed at first need. Part of `_core.pyx`."""


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

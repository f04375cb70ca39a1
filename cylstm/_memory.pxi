"""Memory for the core: aligned, on huge pages, and used again. Part of `_core.pyx`."""


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


cdef enum:  # of memory that a module keeps to use again
    RAW
    FORWARD
    BACKWARD
    TAPE
    GRADIENTS
    KINDS


@cython.auto_pickle(False)  # a pointer is of no use elsewhere, and clang won't compile the code
cdef class Spares:
    """Memory of a module that nobody uses, at most one piece of each kind, kept for the next that
    asks for about as much: fresh memory is zero-filled by the system, which
    costs as much as writing it.

    A piece begins with its size.
    """

    cdef atomic_uintptr_t piece[KINDS]

    cdef void *take(self, int kind, size_t size) noexcept:
        """What is kept, or NULL where it is too small or far too large, and then released."""
        cdef void *piece = <void *>exchange_pointer(&self.piece[kind], 0)
        if piece == NULL or size <= (<size_t *>piece)[0] <= 2 * size:
            return piece
        free(piece)
        return NULL

    cdef void keep(self, int kind, void *piece) noexcept:
        """Keep it, or nothing where it is NULL, and release what was kept."""
        free(<void *>exchange_pointer(&self.piece[kind], <uintptr_t>piece))

    cdef inline void release_training(self) noexcept:
        """What inference does, for which tapes and gradients are of no use."""
        if self.piece[TAPE] != 0:
            self.keep(TAPE, NULL)
        if self.piece[GRADIENTS] != 0:
            self.keep(GRADIENTS, NULL)

    def release(self):
        """Return all of it to the system."""
        for kind in range(KINDS):
            self.keep(kind, NULL)

    def __dealloc__(self):
        for kind in range(KINDS):
            self.keep(kind, NULL)


@cython.no_gc
cdef class Memory:
    """Memory for the core, aligned. It lives as long as anybody holds this object or an array in
    it; then it is freed, or goes to the spares."""

    cdef void *piece
    cdef void *start
    cdef readonly size_t size
    cdef Spares spares
    cdef int kind

    def __cinit__(self, size_t size, Spares spares=None, int kind=RAW):
        self.size, self.spares, self.kind = size, spares, kind
        if spares is not None:
            self.piece = spares.take(kind, size)
        if self.piece == NULL:
            if size < SIZE_MAX - sizeof(size_t) - _c.CYLSTM_ALIGN:
                self.piece = malloc(sizeof(size_t) + _c.CYLSTM_ALIGN + size)
            if self.piece == NULL:
                raise MemoryError(f"no memory for {size} bytes")
            (<size_t *>self.piece)[0] = size
        self.start = <void *>((<uintptr_t>self.piece + sizeof(size_t) + _c.CYLSTM_ALIGN - 1)
                              & ~<uintptr_t>(_c.CYLSTM_ALIGN - 1))
        use_huge_pages(self.start, size)

    cdef cnp.ndarray array(self, tuple shape, int typenum):
        """An array at the start of this memory, which it keeps alive. Once it is made read-only,
        it stays so: NumPy looks for a writable buffer under it, and there is none."""
        cdef cnp.npy_intp sizes[5]
        cdef int n = len(shape), k
        for k in range(n):
            sizes[k] = shape[k]
        cdef cnp.ndarray array = cnp.PyArray_SimpleNewFromData(n, sizes, typenum, self.start)
        cnp.set_array_base(array, self)
        return array

    def __dealloc__(self):
        if self.spares is None:
            free(self.piece)
        elif self.piece != NULL:
            self.spares.keep(self.kind, self.piece)


def aligned_empty(Py_ssize_t size, dtype, Spares spares=None):
    """An uninitialised 1-D array that starts on a cache line, of weights where there are spares."""
    dtype = np.dtype(dtype)
    cdef Memory memory = Memory(size * <Py_ssize_t>dtype.itemsize, spares)
    return memory.array((size,), dtype.num)

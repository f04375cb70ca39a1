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

"""One call: its arrays, checked; signals; inference. Part of `_core.pyx`."""


cdef extern from "Python.h":
    # Cython's own declaration would print the exception here, where none can be raised.
    int check_signals "PyErr_CheckSignals" () noexcept


cdef int _poll(void *arg) noexcept nogil:
    with gil:  # no handler may run while the exception of another one is on its way out
        return PyErr_Occurred() != NULL or check_signals() != 0


cdef bint _answers_signals() except -1:
    """Whether this is the thread in which Python runs signal handlers.

    The others may not be polled: Python ends a daemon thread that asks for the GIL while the
    interpreter shuts down, and helpers would go on in the memory of a call that is no more.
    """
    return threading.get_ident() == threading.main_thread().ident


cdef int _raise_pending() except -1:
    return -1 if PyErr_Occurred() != NULL else 0


cdef class Problem:
    """One call's arrays, checked: what forward and backward have in common."""

    cdef Dims dims
    cdef Packed packed
    cdef _c.cylstm_sequence seq
    cdef Py_ssize_t T, B
    cdef bint batched, batch_first
    cdef cnp.ndarray x, y
    cdef list states_0, states_n  # [h] or [h, c]; states_0 None: zeros
    cdef cnp.ndarray lengths, mask, reset  # as the core takes them, or None
    cdef bint hold_output
    cdef double rows

    cdef tuple outer(self, Py_ssize_t width):
        """The shape of x or y."""
        if not self.batched:
            return (self.T, width)
        if self.batch_first:
            return (self.B, self.T, width)
        return (self.T, self.B, width)

    cdef tuple state_outer(self):
        """The shape of a state, without its width."""
        cdef Py_ssize_t n = self.dims.L * self.dims.D
        if self.batched:
            return (n, self.B)
        return (n,)

    cdef void strides(self, cnp.ndarray array, ptrdiff_t *t, ptrdiff_t *b) noexcept:
        """Strides in elements by time and batch."""
        cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(array)
        cdef int time = 1 if self.batched and self.batch_first else 0
        t[0] = cnp.PyArray_STRIDE(array, time) // size
        b[0] = cnp.PyArray_STRIDE(array, 1 - time) // size if self.batched else 0

    cdef int check(self, Packed packed, object x, object states, object lengths,
                   bint batch_first, object mask, object reset, object hold_output) except -1:
        cdef Dims dims = packed.dims
        self.packed, self.dims, self.batch_first = packed, dims, batch_first
        self.hold_output = flag("hold_output", hold_output)
        cdef cnp.ndarray a = as_floats(x, "x", dims.dtype)
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
        self.x = _rows_of(a)  # before anything that may run code of the user's
        if lengths is not None:
            self.lengths = check_lengths(lengths, self.T, self.B, self.batched)
            self.rows = float((<object>self.lengths).sum())
        else:
            self.rows = <double>self.T * <double>self.B
        if mask is not None or reset is not None:
            self.check_steps(mask, reset)
        elif self.hold_output:
            raise ValueError("hold_output was given without a mask: expected a mask, or False")
        if states is not None:
            self.states_0 = dims.check_states(states, "states", "_0", self.state_outer())
        return 0

    cdef int check_steps(self, object mask, object reset) except -1:
        cdef tuple outer = (self.T,)
        cdef bint time_first = not (self.batched and self.batch_first)
        if self.batched:
            outer = (self.T, self.B) if time_first else (self.B, self.T)
        if reset is not None:
            self.reset = _check_steps(reset, "reset", outer, time_first)
        if mask is None:
            return 0
        self.mask = _check_steps(mask, "mask", outer, time_first)
        valid = self.mask
        if self.lengths is not None:
            valid = valid.reshape(self.T, self.B) * (np.arange(self.T)[:, None] < self.lengths)
        self.rows = PyArray_CountNonzero(valid)
        return 0

    cdef int replace_states(self, replaced) except -1:
        """Each in its place: where a list that grows finds no memory, a comprehension of Cython 3.3
        frees an item twice."""
        cdef Py_ssize_t k
        if self.states_0 is not None:
            for k in range(len(self.states_0)):
                self.states_0[k] = replaced(self.states_0[k])
        return 0

    cdef int allocate(self, object out=None) except -1:
        """Outputs, and the struct that points to everything."""
        cdef Dims dims = self.dims
        shape = self.outer(dims.D * dims.R)
        if out is None:
            self.y = dims.empty(shape)
        else:
            self.y = _check_out(out, dims, shape)
            self.x = _apart(self.x, self.y)
            self.replace_states(lambda state: _apart(state, self.y))
        self.states_n = dims.new_states(self.state_outer())
        self.seq.T, self.seq.B = self.T, self.B
        self.seq.lengths = NULL
        if self.lengths is not None:
            self.seq.lengths = <const size_t *>cnp.PyArray_DATA(self.lengths)
        self.seq.mask = self.seq.reset = NULL
        if self.mask is not None:
            self.seq.mask = <const unsigned char *>cnp.PyArray_DATA(self.mask)
        if self.reset is not None:
            self.seq.reset = <const unsigned char *>cnp.PyArray_DATA(self.reset)
        self.seq.hold_output = self.hold_output
        self.seq.x = cnp.PyArray_DATA(self.x)
        self.strides(self.x, &self.seq.x_t, &self.seq.x_b)
        self.seq.h_0, self.seq.c_0 = _state(self.states_0, 0), _state(self.states_0, 1)
        self.seq.y = cnp.PyArray_DATA(self.y)
        self.strides(self.y, &self.seq.y_t, &self.seq.y_b)
        self.seq.h_n, self.seq.c_n = _state(self.states_n, 0), _state(self.states_n, 1)
        return 0

    cdef int run(self, int threads) except -1:
        cdef _c.cylstm_context ctx
        cdef Dims dims = self.dims
        cdef bint release = dims.releases_gil(self.rows)
        dims.fill_context(&ctx, threads, release)
        if self.B == 0 or self.T == 0:
            _pass_on(self.states_0, self.states_n)
            return 0
        cdef Packed weights = self.packed
        cdef const void *packed = weights.read_once(weights.forward, &ctx, self.T, self.B)
        self.seq.raw = NULL
        if packed == NULL:
            self.seq.raw = weights.raw.start
            release = release or weights.raw.size >= GIL_PACK_BYTES
        cdef Memory scratch = Memory(_c.cylstm_forward_scratch(&ctx, &dims.c, &self.seq))
        if release:
            with nogil:
                _c.cylstm_forward(&ctx, &dims.c, packed, &self.seq, scratch.start)
            _raise_pending()
        else:
            _c.cylstm_forward(&ctx, &dims.c, packed, &self.seq, scratch.start)
        return 0


cdef int _pass_on(list states, list to) except -1:
    """What no steps do to a state, or to its gradient; zeros where there is none."""
    for k in range(len(to)):
        to[k][...] = 0 if states is None or states[k] is None else states[k]
    return 0


def forward(Packed packed not None, x, states, lengths, threads, bint batch_first, out,
            mask=None, reset=None, hold_output=False):
    """Inference: (y, state), new arrays but for `out`. See _Recurrent.__call__."""
    cdef Problem p = Problem()
    cdef int n = _threads(threads)
    p.check(packed, x, states, lengths, batch_first, mask, reset, hold_output)
    p.allocate(out)
    packed.spares.release_training()
    p.run(n)
    return p.y, _as_state(p.states_n)

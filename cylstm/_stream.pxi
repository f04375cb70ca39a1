"""Streams: an LSTM on a prepared plan, step by step. Part of `_core.pyx`."""


cdef class Stream:
    """An LSTM that takes its sequence step by step, with its state inside.

    Made by `LSTM.stream`. The results are bit for bit those of one call over the whole sequence.
    New weights of the LSTM are taken at the next step; the state stays. One stream may not be
    used by two threads at once, which is a RuntimeError. A process that is forked while another
    thread is in a stream finds it as it was before.

    Examples
    --------
    >>> lstm = cylstm.LSTM(8, 4)
    >>> stream = lstm.stream(3)
    >>> stream.run(np.ones((5, 3, 8), np.float32)).shape
    (5, 3, 4)
    >>> h, c = stream.state
    >>> h.shape
    (1, 3, 4)
    """

    cdef Dims dims
    cdef object owner, weights
    cdef Current current
    cdef Packed packed
    cdef const void *panels
    cdef Memory memory
    cdef _c.cylstm_plan *plan
    cdef char *saved_h  # the state before a run that a fork may cut, if it is_saved
    cdef char *saved_c
    cdef bint is_saved
    cdef Py_ssize_t N
    cdef bint batched, batch_first
    cdef atomic_int busy  # 0, or which process somebody is in it in: 1 + _forks
    cdef object threads
    cdef int max_threads

    def __cinit__(self, Current current not None, owner, batch_size, threads,
                  bint batch_first=False):
        """On the weights that are `current`; `owner.stream(...)` makes another."""
        cdef _c.cylstm_context ctx
        cdef Dims dims = (<Packed?>current.get().packed).dims
        self.batched = batch_size is not None
        self.N = batch_size if self.batched else 1
        self.current, self.dims, self.threads = current, dims, threads
        self.owner, self.batch_first = owner, batch_first
        self.max_threads = _threads(threads)
        dims.fill_context(&ctx, self.max_threads, False)
        self.take()  # weights that have not been packed are packed now and not in a step
        self.leave()
        cdef size_t plan = _c.cylstm_plan_size(&ctx, &dims.c, self.N)
        if plan > SIZE_MAX // 4:  # the sums below would overflow
            raise MemoryError(f"no memory for {plan} bytes")
        plan += -plan % _c.CYLSTM_ALIGN
        cdef size_t h = dims.L * self.N * dims.R * (dims.c.bits // 8)
        cdef size_t c = dims.L * self.N * dims.H * (dims.c.bits // 8)
        self.memory = Memory(plan + h + c)
        self.saved_h = <char *>self.memory.start + plan
        self.saved_c = self.saved_h + h
        self.plan = _c.cylstm_plan_init(&ctx, &dims.c, self.N, self.memory.start)

    def __repr__(self):
        return f"Stream({self.owner!r}, batch_size={self.batch_size})"

    @property
    def batch_size(self):
        """The number of streams, or None for a single one without a batch axis."""
        return self.N if self.batched else None

    cdef inline int take(self) except -1:
        """Enter the stream, with the weights of now."""
        cdef int here = 1 + <int>_forks, before = exchange(&self.busy, here)
        if before == here:
            raise RuntimeError("this stream is in use by another thread; make one for each")
        try:
            if before != 0 and self.is_saved:  # a thread that the fork left behind was in a run
                self.restore()
            weights = self.current.get()
            if weights is not self.weights:
                self.read(weights, weights.packed)
        except BaseException:
            self.leave()
            raise
        return 0

    cdef int read(self, object weights, Packed packed) except -1:
        if packed is None or packed.dims is not self.dims:
            raise RuntimeError("the weights of this stream's LSTM are those of another")
        self.panels = packed.read(packed.forward, self.max_threads)
        self.packed, self.weights = packed, weights
        return 0

    cdef void save(self) noexcept:
        """Keep the state, for a process that is forked before `leave`."""
        _c.cylstm_plan_get_states(self.plan, self.saved_h, self.saved_c)
        self.is_saved = True

    cdef int restore(self) except -1:
        cdef _c.cylstm_context ctx
        self.dims.fill_context(&ctx, self.max_threads, False)
        self.plan = _c.cylstm_plan_init(&ctx, &self.dims.c, self.N, self.memory.start)
        _c.cylstm_plan_set_states(self.plan, self.saved_h, self.saved_c)
        self.is_saved = False
        return 0

    cdef inline void leave(self) noexcept:
        self.is_saved = False
        store(&self.busy, False, memory_order_release)

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

    cdef int compute(self, Py_ssize_t T, cnp.ndarray indices, Py_ssize_t rows, cnp.ndarray x,
                     cnp.ndarray y) except -1:
        """x (T, rows, I) -> y (T, rows, R), both contiguous; `indices` of the rows, or None."""
        cdef _c.cylstm_context ctx
        cdef const size_t *active = NULL
        if indices is not None:
            active = <const size_t *>cnp.PyArray_DATA(indices)
        cdef double work = <double>T * <double>rows
        cdef bint release = self.dims.releases_gil(work)
        cdef int threads = self.max_threads
        if self.threads is None and _default_threads < threads:
            threads = _default_threads
        cdef const void *source = cnp.PyArray_DATA(x)
        cdef void *target = cnp.PyArray_DATA(y)
        cdef const void *packed
        self.take()
        try:
            self.packed.spares.release_training()
            self.dims.fill_context(&ctx, threads, False)
            packed = self.panels
            if release:
                self.save()
                with nogil:
                    _c.cylstm_plan_run(self.plan, &ctx, packed, T, active, rows, source, target)
            else:
                _c.cylstm_plan_run(self.plan, &ctx, packed, T, active, rows, source, target)
        finally:
            self.leave()
        return 0

    def step(self, x_t, *, out=None, active=None):
        """Take one step.

        Parameters
        ----------
        x_t : array (I,), or (N, I) for a stream of N; with `active`, (len(active), I)
        out : array (R,) or (N, R), written to and returned; may be x_t itself
        active : distinct indices of the streams that take the step; the others do not advance

        Returns
        -------
        array (R,) or (N, R): y_t, new unless `out` is given

        Raises
        ------
        ValueError, TypeError
            A wrong shape or dtype, or indices that are out of range or not distinct.
        RuntimeError
            Another thread is inside this stream.

        Examples
        --------
        >>> stream = cylstm.LSTM(8, 4).stream(3)
        >>> stream.step(np.ones((3, 8), np.float32)).shape
        (3, 4)
        >>> stream.step(np.ones((1, 8), np.float32), active=[2]).shape
        (1, 4)
        """
        cdef cnp.npy_intp shape[2]
        cdef Py_ssize_t rows = self.N
        cdef int ndim = 2 if self.batched else 1
        cdef cnp.ndarray indices = None, x, y
        if active is not None:
            indices = self.check_indices("active", active)
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
                _check_out(out, self.dims, self.frame(rows, self.dims.R))
            y = out
            x = _apart(x, y)
        self.compute(1, indices, rows, x, y)
        return y

    def run(self, block, *, out=None, active=None):
        """Take the steps of a block, the same as so many calls of `step`, to the bit.

        Ctrl-C is answered when the block is done.

        Parameters
        ----------
        block : array (T, I), or (T, N, I) for a stream of N, or (N, T, I) if its LSTM is
            `batch_first`; with `active`, N is len(active)
        out : array like the result, written to and returned; may be the block itself
        active : as in `step`

        Returns
        -------
        array (T, R), (T, N, R) or (N, T, R): y of each step, new unless `out` is given

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As `step`.

        Examples
        --------
        >>> stream = cylstm.LSTM(8, 4).stream()
        >>> stream.run(np.ones((5, 8), np.float32)).shape
        (5, 4)
        """
        cdef cnp.ndarray indices = None, x, y
        cdef Py_ssize_t rows = self.N, T
        cdef bint transposed = self.batched and self.batch_first
        if active is not None:
            indices = self.check_indices("active", active)
            rows = cnp.PyArray_DIM(indices, 0)
        x = as_floats(block, "block", self.dims.dtype)
        if cnp.PyArray_NDIM(x) != (3 if self.batched else 2):
            raise ValueError(f"block has shape {(<object>x).shape}, expected "
                             f"{self.letters()} with I = {self.dims.inputs}")
        T = cnp.PyArray_DIM(x, 1 if transposed else 0)
        x = _check(x, "block", self.dims, self.block(T, rows, self.dims.inputs))
        cdef tuple shape = self.block(T, rows, self.dims.R)
        cdef cnp.ndarray result = (self.dims.empty(shape) if out is None
                                   else _check_out(out, self.dims, shape))
        if transposed:  # a plan has its steps one after another
            x, y = (<object>x).swapaxes(0, 1), self.dims.empty((T, rows, self.dims.R))
        else:
            y = result
        if not cnp.PyArray_IS_C_CONTIGUOUS(x):
            x = np.ascontiguousarray(x)
        x = _apart(x, y)
        if T:
            self.compute(T, indices, rows, x, y)
        if transposed:
            (<object>result)[...] = (<object>y).swapaxes(0, 1)
        return result

    cdef str letters(self):
        if not self.batched:
            return "(T, I)"
        return "(N, T, I)" if self.batch_first else "(T, N, I)"

    cdef tuple block(self, Py_ssize_t T, Py_ssize_t rows, Py_ssize_t width):
        """The shape of a block's array."""
        if not self.batched:
            return (T, width)
        return (rows, T, width) if self.batch_first else (T, rows, width)

    cdef cnp.ndarray check_indices(self, str name, object value):
        """Distinct indices of streams, which nobody else can change."""
        if not self.batched:
            raise ValueError(f"{name} was given to a stream without a batch, expected None")
        if is_masked(value):
            raise TypeError(f"{name} is a MaskedArray, whose mask would be ignored; expected "
                            "integer indices, such as its compressed()")
        try:
            indices = np.asarray(value)
        except ValueError as error:
            raise ValueError(
                f"{name} is {value!r}, expected one axis of indices: {error}") from None
        if indices.size == 0:
            indices = indices.astype(np.intp)
        if indices.dtype.kind not in "iu":
            raise TypeError(f"{name} is {indices.dtype}, expected integer indices")
        if indices.ndim != 1:
            raise ValueError(f"{name} has shape {indices.shape}, expected one axis of indices")
        indices = indices.copy()  # before its values are checked
        if indices.size and not (0 <= int(indices.min()) and int(indices.max()) < self.N):
            raise ValueError(f"{name} holds {indices.tolist()}, expected indices 0 to {self.N - 1}")
        if len(set(indices.tolist())) != indices.size:
            raise ValueError(f"{name} holds {indices.tolist()}, expected distinct indices")
        return np.ascontiguousarray(indices, dtype=np.uintp)

    @property
    def state(self):
        """A copy of the state, h or (h, c), with h (L, R) and c (L, H), or (L, N, R) and (L, N, H).
        Settable."""
        cdef list states = self.dims.new_states((self.dims.L, self.N))
        self.take()
        _c.cylstm_plan_get_states(self.plan, _state(states, 0), _state(states, 1))
        self.leave()
        cdef Py_ssize_t k
        if not self.batched:
            for k in range(len(states)):  # no comprehension: see Problem.replace_states
                states[k] = states[k][:, 0]
        return _as_state(states)

    @state.setter
    def state(self, value):
        self.assign(None, self.check_states(value, self.N))

    def reset(self, indices=None, *, state=None):
        """Set the state of all streams, or of those named by `indices`: to zero, or to `state`.

        Parameters
        ----------
        indices : distinct indices of streams, or None for all
        state : as the attribute `state`, for the streams that are set

        Raises
        ------
        ValueError, TypeError
            Indices that are out of range or not distinct, or states of a wrong shape or dtype.
        RuntimeError
            Another thread is inside this stream.

        Examples
        --------
        >>> stream = cylstm.GRU(8, 4).stream(3)
        >>> stream.reset([1], state=np.ones((1, 1, 4), np.float32))
        >>> stream.state[0, :, 0].tolist()
        [0.0, 1.0, 0.0]
        """
        cdef cnp.ndarray rows = None if indices is None else self.check_indices("indices", indices)
        cdef Py_ssize_t n = self.N if rows is None else cnp.PyArray_DIM(rows, 0)
        self.assign(rows, None if state is None else self.check_states(state, n))

    cdef list check_states(self, object value, Py_ssize_t rows):
        middle = (rows,) if self.batched else ()
        return self.dims.check_states(value, "state", "", (self.dims.L, *middle))

    cdef int assign(self, cnp.ndarray rows, list states) except -1:
        """Set the states of all rows (None) or some to those given, or to zero (None)."""
        cdef list now = None
        cdef size_t *row
        cdef Py_ssize_t k
        if rows is not None and states is not None:
            now = self.dims.new_states((self.dims.L, self.N))
        self.take()
        try:
            if rows is None:
                _c.cylstm_plan_set_states(self.plan, _state(states, 0), _state(states, 1))
            elif states is None:
                row = <size_t *>cnp.PyArray_DATA(rows)
                for k in range(cnp.PyArray_DIM(rows, 0)):
                    _c.cylstm_plan_reset_row(self.plan, row[k])
            else:
                _c.cylstm_plan_get_states(self.plan, _state(now, 0), _state(now, 1))
                for whole, part in zip(now, states):
                    whole[:, rows] = part
                _c.cylstm_plan_set_states(self.plan, _state(now, 0), _state(now, 1))
        finally:
            self.leave()
        return 0

    def __reduce__(self):
        return _restore_stream, (self.owner, self.batch_size, self.threads, self.state)


def _restore_stream(owner, batch_size, threads, state):
    stream = owner.stream(batch_size, threads=threads)
    stream.state = state
    return stream

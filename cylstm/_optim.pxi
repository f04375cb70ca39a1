"""Steps of the optimisers, on the arrays that `optimizer.py` has checked. Part of `_core.pyx`."""


cdef struct Move:  # n weights that a step moves, and what is kept of each, in place
    _c.cylstm_context ctx
    size_t n
    const void *weights
    const void *grads
    void *out
    void *kept[2]


@cython.auto_pickle(False)
cdef class Rule:
    """The equations of an optimiser, with the hyperparameters of a step."""

    cdef int kinds  # of what is kept of each weight

    cdef void run(self, const Move *m) noexcept nogil:
        pass


@cython.auto_pickle(False)
cdef class AdamRule(Rule):
    cdef _c.cylstm_adam terms

    def __cinit__(self, *, double lr, betas, double eps, double weight_decay, bint decoupled,
                  unsigned long long step):
        self.kinds = 2
        self.terms = _c.cylstm_adam(lr, betas[0], betas[1], eps, weight_decay, decoupled, step)

    cdef void run(self, const Move *m) noexcept nogil:
        _c.cylstm_adam_step(&m.ctx, &self.terms, m.n, m.weights, m.grads, m.kept[0], m.kept[1],
                            m.out, m.kept[0], m.kept[1])


@cython.auto_pickle(False)
cdef class SGDRule(Rule):
    cdef _c.cylstm_sgd terms

    def __cinit__(self, *, double lr, double momentum, double dampening, double weight_decay,
                  bint nesterov, unsigned long long step):
        self.kinds = momentum != 0
        self.terms = _c.cylstm_sgd(lr, momentum, dampening, weight_decay, nesterov, step)

    cdef void run(self, const Move *m) noexcept nogil:
        _c.cylstm_sgd_step(&m.ctx, &self.terms, m.n, m.weights, m.grads, m.kept[0], m.out,
                           m.kept[0])


@cython.auto_pickle(False)
cdef class Kept:
    """What an optimiser keeps of every weight, per module an array (kinds, n). Steps change it in
    place, and nobody may look meanwhile."""

    cdef tuple arrays
    cdef int moving  # 1 and the forks, as a step begins that has not ended
    cdef unsigned long long begun  # steps

    def __cinit__(self, tuple arrays not None):
        self.arrays = arrays

    def get(self):
        """The arrays, or RuntimeError: they are neither old nor new."""
        if self.moving == 0:
            return self.arrays
        if self.moving == 1 + <int>_forks:
            raise RuntimeError("another thread is in a step of this optimiser")
        # By C code, or because a handler has raised where os.fork() waited.
        raise RuntimeError("this process was forked in the middle of a step of this optimiser: its "
                           "state is neither old nor new; load a state_dict() of before")

    def copy(self):
        """Copies of them, or RuntimeError."""
        cdef unsigned long long begun = self.begun
        cdef list copies = [array.copy() for array in self.get()]  # NumPy releases the GIL
        if self.begun != begun:
            raise RuntimeError("another thread is in a step of this optimiser")
        return copies


# A fork waits for the steps that other threads are in: a child finds each whole.
cdef atomic_int _steps = 0
cdef object _forking = threading.Lock()


def _await_steps():
    _forking.acquire()
    while <int>_steps:
        time.sleep(5e-5)


def _leave_steps():
    """The threads that may have been in them stayed behind."""
    store(&_steps, 0, memory_order_relaxed)
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_await_steps, after_in_parent=_forking.release,
                        after_in_child=_leave_steps)


cdef struct Scatter:  # rows of a table, to be written over
    char *table
    const char *new
    const cnp.npy_intp *rows
    cnp.npy_intp count
    size_t width  # bytes


cdef int _check_move(Rule rule, Move *m, tuple arrays, int threads) except -1:
    cdef cnp.ndarray first = arrays[0], array
    cdef int kind
    if len(arrays) != 3 + rule.kinds:
        raise ValueError(f"got {len(arrays)} arrays, expected {3 + rule.kinds}")
    for array in arrays:
        if (array.dtype != first.dtype or cnp.PyArray_NDIM(array) != 1
                or cnp.PyArray_SIZE(array) != cnp.PyArray_SIZE(first)
                or not cnp.PyArray_ISCARRAY_RO(array)):
            raise ValueError("expected contiguous vectors of one dtype and length")
    m.ctx.kernels = _c.cylstm_find_kernels(ISA.encode(), 8 * cnp.PyArray_ITEMSIZE(first))
    if first.dtype.kind != "f" or m.ctx.kernels == NULL:
        raise TypeError(f"expected vectors of float32 or float64, got {first.dtype}")
    m.ctx.threads = threads
    m.ctx.sgemm, m.ctx.dgemm, m.ctx.poll, m.ctx.poll_arg = NULL, NULL, NULL, NULL
    m.n = cnp.PyArray_SIZE(first)
    m.weights = cnp.PyArray_DATA(first)
    m.grads = cnp.PyArray_DATA(<cnp.ndarray>arrays[1])
    m.out = cnp.PyArray_DATA(<cnp.ndarray>arrays[2])
    m.kept[0] = m.kept[1] = NULL
    for kind in range(rule.kinds):
        m.kept[kind] = cnp.PyArray_DATA(<cnp.ndarray>arrays[3 + kind])
    return 0


cdef int _check_scatter(Scatter *s, cnp.ndarray table, cnp.ndarray rows, cnp.ndarray new) except -1:
    cdef cnp.npy_intp k
    if not (cnp.PyArray_NDIM(table) == 2 and cnp.PyArray_NDIM(rows) == 1
            and cnp.PyArray_TYPE(rows) == cnp.NPY_INTP and table.dtype == new.dtype
            and cnp.PyArray_SIZE(new) == cnp.PyArray_SIZE(rows) * cnp.PyArray_DIM(table, 1)
            and cnp.PyArray_ISCARRAY(table) and cnp.PyArray_ISCARRAY_RO(rows)
            and cnp.PyArray_ISCARRAY_RO(new)):
        raise ValueError("expected rows of a contiguous table")
    s.table = <char *>cnp.PyArray_DATA(table)
    s.new = <const char *>cnp.PyArray_DATA(new)
    s.rows = <const cnp.npy_intp *>cnp.PyArray_DATA(rows)
    s.count = cnp.PyArray_SIZE(rows)
    s.width = cnp.PyArray_DIM(table, 1) * cnp.PyArray_ITEMSIZE(table)
    for k in range(s.count):
        if not 0 <= s.rows[k] < cnp.PyArray_DIM(table, 0):
            raise IndexError(f"row {s.rows[k]} of a table of {cnp.PyArray_DIM(table, 0)}")
    return 0


cdef int _check_kept(tuple kept, int kinds, const Move *moves, Py_ssize_t count,
                     const Scatter *scatters, Py_ssize_t tables) except -1:
    """What moves in place is kept there, as `Kept` says who may look, or goes there, by rows."""
    cdef Py_ssize_t k, table, tried, at = 0
    cdef const char *start
    cdef const char *first
    cdef cnp.ndarray array
    cdef int kind
    for k in range(count):
        for kind in range(kinds):
            start = <const char *>moves[k].kept[kind]
            for table in range(tables):
                if scatters[table].new == start:
                    start = scatters[table].table
                    break
            for tried in range(len(kept)):  # from where the last was, as they come in one order
                array = kept[(at + tried) % len(kept)]
                first = <const char *>cnp.PyArray_DATA(array)
                if cnp.PyArray_NDIM(array) == 2 and first <= start < first + (
                        cnp.PyArray_DIM(array, 0) * cnp.PyArray_STRIDE(array, 0)):
                    at += tried
                    break
            else:
                raise ValueError("what the parts keep is not in what is kept")
    return 0


cdef void _run_step(Rule rule, const Move *moves, Py_ssize_t count, const Scatter *scatters,
                    Py_ssize_t tables) noexcept nogil:
    cdef Py_ssize_t k
    cdef cnp.npy_intp row
    cdef const Scatter *s
    for k in range(count):
        rule.run(&moves[k])
    for k in range(tables):
        s = &scatters[k]
        for row in range(s.count):
            memcpy(s.table + s.rows[row] * s.width, s.new + row * s.width, s.width)


def step(Rule rule not None, list parts not None, list tables not None, int threads,
         Kept kept not None, list currents not None, list after not None, list before not None):
    """Move the weights of `parts`, each (weights, grads, out, *kept), and what is kept of them;
    then write rows of `tables`, each (table, rows, their values); then set `currents`, of which the
    first is the optimiser's. Return whether they still were as `before`, else nothing happens.

    Nothing of Python runs in between, so that no exception leaves half of it. Other threads run:
    weights that one of them replaces stay, which is a RuntimeError.
    """
    cdef list released = [None] * _check_currents(currents, after, before)
    cdef list own = currents[:1], own_after = after[:1], own_before = before[:1]
    cdef Py_ssize_t k, count = len(parts), rows = len(tables)
    cdef size_t n = 0
    cdef Current current
    cdef Memory memory = Memory(count * sizeof(Move) + rows * sizeof(Scatter))
    cdef Move *moves = <Move *>memory.start
    cdef Scatter *scatters = <Scatter *>(moves + count)
    for k in range(count):
        _check_move(rule, &moves[k], parts[k], threads)
        n += moves[k].n
    for k in range(rows):
        table, places, values = tables[k]
        _check_scatter(&scatters[k], table, places, values)
    _check_kept(kept.arrays, rule.kinds, moves, count, scatters, rows)
    cdef bint waited_for = n >= GIL_STEP_WEIGHTS
    if waited_for:
        with _forking:
            add(&_steps, 1)
    try:
        kept.get()
        for k in range(len(currents)):
            current = currents[k]
            if current.get() is not before[k]:
                return False
        kept.begun += 1
        if waited_for:
            kept.moving = 1 + <int>_forks
            with nogil:
                _run_step(rule, moves, count, scatters, rows)
            kept.moving = 0
        else:
            _run_step(rule, moves, count, scatters, rows)
    finally:
        if waited_for:
            add(&_steps, -1)
    if _exchange(currents, after, before, released):
        return True
    if not _exchange(own, own_after, own_before, released):
        return False  # another thread has replaced the state, too, and what was moved is nobody's
    raise RuntimeError("another thread has replaced weights during the step: they stay, but the "
                       "optimiser's state has taken the gradients in")


cdef void _scale_floats(float *a, Py_ssize_t n, float factor) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        a[k] *= factor


cdef void _scale_doubles(double *a, Py_ssize_t n, double factor) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        a[k] *= factor


def scale(list arrays not None, double factor):
    """Multiply arrays of floats by a factor, in place: all of them or none, for nothing of Python
    runs in between."""
    cdef cnp.ndarray array, scaled
    cdef list others = []  # with what they will hold
    for array in arrays:
        if not array.flags.writeable:
            raise ValueError("expected gradients that can be scaled in place, got a read-only one")
        if not (cnp.PyArray_TYPE(array) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE) and array.flags.carray):
            others.append((array, np.multiply(array, factor)))
    for array in arrays:
        if not array.flags.carray:
            continue
        if cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT:
            _scale_floats(<float *>cnp.PyArray_DATA(array), cnp.PyArray_SIZE(array), <float>factor)
        elif cnp.PyArray_TYPE(array) == cnp.NPY_DOUBLE:
            _scale_doubles(<double *>cnp.PyArray_DATA(array), cnp.PyArray_SIZE(array), factor)
    for array, scaled in others:
        cnp.PyArray_CopyInto(array, scaled)

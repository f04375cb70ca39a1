"""One forward pass, kept for its backward. Part of `_core.pyx`."""


@cython.auto_pickle(False)
cdef class Shield:
    """Between an array and a view of it, so that nobody can write through the view."""

    cdef cnp.ndarray array

    def __cinit__(self, cnp.ndarray array):
        self.array = array


cdef cnp.ndarray _frozen(cnp.ndarray array):
    """A view whose `writeable` flag can't be set again: NumPy looks for an array or a writable
    buffer under it, and finds neither."""
    cdef cnp.ndarray view = cnp.PyArray_New(
        np.ndarray, cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.PyArray_TYPE(array),
        cnp.PyArray_STRIDES(array), cnp.PyArray_DATA(array), 0, cnp.NPY_ARRAY_ALIGNED, None)
    cnp.set_array_base(view, Shield(array))
    return view


class Gradients:
    """The gradients of one backward pass.

    Attributes
    ----------
    x : array of the shape of x, or None where it was not asked for
    h_0, c_0 : arrays of the shapes of h_n and c_n; c_0 is None for a cell without c
    weights : mapping with the names, shapes and order of `LSTM.state_dict()`

    Examples
    --------
    >>> tape = cylstm.LSTM(8, 4).forward(np.ones((5, 3, 8), np.float32))
    >>> grads = tape.backward(dy=tape.y)
    >>> grads.x.shape, grads.weights["weight_ih_l0"].shape
    ((5, 3, 8), (16, 8))
    """

    __module__ = "cylstm"
    __slots__ = ("c_0", "h_0", "weights", "x")

    def __init__(self, x, h_0, c_0, weights):
        self.x, self.h_0, self.c_0, self.weights = x, h_0, c_0, weights

    def __repr__(self):
        shapes = ", ".join(f"{name}={getattr(self, name).shape}" for name in ("x", "h_0", "c_0")
                           if getattr(self, name) is not None)
        return f"Gradients({shapes}, weights={list(self.weights)})"


cdef Py_ssize_t _step_count(str name, value) except -1:
    """The index of an object, asked for once."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    number = operator.index(value)
    if not 1 <= number <= sys.maxsize:
        raise ValueError(f"{name} is {number}, expected at least 1")
    return number


cdef class Tape:
    """One forward pass, kept for its backward: outputs, gates and cells.

    Attributes
    ----------
    y, h_n, c_n : read-only arrays, as a call returns them; c_n is None for a cell without c
    gates : read-only array (L*D, T, B, G, H), the gates of every step (of an LSTM i, f, g, o) after
        their activations; unbatched without B
    cells : read-only array (L*D, T, B, H), c of every step; None for a cell without it
    directions : int, D

    gates and cells are time-major whatever `batch_first` says, and zero past each length and where
    a mask is False. Of a tape with `checkpoint`, gates is None.

    Examples
    --------
    >>> tape = cylstm.LSTM(8, 4).forward(np.ones((5, 3, 8), np.float32))
    >>> tape
    Tape(y=(5, 3, 4), h_n=(1, 3, 4), c_n=(1, 3, 4))
    >>> tape.gates.shape, tape.cells.shape
    ((1, 5, 3, 4, 4), (1, 5, 3, 4))
    """

    cdef Problem p
    cdef _c.cylstm_tape tape
    cdef Memory memory
    cdef object wrap
    cdef readonly object y, h_n, c_n
    cdef readonly int directions
    cdef double recurrent_dropout

    def __cinit__(self, Packed packed not None, wrap, x, states, lengths, threads,
                  bint batch_first, double dropout, draw_key, mask=None, reset=None,
                  hold_output=False, bint checkpoint=False, bint draws_zoneout=False,
                  double recurrent_dropout=0):
        """Run the forward pass. `wrap` makes a mapping of a flat array of weight gradients, and
        `draw_key` gives the key of all that this call draws, once everything else is in order."""
        cdef Problem p = Problem()
        cdef int n = _threads(threads)
        p.check(packed, x, states, lengths, batch_first, mask, reset, hold_output)
        p.x = cnp.PyArray_NewCopy(p.x, cnp.NPY_CORDER)
        p.replace_states(np.copy)
        p.allocate()
        cdef Dims dims = p.dims
        cdef size_t cells = (_c.cylstm_checkpoint_cells_size(&dims.c, p.T, p.B) if checkpoint
                             else _c.cylstm_tape_cells_size(&dims.c, p.T, p.B))
        cdef size_t hidden = _c.cylstm_tape_hidden_size(&dims.c, p.T, p.B)
        if hidden > SIZE_MAX - cells:
            raise MemoryError(f"no memory for the gates of {p.T} steps of {p.B} sequences")
        self.memory = Memory(cells + hidden, packed.spares, TAPE)
        self.tape.cells = self.memory.start
        self.tape.hidden = <char *>self.memory.start + cells
        self.tape.checkpoint = checkpoint
        self.tape.dropout = dropout
        self.tape.draws_zoneout = draws_zoneout
        self.recurrent_dropout = recurrent_dropout
        if dropout > 0 or draws_zoneout or recurrent_dropout > 0:
            self.tape.dropout_key = draw_key()
        if recurrent_dropout > 0:
            p.packed = packed.dropped(recurrent_dropout, self.tape.dropout_key, n)
        p.seq.tape = &self.tape
        p.run(n)
        self.p = p
        self.wrap = wrap
        self.y, self.h_n, self.directions = _frozen(p.y), _frozen(p.states_n[0]), dims.D
        if dims.cell.states > 1:
            self.c_n = _frozen(p.states_n[1])

    cdef object steps(self):
        """What is kept of every step, (L*D, T, B, vectors, H): the gates and, behind them, c."""
        cdef Problem p = self.p
        cdef Dims dims = p.dims
        cdef Py_ssize_t vectors = 1 if self.tape.checkpoint else dims.cell.tape_vectors
        view = _frozen(self.memory.array((dims.L * dims.D, p.T, p.B, vectors, dims.H),
                                         dims.typenum))
        return view if p.batched else view[:, :, 0]

    @property
    def gates(self):
        if self.tape.checkpoint:
            return None
        return self.steps()[..., :<Py_ssize_t>self.p.dims.cell.tape_gates, :]

    @property
    def cells(self):
        return None if self.p.dims.cell.states == 1 else self.steps()[..., -1, :]

    cdef tuple shape_of(self, Py_ssize_t gates):
        """The shape of `gates`, or with 0 of them that of `cells`."""
        cdef Problem p = self.p
        batch = (p.B,) if p.batched else ()
        vectors = (gates,) if gates else ()
        return (p.dims.L * p.dims.D, p.T, *batch, *vectors, p.dims.H)

    def __repr__(self):
        states = "" if self.c_n is None else f", c_n={self.c_n.shape}"
        return f"Tape(y={self.y.shape}, h_n={self.h_n.shape}{states})"

    def backward(self, dy=None, dh_n=None, dc_n=None, *, dcells=None, dgates=None, threads=None,
                 need_x=True, per_sample=False):
        """Return the exact gradients of a loss, given those with respect to y, h_n and c_n, and to
        what the tape shows, cells and gates.

        May be called again, with the same or other gradients: the tape is not consumed. The weights
        are those that the forward pass ran with, whatever the LSTM holds by now.

        Parameters
        ----------
        dy : array of the shape of y, or None for zeros. Values past a length are ignored.
        dh_n, dc_n : arrays of the shapes of h_n and c_n, or None for zeros
        dcells : array of the shape of `cells`, or None for zeros
            What the loss makes of c_t itself, beside what follows from it.
        dgates : array of the shape of `gates`, or None for zeros
            Likewise of the gates as `gates` shows them, after their activations; of a coupled pair
            either may be given its part. Both are time-major, and ignored past a length.
        threads : int or None
        need_x : bool
            False leaves out the gradient of x, which then is None; it is a quarter to a third of
            the work, and the first layer of a model has no use for it.

        per_sample : bool
            True gives every sequence its own gradients of the weights, which `.weights` has as a
            dict of arrays with a leading B (none where x has none): their sum over it is what
            False gives, up to rounding.

        Returns
        -------
        Gradients : .x, .h_0, .c_0, .weights

        Raises
        ------
        ValueError
            All gradients are None, or one has the wrong shape, or belongs to a c that a cell
            does not have.
        TypeError
            A gradient has the wrong dtype or byte order; need_x or per_sample is no bool.

        Examples
        --------
        >>> tape = cylstm.LSTM(8, 4).forward(np.ones((5, 3, 8), np.float32))
        >>> grads = tape.backward(dh_n=np.ones((1, 3, 4), np.float32), need_x=False)
        >>> grads.h_0.shape, grads.weights["bias_hh_l0"].shape
        ((1, 3, 4), (16,))
        """
        return self.go_back(0, 0, dy, dh_n, dc_n, dcells, dgates, threads, need_x, per_sample)

    def backward_truncated(self, k1, k2, dy=None, dh_n=None, dc_n=None, *, dcells=None,
                           dgates=None, threads=None, need_x=True):
        """Return the gradients of truncated backpropagation through time (Williams and Peng 1990,
        doi:10.1162/neco.1990.2.4.490): what the loss says of every k1 steps goes back through the
        k2 steps that end with them, and no further.

        The states themselves carry over as in `backward`. With k1 = k2 the gradient of a state
        stops every k1 steps, at the cost of `backward`; with k1 < k2 the cost is k2 / k1 times
        that, and with k2 at least T and k1 = T, or any k1, the gradients are the exact ones. Steps
        are counted from each sequence's first one, without those that a mask leaves out; h_n and
        c_n belong to the last one. h_0 and c_0 get what reaches them.

        Parameters
        ----------
        k1, k2 : int
            At least 1, and k1 at most k2.
        dy, dh_n, dc_n, dcells, dgates, threads, need_x
            As those of `backward`.

        Returns
        -------
        Gradients : .x, .h_0, .c_0, .weights

        Raises
        ------
        ValueError, TypeError
            As `backward`; k1 or k2 is out of range; the layers are bidirectional, whose two
            directions have no last k2 steps in common.

        Examples
        --------
        >>> lstm = cylstm.LSTM(3, 5, seed=1)
        >>> tape = lstm.forward(np.ones((100, 2, 3), np.float32))
        >>> grads = tape.backward_truncated(10, 20, np.ones((100, 2, 5), np.float32))
        >>> grads.x.shape
        (100, 2, 3)
        """
        k1, k2 = _step_count("k1", k1), _step_count("k2", k2)
        if k1 > k2:
            raise ValueError(f"k1 is {k1} and k2 is {k2}, expected k1 of at most k2")
        if self.directions == 2:
            raise ValueError("backward_truncated was asked of the tape of bidirectional layers, "
                             "expected layers in one direction")
        return self.go_back(k1, k2, dy, dh_n, dc_n, dcells, dgates, threads, need_x, False)

    cdef object go_back(self, Py_ssize_t k1, Py_ssize_t k2, dy, dh_n, dc_n, dcells, dgates, threads,
                        need_x, per_sample):
        cdef Problem p = self.p
        cdef Dims dims = p.dims
        cdef _c.cylstm_gradients g
        cdef _c.cylstm_context ctx
        cdef int n = _threads(threads)
        cdef bint with_x = flag("need_x", need_x), each = flag("per_sample", per_sample)
        cdef cnp.ndarray dy_rows, dh_whole = None, dc_whole = None, dx = None, dweights
        cdef cnp.ndarray dcells_whole, dgates_whole
        if dy is None and dh_n is None and dc_n is None and dcells is None and dgates is None:
            raise ValueError("backward was given no gradient: expected dy, dh_n, dc_n, dcells or "
                             "dgates")
        for name, given in (("dc_n", dc_n), ("dcells", dcells)):
            if given is not None and dims.cell.states == 1:
                raise ValueError(f"{name} was given to the tape of {with_article(dims.name)}, "
                                 "which has no c; expected None")
        cdef tuple outer = p.state_outer()
        g.dy = g.dh_n = g.dc_n = g.dcells = g.dgates = g.dx = NULL
        g.k1, g.k2 = k1, k2
        g.dy_t = g.dy_b = g.dx_t = g.dx_b = 0
        if dy is not None:
            dy_rows = _check(dy, "dy", dims, p.outer(dims.D * dims.R))
            g.dy = cnp.PyArray_DATA(dy_rows)
            p.strides(dy_rows, &g.dy_t, &g.dy_b)
        if dh_n is not None:
            dh_whole = _check_whole(dh_n, "dh_n", dims, (*outer, dims.R))
            g.dh_n = cnp.PyArray_DATA(dh_whole)
        if dc_n is not None:
            dc_whole = _check_whole(dc_n, "dc_n", dims, (*outer, dims.H))
            g.dc_n = cnp.PyArray_DATA(dc_whole)
        if dcells is not None:
            dcells_whole = _check_whole(dcells, "dcells", dims, self.shape_of(0))
            g.dcells = cnp.PyArray_DATA(dcells_whole)
        if dgates is not None:
            dgates_whole = _check_whole(dgates, "dgates", dims,
                                        self.shape_of(dims.cell.tape_gates))
            g.dgates = cnp.PyArray_DATA(dgates_whole)
        cdef list dstates = dims.new_states(outer)
        cdef Py_ssize_t count = dims.count
        if each:
            dweights = dims.empty((p.B * count,))
        else:
            dweights = Memory(p.packed.raw.size, p.packed.spares,
                              GRADIENTS).array((count,), dims.typenum)
        if with_x:
            dx = dims.empty(p.outer(dims.inputs))
            g.dx = cnp.PyArray_DATA(dx)
            p.strides(dx, &g.dx_t, &g.dx_b)
        g.dh_0, g.dc_0 = _state(dstates, 0), _state(dstates, 1)
        g.dweights = cnp.PyArray_DATA(dweights)
        cdef bint release = dims.releases_gil(2 * p.rows)
        dims.fill_context(&ctx, n, release)
        cdef Memory scratch
        cdef Packed weights = p.packed
        cdef const void *packed
        cdef _c.cylstm_sequence seq = p.seq  # a copy: other threads may be going backward too
        if p.B == 0 or p.T == 0:
            _pass_on([dh_whole, dc_whole], dstates)
            dweights.fill(0)
        else:
            packed = weights.read_once(weights.backward, &ctx, p.T, p.B)
            seq.per_sample = each
            if self.tape.checkpoint:
                seq.packed = weights.read(weights.forward, n)
            seq.raw = weights.raw.start if packed == NULL else NULL
            scratch = Memory(_c.cylstm_backward_scratch(&ctx, &dims.c, &seq))
            if release:
                with nogil:
                    _c.cylstm_backward(&ctx, &dims.c, packed, &seq, &g, scratch.start)
                _raise_pending()
            else:
                _c.cylstm_backward(&ctx, &dims.c, packed, &seq, &g, scratch.start)
        cdef char *sums = <char *>g.dweights
        cdef Py_ssize_t k
        for k in range(p.B if each else 1):
            if self.recurrent_dropout > 0:
                dims.drop(self.recurrent_dropout, self.tape.dropout_key, sums, sums, n)
                sums += weights.raw.size
        dc_0 = dstates[1] if dims.cell.states > 1 else None
        named = self.by_sample(dweights) if each else self.wrap(dweights)
        return Gradients(dx, dstates[0], dc_0, named)

    cdef dict by_sample(self, cnp.ndarray dweights):
        """Views of (B, all weights) by name."""
        cdef dict named = {}
        cdef Py_ssize_t count = self.p.dims.count
        rows = (<object>dweights).reshape((self.p.B, count)) if self.p.batched else dweights
        at = 0
        for name, shape in self.p.dims.arrays():
            size = int(np.prod(shape))
            named[name] = rows[..., at:at + size].reshape(*rows.shape[:rows.ndim - 1], *shape)
            at += size
        return named

    def jvp(self, dx=None, dh_0=None, dc_0=None, dweights=None, *, threads=None):
        """Return how the outputs change as what they are made of does: the product of the Jacobian
        with a vector, forward-mode derivatives, exact and in one pass forward.

        Here d before a name is its tangent: where x is x + e dx, the states are h_0 + e dh_0 and
        c_0 + e dc_0 and the weights are w + e dweights, y becomes y + e dy as e goes to 0. The
        weights, masks, resets and dropout are those of the forward pass. May be called any number
        of times, also beside `backward`; with its gradients, <dy, J d> = <J^T dy, d>. A call takes
        two to four times as long as the forward pass, and about as long where dweights is None.
        Threads share out the sequences; the bits depend on neither. Of a tape with `checkpoint`,
        all gates are computed once more first, in memory that is freed again.

        Parameters
        ----------
        dx : array of the shape of x, or None for zeros. Values past a length are ignored.
        dh_0, dc_0 : arrays of the shapes of h_n and c_n, or None for zeros
        dweights : mapping {name: array}, with names and shapes of `state_dict()`, or None for zeros
            As are the names that it lacks.
        threads : int or None

        Returns
        -------
        dy, dh_n, dc_n : arrays of the shapes of y, h_n and c_n; dc_n is None for a cell without c

        Raises
        ------
        ValueError
            A tangent has the wrong shape or an unknown name, or belongs to a c that a cell does not
            have.
        TypeError
            A tangent has the wrong dtype or byte order; dweights is no mapping.

        Examples
        --------
        >>> lstm = cylstm.LSTM(8, 4, seed=1)
        >>> tape = lstm.forward(np.ones((5, 3, 8), np.float32))
        >>> dy, dh_n, dc_n = tape.jvp(np.ones((5, 3, 8), np.float32))
        >>> dy.shape, dh_n.shape, dc_n.shape
        ((5, 3, 4), (1, 3, 4), (1, 3, 4))
        >>> dy, dh_n, dc_n = tape.jvp(dweights={"weight_hh_l0": np.eye(16, 4, dtype="float32")})
        """
        return _jvp(self.p, self.tape, self.recurrent_dropout, dx, dh_0, dc_0, dweights, threads)

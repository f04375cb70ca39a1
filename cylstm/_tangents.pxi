"""Forward-mode derivatives of a pass that a tape has kept. Part of `_core.pyx`."""


cdef cnp.ndarray _flat_tangents(object dweights, Dims dims):
    """The tangents of all weights, one after another; zeros where a name is missing."""
    if not isinstance(dweights, Mapping):
        raise TypeError(f"dweights is {kind_of(dweights)}, expected a mapping of names to "
                        "arrays")
    cdef dict given = dict(dweights)
    cdef cnp.ndarray flat = np.zeros(dims.count, dims.dtype)
    at = 0
    for name, shape in dims.arrays():
        size = int(np.prod(shape))
        if name in given:
            value = _check(given.pop(name), f"dweights[{name!r}]", dims, shape)
            flat[at:at + size] = value.reshape(size)
        at += size
    if given:
        names = ", ".join(name for name, _ in dims.arrays())
        raise ValueError(f"dweights has {next(iter(given))!r}, expected names among {names}")
    return flat


cdef Memory _forward_again(Problem p, const _c.cylstm_context *ctx, const void *packed,
                           _c.cylstm_sequence *seq):
    """The pass of a checkpoint once more, with everything kept: in memory of its own, for others
    may be reading the tape."""
    cdef Dims dims = p.dims
    cdef size_t cells = _c.cylstm_tape_cells_size(&dims.c, p.T, p.B)
    cdef size_t hidden = _c.cylstm_tape_hidden_size(&dims.c, p.T, p.B)
    if hidden > SIZE_MAX - cells:
        raise MemoryError(f"no memory for the gates of {p.T} steps of {p.B} sequences")
    cdef Memory memory = Memory(cells + hidden)
    cdef list states = dims.new_states(p.state_outer())
    cdef _c.cylstm_sequence again = seq[0]
    cdef cnp.ndarray y = dims.empty(p.outer(dims.D * dims.R))
    seq.tape.checkpoint = 0
    seq.tape.cells, seq.tape.hidden = memory.start, <char *>memory.start + cells
    again.y = cnp.PyArray_DATA(y)
    again.h_n, again.c_n = _state(states, 0), _state(states, 1)
    cdef Memory scratch = Memory(_c.cylstm_forward_scratch(ctx, &dims.c, &again))
    with nogil:
        _c.cylstm_forward(ctx, &dims.c, packed, &again, scratch.start)
    _raise_pending()
    return memory


cdef tuple _jvp(Problem p, _c.cylstm_tape tape, double recurrent_dropout, dx, dh_0, dc_0,
                dweights, threads):
    """(dy, dh_n, dc_n). See Tape.jvp."""
    cdef Dims dims = p.dims
    cdef _c.cylstm_tangents d
    cdef _c.cylstm_context ctx
    cdef int n = _threads(threads)
    cdef tuple outer = p.state_outer()
    cdef cnp.ndarray dx_rows, dh_whole = None, dc_whole = None, flat = None
    cdef void *raw = NULL
    if dc_0 is not None and dims.cell.states == 1:
        raise ValueError(f"dc_0 was given to the tape of {with_article(dims.name)}, "
                         "which has no c; expected None")
    d.dx = d.dh_0 = d.dc_0 = d.dweights = NULL
    d.dx_t = d.dx_b = 0
    if dx is not None:
        dx_rows = _check(dx, "dx", dims, p.outer(dims.inputs))
        d.dx = cnp.PyArray_DATA(dx_rows)
        p.strides(dx_rows, &d.dx_t, &d.dx_b)
    if dh_0 is not None:
        dh_whole = _check_whole(dh_0, "dh_0", dims, (*outer, dims.R))
        d.dh_0 = cnp.PyArray_DATA(dh_whole)
    if dc_0 is not None:
        dc_whole = _check_whole(dc_0, "dc_0", dims, (*outer, dims.H))
        d.dc_0 = cnp.PyArray_DATA(dc_whole)
    if dweights is not None:
        flat = _flat_tangents(dweights, dims)
        raw = cnp.PyArray_DATA(flat)
        if recurrent_dropout > 0:
            dims.drop(recurrent_dropout, tape.dropout_key, raw, raw, n)
    cdef cnp.ndarray dy = dims.empty(p.outer(dims.D * dims.R))
    cdef list dstates = dims.new_states(outer)
    dc_n = dstates[1] if dims.cell.states > 1 else None
    if p.B == 0 or p.T == 0:
        _pass_on([dh_whole, dc_whole], dstates)
        return dy, dstates[0], dc_n
    d.dy = cnp.PyArray_DATA(dy)
    p.strides(dy, &d.dy_t, &d.dy_b)
    d.dh_n, d.dc_n = _state(dstates, 0), _state(dstates, 1)
    dims.fill_context(&ctx, n, True)
    cdef const void *packed = p.packed.read(p.packed.forward, n)
    cdef _c.cylstm_sequence seq = p.seq  # a copy: other threads may be reading the tape too
    seq.tape, seq.raw = &tape, NULL
    cdef Memory panels, scratch, whole
    if flat is not None:
        panels = Memory(_c.cylstm_packed_size(&ctx, &dims.c))
        d.dweights = panels.start
    if tape.checkpoint:
        whole = _forward_again(p, &ctx, packed, &seq)
    scratch = Memory(_c.cylstm_jvp_scratch(&ctx, &dims.c, &seq))
    with nogil:
        if raw != NULL:
            _c.cylstm_pack_weights(&ctx, &dims.c, raw, panels.start)
        _c.cylstm_jvp(&ctx, &dims.c, packed, &seq, &d, scratch.start)
    _raise_pending()
    return dy, dstates[0], dc_n

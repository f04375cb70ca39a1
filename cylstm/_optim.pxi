"""Steps of the optimisers, on the flat arrays that `optim.py` has checked. Part of `_core.pyx`."""


cdef int _step_context(_c.cylstm_context *ctx, int threads, tuple arrays) except -1:
    """A context for arrays of one dtype and length, contiguous; the error is for this package."""
    cdef cnp.ndarray first = arrays[0], array
    for array in arrays:
        if (array.dtype != first.dtype or cnp.PyArray_NDIM(array) != 1
                or cnp.PyArray_SIZE(array) != cnp.PyArray_SIZE(first)
                or not cnp.PyArray_ISCARRAY_RO(array)):
            raise ValueError("expected contiguous vectors of one dtype and length")
    ctx.kernels = _c.cylstm_find_kernels(ISA.encode(), 8 * cnp.PyArray_ITEMSIZE(first))
    if first.dtype.kind != "f" or ctx.kernels == NULL:
        raise TypeError(f"expected vectors of float32 or float64, got {first.dtype}")
    ctx.threads = threads
    ctx.sgemm, ctx.dgemm, ctx.poll, ctx.poll_arg = NULL, NULL, NULL, NULL
    return 0


def adam_step(cnp.ndarray old not None, cnp.ndarray grad not None, cnp.ndarray new not None,
              cnp.ndarray mean not None, cnp.ndarray square not None, cnp.ndarray new_mean not None,
              cnp.ndarray new_square not None, int threads, *, double lr, betas, double eps,
              double weight_decay, bint decoupled, unsigned long long step):
    """Write the three new arrays; the others stay as they are."""
    cdef _c.cylstm_context ctx
    cdef _c.cylstm_adam adam = _c.cylstm_adam(lr, betas[0], betas[1], eps, weight_decay, decoupled,
                                              step)
    cdef size_t n = cnp.PyArray_SIZE(old)
    cdef const void *weights = cnp.PyArray_DATA(old)
    cdef const void *gradients = cnp.PyArray_DATA(grad)
    cdef const void *m = cnp.PyArray_DATA(mean)
    cdef const void *v = cnp.PyArray_DATA(square)
    cdef void *out = cnp.PyArray_DATA(new)
    cdef void *m_out = cnp.PyArray_DATA(new_mean)
    cdef void *v_out = cnp.PyArray_DATA(new_square)
    _step_context(&ctx, threads, (old, grad, new, mean, square, new_mean, new_square))
    if n < GIL_STEP_WEIGHTS:
        _c.cylstm_adam_step(&ctx, &adam, n, weights, gradients, m, v, out, m_out, v_out)
    else:
        with nogil:
            _c.cylstm_adam_step(&ctx, &adam, n, weights, gradients, m, v, out, m_out, v_out)


def sgd_step(cnp.ndarray old not None, cnp.ndarray grad not None, cnp.ndarray new not None,
             cnp.ndarray buffer, cnp.ndarray new_buffer, int threads, *, double lr, double momentum,
             double dampening, double weight_decay, bint nesterov, unsigned long long step):
    """Write the new arrays, one of them without a momentum; the others stay as they are."""
    cdef _c.cylstm_context ctx
    cdef _c.cylstm_sgd sgd = _c.cylstm_sgd(lr, momentum, dampening, weight_decay, nesterov, step)
    cdef size_t n = cnp.PyArray_SIZE(old)
    cdef const void *weights = cnp.PyArray_DATA(old)
    cdef const void *gradients = cnp.PyArray_DATA(grad)
    cdef const void *b = NULL if buffer is None else cnp.PyArray_DATA(buffer)
    cdef void *out = cnp.PyArray_DATA(new)
    cdef void *b_out = NULL if buffer is None else cnp.PyArray_DATA(new_buffer)
    _step_context(&ctx, threads, (old, grad, new) if buffer is None
                  else (old, grad, new, buffer, new_buffer))
    if n < GIL_STEP_WEIGHTS:
        _c.cylstm_sgd_step(&ctx, &sgd, n, weights, gradients, b, out, b_out)
    else:
        with nogil:
            _c.cylstm_sgd_step(&ctx, &sgd, n, weights, gradients, b, out, b_out)


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

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
              cnp.ndarray mean not None, cnp.ndarray square not None, int threads, *, double lr,
              betas, double eps, double weight_decay, bint decoupled, unsigned long long step):
    """Write `new`, `mean` and `square`; `old` and `grad` stay as they are."""
    cdef _c.cylstm_context ctx
    cdef _c.cylstm_adam adam = _c.cylstm_adam(lr, betas[0], betas[1], eps, weight_decay, decoupled,
                                              step)
    cdef size_t n = cnp.PyArray_SIZE(old)
    cdef const void *weights = cnp.PyArray_DATA(old)
    cdef const void *gradients = cnp.PyArray_DATA(grad)
    cdef void *m = cnp.PyArray_DATA(mean)
    cdef void *v = cnp.PyArray_DATA(square)
    cdef void *out = cnp.PyArray_DATA(new)
    _step_context(&ctx, threads, (old, grad, new, mean, square))
    if n < GIL_STEP_WEIGHTS:
        _c.cylstm_adam_step(&ctx, &adam, n, weights, gradients, m, v, out)
    else:
        with nogil:
            _c.cylstm_adam_step(&ctx, &adam, n, weights, gradients, m, v, out)


def sgd_step(cnp.ndarray old not None, cnp.ndarray grad not None, cnp.ndarray new not None,
             cnp.ndarray buffer, int threads, *, double lr, double momentum, double dampening,
             double weight_decay, bint nesterov, unsigned long long step):
    """Write `new`, and `buffer` where there is a momentum; `old` and `grad` stay as they are."""
    cdef _c.cylstm_context ctx
    cdef _c.cylstm_sgd sgd = _c.cylstm_sgd(lr, momentum, dampening, weight_decay, nesterov, step)
    cdef size_t n = cnp.PyArray_SIZE(old)
    cdef const void *weights = cnp.PyArray_DATA(old)
    cdef const void *gradients = cnp.PyArray_DATA(grad)
    cdef void *b = NULL if buffer is None else cnp.PyArray_DATA(buffer)
    cdef void *out = cnp.PyArray_DATA(new)
    _step_context(&ctx, threads, (old, grad, new) if buffer is None else (old, grad, new, buffer))
    if n < GIL_STEP_WEIGHTS:
        _c.cylstm_sgd_step(&ctx, &sgd, n, weights, gradients, b, out)
    else:
        with nogil:
            _c.cylstm_sgd_step(&ctx, &sgd, n, weights, gradients, b, out)

"""What `embed.pxd` promises to other compiled packages. Part of `_core.pyx`."""

from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from cylstm.embed cimport CYLSTM_API_VERSION


cdef struct Held:
    PyObject *stream  # entered, which keeps its plan and its weights alive as well
    _c.cylstm_plan *plan
    _c.cylstm_context ctx
    const void *packed


cdef api void *cylstm_stream_enter(object stream, int version, int bits, Py_ssize_t rows,
                                   Py_ssize_t inputs, Py_ssize_t outputs) except NULL:
    if version != CYLSTM_API_VERSION:
        raise ValueError(f"the caller was compiled for version {version} of cylstm's C API, "
                         f"expected {CYLSTM_API_VERSION}: compile it again")
    if not isinstance(stream, Stream):
        raise TypeError(f"stream is {kind_of(stream)}, expected a cylstm stream")
    cdef Stream s = stream
    if (bits, rows, inputs, outputs) != (s.dims.c.bits, s.N, s.dims.inputs, s.dims.R):
        raise ValueError(f"the caller has float{bits} frames of {rows} x {inputs} -> "
                         f"{rows} x {outputs}, expected float{s.dims.c.bits}, "
                         f"{s.N} x {s.dims.inputs} -> {s.N} x {s.dims.R}")
    cdef Held *held = <Held *>malloc(sizeof(Held))
    if held == NULL:
        raise MemoryError(f"no memory for {sizeof(Held)} bytes")
    try:
        s.dims.fill_context(&held.ctx, s.max_threads, False)
        s.take()
        s.save()
    except BaseException:
        free(held)
        raise
    held.stream, held.plan, held.packed = <PyObject *>stream, s.plan, s.panels
    Py_INCREF(stream)
    return held


cdef api void cylstm_stream_run(void *handle, Py_ssize_t T, const void *x, void *y) noexcept nogil:
    cdef Held *held = <Held *>handle
    if T > 0:
        _c.cylstm_plan_run(held.plan, &held.ctx, held.packed, T, NULL, 0, x, y)


cdef api void cylstm_stream_leave(void *handle) noexcept:
    cdef Held *held = <Held *>handle
    (<Stream>held.stream).leave()
    Py_DECREF(<object>held.stream)
    free(held)

# cython: language_level=3, boundscheck=False, wraparound=False
"""An LSTM that listens to itself: each output is the next input, a step at a time.

`Stream.run` can't do this, for it wants all inputs beforehand, and a Python loop over `Stream.step`
pays for Python at every step. Here the whole loop runs in C and without the GIL.
"""
from cylstm.embed cimport (CYLSTM_API_VERSION, cylstm_stream_enter, cylstm_stream_leave,
                           cylstm_stream_run)


def generate(stream, const float[::1] first not None, float[:, ::1] out not None):
    """Fill `out` (T, R) with what an LSTM says that hears `first` (R,) and from then on itself.

    `stream` is that of a float32 LSTM, quantised or not, with as many inputs as outputs, without a
    batch; its state goes on. `first` and `out` may not overlap.
    """
    cdef Py_ssize_t t, T = out.shape[0], width = out.shape[1]
    if first.shape[0] != width:
        raise ValueError(f"first has {first.shape[0]} values, expected {width}")
    if T == 0 or width == 0:
        return
    cdef const float *x = &first[0]
    cdef void *held = cylstm_stream_enter(stream, CYLSTM_API_VERSION, 32, 1, width, width)
    with nogil:
        for t in range(T):
            cylstm_stream_run(held, 1, x, &out[t, 0])
            x = &out[t, 0]
    cylstm_stream_leave(held)

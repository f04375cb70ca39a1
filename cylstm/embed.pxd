"""The C API: what another Cython package may cimport to step a stream without the GIL.

    from cylstm.embed cimport (CYLSTM_API_VERSION, cylstm_stream_enter, cylstm_stream_leave,
                               cylstm_stream_run)

Nothing is linked: the functions come out of the installed package when yours is imported, which is
an ImportError or a TypeError if a signature differs. No layout of any struct is promised.
"""

cdef enum:
    CYLSTM_API_VERSION = 1  # grows when a function means something else under the same signature

# Take a cylstm.Stream for yourself, with the weights that its LSTM has now. Until you leave it,
# Python can't use it (RuntimeError) and new weights wait; the handle keeps the stream alive.
# The LSTM may be what cylstm.quantize made: its frames are float as well.
# You say what your frames are: `bits` 32 or 64 for float or double, x (rows, inputs) and
# y (rows, outputs); rows is 1 without a batch. ValueError if the stream's are others or `version`,
# for which you pass CYLSTM_API_VERSION, is not the installed package's; TypeError if it is not
# a stream; RuntimeError if it is in use.
cdef void *cylstm_stream_enter(object stream, int version, int bits, Py_ssize_t rows,
                               Py_ssize_t inputs, Py_ssize_t outputs) except NULL

# T steps, none where T is 0 or less: x (T, rows, inputs) -> y (T, rows, outputs), contiguous and
# apart. Allocates nothing,
# can't fail, and the bits are those of `Stream.step`. It uses as many threads as the stream was
# made with, which starts or wakes the pool: make it with threads=1 for real time. One thread at a
# time may call it on one handle.
cdef void cylstm_stream_run(void *handle, Py_ssize_t T, const void *x, void *y) noexcept nogil

# Give the stream back; its state is where you left it. The handle is dead.
cdef void cylstm_stream_leave(void *handle) noexcept

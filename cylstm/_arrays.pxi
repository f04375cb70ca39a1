"""Arrays in: right dtype, right shape, rows contiguous, or a clear error. Part of `_core.pyx`."""


cdef extern from "numpy/arrayobject.h":
    Py_ssize_t PyArray_CountNonzero(cnp.ndarray array) except -1
    cnp.ndarray PyArray_View(cnp.ndarray array, void *descr, void *type)


cpdef bint flag(str name, object value) except? -1:
    """Return a bool; numbers and strings, which are true by accident, are refused."""
    if value is True or value is False:
        return value is True
    if not isinstance(value, np.bool_):
        raise TypeError(f"{name} is {value!r}, expected a bool, True or False")
    return bool(value)


cpdef bint is_masked(object value):
    """Whether this is a masked array. Who has one has imported `numpy.ma`, which takes longer than
    all of this package and is not imported to find out."""
    ma = sys.modules.get("numpy.ma")
    return ma is not None and isinstance(value, getattr(ma, "MaskedArray", ()))


cpdef cnp.ndarray as_floats(object value, str name, object dtype):
    """Any array-like as a plain array of this dtype, of float32 or float64 where it is None, or an
    error that says what is wrong. Nothing is copied or converted."""
    cdef str kind
    cdef object expected = "float32 or float64" if dtype is None else dtype  # str() takes 3 us
    cdef cnp.ndarray array
    if type(value) is cnp.ndarray:
        array, kind = value, "an array of"
    else:
        kind = kind_of(value)
        if is_masked(value):
            raise TypeError(f"{name} is {kind}, whose mask would be ignored; expected "
                            f"{with_article(str(expected))} array, such as its filled(0)")
        if value is None:
            raise TypeError(f"{name} is None (NoneType), expected "
                            f"{with_article(str(expected))} array")
        try:
            array = np.asarray(value)  # of a subclass the buffer, whatever it says of itself
        except Exception as error:
            raise TypeError(f"{name} is {kind} that can't be read as "
                            f"{with_article(str(expected))} array: {error}") from None
        kind = "an array of" if isinstance(value, np.ndarray) else f"{kind} that reads as"
    cdef int num = cnp.PyArray_TYPE(array)
    if (num not in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE) if dtype is None
            else num != (<cnp.dtype?>dtype).type_num):
        raise TypeError(f"{name} is {kind} {array.dtype}, expected {expected}; "
                        f"numpy.asarray({name}, '{dtype or 'float32'}') converts it")
    if not cnp.PyArray_ISNOTSWAPPED(array):
        raise TypeError(f"{name} is {array.dtype.str}, which is in the other byte order; "
                        f"expected native {expected}")
    return array


cdef cnp.ndarray _rows_of(cnp.ndarray array):
    """A view of the array if its rows are contiguous and aligned, else a copy: an array of our own,
    whose shape nobody else can set."""
    cdef int n = cnp.PyArray_NDIM(array), k
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(array)
    if not cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_ALIGNED):
        return np.array(array, order="C", subok=False)
    if cnp.PyArray_DIM(array, n - 1) > 1 and cnp.PyArray_STRIDE(array, n - 1) != size:
        return np.array(array, order="C", subok=False)
    for k in range(n - 1):
        if cnp.PyArray_STRIDE(array, k) % size:
            return np.array(array, order="C", subok=False)
    return PyArray_View(array, NULL, NULL)


cdef cnp.ndarray _check(object value, str name, Dims dims, tuple shape):
    """An array of exactly this shape, rows contiguous."""
    cdef cnp.ndarray array = as_floats(value, name, dims.dtype)
    if (<object>array).shape != shape:
        raise ValueError(f"{name} has shape {(<object>array).shape}, expected {shape}")
    return _rows_of(array)


cdef cnp.ndarray _check_whole(object value, str name, Dims dims, tuple shape):
    """An array of exactly this shape, contiguous and aligned."""
    cdef cnp.ndarray array = _check(value, name, dims, shape)
    return array if cnp.PyArray_IS_C_CONTIGUOUS(array) else np.ascontiguousarray(array)


cdef cnp.ndarray _check_out(object out, Dims dims, tuple shape):
    """An array that can be written to as it stands, or what is wrong with it."""
    if type(out) is not np.ndarray or out.dtype != dims.dtype or not out.dtype.isnative:
        raise TypeError(f"out is {kind_of(out)} of "
                        f"{getattr(out, 'dtype', 'no dtype')}, expected a numpy.ndarray of "
                        f"{dims.dtype}")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, expected {shape}")
    if not out.flags.carray:
        what = ("read-only" if not out.flags.writeable
                else "not contiguous" if not out.flags.c_contiguous else "not aligned")
        raise ValueError(f"out is {what}, expected a contiguous, writable array of {shape}")
    return out


cdef inline cnp.ndarray _apart(cnp.ndarray array, cnp.ndarray out):
    """The array, or a copy where it shares memory with `out`, which is contiguous: the core reads
    the one while it writes the other."""
    cdef char *a = <char *>cnp.PyArray_DATA(array)
    cdef char *b = <char *>cnp.PyArray_DATA(out)
    cdef bint shared
    if cnp.PyArray_IS_C_CONTIGUOUS(array):
        shared = a < b + cnp.PyArray_NBYTES(out) and b < a + cnp.PyArray_NBYTES(array)
    else:
        shared = np.may_share_memory(array, out)
    return (<object>array).copy() if shared else array


cdef cnp.ndarray _check_steps(object value, str name, tuple shape, bint time_first):
    """A bool for every step of every sequence, as bytes (T, B) that nobody else can change."""
    if is_masked(value):
        raise TypeError(f"{name} is a MaskedArray, whose mask would be ignored; expected bools")
    cdef cnp.ndarray array
    array = <cnp.ndarray>value if type(value) is cnp.ndarray else np.array(value, subok=False)
    if cnp.PyArray_TYPE(array) != cnp.NPY_BOOL:
        raise TypeError(f"{name} is {array.dtype}, expected bools of shape {shape}")
    cdef cnp.ndarray steps = np.array(array if time_first else array.T, np.uint8, order="C")
    cdef tuple found = (<object>steps).shape
    if found != (shape if time_first else shape[::-1]):
        found = found if time_first else found[::-1]
        raise ValueError(f"{name} has shape {found}, expected {shape}, a bool for every step")
    return steps


cpdef object check_lengths(object lengths, Py_ssize_t T, Py_ssize_t B, bint batched):
    """Lengths of B sequences of at most T steps as an array of size_t, which nobody else can
    change."""
    if not batched:
        if isinstance(lengths, (list, tuple)) or getattr(lengths, "ndim", 0):
            raise ValueError(f"lengths is {lengths!r}, expected one integer for unbatched input")
        lengths = [lengths]
    if is_masked(lengths):
        raise TypeError("lengths is a MaskedArray, whose mask would be ignored; expected integers")
    try:
        array = np.asarray(lengths)
    except ValueError as error:
        raise ValueError(f"lengths is {lengths!r}, expected integers ({B},): {error}") from None
    if array.size == 0 and isinstance(lengths, (list, tuple)):
        array = array.astype(np.intp)
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths is {array.dtype}, expected integers from 0 to {T}")
    if array.shape != (B,):
        raise ValueError(f"lengths has shape {array.shape}, expected ({B},), one for each sequence")
    cdef cnp.ndarray sizes = np.array(array, np.uintp)  # in which less than 0 is very large
    cdef const size_t *size = <const size_t *>cnp.PyArray_DATA(sizes)
    cdef Py_ssize_t b
    for b in range(B):
        if size[b] > <size_t>T:
            low, high = int(array.min()), int(array.max())
            wrong = low if low < 0 else high
            raise ValueError(f"lengths holds {wrong}, expected 0 to {T}, the number of steps")
    return sizes

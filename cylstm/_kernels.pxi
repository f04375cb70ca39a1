"""Which kernels and which BLAS: the process's choices, made at import. Part of `_core.pyx`."""

cdef extern from *:
    """
    /* The one name that this extension exports beside its init function: by it threadpoolctl.py
     * tells it from another package's _core. */
    #if defined(__GNUC__)
    __attribute__((visibility("default")))
    #endif
    extern const char cylstm_extension[];
    const char cylstm_extension[] = CYLSTM_VERSION;
    """


cdef list _isas():
    return [_c.cylstm_isa_name(n).decode() for n in range(_c.cylstm_isa_count())]


cdef list _usable_isas():
    return [_c.cylstm_isa_name(n).decode() for n in range(_c.cylstm_isa_count())
            if _c.cylstm_isa_usable(n)]


def _choose_isa():
    """Return (name, why), by CYLSTM_ISA where it is set."""
    name = os.environ.get("CYLSTM_ISA", "")
    if not name:
        return _usable_isas()[0], "the best that this CPU and operating system can run"
    if name not in _isas():
        raise ValueError(
            f"CYLSTM_ISA={name!r}: no such kernels, expected one of {', '.join(_isas())}")
    if name not in _usable_isas():
        raise ValueError(
            f"CYLSTM_ISA={name!r}: this CPU can't run it, only {', '.join(_usable_isas())}")
    return name, "forced by CYLSTM_ISA"


def _usable_int8(str isa):
    """The ways of multiplying int8 that serve a kernel set here, best first."""
    cdef const _c.cylstm_kernels *kernels = _c.cylstm_find_kernels(isa.encode(), 32)
    cdef list names = [_c.cylstm_int8_name(n) for n in range(_c.cylstm_int8_count())]
    return [(<bytes>name).decode() for name in names
            if _c.cylstm_find_int8(<bytes>name, kernels) != NULL]


def _choose_int8():
    """Return its name, by CYLSTM_INT8 where it is set."""
    name = os.environ.get("CYLSTM_INT8", "")
    usable = _usable_int8(ISA)
    if name and name not in usable:
        raise ValueError(f"CYLSTM_INT8={name!r}: expected one of {', '.join(usable)}, which can "
                         f"run here beside the kernels {ISA!r}")
    return name or _c.cylstm_int8_kernels_name(
        _c.cylstm_find_int8(NULL, _c.cylstm_find_kernels(ISA.encode(), 32))).decode()


cdef const _c.cylstm_compact_kernels *_find_int8(const _c.cylstm_kernels *kernels,
                                                 name) except NULL:
    """Those of a name; or the chosen ones, or the best ones beside another kernel set."""
    cdef const _c.cylstm_compact_kernels *found = NULL
    if name is None and _c.cylstm_kernels_isa(kernels).decode() == ISA:
        name = INT8
    cdef bytes encoded = b""
    cdef const char *wanted = NULL
    if name is not None:
        encoded = name.encode()
        wanted = encoded
    found = _c.cylstm_find_int8(wanted, kernels)
    if found == NULL:
        raise ValueError(f"int8 {name!r} can't run beside the kernels "
                         f"{_c.cylstm_kernels_isa(kernels).decode()!r}")
    return found


def _bf16_name():
    """Who multiplies bfloat16 beside the chosen kernels, or None."""
    cdef const _c.cylstm_compact_kernels *found = _c.cylstm_find_bf16(
        _c.cylstm_find_kernels(ISA.encode(), 32))
    return None if found == NULL else _c.cylstm_bf16_kernels_name(found).decode()


cdef const _c.cylstm_compact_kernels *_find_bf16(const _c.cylstm_kernels *kernels) except NULL:
    """Who multiplies bfloat16 beside a kernel set, where the CPU does."""
    cdef const _c.cylstm_compact_kernels *found = _c.cylstm_find_bf16(kernels)
    if found == NULL:
        raise ValueError(
            "arithmetic is 'bfloat16', which this CPU can't do with the kernels "
            f"{_c.cylstm_kernels_isa(kernels).decode()!r}, expected AVX-512 with BF16 or AArch64 "
            "with bfdot (or CYLSTM_ISA=scalar, to try what it gives)")
    return found


def _choose_gemm():
    name = os.environ.get("CYLSTM_GEMM", "") or "auto"
    if name not in ("auto", "packed", "blas"):
        raise ValueError(f"CYLSTM_GEMM={name!r}: expected auto, packed or blas")
    return name


ISA, ISA_REASON = _choose_isa()
INT8 = _choose_int8()
BF16 = _bf16_name()
GEMM = _choose_gemm()
ISA_AVAILABLE = _usable_isas()
INT8_AVAILABLE = _usable_int8(ISA)
cdef bint _force_blas = GEMM == "blas"
cdef _c.cylstm_sgemm *_sgemm = NULL
cdef _c.cylstm_dgemm *_dgemm = NULL
cdef atomic_int _default_threads = 1
cdef atomic_uintptr_t _last = 0


cdef void *_capsule(object module, str name) except NULL:
    """The function pointer that a Cython module exports, if it takes plain C ints."""
    capsule = module.__pyx_capi__[name]
    cdef const char *signature = PyCapsule_GetName(capsule)
    if signature.count(b"int *") < 6:  # a build with 64-bit integers says so in its signature
        raise ImportError(f"SciPy's {name} has the signature {signature.decode()!r}, "
                          "expected one with int arguments; unset CYLSTM_GEMM")
    return PyCapsule_GetPointer(capsule, signature)


cdef int _load_blas() except -1:
    """Take the BLAS out of SciPy. Its import costs more than ours, but a call imports nothing."""
    global _sgemm, _dgemm
    try:
        from scipy.linalg import cython_blas
    except ImportError as error:
        raise ImportError("CYLSTM_GEMM=blas needs SciPy: pip install cylstm[blas]") from error
    _dgemm = <_c.cylstm_dgemm *>_capsule(cython_blas, "dgemm")
    _sgemm = <_c.cylstm_sgemm *>_capsule(cython_blas, "sgemm")
    return 0


if _force_blas:
    _load_blas()


def _set_default_threads(int n):
    global _default_threads
    _default_threads = n


def _get_default_threads():
    return <int>_default_threads  # some clangs can't cast to the atomic type, as Cython's code does


def _pool_helpers():
    """Helper threads that the pool has started in this process."""
    return _c.cylstm_pool_helpers()


def _last_kernels():
    """Name of the kernel set that the last computing call handed to the core, for tests."""
    cdef const _c.cylstm_kernels *last = <const _c.cylstm_kernels *><uintptr_t>_last
    return None if last == NULL else _c.cylstm_kernels_isa(last).decode()


def _activation(str name, cnp.ndarray x not None, isa=None):
    """sigmoid or tanh of a contiguous 1-D array by the kernels of `isa`, for tests."""
    cdef cnp.ndarray y = np.empty_like(x)
    cdef bytes wanted = (isa or ISA).encode()
    if name not in ("sigmoid", "tanh") or x.ndim != 1 or not x.flags.c_contiguous:
        raise ValueError("expected 'sigmoid' or 'tanh' and a contiguous 1-D array")
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"x is {x.dtype}, expected float32 or float64")
    cdef const _c.cylstm_kernels *kernels = _c.cylstm_find_kernels(wanted, 8 * x.itemsize)
    if kernels == NULL:
        raise ValueError(f"isa {isa!r} can't run here, expected one of {', '.join(ISA_AVAILABLE)}")
    _c.cylstm_apply_activation(kernels, name == "tanh", cnp.PyArray_DATA(x), cnp.PyArray_DATA(y),
                               <size_t>x.size)
    return y

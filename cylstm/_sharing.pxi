"""What threads, signal handlers and forked children share. Part of `_core.pyx`."""

cdef atomic_int _forks = 0  # how many forks this process is away from the first; see Turn
cdef cython.pymutex _replacing  # where there is no GIL to be it


def _forked():
    """Every lock of ours is new in a forked child: its owner may be a thread that stayed behind."""
    global _forks
    _forks = <int>_forks + 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@cython.auto_pickle(False)
cdef class Turn:
    """A lock, and a new one in a forked child."""

    cdef object lock
    cdef int forks

    cdef object get(self):
        """The lock, for a `with` statement."""
        with cython.critical_section(self):
            if self.lock is None or self.forks != _forks:
                self.lock, self.forks = threading.Lock(), _forks
            return self.lock


@cython.auto_pickle(False)
cdef class Current:
    """What is valid now: one reference, which `replace` exchanges."""

    cdef object now

    def __cinit__(self, now):
        self.now = now

    cdef inline object get(self):
        with cython.critical_section(self):
            return self.now

    @property
    def value(self):
        return self.get()


cdef bint _exchange(list currents, list after, list before, list released):
    """Set all of `currents`, or none where one is no longer what it was `before`. What they were
    goes to `released`, for whatever its end runs has to wait until all is done."""
    cdef Current current
    cdef object value
    cdef Py_ssize_t k, n = len(currents)
    with _replacing:
        if before is not None:
            for k in range(n):
                current = currents[k]
                if current.get() is not before[k]:
                    return False
        for k in range(n):
            current, value = currents[k], after[k]
            with cython.critical_section(current):
                released[k], current.now = current.now, value
    return True


cdef Py_ssize_t _check_currents(list currents, list after, list before) except -1:
    cdef Current current
    cdef Py_ssize_t n = len(currents)
    if len(after) != n or (before is not None and len(before) != n):
        raise ValueError("expected lists of one length")
    for current in currents:
        if current is None:
            raise TypeError("expected objects of type Current")
    return n


def replace(list currents not None, list after not None, list before=None):
    """Set each of `currents` to its value of `after`: all, or none where one is no longer that of
    `before`. Return whether they were set.

    Neither a signal handler nor another thread of Python comes in between: readers need no lock.
    """
    cdef list released = [None] * _check_currents(currents, after, before)
    return _exchange(currents, after, before, released)

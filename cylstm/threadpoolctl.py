"""cylstm for threadpoolctl: `import cylstm.threadpoolctl` makes its functions know the library.

    >>> import threadpoolctl
    >>> import cylstm.threadpoolctl
    >>> with threadpoolctl.threadpool_limits(1, user_api="cylstm"):
    ...     print(cylstm.get_num_threads())
    1

After that `threadpool_info()` lists it, and `threadpool_limits(n)`, which scikit-learn and joblib
use, holds for it as for BLAS and OpenMP. What is limited is the default of `set_num_threads`.
Import it before threadpoolctl is used for the first time, for threadpoolctl keeps in mind which
libraries it does not know.
"""

from __future__ import annotations

import os

import threadpoolctl

from . import _core, config

__all__ = ["CylstmController"]


class CylstmController(threadpoolctl.LibController):  # type: ignore[misc]
    """What threadpoolctl asks of a library."""

    user_api = "cylstm"
    internal_api = "cylstm"
    filename_prefixes = (os.path.basename(_core.__file__).lower(),)
    check_symbols = ("cylstm_extension",)  # another package may have a file of this name

    def get_num_threads(self) -> int:
        return config.get_num_threads()

    def set_num_threads(self, num_threads: int) -> None:
        config.set_num_threads(min(num_threads, 256))

    def get_version(self) -> str:
        from . import __version__

        return __version__

    def set_additional_attributes(self) -> None:
        self.architecture = _core.ISA


threadpoolctl.register(CylstmController)

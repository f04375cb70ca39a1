"""Where a compiled package finds, at run time, the functions that it cimports from `embed.pxd`."""

from ._core import __pyx_capi__

__all__ = ["__pyx_capi__"]

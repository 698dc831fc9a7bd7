"""The two driver calls that every launch makes, through ctypes.

cuda.bindings builds Python objects for each argument and result, which costs several microseconds a call; here a launch
hands over addresses of structures prepared once. Layouts: cuda.h, CUlaunchConfig and CUlaunchAttribute.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from trtforge.bindings.errors import DeviceError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute, with the value as a cluster's dimensions."""

    _fields_ = [
        ("id", ctypes.c_int),
        ("pad", ctypes.c_char * 4),
        ("value", ctypes.c_uint * 3),
        ("rest", ctypes.c_char * 52),
    ]


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig: threads, blocks, bytes of dynamic shared memory, stream, attributes."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("count", ctypes.c_uint),
    ]

    @classmethod
    def of(
        cls,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared: int,
        cluster: tuple[int, int, int] | None = None,
    ) -> LaunchConfig:
        config = cls(grid, block, shared)
        if cluster is not None:
            config.attributes = (LaunchAttribute * 1)(LaunchAttribute(id=CLUSTER_DIMENSION, value=cluster))
            config.count = 1
        return config


def _load(loader: Any) -> Any:
    try:
        return loader(_LIBRARY)
    except OSError as error:
        raise DeviceError(f"launching a kernel needs the NVIDIA driver's library {_LIBRARY}: {error}") from error


@cache
def launcher() -> Callable[[int, int, int, int | None], int]:
    """cuLaunchKernelEx(config, function, arguments, extra): addresses in, CUresult out. Releases the GIL."""
    function = _load(ctypes.CDLL).cuLaunchKernelEx
    function.argtypes = [ctypes.c_void_p] * 4
    function.restype = ctypes.c_int
    return function


@cache
def _context_reader() -> tuple[Callable[[int], int], ctypes.c_void_p, int]:
    function = _load(ctypes.PyDLL).cuCtxGetCurrent
    function.argtypes = [ctypes.c_void_p]
    function.restype = ctypes.c_int
    found = ctypes.c_void_p()
    return function, found, ctypes.addressof(found)


def current_context() -> int:
    """The handle of this thread's current context, 0 for none or an error.

    The call keeps the GIL, which is what lets all threads share the place where the driver writes the answer.
    """
    function, found, address = _context_reader()
    return (found.value or 0) if function(address) == 0 else 0

"""The GPU at hand: whether there is one, what it is, and its primary context.

Everything goes through ``cuda.bindings.driver``; the primary context is the one that CuPy, PyTorch and JAX use.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from trtforge.bindings import per_launch
from trtforge.bindings.architectures import Architecture, of_device
from trtforge.bindings.errors import DeviceError, MissingDependencyError
from trtforge.bindings.optional import require


@cache
def driver() -> Any:
    """The ``cuda.bindings.driver`` module. Raises MissingDependencyError."""
    return require("cuda.bindings.driver", "using a GPU")


def checked(result: tuple[Any, ...]) -> Any:
    """Unpack a driver call's result; raises DeviceError with CUDA's own name and text of the failure."""
    status = result[0]
    if int(status) != 0:
        raise DeviceError(_failure(status))
    if len(result) == 1:
        return None
    return result[1] if len(result) == 2 else result[1:]


def _failure(status: Any) -> str:
    _, name = driver().cuGetErrorName(status)
    _, text = driver().cuGetErrorString(status)
    return f"CUDA failed: {(name or b'?').decode()}: {(text or b'').decode()}"


@cache
def _absence() -> str | None:
    """Why no GPU can be used here, or None."""
    try:
        cu = driver()
    except MissingDependencyError as error:
        return str(error)
    try:
        (status,) = cu.cuInit(0)
    except Exception as error:  # the binding raises RuntimeError when libcuda.so.1 cannot be loaded
        return f"the NVIDIA driver's library cannot be loaded ({error})"
    if int(status) != 0:
        return f"{_failure(status)}; is there an NVIDIA GPU with a driver?"
    if checked(cu.cuDeviceGetCount()) == 0:
        return "the driver sees no GPU (check CUDA_VISIBLE_DEVICES)"
    return None


def has_gpu() -> bool:
    """Whether a GPU can be used in this process."""
    return _absence() is None


def why_no_gpu() -> str:
    """The reason why there is no usable GPU, "" when there is one."""
    return _absence() or ""


def require_gpu(purpose: str) -> None:
    """Raise DeviceError unless there is a GPU."""
    reason = _absence()
    if reason is not None:
        raise DeviceError(f"{purpose} needs an NVIDIA GPU: {reason}")


@dataclass(frozen=True)
class Device:
    """One GPU. ``memory`` and ``l2_bytes`` in bytes."""

    ordinal: int
    name: str
    cc: int
    architecture: Architecture
    memory: int
    l2_bytes: int


@cache
def device(ordinal: int) -> Device:
    """The GPU of that ordinal."""
    require_gpu(f"device {ordinal}")
    cu = driver()
    handle = checked(cu.cuDeviceGet(ordinal))
    attributes = cu.CUdevice_attribute

    def attribute(name: str) -> int:
        return int(checked(cu.cuDeviceGetAttribute(getattr(attributes, f"CU_DEVICE_ATTRIBUTE_{name}"), handle)))

    cc = attribute("COMPUTE_CAPABILITY_MAJOR") * 10 + attribute("COMPUTE_CAPABILITY_MINOR")
    name = checked(cu.cuDeviceGetName(128, handle)).split(b"\0")[0].decode()
    return Device(
        ordinal,
        name,
        cc,
        of_device(cc, attribute("MULTIPROCESSOR_COUNT"), attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"), name),
        int(checked(cu.cuDeviceTotalMem(handle))),
        attribute("L2_CACHE_SIZE"),
    )


@cache
def _primary_context(ordinal: int) -> Any:
    cu = driver()
    return checked(cu.cuDevicePrimaryCtxRetain(checked(cu.cuDeviceGet(ordinal))))


@cache
def _context_handle(ordinal: int) -> int:
    require_gpu(f"device {ordinal}")
    return int(_primary_context(ordinal))


def make_current(ordinal: int) -> None:
    """Make the primary context of a device current in this thread."""
    require_gpu(f"device {ordinal}")
    checked(driver().cuCtxSetCurrent(_primary_context(ordinal)))


def is_current(ordinal: int) -> bool:
    """Whether the primary context of that device is current in this thread; cheap enough for every launch."""
    return per_launch.current_context() == _context_handle(ordinal)


def current_ordinal() -> int:
    """The device whose context is current in this thread; device 0 is made current when there is none."""
    require_gpu("launching a kernel")
    cu = driver()
    if not int(checked(cu.cuCtxGetCurrent())):
        make_current(0)
        return 0
    return int(checked(cu.cuCtxGetDevice()))


def current_device() -> Device:
    """The current GPU."""
    return device(current_ordinal())


def synchronize() -> None:
    """Wait for everything on the current device; raises DeviceError when a kernel has failed."""
    current_ordinal()
    checked(driver().cuCtxSynchronize())


@contextmanager
def no_collection() -> Iterator[None]:
    """No cyclic garbage collection: what it destroys may wait for the device, which breaks a stream capture."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

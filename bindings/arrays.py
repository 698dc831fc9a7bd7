"""Arrays in and out: NumPy, CuPy, PyTorch, JAX, and anything with DLPack or the CUDA array interface.

A :class:`View` is where an array lies and what it holds; making one copies nothing. :class:`Array` is the kit's own
device array for element types that CuPy does not know (fp8); its storage is a CuPy allocation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from operator import attrgetter, methodcaller
from typing import Any

import numpy as np

from trtforge.bindings.device import require_gpu
from trtforge.bindings.dtypes import DTYPES, dtype, name_of
from trtforge.bindings.errors import ContractError
from trtforge.bindings.optional import require


@dataclass(frozen=True)
class View:
    """Where an array lies: ``pointer`` (0 for host arrays), ``shape``, ``dtype`` name, ``device`` "cpu" or "cuda:N"."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device: str
    contiguous: bool
    framework: str
    owner: Any


class Array:
    """A contiguous device array of any element type of the kit.

    ``storage`` is a CuPy array of unsigned integers of the element's size; ``dtype`` is the kit's name. Exchange:
    ``to_numpy()``, ``to_torch()``, and the CUDA array interface (8-bit floats appear as uint8).
    """

    def __init__(self, storage: Any, dtype_name: str):
        self.storage = storage
        self.dtype = dtype_name
        self.shape: tuple[int, ...] = tuple(storage.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.storage.__cuda_array_interface__

    def to_numpy(self) -> np.ndarray:
        """A copy on the host, with the ml_dtypes type where NumPy has none."""
        return self.storage.get().view(dtype(self.dtype).numpy)

    def to_torch(self) -> Any:
        """The same memory as a PyTorch tensor."""
        torch = require("torch", "to_torch()")
        return torch.from_dlpack(self.storage).view(_torch_dtypes()[self.dtype])

    def __repr__(self) -> str:
        return f"Array(shape={self.shape}, dtype={self.dtype}, device=cuda:{self.storage.device.id})"


@cache
def _torch_dtypes() -> dict[str, Any]:
    torch = require("torch", "exchanging arrays with PyTorch")
    return {name: getattr(torch, name) for name in DTYPES if hasattr(torch, name)}


@cache
def _torch_names() -> dict[Any, str]:
    return {v: k for k, v in _torch_dtypes().items()}


def _numpy_view(a: Any) -> View:
    if isinstance(a, np.generic):  # a scalar, which is no array
        a = np.asarray(a)
    return View(a.ctypes.data, a.shape, name_of(a.dtype), "cpu", a.flags.c_contiguous, "numpy", a)


def _cupy_view(a: Any) -> View:
    return View(a.data.ptr, a.shape, name_of(a.dtype), f"cuda:{a.device.id}", a.flags.c_contiguous, "cupy", a)


def _forge_view(a: Array) -> View:
    s = a.storage
    return View(s.data.ptr, a.shape, a.dtype, f"cuda:{s.device.id}", s.flags.c_contiguous, "forge", a)


def _torch_view(a: Any) -> View:
    name = _torch_names().get(a.dtype)
    if name is None:
        raise ContractError(f"PyTorch tensors of {a.dtype} are not accepted; convert to one of: {', '.join(DTYPES)}")
    where = f"cuda:{a.device.index}" if a.device.type == "cuda" else a.device.type
    return View(a.data_ptr(), tuple(a.shape), name, where, a.is_contiguous(), "torch", a)


def _jax_view(a: Any) -> View:
    a.block_until_ready()  # JAX computes ahead on streams of its own
    where = next(iter(a.devices()))
    if where.platform == "cpu":
        return _numpy_view(np.asarray(a))
    pointer = a.addressable_data(0).unsafe_buffer_pointer()
    return View(pointer, tuple(a.shape), name_of(a.dtype), f"cuda:{where.local_hardware_id}", True, "jax", a)


_BY_MODULE: dict[str, Callable[[Any], View]] = {
    "numpy": _numpy_view,
    "ml_dtypes": _numpy_view,
    "cupy": _cupy_view,
    "torch": _torch_view,
    "jax": _jax_view,
    "jaxlib": _jax_view,
}
_BY_TYPE: dict[type, Callable[[Any], View]] = {Array: _forge_view}


def view(array: Any, name: str = "array") -> View:
    """Look at an array without copying it. Raises ContractError for what is no array or an unknown element type."""
    kind = type(array)
    reader = _BY_TYPE.get(kind)
    if reader is None:
        reader = next(
            (_BY_MODULE[root] for base in kind.__mro__ if (root := base.__module__.partition(".")[0]) in _BY_MODULE),
            _exchanged_view,
        )
        _BY_TYPE[kind] = reader
    try:
        return reader(array)
    except ContractError as error:
        raise ContractError(f"{name}: {error}") from None


def _exchanged_view(a: Any) -> View:
    if hasattr(a, "__cuda_array_interface__") or (hasattr(a, "__dlpack_device__") and a.__dlpack_device__()[0] == 2):
        require_gpu("reading a device array")
        cupy = require("cupy", "exchanging arrays through DLPack")
        mapped = cupy.asarray(a) if hasattr(a, "__cuda_array_interface__") else cupy.from_dlpack(a)
        return _cupy_view(mapped)
    if hasattr(a, "__dlpack__"):
        return _numpy_view(np.from_dlpack(a))
    raise ContractError(
        f"a {type(a).__name__} was given; accepted: NumPy, CuPy, PyTorch and JAX arrays, trtforge.Array, and anything "
        "with DLPack or the CUDA array interface"
    )


def to_device(array: np.ndarray) -> Array:
    """Copy a host array to the current device."""
    require_gpu("copying an array to the device")
    cupy = require("cupy", "device arrays")
    kind = dtype(name_of(array.dtype))
    return Array(cupy.asarray(np.ascontiguousarray(array).view(kind.storage)), kind.name)


def empty(shape: tuple[int, ...], dtype_name: str) -> Array:
    """An uninitialized device array."""
    require_gpu("allocating a device array")
    cupy = require("cupy", "device arrays")
    return Array(cupy.empty(shape, dtype(dtype_name).storage), dtype_name)


@dataclass(frozen=True, slots=True)
class Framework:
    """The calls that an eager launch makes on a framework's device arrays, each as cheap as the framework has it.

    ``kinds``: the array types that were seen, a set that grows.

    ``ordinal(array)`` is -1 for an array in host memory; ``empty(shape, dtype_name, ordinal)`` allocates;
    ``current(ordinal)`` is the CUstream handle that the framework launches on now.
    """

    name: str
    pointer: Callable[[Any], int]
    contiguous: Callable[[Any], bool]
    ordinal: Callable[[Any], int]
    empty: Callable[[tuple[int, ...], str, int], Any]
    current: Callable[[int], int]
    kinds: set[type]


@cache
def _torch_framework() -> Framework:
    torch = require("torch", "PyTorch arrays")
    kinds = _torch_dtypes()
    raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    place = cache(lambda ordinal: torch.device("cuda", ordinal))

    def current(ordinal: int) -> int:
        return raw_stream(ordinal) if raw_stream else torch.cuda.current_stream(ordinal).cuda_stream

    return Framework(
        "torch",
        methodcaller("data_ptr"),
        methodcaller("is_contiguous"),
        methodcaller("get_device"),
        lambda shape, name, ordinal: torch.empty(shape, dtype=kinds[name], device=place(ordinal)),
        current,
        set(),
    )


@cache
def _cupy_framework() -> Framework:
    cupy = require("cupy", "CuPy arrays")
    types = {name: kind.numpy for name, kind in DTYPES.items() if not name.startswith("float8")}
    allocate = cupy.empty

    def allocated(shape: tuple[int, ...], name: str, ordinal: int) -> Any:
        return allocate(shape, types[name]) if name in types else empty(shape, name)

    return Framework(
        "cupy",
        attrgetter("data.ptr"),
        attrgetter("flags.c_contiguous"),
        attrgetter("data.device_id"),
        allocated,
        _cupy_stream,
        set(),
    )


def _cupy_stream(ordinal: int) -> int:
    return _current_cupy_stream()()


@cache
def _current_cupy_stream() -> Callable[[], int]:
    stream = require("cupy", "CuPy streams").cuda.stream
    direct = getattr(stream, "get_current_stream_ptr", None)  # makes no Stream object
    return direct or (lambda: int(stream.get_current_stream().ptr))


_FORGE = Framework(
    "forge",
    attrgetter("storage.data.ptr"),
    attrgetter("storage.flags.c_contiguous"),
    attrgetter("storage.data.device_id"),
    lambda shape, name, ordinal: empty(shape, name),
    _cupy_stream,
    {Array},
)
_FRAMEWORKS: dict[type, Framework | None] = {Array: _FORGE}


def framework_of(kind: type) -> Framework | None:
    """The framework of a type of device arrays; None for others (NumPy, JAX, unknown ones)."""
    try:
        return _FRAMEWORKS[kind]
    except KeyError:
        roots = {base.__module__.partition(".")[0] for base in kind.__mro__}
        found = _torch_framework() if "torch" in roots else _cupy_framework() if "cupy" in roots else None
        _FRAMEWORKS[kind] = found
        if found is not None:
            found.kinds.add(kind)
        return found


def framework_named(name: str) -> Framework:
    """The framework that takes care of views of that name: CuPy's memory serves JAX and DLPack producers."""
    return _torch_framework() if name == "torch" else _cupy_framework() if name == "cupy" else _FORGE


def finish(array: Any, framework: str) -> Any:
    """Turn an output into what the caller's framework expects (JAX takes the memory through DLPack)."""
    if framework == "jax" and isinstance(array, Array) and not array.dtype.startswith("float8"):
        return require("jax", "JAX outputs").dlpack.from_dlpack(array.storage.view(dtype(array.dtype).numpy))
    return array

"""Loading machine code and launching it.

A :class:`Launcher` is one kernel with one geometry: everything but the pointers and the stream is prepared, so that a
launch writes a few integers into a prepared argument block and makes one driver call. Launches can be captured in a
CUDA graph.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtforge.bindings import per_launch
from trtforge.bindings.binary import Binary
from trtforge.bindings.device import checked, current_ordinal, device, driver
from trtforge.bindings.dtypes import DType
from trtforge.bindings.errors import ContractError, DeclarationError, DeviceError
from trtforge.bindings.per_launch import LaunchConfig

_GRID_LIMIT = (2**31 - 1, 65535, 65535)
_DEFAULT_SHARED = 48 * 1024
_TENSOR_MAPS_KEPT = 64
_PORTABLE_CLUSTER = 8  # blocks of a cluster that every GPU with clusters has

_loaded: dict[tuple[int, str], Any] = {}
_loading = threading.Lock()
#: Dynamic shared memory that a loaded kernel was allowed, in bytes.
_allowed: dict[tuple[int, str], int] = {}


def load(binary: Binary) -> Any:
    """The binary's kernel on the current device (a CUkernel); loaded once per process."""
    ordinal = current_ordinal()
    key = (ordinal, binary.key)
    with _loading:
        if key not in _loaded:
            cu = driver()
            try:
                library = checked(cu.cuLibraryLoadData(binary.cubin, [], [], 0, [], [], 0))
                kernel = checked(cu.cuLibraryGetKernel(library, binary.entry.encode()))
            except DeviceError as error:
                found = device(ordinal)
                raise DeviceError(
                    f"the kernel {binary.entry!r} built for {binary.arch} by {binary.compiler} cannot be loaded on "
                    f"{found.name} ({found.architecture.name}): {error}"
                ) from error
            _loaded[key] = kernel
    return _loaded[key]


@dataclass(frozen=True)
class TensorMapSpec:
    """A TMA descriptor with numbers filled in; see :class:`trtforge.kernels.contract.TensorMap`.

    ``slot`` is the index of the tensor's pointer among the launch's pointers.
    """

    slot: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int

    def check(self, where: str) -> None:
        """The driver's rules (CUDA driver API, cuTensorMapEncodeTiled), with the numbers at fault."""
        size = self.dtype.itemsize
        if not 1 <= len(self.shape) <= 5 or len(self.box) != len(self.shape):
            raise DeclarationError(f"{where}: a tensor map has 1 to 5 dimensions and a box of the same rank")
        if any(not 1 <= b <= 256 for b in self.box):
            raise DeclarationError(f"{where}: box {self.box} must be within 1..256 in each dimension")
        if self.swizzle and self.box[0] * size > self.swizzle:
            raise DeclarationError(
                f"{where}: the box is {self.box[0] * size} bytes wide, more than its swizzle of {self.swizzle}"
            )
        if any(s * size % 16 for s in self.strides):
            raise ContractError(
                f"{where}: strides {self.strides} elements of {size} bytes must be multiples of 16 bytes"
            )


def encode_tensor_map(spec: TensorMapSpec, pointer: int) -> bytes:
    """The 128-byte descriptor of a tensor at ``pointer``."""
    cu = driver()
    kind = cu.CUtensorMapDataType
    types = {
        "float16": kind.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        "bfloat16": kind.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        "float32": kind.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        "int32": kind.CU_TENSOR_MAP_DATA_TYPE_INT32,
    }
    swizzles = cu.CUtensorMapSwizzle
    rank = len(spec.shape)
    size = spec.dtype.itemsize
    encoded = checked(
        cu.cuTensorMapEncodeTiled(
            types.get(spec.dtype.name, kind.CU_TENSOR_MAP_DATA_TYPE_UINT8),
            rank,
            pointer,
            [cu.cuuint64_t(n) for n in spec.shape],
            [cu.cuuint64_t(n * size) for n in spec.strides],
            [cu.cuuint32_t(n) for n in spec.box],
            [cu.cuuint32_t(1)] * rank,
            cu.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            {
                0: swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
                32: swizzles.CU_TENSOR_MAP_SWIZZLE_32B,
                64: swizzles.CU_TENSOR_MAP_SWIZZLE_64B,
                128: swizzles.CU_TENSOR_MAP_SWIZZLE_128B,
            }[spec.swizzle],
            cu.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            cu.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )
    return ctypes.string_at(int(encoded.getPtr()), 128)


class Launcher:
    """One kernel with one geometry, ready to be launched on any pointers and stream.

    ``inputs`` and ``outputs`` count pointers; scalars stand between them; tensor maps and Triton's (null) scratch
    pointers follow. Raises ContractError for a grid, block or shared memory that the device refuses.
    """

    def __init__(
        self,
        binary: Binary,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared: int,
        inputs: int,
        outputs: int,
        scalars: Sequence[int] = (),
        tensor_maps: Sequence[TensorMapSpec] = (),
        cluster: tuple[int, int, int] | None = None,
    ):
        cu = driver()
        self.binary = binary
        self.kernel = load(binary)
        self._lock = threading.Lock()
        self._maps = tuple(tensor_maps)
        self._encoded: OrderedDict[tuple[int, ...], bytes] = OrderedDict()
        limit = device(current_ordinal()).architecture.smem_per_block
        if shared + binary.resources.static_shared > limit:
            raise ContractError(
                f"{binary.entry}: {shared} bytes of dynamic and {binary.resources.static_shared} of static shared "
                f"memory exceed the {limit} bytes that a block may have here; choose a smaller tactic"
            )
        for axis, (size, most) in enumerate(zip(grid, _GRID_LIMIT)):
            if not 1 <= size <= most:
                raise ContractError(f"{binary.entry}: grid {grid}: axis {'xyz'[axis]} must be within 1..{most}")
        # Static shared memory counts too. Launchers of one kernel differ in what they need: the limit only grows.
        key = (current_ordinal(), binary.key)
        if shared + binary.resources.static_shared > _DEFAULT_SHARED and shared > _allowed.get(key, 0):
            _allowed[key] = shared
            attribute = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            handle = checked(cu.cuDeviceGet(current_ordinal()))
            checked(cu.cuKernelSetAttribute(attribute, shared, self.kernel, handle))
        if cluster is not None and cluster[0] * cluster[1] * cluster[2] > _PORTABLE_CLUSTER:
            attribute = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
            handle = checked(cu.cuDeviceGet(current_ordinal()))
            checked(cu.cuKernelSetAttribute(attribute, 1, self.kernel, handle))

        for value in scalars:
            if not -(2**31) <= value < 2**31:
                raise ContractError(f"{binary.entry}: the scalar {value} does not fit 32 bits; split the call")
        scratch = binary.metadata.get("scratch_parameters", 0)
        if binary.metadata.get("global_scratch_size", 0) or binary.metadata.get("profile_scratch_size", 0):
            raise DeclarationError(f"{binary.entry}: needs Triton scratch memory, which the kit does not provide")

        self._pointers = (ctypes.c_uint64 * max(1, inputs + outputs))()
        self._write = struct.Struct(f"{inputs + outputs}Q").pack_into
        self._scalars = (ctypes.c_int32 * max(1, len(scalars)))(*scalars)
        self._map_bytes = (ctypes.c_char * (128 * max(1, len(self._maps)) + 64))()
        self._scratch = ctypes.c_uint64(0)
        maps_at = self._maps_at = -(-ctypes.addressof(self._map_bytes) // 64) * 64
        pointer_at = ctypes.addressof(self._pointers)
        addresses = [pointer_at + 8 * i for i in range(inputs)]
        addresses += [ctypes.addressof(self._scalars) + 4 * i for i in range(len(scalars))]
        addresses += [pointer_at + 8 * (inputs + i) for i in range(outputs)]
        addresses += [maps_at + 128 * i for i in range(len(self._maps))]
        addresses += [ctypes.addressof(self._scratch)] * scratch
        self._arguments = (ctypes.c_void_p * max(1, len(addresses)))(*addresses)
        self._arguments_at = ctypes.addressof(self._arguments)
        self._count = inputs + outputs

        self._config = LaunchConfig.of(grid, block, shared, cluster)
        self._stream = 0
        self._config_at = ctypes.addressof(self._config)
        self._function = int(self.kernel)
        self._launch = per_launch.launcher()

    def __call__(self, pointers: Sequence[int], stream: int = 0) -> None:
        """Launch on device pointers (inputs, then outputs) and a CUstream handle. Does not wait."""
        if len(pointers) != self._count:
            raise ContractError(f"{self.binary.entry}: {len(pointers)} pointers were given, {self._count} are needed")
        with self._lock:
            self._write(self._pointers, 0, *pointers)
            if self._maps:
                key = tuple(pointers)
                encoded = self._encoded.get(key)
                if encoded is None:
                    encoded = b"".join(encode_tensor_map(m, pointers[m.slot]) for m in self._maps)
                    self._encoded[key] = encoded
                    if len(self._encoded) > _TENSOR_MAPS_KEPT:
                        self._encoded.popitem(last=False)
                ctypes.memmove(self._maps_at, encoded, len(encoded))
            if stream != self._stream:
                self._config.stream = self._stream = stream
            status = self._launch(self._config_at, self._function, self._arguments_at, None)
        if status:
            checked((driver().CUresult(status),))

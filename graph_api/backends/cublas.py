"""Matrix products by cuBLAS, called directly.

CuPy's own cuBLAS calls refuse to run while a stream is being captured and know fewer types, so this module calls
cublasGemmStridedBatchedEx through ctypes with a handle, stream and workspace of its own: products of float16, bfloat16
and float32 with float32 accumulation, all of which can be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict
from functools import cache
from typing import Any

from trtforge.bindings.device import current_ordinal
from trtforge.bindings.errors import DeviceError, MissingDependencyError
from trtforge.bindings.optional import require

WORKSPACE_BYTES = 32 << 20  # what NVIDIA recommends for Hopper; a fixed workspace makes captured graphs reproducible

# library_types.h and cublas_api.h
CUDA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
COMPUTE_32F = 68
GEMM_DEFAULT = -1
OP_N, OP_T = 0, 1


@cache
def _library() -> Any:
    pathfinder = require("cuda.pathfinder", "finding cuBLAS")
    try:
        found = pathfinder.load_nvidia_dynamic_lib("cublas")
        # A library that something else loaded may come without its path; its handle serves as well.
        library = ctypes.CDLL(found.abs_path) if found.abs_path else ctypes.CDLL(None, handle=found._handle_uint)
    except Exception as error:  # pathfinder's own exception types differ between versions
        raise MissingDependencyError(
            f"the cuda backend needs cuBLAS, which was not found ({error}); pip install nvidia-cublas (CUDA 13) or "
            "nvidia-cublas-cu12, or install the CUDA toolkit"
        ) from error
    pointer, integer, stride = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
    operand: list[Any] = [pointer, integer, integer, stride]
    library.cublasGemmStridedBatchedEx.argtypes = [
        pointer, integer, integer, integer, integer, integer, pointer, *operand, *operand, pointer, *operand,
        integer, integer, integer,
    ]  # fmt: skip
    library.cublasCreate_v2.argtypes = [ctypes.POINTER(pointer)]
    library.cublasSetStream_v2.argtypes = [pointer, pointer]
    library.cublasSetWorkspace_v2.argtypes = [pointer, pointer, ctypes.c_size_t]
    return library


def _check(status: int, call: str) -> None:
    if status != 0:
        raise DeviceError(f"cuBLAS: {call} failed with status {status} (see cublasStatus_t)")


# Handles that nobody uses now, by device. They are used again and never destroyed: cublasDestroy waits for the whole
# device, and Python may collect an executable at any moment, also while another one's stream is being captured.
_idle: defaultdict[int, list[ctypes.c_void_p]] = defaultdict(list)


def _handle() -> ctypes.c_void_p:
    """A cuBLAS handle of the current device."""
    try:
        return _idle[current_ordinal()].pop()
    except IndexError:
        handle = ctypes.c_void_p()
        _check(_library().cublasCreate_v2(ctypes.byref(handle)), "cublasCreate")
        return handle


class Gemm:
    """A cuBLAS handle bound to one stream. ``workspace``: address of WORKSPACE_BYTES of device memory."""

    def __init__(self, stream: int, workspace: int):
        self._library = _library()
        self._handle = _handle()
        weakref.finalize(self, _idle[current_ordinal()].append, self._handle)
        # Setting the stream resets the workspace, so the order matters.
        _check(self._library.cublasSetStream_v2(self._handle, stream), "cublasSetStream")
        _check(self._library.cublasSetWorkspace_v2(self._handle, workspace, WORKSPACE_BYTES), "cublasSetWorkspace")
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)

    def __call__(
        self,
        dtype: str,
        a: int,
        b: int,
        c: int,
        m: int,
        n: int,
        k: int,
        *,
        transpose_a: bool,
        transpose_b: bool,
        batch: int = 1,
        stride_a: int = 0,
        stride_b: int = 0,
    ) -> None:
        """c [batch, m, n] = a [m, k] @ b [k, n], row-major device addresses; strides in elements, 0 repeats.

        cuBLAS is column-major, and a row-major matrix is the transpose of a column-major one: it computes
        c^T = b^T a^T, so b comes first and the flags keep their meaning.
        """
        kind = CUDA_TYPES[dtype]
        status = self._library.cublasGemmStridedBatchedEx(
            self._handle,
            OP_T if transpose_b else OP_N,
            OP_T if transpose_a else OP_N,
            n,
            m,
            k,
            ctypes.addressof(self._one),
            b,
            kind,
            k if transpose_b else n,
            stride_b,
            a,
            kind,
            m if transpose_a else k,
            stride_a,
            ctypes.addressof(self._zero),
            c,
            kind,
            n,
            m * n,
            batch,
            COMPUTE_32F,
            GEMM_DEFAULT,
        )
        _check(status, f"a product of {dtype}, m={m} n={n} k={k} batch={batch}")

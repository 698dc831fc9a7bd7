"""The ceilings of a benchmark run, measured in the same process: device copy, reading alone, and matrix products.

A ceiling is what the machine was seen to do at this hour and temperature, not what its data sheet says. Products are
PyTorch's (cuBLAS) where it is installed, else the kit's own fused_gemm; the better of two sizes counts, because the
largest product is throttled by power on some machines. Memory holds random bits: zeros are read a fifth faster on an
H200. A kernel that reads more than it writes is held against the faster rate of reading for what it reads more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from trtforge.bindings.device import current_device
from trtforge.bindings.errors import ForgeError, MissingDependencyError
from trtforge.bindings.optional import available, require
from trtforge.harness.measurement import COPY, READ
from trtforge.harness.timing import reader, time_alternating
from trtforge.kernels import registry
from trtforge.kernels.contract import Cost

_COPY_BYTES, _COPY_SHARE = 2 << 30, 8
_SIZES = (4096, 8192)
_SECONDS = 0.05
#: Products of these element types are measured; others (float32 data, say) are held against none.
PRODUCTS = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8")
#: Operations per byte above which an op is told in TFLOP/s.
_INTENSE = 50
#: Types that multiply as fast as another one.
_AS = {"float8_e5m2": "float8_e4m3fn"}

Call = Callable[[], Any]


def name_of(dtype: str) -> str:
    """The name of a type's ceiling in a run, "bfloat16 TFLOP/s"."""
    return f"{_AS.get(dtype, dtype)} TFLOP/s"


def measure(dtypes: Iterable[str], clock: Any = None) -> dict[str, float]:
    """The ceilings that ops on these element types need, by name; a product that cannot be run is left out."""
    found = _memory(clock)
    for dtype in dict.fromkeys(_AS.get(d, d) for d in dtypes if d in PRODUCTS):
        rate = max((_rate(dtype, size, clock) for size in _SIZES), default=0.0)
        if rate:
            found[name_of(dtype)] = rate
    return {name: round(value, 1) for name, value in found.items()}


def _memory(clock: Any) -> dict[str, float]:
    """GB/s of a device-to-device copy, read and written, and of reading."""
    cupy = require("cupy", "measuring ceilings")
    size = min(_COPY_BYTES, current_device().memory // _COPY_SHARE) // 16 * 16
    source = cupy.random.default_rng(0).integers(0, 1 << 63, size // 8, dtype=cupy.uint64).view(cupy.uint8)
    target = cupy.empty(size, cupy.uint8)
    stream = cupy.cuda.get_current_stream()

    def copy() -> None:
        target.data.copy_from_device_async(source.data, size, stream)

    timings = time_alternating({COPY: copy, READ: reader(source)}, _SECONDS, clock)
    return {COPY: 2 * size / timings[COPY].median / 1e9, READ: size / timings[READ].median / 1e9}


def _rate(dtype: str, size: int, clock: Any) -> float:
    """TFLOP/s of a square product; 0 where there is none for the type."""
    try:
        call = _product(dtype, size)
        call()
        took = time_alternating({"product": call}, _SECONDS, clock)["product"].median
    except (ForgeError, RuntimeError, AttributeError, ValueError, NotImplementedError):
        return 0.0
    return 2 * size**3 / took / 1e12


def _product(dtype: str, size: int) -> Call:
    if not available("torch"):
        return _own_product(dtype, size)
    torch = require("torch", "measuring ceilings")
    if dtype == "int8":
        integers = [torch.randint(-100, 100, (size, size), device="cuda", dtype=torch.int8) for _ in range(2)]
        return lambda: torch._int_mm(integers[0], integers[1].t())
    made = [torch.randn(size, size, device="cuda").to(getattr(torch, dtype)) for _ in range(2)]
    if dtype.startswith("float8"):
        one = torch.ones((), device="cuda")
        return lambda: torch._scaled_mm(
            made[0], made[1].t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    return lambda: made[0] @ made[1].t()


def _own_product(dtype: str, size: int) -> Call:
    """The kit's matrix product without PyTorch, for the types that it takes."""
    from trtforge.harness.problem import normal
    from trtforge.kernels.plan import plan

    op = registry.get("trtforge::fused_gemm")
    arrays = [normal((size, size), dtype, seed) for seed in (0, 1, 2)]  # the last one is written
    if None in arrays:
        raise MissingDependencyError(f"a product of {dtype} needs PyTorch")
    cupy = require("cupy", "measuring ceilings")
    stream = int(cupy.cuda.get_current_stream().ptr)
    found = plan(op, {"x": (size, size), "w": (size, size)}, {"x": dtype, "w": dtype})
    held = [a for a in arrays if a is not None]

    def call() -> None:
        found.launch([a.storage.data.ptr for a in held], stream)

    return call


def least_seconds(cost: Cost, dtype: str, ceilings: dict[str, float], written: int | None = None) -> float | None:
    """The least time that the ceilings allow for a cost; None where a ceiling that matters was not measured.

    ``written``: bytes of the cost that are written, the rest is read; by default half of them, as in a copy.
    """
    copy, product = ceilings.get(COPY), ceilings.get(name_of(dtype))
    if not copy:
        return None
    moved = cost.bytes or 0
    paired = moved if written is None else min(2 * written, moved)
    by_memory = paired / (copy * 1e9) + (moved - paired) / (max(ceilings.get(READ, 0.0), copy) * 1e9)
    if product:
        return max(by_memory, cost.flops / (product * 1e12))
    return None if compute_bound(cost) else by_memory


def compute_bound(cost: Cost) -> bool:
    """Whether an op is told in TFLOP/s: it computes much per byte."""
    return cost.flops > _INTENSE * (cost.bytes or 1)

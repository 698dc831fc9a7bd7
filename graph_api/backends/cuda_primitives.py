"""The graph's primitives on CuPy arrays.

An array holds *storage*: bfloat16 as uint16 and 8-bit floats as uint8, so that CuPy need not know these types. An
elementwise primitive is one kernel made of its declared expression; a matrix product goes to cuBLAS; the rest runs the
declaration's own function over CuPy, widened to float32 and rounded once. Everything is launched on the current CuPy
stream and can be captured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from trtforge.bindings.dtypes import DTYPES
from trtforge.graph_api import shapes
from trtforge.graph_api.backends.cublas import Gemm
from trtforge.graph_api.primitive import FLOATS, Primitive
from trtforge.kernels.dims import evaluate

PREAMBLE = r"""
__device__ __forceinline__ float load_bfloat16(unsigned short bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
// Round to nearest even; NaN keeps its sign and becomes quiet.
__device__ __forceinline__ unsigned short store_bfloat16(float value) {
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<unsigned short>((bits >> 16) | 0x40u);
    return static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
template <typename T> __device__ __forceinline__ T floor_quotient(T a, T b) {
    const T q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}
"""


def storage_name(dtype: str) -> str:
    """The NumPy name of the type that holds ``dtype`` in a CuPy array."""
    return str(DTYPES[dtype].storage)


#: (input parameters, output parameters, body) of a CuPy kernel.
Source = tuple[str, str, str]


def elementwise_source(expression: str, inputs: Mapping[str, str], output: str) -> Source:
    """(input parameters, output parameter, body) of the CuPy kernel that stores ``expression``.

    ``inputs``: dtype by name. Half precision is widened to float when loaded and rounded once when stored.
    """
    parameters = ", ".join(f"{storage_name(dtype)} {name}_in" for name, dtype in inputs.items())
    lines = []
    for name, dtype in inputs.items():
        if dtype == "bfloat16":
            lines.append(f"const float {name} = load_bfloat16({name}_in);")
        elif dtype == "float16":
            lines.append(f"const float {name} = static_cast<float>({name}_in);")
        else:
            lines.append(f"const auto {name} = {name}_in;")
    stored = {
        "bfloat16": f"store_bfloat16(static_cast<float>({expression}))",
        "float16": f"float16(static_cast<float>({expression}))",
    }.get(output, f"({expression})")
    lines.append(f"result = {stored};")
    return parameters, f"{storage_name(output)} result", "\n".join(lines)


def _elementwise(cp: Any, name: str, expression: str, inputs: tuple[tuple[str, str], ...], output: str) -> Any:
    return _kernel(cp, elementwise_source(expression, dict(inputs), output), f"forge_{name}")


def convert(cp: Any, array: Any, source: str, target: str) -> Any:
    """``array`` of dtype ``source`` as ``target``."""
    if source == target:
        return array
    out = cp.empty(array.shape, storage_name(target))
    _elementwise(cp, "cast", "x", (("x", source),), target)(array, out)
    return out


def run_elementwise(
    cp: Any,
    primitive: Primitive,
    arrays: Sequence[Any],
    dtypes: Sequence[str],
    attributes: Mapping[str, Any],
    shape: tuple[int, ...],
    output: str,
) -> Any:
    """One kernel over broadcast inputs."""
    chosen = primitive.expression
    if isinstance(chosen, Mapping):
        (choice,) = attributes.values()
        chosen = chosen[choice]
    assert chosen is not None
    names = primitive.input_names(len(arrays))
    out = cp.empty(shape, storage_name(output))
    _elementwise(cp, primitive.name, chosen, tuple(zip(names, dtypes)), output)(*arrays, out)
    return out


def run_generic(
    cp: Any,
    primitive: Primitive,
    arrays: Sequence[Any],
    dtypes: Sequence[str | None],
    attributes: Mapping[str, Any],
    output: str,
) -> Any:
    """The declaration's function over CuPy: on storage, or widened to float32 and rounded once."""
    if primitive.compute == "bits":
        # A missing input has no dtype; ranges and dimension values are made in their own type.
        return primitive.run(cp, *arrays, **attributes)
    wide = [a if d is None or d not in FLOATS else convert(cp, a, d, "float32") for a, d in zip(arrays, dtypes)]
    raw = primitive.run(cp, *wide, **attributes)
    return convert(cp, raw, "float32", output) if output in FLOATS else raw.astype(storage_name(output), copy=False)


def run_matmul(
    cp: Any,
    gemm: Gemm,
    a: Any,
    b: Any,
    dtype: str,
    shape: tuple[int, ...],
    *,
    transpose_a: bool,
    transpose_b: bool,
) -> Any:
    """Batched product by cuBLAS. A batch that repeats is read with stride 0; a partly broadcast one is copied."""
    out = cp.empty(shape, storage_name(dtype))
    m, n = shape[-2:]
    k = a.shape[-2] if transpose_a else a.shape[-1]
    flags = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    if b.ndim == 2 and not transpose_a:
        a, b = cp.ascontiguousarray(a), cp.ascontiguousarray(b)
        rows = evaluate(shapes.volume(shape[:-1]), {})
        gemm(dtype, a.data.ptr, b.data.ptr, out.data.ptr, rows, n, k, **flags)
        return out
    batch = shape[:-2]
    count = evaluate(shapes.volume(batch), {})
    left, stride_a = _batched(cp, a, batch)
    right, stride_b = _batched(cp, b, batch)
    gemm(
        dtype, left.data.ptr, right.data.ptr, out.data.ptr, m, n, k, batch=count, stride_a=stride_a, stride_b=stride_b,
        **flags,
    )  # fmt: skip
    return out


def _batched(cp: Any, x: Any, batch: tuple[int, ...]) -> tuple[Any, int]:
    """A contiguous array and the stride in elements between its matrices."""
    if all(d == 1 for d in x.shape[:-2]):
        return cp.ascontiguousarray(x), 0
    full = cp.ascontiguousarray(cp.broadcast_to(x, (*batch, *x.shape[-2:])))
    return full, x.shape[-2] * x.shape[-1]


def rope_source(dtype: str) -> Source:
    """Element d of a row turns with d + half (first half) or d - half (second half)."""
    storage = storage_name(dtype)
    load = {"bfloat16": "load_bfloat16({})", "float16": "static_cast<float>({})"}.get(dtype, "{}")
    store = {"bfloat16": "store_bfloat16({})", "float16": "float16({})"}.get(dtype, "{}")
    # Products are rounded before they are added, as in the reference and in trtforge::rope_kv_cache_update.
    rotated = store.format("__fadd_rn(__fmul_rn(mine, c[at]), __fmul_rn(d < half ? -other : other, s[at]))")
    return (
        f"raw {storage} x, raw float32 c, raw float32 s, int32 half, int32 rows, int32 heads, int32 table_stride",
        f"{storage} y",
        f"""
        const long long width = 2 * half, d = i % width, row = (i / width) % rows, b = i / (width * rows * heads);
        const long long at = b * table_stride + row * half + d % half;
        const float mine = {load.format("x[i]")};
        const float other = {load.format("x[d < half ? i + half : i - half]")};
        y = {rotated};
        """,
    )


@cache
def _kernel(cp: Any, source: Source, name: str) -> Any:
    return cp.ElementwiseKernel(*source, name, preamble=PREAMBLE)


def run_rope(cp: Any, x: Any, cos: Any, sin: Any, dtype: str) -> Any:
    """Rotary embedding in one kernel."""
    _, heads, rows, width = x.shape
    out = cp.empty(x.shape, storage_name(dtype))
    cos, sin = cp.ascontiguousarray(cos), cp.ascontiguousarray(sin)
    one_table = cos.size == rows * (width // 2)
    stride = 0 if one_table else rows * (width // 2)
    kernel = _kernel(cp, rope_source(dtype), "forge_rope")
    kernel(cp.ascontiguousarray(x), cos, sin, width // 2, rows, heads, stride, out)
    return out

"""Quantization without a GPU: rounding by brute force over all codes, scales, kernels interpreted and compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from compiler import needs_compiler
from emulated import agrees

from trtforge.bindings.architectures import INSPECTED, architecture
from trtforge.bindings.disassemble import sass
from trtforge.bindings.dtypes import dtype
from trtforge.bindings.errors import ContractError
from trtforge.harness.check import check
from trtforge.kernels import Case, registry
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.op import Op
from trtforge.kernels.quantize import op as family
from trtforge.kernels.quantize import reference

CODES = ("int8", "float8_e4m3fn", "float8_e5m2")
OPS = (
    *family.DYNAMIC.values(),
    family.absmax_partials,
    *family.STATIC.values(),
    *family.DEQUANTIZE.values(),
    family.pack_int4,
    family.unpack_int4,
    family.dequantize_int4,
)
#: Every 16-bit pattern as a float, of both 16-bit formats.
PATTERNS = np.arange(65536, dtype=np.uint16)
ALL_VALUES = {"float16": PATTERNS.view(np.float16), "bfloat16": PATTERNS.view(ml_dtypes.bfloat16)}


def value_of(code: int, to: str) -> float:
    """What a code stands for, from the definition of its format."""
    if to in reference.INTEGER_RANGE:
        bits = 8 if to == "int8" else 4
        return float(code - (1 << bits) if code >= 1 << (bits - 1) else code)
    exponent_bits, mantissa_bits, bias = (4, 3, 7) if to == "float8_e4m3fn" else (5, 2, 15)
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code & 0x7F) >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
    top = exponent == (1 << exponent_bits) - 1
    if to == "float8_e4m3fn" and top and mantissa == 7:
        return float("nan")
    if to == "float8_e5m2" and top:
        return float("nan") if mantissa else sign * float("inf")
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / (1 << mantissa_bits)) * 2.0 ** (exponent - bias)


def nearest(values: np.ndarray, to: str) -> np.ndarray:
    """The codes nearest to float32 values, found in the table of all values: ties to the even code, saturating."""
    count = 16 if to == "int4" else 256
    table = [(value_of(c, to), c) for c in range(count)]
    finite = {v: c for v, c in table if np.isfinite(v) and not (to == "int4" and v == -8) and (v or c == 0)}
    points = np.array(sorted(finite))
    codes = np.array([finite[v] for v in points])
    wide = values.astype(np.float64)
    limited = np.clip(np.where(np.isnan(wide), 0.0, wide), points[0], points[-1])
    upper = np.clip(np.searchsorted(points, limited), 1, len(points) - 1)
    lower = upper - 1
    middle = (points[lower] + points[upper]) / 2
    even_upper = codes[upper] % 2 == 0
    take_upper = (limited > middle) | ((limited == middle) & even_upper)
    found = np.where(take_upper, codes[upper], codes[lower])
    if to in reference.INTEGER_RANGE:
        return np.where(np.isnan(wide), 0, found).astype(np.uint8)
    found = np.where((found == 0) & np.signbit(values), 0x80, found)  # a negative number that rounds to zero
    return np.where(np.isnan(wide), reference.NAN_CODE, found).astype(np.uint8)


@pytest.mark.parametrize("to", CODES)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_every_16_bit_value_rounds_to_the_nearest_code(kind: str, to: str) -> None:
    x = ALL_VALUES[kind]
    for scale in (1.0, 0.037, 3.0, 2.0**-14, 1e-38, 2.5e30):
        y = family.STATIC["tensor"].run_reference({"x": x, "scale": np.array([scale], np.float32)}, {"to": to})["y"]
        with np.errstate(all="ignore"):
            quotient = x.astype(np.float32) / np.float32(scale)
        np.testing.assert_array_equal(y.view(np.uint8), nearest(quotient, to), err_msg=f"scale {scale}")


@pytest.mark.parametrize("to", CODES)
def test_float32_neighbors_of_every_boundary(to: str) -> None:
    points = sorted({value_of(c, to) for c in range(256) if np.isfinite(value_of(c, to))})
    middles = [(a + b) / 2 for a, b in pairwise(points)]
    x = np.array([*points, *middles, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38], np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))])
    np.testing.assert_array_equal(reference.encode(x, to).view(np.uint8), nearest(x, to))


@pytest.mark.parametrize("to", CODES)
def test_decoding_is_the_definition_of_the_format(to: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    inputs = {"y": codes.view(dtype(to).numpy), "scale": np.ones(1, np.float32)}
    x = family.DEQUANTIZE["tensor"].run_reference(inputs, {"to": "float32"})["x"]
    np.testing.assert_array_equal(x, np.array([value_of(int(c), to) for c in codes], np.float32))


def groups_of(granularity: str, shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The groups of a matrix, written out."""
    height, width = {"tensor": shape, "token": (1, shape[1]), "block": (1, 128), "tile": (128, 128)}[granularity]
    return [
        (slice(r, r + height), slice(c, c + width))
        for r in range(0, shape[0], height)
        for c in range(0, shape[1], width)
    ]


def run_dynamic(granularity: str, x: np.ndarray, to: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = {"x": x}
    for op in family.composition(granularity):
        found = op.run_reference(arrays, {"to": to} if "to" in op.attributes else {})
        arrays |= found
    return arrays["y"], arrays["scale"]


@pytest.mark.parametrize("to", CODES)
@pytest.mark.parametrize("granularity", family.DYNAMIC)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 129), (130, 257)])
def test_dynamic_scales_group_by_group(granularity: str, to: str, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32) * 100
    x[0, 0] = np.inf
    if shape[0] > 2:
        x[1, :], x[2, 0] = 0.0, np.nan
    y, scale = run_dynamic(granularity, x, to)
    groups = groups_of(granularity, shape)
    assert scale.size == len(groups)
    for part, found in zip(groups, scale.ravel()):
        finite = [abs(float(v)) for v in x[part].ravel() if np.isfinite(v)]
        expected = max(np.float32(max(finite, default=0.0)) / np.float32(reference.QMAX[to]), np.float32(2.0**-126))
        assert found == expected
        np.testing.assert_array_equal(y[part].view(np.uint8), nearest(x[part] / found, to))
    largest = reference.QMAX[to]
    assert float(y[0, 0]) == largest
    if shape[0] > 2:
        assert (y[1].astype(np.float32) == 0).all()
        assert int(y[2:3, :1].view(np.uint8)[0, 0]) == (0 if to == "int8" else reference.NAN_CODE)


def test_the_scale_of_zeros_and_of_tiny_values_is_the_smallest_normal_number() -> None:
    x = np.array([[0.0, -0.0], [1e-45, 0.0], [np.nan, np.inf]], np.float32)
    y, scale = run_dynamic("token", x, "float8_e4m3fn")
    assert (scale == np.float32(2.0**-126)).all()
    np.testing.assert_array_equal(y.view(np.uint8), [[0x00, 0x80], [0x00, 0x00], [0x7F, 0x7E]])
    np.testing.assert_array_equal(run_dynamic("token", x, "int8")[0], [[0, 0], [0, 0], [0, 127]])


def test_leading_dimensions_are_rows() -> None:
    x = np.random.default_rng(2).standard_normal((2, 1, 3, 130)).astype(np.float16)
    flat = x.reshape(6, 130)
    for granularity, shape in (("tensor", (1,)), ("token", (2, 1, 3)), ("block", (2, 1, 3, 2))):
        y, scale = run_dynamic(granularity, x, "int8")
        assert scale.shape == shape
        np.testing.assert_array_equal(y.reshape(6, 130), run_dynamic(granularity, flat, "int8")[0])
        again = family.STATIC[granularity].run_reference({"x": x, "scale": scale}, {"to": "int8"})["y"]
        np.testing.assert_array_equal(again, y)
        back = family.dequantization(granularity).run_reference({"y": y, "scale": scale}, {"to": "float32"})["x"]
        step = scale.max() * 0.5001
        assert np.abs(back - x.astype(np.float32)).max() <= step


def test_partials_cover_every_element_once() -> None:
    x = np.zeros((3, 20000), np.float32)
    share = reference.share_of(x.size, 512, 8)
    assert share % 8 == 0 and share * 512 >= x.size
    for index in (0, share - 1, share, x.size - 1):
        x.flat[:] = 0
        x.flat[index] = -5.0
        partials = family.absmax_partials.run_reference({"x": x})["partials"]
        assert np.flatnonzero(partials).tolist() == [index // share] and partials.max() == 5.0


def test_int4_packs_symmetric_codes_low_nibble_first() -> None:
    x = np.random.default_rng(3).standard_normal((5, 300)).astype(np.float32)
    x[1, :128], x[2, 7], x[3, 9] = 0.0, np.nan, np.inf
    found = family.pack_int4.run_reference({"x": x})
    assert found["y"].shape == (5, 150) and found["scale"].shape == (5, 3)
    codes = family.unpack_int4.run_reference({"y": found["y"]})["x"]
    for part, scale in zip(groups_of("block", x.shape), found["scale"].ravel()):
        np.testing.assert_array_equal(codes[part].view(np.uint8) & 0xF, nearest(x[part] / scale, "int4"))
    assert codes.min() >= -7 and codes[2, 7] == 0 and codes[3, 9] == 7
    assert [int(v) & 0xF for v in codes[0, :2]] == [int(found["y"][0, 0]) & 0xF, int(found["y"][0, 0]) >> 4]
    back = family.dequantize_int4.run_reference({"y": found["y"], "scale": found["scale"]}, {"to": "float32"})["x"]
    ok = np.isfinite(x)
    assert (np.abs(back - x)[ok] <= np.repeat(found["scale"], 128, 1)[:, :300][ok] * 0.5001).all()
    every = family.unpack_int4.run_reference({"y": np.array([[0x80, 0x7F]], np.uint8)})["x"]
    assert every.tolist() == [[0, -8, -1, 7]]


def round_to_float32(value: Fraction) -> np.float32:
    """The float32 nearest to an exact number, ties to even (normal range)."""
    if value == 0:
        return np.float32(0)
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent
    unit = Fraction(2) ** (exponent - 23)
    return np.float32(float(round(value / unit) * unit))


def test_the_quotient_without_division_finds_the_same_code() -> None:
    """The arithmetic of Divisor in common/quantize.cuh, in exact numbers, next to every kind of rounding boundary."""
    rng = np.random.default_rng(4)
    for _ in range(3000):
        scale = np.float32(1 + int(rng.integers(1 << 23)) * 2.0**-23)
        boundary = np.float32(int(rng.integers(1, 256)) | 1)
        x = np.float32(scale * boundary)
        for _ in range(int(rng.integers(0, 3))):
            x = np.nextafter(x, np.float32(rng.choice([0, 1e9])))
        reciprocal = round_to_float32(1 / Fraction(float(scale)))
        product = np.float32(x * reciprocal)
        exact = Fraction(float(x)) - Fraction(float(product)) * Fraction(float(scale))
        residual = round_to_float32(exact)
        corrected = round_to_float32(Fraction(float(product)) + Fraction(float(residual)) * Fraction(float(reciprocal)))
        assert np.sign(corrected - boundary) == np.sign(np.float32(x / scale) - boundary)


INTERPRETED = """
import ml_dtypes, numpy as np
from trtforge.bindings.architectures import architecture
from trtforge.harness import interpreter
from trtforge.kernels.quantize import op as family

target = architecture("sm_90a")
patterns = np.arange(65536, dtype=np.uint16)
codes = np.arange(256, dtype=np.uint8)

def same(op, inputs, attributes, name):
    binding = op.bind({k: v.shape for k, v in inputs.items()}, {k: str(v.dtype) for k, v in inputs.items()}, attributes)
    found = interpreter.run(op.kernel_named("triton"), binding, 0, inputs, target)[name]
    expected = op.run_reference(inputs, attributes)[name]
    if name == "x":
        assert np.array_equal(found.astype(np.float32), expected.astype(np.float32), equal_nan=True), (op, attributes)
    else:
        assert (found.view(np.uint8) == expected.view(np.uint8)).all(), (op, attributes)

scales = np.array([1.0, 0.037, 2.0**-14, 1e-42], np.float32)
for to in ("int8", "float8_e4m3fn", "float8_e5m2"):
    for view in (np.float16, ml_dtypes.bfloat16):
        x = np.tile(patterns.view(view), (4, 1)).reshape(4 * 16, 4096)
        same(family.STATIC["token"], {"x": x, "scale": np.repeat(scales, 16)}, {"to": to}, "y")
    y = np.tile(codes.view({"int8": np.int8}.get(to) or getattr(ml_dtypes, to)), (4, 1))
    for kind in ("float16", "float32"):
        same(family.DEQUANTIZE["token"], {"y": y, "scale": scales}, {"to": kind}, "x")
print("interpreted")
"""


def test_triton_conversions_interpreted_on_every_16_bit_value() -> None:
    pytest.importorskip("triton", reason="the interpreter is Triton's")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "interpreted" in done.stdout, done.stderr[-3000:]


def compiled(op: Op, kernel: str, arch: str, codes: str | None = None) -> Any:
    """The first benchmark shape (with those codes), compiled."""
    for case in op.cases:
        used = {*case.attributes.values(), *case.dtypes.values()}
        if "bench" in case.tags and (codes is None or codes in used):
            binding = op.bind_case(case, op.dtype_combinations(case)[0])
            return compile_kernel(op.kernel_named(kernel), binding, 0, architecture(arch))
    raise AssertionError(f"{op.name} has no such case")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name.split("::")[1])
def test_cuda_code_moves_16_bytes_and_spills_nothing(op: Op) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="compiling CUDA needs NVRTC")
    for arch in INSPECTED if op is family.DYNAMIC["token"] else ("sm_80", "sm_90a"):
        binary = compiled(op, "cuda", arch)
        text = sass(binary)
        wide = "STG.E.128" if "x" in op.outputs else "LDG.E.128"
        assert wide in text, f"{op.name} on {arch}: no {wide}"
        assert "CALL" not in text, f"{op.name} on {arch} calls a slow path"
        assert (binary.resources.spill_stores, binary.resources.spill_loads) == (0, 0)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name.split("::")[1])
def test_triton_code_divides_as_ieee_754_says(op: Op) -> None:
    pytest.importorskip("triton", reason="compiling Triton kernels needs Triton")
    binary = compiled(op, "triton", "sm_90a")
    assert "div.full" not in binary.ptx and "ftz" not in binary.ptx and "fma" not in binary.ptx
    assert ("div.rn.f32" in binary.ptx) == ("scale" in op.outputs or op in family.STATIC.values())
    assert binary.resources.spill_stores == 0


def test_triton_refuses_e4m3_before_sm_89_and_says_why() -> None:
    op = family.DYNAMIC["token"]
    binding = op.bind({"x": (4, 8)}, {"x": "float16"}, {"to": "float8_e4m3fn"})
    reason = op.kernel_named("triton").refusal(binding, 0, architecture("sm_80"))
    assert reason and "sm_89" in reason
    assert op.kernel_named("cuda").refusal(binding, 0, architecture("sm_80")) is None


def test_odd_rows_and_misaligned_pointers_take_the_scalar_kernel() -> None:
    target = architecture("sm_90a")
    for op in OPS[:4]:
        shapes = {"x": (33, 1001)} | ({"partials": (512,)} if "partials" in op.inputs else {})
        types = {"x": "bfloat16", "partials": "float32"}
        odd = op.bind(shapes, {k: types[k] for k in shapes})
        assert op.choose(odd, target).kernel.name == "cuda_scalar"
        even = op.bind({**shapes, "x": (33, 1000)}, {k: types[k] for k in shapes})
        assert op.choose(even, target).kernel.name == "cuda"
        assert op.choose(even, target, alignment=2).kernel.name == "cuda_scalar"


@pytest.mark.parametrize("k", [64, 320, 1024, 4096, 11008, 16384, 28672, 65536, 131072, 300000])
def test_a_row_of_any_length_is_read_once_as_far_as_there_are_registers(k: int) -> None:
    op, target = family.DYNAMIC["token"], architecture("sm_90a")
    for m in (1, 64, 4096):
        binding = op.bind({"x": (m, k)}, {"x": "bfloat16"})
        choice = op.choose(binding, target)
        tactic = choice.kernel.tactics[choice.tactic]
        assert bool(tactic.get("OVERFLOW")) == (k > 131072)
        assert choice.kernel.name == ("cluster" if 32768 < k <= 131072 or (m <= 64 and 16384 < k <= 131072) else "cuda")


@needs_compiler
@pytest.mark.parametrize(
    ("kernel", "wanted", "k"),
    [
        ("cuda", {"ITEMS": 8}, 16392),
        ("cuda", {"OVERFLOW": 1}, 16392),
        ("cluster", {"CLUSTER": 4}, 16392),
    ],
)
def test_long_rows_run_on_a_cpu(kernel: str, wanted: dict[str, int], k: int) -> None:
    op = family.DYNAMIC["token"]
    case = Case({"M": 2, "K": k}, {"to": "float8_e4m3fn"}, dtypes={"x": "bfloat16"})
    agrees(op, op.kernel_named(kernel), case, {}, op.tactic_index(op.kernel_named(kernel), wanted))


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ContractError, match="granularity is 'row'; accepted: tensor, token, block, tile"):
        family.composition("row")
    with pytest.raises(ContractError, match="accepted: tensor, token, block, tile"):
        family.dequantization("row")
    with pytest.raises(ContractError, match="K must be even"):
        family.pack_int4.bind({"x": (2, 3)}, {"x": "float16"})
    with pytest.raises(ContractError, match="'scale' has shape"):
        family.STATIC["block"].bind({"x": (4, 300), "scale": (4, 2)}, {"x": "float16", "scale": "float32"})
    with pytest.raises(ContractError, match="int4"):
        family.DYNAMIC["token"].bind({"x": (4, 8)}, {"x": "float16"}, {"to": "int4"})


def test_the_family_is_in_the_registry() -> None:
    assert {op.name for op in OPS} <= {op.name for op in registry.ops()}


@pytest.mark.parametrize("op", ["dequantize_tile", "pack_int4"])
def test_check_on_a_cpu(op: str) -> None:
    pytest.importorskip("triton", reason="the interpreter is Triton's")
    rows = check(op, device="cpu", architectures=("sm_90a",))
    assert rows and not [row for row in rows if row.status == "failed"]

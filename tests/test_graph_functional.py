"""Every function of trtforge.graph_api.functional against an independent float64 expression, and its errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from trtforge.bindings.dtypes import DTYPES
from trtforge.graph_api import Dim, GraphError, Network, Tensor
from trtforge.graph_api import functional as F

TOLERANCE = {"float32": 2e-6, "float16": 1.5e-3, "bfloat16": 1.2e-2}
DTYPE_NAMES = list(TOLERANCE)


def evaluate(build: Callable[..., Any], **arrays: np.ndarray) -> Any:
    """Build a network over inputs shaped like the arrays, run it, return its one output (or a list)."""
    with Network("test") as net:
        inputs = [
            net.input(name, next(n for n, d in DTYPES.items() if d.numpy == a.dtype), a.shape)
            for name, a in arrays.items()
        ]
        results = build(*inputs)
        several = isinstance(results, (tuple, list))
        for i, tensor in enumerate(results if several else [results]):
            net.mark_output(tensor, f"out{i}")
    found = net.build()(**arrays)
    for name, tensor in net.outputs.items():
        assert found[name].shape == tensor.shape
        assert found[name].dtype == DTYPES[tensor.dtype].numpy
    values = list(found.values())
    return values if several else values[0]


def normal(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype].numpy)


def ints(values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def floats(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def halves(values: Any) -> np.ndarray:
    return np.array(values, np.float16)


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


def close(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(wide(found), expected, rtol=tolerance * 4, atol=tolerance)


erf64 = np.vectorize(math.erf)

UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": lambda x: -x,
    "exp": np.exp,
    "log": lambda x: np.log(x),
    "sqrt": np.sqrt,
    "rsqrt": lambda x: x**-0.5,
    "abs": np.abs,
    "erf": erf64,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.where(x > 0, x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + erf64(x / math.sqrt(2))) / 2,
}


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str, dtype: str) -> None:
    x = normal((3, 5), dtype)
    if name in ("log", "sqrt", "rsqrt"):
        x = (np.abs(x.astype(np.float32)) + 0.1).astype(x.dtype)
    close(evaluate(getattr(F, name), x=x), UNARY[name](wide(x)), dtype)


def test_gelu_tanh_and_activation_names() -> None:
    x = normal((4, 7))
    w = wide(x)
    tanh_form = 0.5 * w * (1 + np.tanh(math.sqrt(2 / math.pi) * (w + 0.044715 * w**3)))
    close(evaluate(lambda t: F.gelu(t, "tanh"), x=x), tanh_form, "float32")
    close(evaluate(lambda t: F.activation(t, "gelu_tanh"), x=x), tanh_form, "float32")
    close(evaluate(lambda t: F.activation(t, "silu"), x=x), UNARY["silu"](w), "float32")
    with pytest.raises(GraphError, match=r"activation: unknown kind 'swish'.*silu"):
        evaluate(lambda t: F.activation(t, "swish"), x=x)
    with pytest.raises(GraphError, match=r"gelu\(.*approximate is 'fast'.*'none' \| 'tanh'"):
        evaluate(lambda t: F.gelu(t, "fast"), x=x)


def test_erf_reference_is_accurate_in_the_tails() -> None:
    x = np.linspace(-7, 7, 2001, dtype=np.float32)
    np.testing.assert_allclose(evaluate(F.erf, x=x), erf64(wide(x)), atol=1e-7)


def test_sigmoid_does_not_overflow() -> None:
    x = np.array([-1000, -88, 0, 88, 1000], np.float32)
    np.testing.assert_allclose(evaluate(F.sigmoid, x=x), [0, 0, 0.5, 1, 1], atol=1e-30)
    np.testing.assert_allclose(evaluate(F.silu, x=x), [0, 0, 0, 88, 1000], atol=1e-30)


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize("name", BINARY)
def test_binary_broadcasts(name: str, dtype: str) -> None:
    a, b = normal((2, 1, 5), dtype, 1), normal((3, 1), dtype, 2)
    b = np.where(np.abs(wide(b)) < 0.2, np.ones_like(b), b)
    close(evaluate(getattr(F, name), a=a, b=b), BINARY[name](wide(a), wide(b)), dtype)


def test_integer_arithmetic() -> None:
    a = np.array([-7, -1, 0, 5, 9], np.int32)
    b = np.array([2, 3, 4, -2, 5], np.int32)
    for build, expected in (
        (lambda x, y: x // y, a // b),
        (lambda x, y: x % y, a % b),
        (lambda x, y: x * y - 3, a * b - 3),
        (lambda x, y: F.abs(x), np.abs(a)),
        (lambda x, y: -x, -a),
        (lambda x, y: F.maximum(x, y), np.maximum(a, b)),
    ):
        np.testing.assert_array_equal(evaluate(build, a=a, b=b), expected)


def test_operators_and_scalars_take_the_tensor_dtype() -> None:
    x = normal((4,), "bfloat16")
    found = evaluate(lambda t: 2 * t + 1.5 - t / 4, x=x)
    assert found.dtype == ml_dtypes.bfloat16
    close(found, 2 * wide(x) + 1.5 - wide(x) / 4, "bfloat16")
    close(evaluate(lambda t: t**2, x=normal((4,))), wide(normal((4,))) ** 2, "float32")
    close(evaluate(lambda t: 1 / (3 - t), x=floats([1, 2])), np.array([0.5, 1.0]), "float32")
    close(evaluate(lambda t: floats([1, 2]) * t, x=floats([3, 4])), np.array([3.0, 8.0]), "float32")


def test_comparisons_and_logic() -> None:
    a, b = np.array([1, 2, 3], np.int32), np.array([2, 2, 2], np.int32)
    for build, expected in (
        (lambda x, y: x < y, a < b),
        (lambda x, y: x <= y, a <= b),
        (lambda x, y: x > y, a > b),
        (lambda x, y: x >= 2, a >= 2),
        (lambda x, y: x.eq(y), a == b),
        (lambda x, y: x.ne(y), a != b),
        (lambda x, y: (x > 1) & ~(x > 2), (a > 1) & ~(a > 2)),
        (lambda x, y: (x < 2) | (x > 2), (a < 2) | (a > 2)),
    ):
        found = evaluate(build, a=a, b=b)
        assert found.dtype == np.bool_
        np.testing.assert_array_equal(found, expected)


def test_where_and_cast() -> None:
    x = normal((3, 4), "float16")
    np.testing.assert_array_equal(evaluate(lambda t: F.where(t > 0, t, -math.inf), x=x), np.where(x > 0, x, -np.inf))
    np.testing.assert_array_equal(evaluate(lambda t: F.where(t > 0, 0.0, t), x=x), np.where(x > 0, 0, x))
    np.testing.assert_array_equal(evaluate(lambda t: t.cast("bfloat16"), x=normal((9,))), normal((9,), "bfloat16"))
    np.testing.assert_array_equal(evaluate(lambda t: t.cast("int32"), x=floats([-1.9, 1.9])), [-1, 1])
    np.testing.assert_array_equal(evaluate(lambda t: t.cast("bool"), x=ints([0, 2])), [False, True])
    np.testing.assert_array_equal(evaluate(lambda t: t.cast("float16"), x=ints([7])), halves([7]))


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(False, False), (True, False), (False, True), (True, True)])
def test_matmul(dtype: str, transpose_a: bool, transpose_b: bool) -> None:
    a = normal((2, 1, 5, 3) if transpose_a else (2, 1, 3, 5), dtype, 1)
    b = normal((4, 7, 5) if transpose_b else (4, 5, 7), dtype, 2)
    left = np.swapaxes(wide(a), -1, -2) if transpose_a else wide(a)
    right = np.swapaxes(wide(b), -1, -2) if transpose_b else wide(b)
    expected = np.einsum("...mk,...kn->...mn", left, right)
    close(evaluate(lambda x, y: F.matmul(x, y, transpose_a, transpose_b), a=a, b=b), expected, dtype)


def test_matmul_by_a_matrix_and_linear() -> None:
    x, w, bias = normal((2, 3, 5)), normal((7, 5), seed=1), normal((7,), seed=2)
    expected = np.einsum("bsk,nk->bsn", wide(x), wide(w))
    close(evaluate(lambda a, b: a @ b.transpose(0, 1), x=x, w=w), expected, "float32")
    close(evaluate(F.linear, x=x, w=w, b=bias), expected + wide(bias), "float32")


def test_reductions() -> None:
    x = normal((2, 3, 4))
    w = wide(x)
    close(evaluate(lambda t: t.sum(), x=x), w.sum(-1), "float32")
    close(evaluate(lambda t: t.mean((0, 2), keepdims=True), x=x), w.mean((0, 2), keepdims=True), "float32")
    close(evaluate(lambda t: t.max(1), x=x), w.max(1), "float32")
    np.testing.assert_array_equal(evaluate(lambda t: F.argmax(t, 1), x=x), w.argmax(1))
    np.testing.assert_array_equal(evaluate(lambda t: F.argmax(t, 0, True), x=x), w.argmax(0)[None])
    ones = np.ones((1, 4096), np.float16)
    assert evaluate(lambda t: t.sum(), x=ones)[0] == 4096  # float16 accumulation would stop at 2048


def test_softmax_and_norms() -> None:
    for dtype in DTYPE_NAMES:
        x, g, b = normal((3, 16), dtype), normal((16,), dtype, 1), normal((16,), dtype, 2)
        w = wide(x)
        e = np.exp(w - w.max(-1, keepdims=True))
        close(evaluate(F.softmax, x=x), e / e.sum(-1, keepdims=True), dtype)
        e0 = np.exp(w)
        close(evaluate(lambda t: F.softmax(t, 0), x=x), e0 / e0.sum(0), dtype)
        rms = w / np.sqrt((w**2).mean(-1, keepdims=True) + 1e-3)
        close(evaluate(lambda t, s: F.rms_norm(t, s, 1e-3), x=x, g=g), rms * wide(g), dtype)
        close(evaluate(lambda t: F.rms_norm(t, eps=1e-3), x=x), rms, dtype)
        c = w - w.mean(-1, keepdims=True)
        norm = c / np.sqrt(w.var(-1, keepdims=True) + 1e-5)
        close(evaluate(F.layer_norm, x=x, g=g, b=b), norm * wide(g) + wide(b), dtype)
        close(evaluate(lambda t: F.layer_norm(t), x=x), norm, dtype)


LAYOUT: list[tuple[Callable[[Tensor], Any], Callable[[np.ndarray], Any]]] = [
    (lambda t: t.reshape(4, -1), lambda x: x.reshape(4, -1)),
    (lambda t: t.view((6, 4)), lambda x: x.reshape(6, 4)),
    (lambda t: t.transpose(0, 2), lambda x: x.transpose(2, 1, 0)),
    (lambda t: F.transpose(t), lambda x: x.swapaxes(-1, -2)),
    (lambda t: t.permute(1, 2, 0), lambda x: x.transpose(1, 2, 0)),
    (lambda t: t.unsqueeze(-1), lambda x: x[..., None]),
    (lambda t: t.unsqueeze(1).squeeze(1), lambda x: x),
    (lambda t: t.unsqueeze(0).expand(3, -1, -1, -1), lambda x: np.stack([x] * 3)),
    (lambda t: F.repeat_interleave(t, 3, 1), lambda x: x.repeat(3, axis=1)),
    (lambda t: F.concat([t, t], 1), lambda x: np.concatenate([x, x], 1)),
    (lambda t: t[1], lambda x: x[1]),
    (lambda t: t[-1, ..., 1:3], lambda x: x[-1, ..., 1:3]),
    (lambda t: t[:, 1:, None, ::2], lambda x: x[:, 1:, None, ::2]),
    (lambda t: t[..., -2:], lambda x: x[..., -2:]),
    (lambda t: t[:, :100], lambda x: x[:, :100]),
    (lambda t: F.split(t, 2, -1)[1], lambda x: np.split(x, 2, -1)[1]),
    (lambda t: F.split(t, (1, 3), 2)[1], lambda x: x[..., 1:]),
    (lambda t: F.shape(t), lambda x: ints(x.shape)),
    (lambda t: t * F.constant([1.0, 2.0, 3.0, 4.0]), lambda x: x * floats([1, 2, 3, 4])),
    (lambda t: F.arange(5), lambda x: np.arange(5, dtype=np.int32)),
]


@pytest.mark.parametrize("case", range(len(LAYOUT)))
def test_layout_and_indexing(case: int) -> None:
    build, expected = LAYOUT[case]
    x = normal((2, 3, 4))
    np.testing.assert_array_equal(evaluate(build, x=x), expected(x))


def test_gather_and_embedding() -> None:
    table, ids = normal((6, 4)), np.array([[0, 5], [2, 2]], np.int32)
    np.testing.assert_array_equal(evaluate(F.embedding, i=ids, t=table), table[ids])
    np.testing.assert_array_equal(evaluate(lambda t, i: F.gather(t, i, 1), t=table, i=ids[:, 0] // 2), table[:, [0, 1]])
    np.testing.assert_array_equal(evaluate(lambda t, i: t[i], t=table, i=ids), table[ids])
    with pytest.raises(GraphError, match=r"gather: gather: an index is outside 0\.\.5"):
        evaluate(F.embedding, i=ids + 3, t=table)


def rope_by_complex_numbers(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Rotation of pairs (i, i + D/2) by position * theta^(-2i/D), as a complex product."""
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    angles = positions[:, None, :, None] * theta ** (-np.arange(half) * 2.0 / x.shape[-1])
    z = z * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_rope(dtype: str) -> None:
    x = normal((2, 3, 5, 8), dtype)
    positions = np.array([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]], np.int32)
    expected = rope_by_complex_numbers(wide(x), positions, 500.0)
    close(evaluate(lambda t, p: F.rope(t, positions=p, theta=500.0), x=x, p=positions), expected, dtype)
    tables = F.rope_frequencies(8, 500.0)

    def four_axes(t: Tensor, p: Tensor) -> Tensor:
        cos, sin = F.rope_tables(p, tables)
        return F.rope(t, cos.unsqueeze(1), sin.unsqueeze(1))

    close(evaluate(four_axes, x=x, p=positions), expected, dtype)
    close(
        evaluate(lambda t, p: F.rope(t, positions=p, theta=500.0), x=x, p=positions[0]),
        rope_by_complex_numbers(wide(x), np.stack([positions[0]] * 2), 500.0),
        dtype,
    )


def test_rope_frequencies_scaling() -> None:
    plain = F.rope_frequencies(64, 10000.0)
    np.testing.assert_allclose(F.rope_frequencies(64, 10000.0, {"rope_type": "linear", "factor": 4.0}), plain / 4)
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled = F.rope_frequencies(64, 500000.0, scaling)
    wavelength = 2 * np.pi / F.rope_frequencies(64, 500000.0)
    ratio = scaled / F.rope_frequencies(64, 500000.0)
    np.testing.assert_allclose(ratio[wavelength < 8192 / 4], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[wavelength > 8192], 1 / 8, rtol=1e-6)
    assert np.all(np.diff(ratio) <= 1e-7)
    with pytest.raises(GraphError, match="unknown rope_type 'yarn'"):
        F.rope_frequencies(64, 1e4, {"rope_type": "yarn"})
    with pytest.raises(GraphError, match="the width is 7"):
        F.rope_frequencies(7)


def attention_by_loops(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, lengths: Any, causal: bool, window: int, cap: float, scale: float
) -> np.ndarray:
    q, k, v = wide(q), wide(k), wide(v)
    out = np.zeros_like(q)
    for b, h, i in np.ndindex(q.shape[:3]):
        n = k.shape[2] if lengths is None else int(lengths[b])
        diagonal = i + n - q.shape[2]
        g = h // (q.shape[1] // k.shape[1])
        seen = [j for j in range(n) if (not causal or j <= diagonal) and (window <= 0 or j > diagonal - window)]
        s = np.array([q[b, h, i] @ k[b, g, j] for j in seen]) * scale
        s = cap * np.tanh(s / cap) if cap else s
        p = np.exp(s - s.max())
        out[b, h, i] = (p / p.sum()) @ v[b, g, seen]
    return out


@pytest.mark.parametrize(
    ("causal", "window", "cap", "lengths"),
    [
        (False, -1, 0.0, None),
        (True, -1, 0.0, None),
        (True, 3, 0.0, None),
        (False, 2, 0.0, None),
        (True, -1, 5.0, [4, 7]),
        (False, -1, 0.0, [4, 7]),
        (True, 2, 0.0, [5, 6]),
    ],
)
@pytest.mark.parametrize("written_out", [True, False])
def test_attention(causal: bool, window: int, cap: float, lengths: Any, written_out: bool) -> None:
    dtype = "float32" if written_out else "float16"
    q, k, v = normal((2, 4, 3, 8), dtype), normal((2, 2, 7, 8), dtype, 1), normal((2, 2, 7, 8), dtype, 2)
    arrays = {"q": q, "k": k, "v": v}
    if lengths is not None:
        arrays["n"] = ints(lengths)
    attend = F.attention_written_out if written_out else F.attention

    def build(*t: Tensor) -> Tensor:
        return attend(
            *t[:3],
            k_lengths=t[3] if lengths is not None else None,
            causal=causal,
            window=window,
            soft_cap=cap,
            scale=0.5,
        )

    expected = attention_by_loops(q, k, v, lengths, causal, window, cap, 0.5)
    close(evaluate(build, **arrays), expected, dtype)


def test_kv_cache_state_is_updated_in_place_and_reset() -> None:
    step = Dim("S", max=4)
    with Network("cache") as net:
        new = net.input("new", "float16", (2, 1, step, 3))
        at = net.input("at", "int32", (2,))
        cache = net.state("cache", "float16", (2, 1, 5, 3))
        updated = F.kv_cache_update(cache, new, at)
        net.mark_output(updated * 1.0, "whole")
    exe = net.build()
    a, b = normal((2, 1, 3, 3), "float16"), normal((2, 1, 1, 3), "float16", 1)
    exe(new=a, at=ints([0, 1]))
    whole = exe(new=b, at=ints([3, 0]))["whole"]
    expected = np.zeros((2, 1, 5, 3), np.float16)
    expected[0, :, 0:3], expected[1, :, 1:4] = a[0], a[1]
    expected[0, :, 3:4], expected[1, :, 0:1] = b[0], b[1]
    np.testing.assert_array_equal(whole, expected)
    exe.reset()
    assert not np.any(exe(new=b * 0, at=ints([0, 0]))["whole"])
    with pytest.raises(GraphError, match=r"sequence 1 writes rows 4\.\.6 into a cache of 5 rows(?s:.*)test_graph"):
        exe(new=a, at=ints([0, 4]))


def test_kv_cache_input_is_not_modified() -> None:
    cache, new = normal((1, 1, 4, 2)), normal((1, 1, 1, 2), seed=1)
    before = cache.copy()
    found = evaluate(F.kv_cache_update, c=cache, n=new, p=ints([2]))
    np.testing.assert_array_equal(cache, before)
    np.testing.assert_array_equal(found[0, 0, 2], new[0, 0, 0])


def test_kv_cache_must_not_be_read_elsewhere() -> None:
    with Network("cache") as net:
        new = net.input("new", "float16", (1, 1, 1, 2))
        at = net.input("at", "int32", (1,))
        cache = net.state("cache", "float16", (1, 1, 4, 2))
        F.kv_cache_update(cache, new, at)
        with pytest.raises(GraphError, match=r"add: cache .* was overwritten in place by 'kv_cache_update'"):
            F.add(cache, 1.0)
        other = net.state("other", "float16", (1, 1, 4, 2))
        F.add(other, 1.0)
        with pytest.raises(GraphError, match="the cache is read elsewhere"):
            F.kv_cache_update(other, new, at)
        with pytest.raises(GraphError, match="the cache is a value"):
            F.kv_cache_update(new + 1.0, new, at)


@pytest.mark.parametrize("granularity", ["tensor", "token", "block", "tile"])
@pytest.mark.parametrize("to", ["int8", "float8_e4m3fn"])
def test_quantize_and_back(granularity: str, to: str) -> None:
    x = normal((130, 260), "float16")

    def round_trip(t: Tensor) -> list[Tensor]:
        codes, scale = F.quantize(t, granularity=granularity, to=to)
        fixed = F.quantize(t, scale, granularity=granularity, to=to)
        back = F.dequantize(codes, scale, granularity=granularity)
        return [back, codes.cast("int32") if to == "int8" else codes, fixed]

    back, codes, fixed = evaluate(round_trip, x=x)
    assert codes.dtype == (np.int32 if to == "int8" else ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(codes.astype(np.float32), fixed.astype(np.float32))
    step = np.abs(wide(x)).max() / 127 if to == "int8" else 0.07 * np.abs(wide(x)).max()
    assert np.abs(wide(back) - wide(x)).max() <= step


def test_quantize_rejects_an_unknown_granularity() -> None:
    with pytest.raises(GraphError, match="granularity is 'row'; accepted: tensor, token, block, tile"):
        evaluate(lambda t: F.quantize(t, granularity="row"), x=normal((4, 4)))


# --- errors: op, inputs, rule, what is accepted --------------------------------------------------------------------


ERRORS: list[tuple[Callable[..., Any], str]] = [
    (lambda x, y: x @ y, r"matmul\(a=x float32\[2, 3\], b=y float32.*inner dimensions 3 and 2 differ; accepted: a "),
    (lambda x, y: x + y.cast("float16"), r"add\(a=x .*dtypes float32 and float16 differ.*\.cast\('float32'\)"),
    (lambda x, y: x + y.reshape(3, 2), r"add\(.*shapes \[2, 3\] and \[3, 2\] do not broadcast; accepted"),
    (lambda x, y: x.reshape(4, 2), r"reshape\(x=x float32\[2, 3\].*\[4, 2\] cannot be proved to have the 6 elements"),
    (lambda x, y: x.reshape(4, -1), r"reshape\(.*one of them -1"),
    (lambda x, y: F.softmax(x, 2), r"softmax\(.*the axis 2 is out of range for rank 2; accepted: -2\.\.1"),
    (lambda x, y: F.concat([x, y.transpose(0, 1)], 0), r"concat\(.*differ outside axis -2"),
    (lambda x, y: F.split(x, 2, 1), r"split\(.*3 is not provably divisible into 2 parts"),
    (lambda x, y: F.split(x, (1, 1), 1), r"the sizes add up to 2, not to 3"),
    (lambda x, y: x.squeeze(0), r"squeeze\(.*axis 0 has size 2; accepted: an axis of size 1"),
    (lambda x, y: x.expand(4, 3), r"expand\(.*\[2, 3\] does not expand to \[4, 3\]"),
    (lambda x, y: x.permute(0, 0), r"permute\(.*is no permutation"),
    (lambda x, y: x[5], r"index\(.*the index 5 is out of range for size 2; accepted: -2\.\.1"),
    (lambda x, y: x[0, 0, 0], r"3 indices for rank 2"),
    (lambda x, y: x["a"], r"the index 'a' is not understood"),
    (lambda x, y: x[2:], r"slice\(.*is empty; accepted: at least one element"),
    (lambda x, y: F.gather(x, y), r"gather\(.*the indices are float32; accepted: int32 \| int64"),
    (lambda x, y: F.where(x, x, y), r"where\(.*the condition is float32; accepted: bool"),
    (lambda x, y: F.rms_norm(x, y), r"rms_norm\(.*the scale 'y' has shape \[2, 3\]; accepted: .*: \[3\]"),
    (lambda x, y: F.layer_norm(x, eps=-1.0), r"layer_norm\(.*eps is -1\.0"),
    (lambda x, y: F.exp(x.cast("int32")), r"exp\(.*int32 is not served; accepted: float32 \| float16 \| bfloat16"),
    (lambda x, y: x.cast("int32") + 1.5, r"the number 1\.5 does not fit cast int32\[2, 3\]"),
    (lambda x, y: x.cast("int8") + 1000, r"the number 1000 does not fit cast int8"),
    (lambda x, y: x.cast("float8_e4m3fn"), r"cast\(.*cannot cast to 'float8_e4m3fn'.*functional.quantize"),
    (lambda x, y: F.add("x", 1), "a Tensor, number or array is needed, got str"),
    (lambda x, y: F.rope(x), "rope: give both cos and sin, or positions"),
    (lambda x, y: F.attention_mask(2, 3), "attention_mask: nothing is masked"),
    (lambda x, y: F.call("trtforge::rms_norm", x, y), r"trtforge::rms_norm\(x=x float32\[2, 3\], weight=y.*rank 1"),
    (lambda x, y: bool(x), "the truth of x float32.*use functional.where"),
    (lambda x, y: list(x), "cannot be iterated over; use functional.split"),
    (lambda x, y: len(x), r"has no Python length; use \.shape\[0\]"),
    (lambda x, y: x.reshape("S", 2), "a dimension must be an int, a Dim or a dimension expression, got 'S'"),
]


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors_name_op_inputs_and_rule(case: int) -> None:
    build, message = ERRORS[case]
    with Network("errors") as net:
        x, y = net.input("x", "float32", (2, 3)), net.input("y", "float32", (2, 3))
        count = len(net.nodes)
        with pytest.raises(GraphError, match=message):
            build(x, y)
        assert all(n.op != "add" for n in net.nodes[count:])


def test_error_points_at_the_users_line() -> None:
    with Network("errors") as net:
        x = net.input("x", "float32", (2, 3))
        with pytest.raises(GraphError, match=r"at .*test_graph_functional\.py:\d+ in test_error_points"):
            F.matmul(x, x)


def test_calls_outside_a_network() -> None:
    with pytest.raises(GraphError, match="no network is being built here"):
        F.arange(3)
    first, second = Network("first"), Network("second")
    with pytest.raises(GraphError, match="belongs to network 'second', not to 'first'"):
        F.add(first.input("x", "float32", (1,)), second.input("x", "float32", (1,)))

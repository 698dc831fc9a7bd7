"""CUDA kernels on the CPU: they agree with their references, and faults that are planted in them are found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from compiler import needs_compiler
from emulated import HEAD, TARGET, agrees, changed, matching, run_tiny, tiny_op

from trtforge.bindings.errors import MissingDependencyError, UsageError
from trtforge.harness.check import check, summary
from trtforge.harness.emulate import toolchain
from trtforge.harness.emulate.emulator import run
from trtforge.harness.emulate.reports import KernelFault
from trtforge.harness.emulate.translate import NotEmulated, translate
from trtforge.kernels import Attr, Case, Launch, Op, Tensor, cuda, registry

registry.load_builtin()


@pytest.fixture(autouse=True)
def unregister() -> Iterator[None]:
    before = dict(registry._ops)
    yield
    registry._ops.clear()
    registry._ops.update(before)


# ---- the translator ----------------------------------------------------------------------------------------------


def test_inline_ptx_becomes_a_call_of_its_instruction() -> None:
    text = translate('asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));').text
    assert "auto& o0 = (y);" in text and "::emulate::ptx::ex2_approx_ftz_f32(o0, o1);" in text


def test_predicates_groups_and_addresses_are_understood() -> None:
    text = translate(
        'asm volatile("{\\n.reg .pred p;\\nsetp.ne.b32 p, %2, 0;\\n'
        '@p st.shared.v2.b32 [%0], {%1, %1};\\n}" :: "r"(a), "r"(b), "r"(c) : "memory");'
    ).text
    assert "bool p{};" in text and "if (p) ::emulate::ptx::st_shared_vector(o0, ::emulate::ptx::group(o1, o1));" in text


def test_shared_variables_become_places_in_the_arena() -> None:
    done = translate("extern __shared__ alignas(128) float tile[];\n__shared__ int a[2][3], b;")
    assert done.dynamic_alignment == 128 and "float* const tile" in done.text
    assert "typedef int emulate_type_1_0[2][3];" in done.text and "emulate_type_1_1& b" in done.text


def test_an_unknown_instruction_is_named_with_its_line() -> None:
    with pytest.raises(NotEmulated, match=r"PTX instruction tcgen05\.alloc.* \(/k/a\.cu:7\)"):
        translate('# 7 "/k/a.cu"\nasm volatile("tcgen05.alloc [%0], %1;" :: "r"(a), "n"(32));')


def test_system_headers_are_left_alone() -> None:
    text = '# 1 "/usr/include/x.h" 1 3\nint f() __asm__ ("" "g");\n'
    assert translate(text).text == text


# ---- kernels of the kit ------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("sanitize", [None, "address", "undefined", "thread"])
def test_rms_norm_agrees(sanitize: str | None) -> None:
    op = registry.get("rms_norm")
    agrees(op, op.kernel_named("cuda"), op.cases[2], {"x": "float16"}, sanitize=sanitize)
    agrees(op, op.kernel_named("cuda_elementwise"), op.cases[1], {"x": "bfloat16"}, sanitize=sanitize)


QUANTIZATION = ["quantize_token", "quantize_block", "quantize_tile", "absmax_partials", "quantize_tensor"]
QUANTIZATION += ["quantize_block_static", "dequantize_tile", "pack_int4", "unpack_int4", "dequantize_int4"]


@needs_compiler
@pytest.mark.parametrize("name", QUANTIZATION)
def test_quantization_agrees(name: str) -> None:
    op = registry.get(name)
    small = [case for case in op.cases if not case.tags]
    for kernel in (k for k in op.kernels if k.language == "cuda"):
        for case, dtypes in ((c, d) for c in small for d in op.dtype_combinations(c)):
            if kernel.refusal(op.bind_case(case, dtypes), 0, TARGET) is None:
                agrees(op, kernel, case, dtypes)
                break


TENSOR_CORES = [
    ("flash_attention", "mma", {"B": 1, "Hq": 4, "Hkv": 2, "Sq": 33, "Sk": 65, "D": 32}, {"causal": True}),
    ("flash_attention", "sm90", {"B": 1, "Hq": 2, "Hkv": 1, "Sq": 33, "Sk": 200, "D": 64}, {"causal": True}),
    ("fused_gemm", "mma", {"M": 17, "N": 72, "K": 136}, {"activation": "silu"}),
    ("fused_gemm", "sm90", {"M": 130, "N": 136, "K": 200}, {"activation": "gelu_tanh"}),
    ("gated_gemm", "mma", {"M": 17, "N": 40, "K": 72}, {"activation": "silu"}),
    ("gated_gemm", "sm90", {"M": 17, "N": 40, "K": 72}, {"activation": "gelu_erf"}),
]


@needs_compiler
@pytest.mark.parametrize(("name", "kernel", "dims", "attributes"), TENSOR_CORES)
def test_tensor_core_kernels_agree(name: str, kernel: str, dims: dict[str, int], attributes: dict[str, object]) -> None:
    op = registry.get(name)
    case = Case(dims, attributes)
    agrees(op, op.kernel_named(kernel), case, {next(iter(op.inputs)): "bfloat16"})


@needs_compiler
@pytest.mark.parametrize("sanitize", [None, "thread"])
def test_clusters_and_multicast_agree(sanitize: str | None) -> None:
    op = registry.get("fused_gemm")
    kernel = op.kernel_named("sm90")
    tactic = next(i for i, t in enumerate(kernel.tactics) if t["CLUSTER_M"] == 2)
    agrees(op, kernel, Case({"M": 150, "N": 136, "K": 136}), {"x": "float16"}, tactic, sanitize)


@needs_compiler
@pytest.mark.parametrize("sanitize", ["address", "undefined", "thread"])
def test_the_sm90_kernel_is_clean_under_the_sanitizers(sanitize: str) -> None:
    op = registry.get("fused_gemm")
    agrees(op, op.kernel_named("sm90"), Case({"M": 5, "N": 40, "K": 136}), {"x": "float16"}, sanitize=sanitize)


# ---- changed kernels of the kit ----------------------------------------------------------------------------------


#: op, kernel, file, what is replaced by what, and the ways to run that find it
MUTANTS = [
    ("rms_norm", "cuda", "rms_norm.cu", "  __syncthreads();\n", "", (None, "thread")),
    ("rms_norm", "cuda", "rms_norm.cu", "if (column < N) *reinter", "*reinter", (None, "address")),
    ("fused_gemm", "mma", "mma_mainloop.cuh", "        __syncthreads();  // stage", "        // stage", (None,)),
    ("fused_gemm", "mma", "mma_mainloop.cuh", "forge::cp_async_wait<STAGES - 2>();", "", (None,)),
    ("fused_gemm", "sm90", "sm90_mainloop.cuh", "forge::wgmma_wait<1>();", "release(shared, position.stage);", (None,)),
    ("fused_gemm", "sm90", "sm90_mainloop.cuh", "forge::wgmma_wait<1>();", "", (None, "thread")),
    ("fused_gemm", "sm90", "sm90_mainloop.cuh", "(full, STAGE_BYTES)", "(full, STAGE_BYTES - 128)", (None,)),
]


@needs_compiler
@pytest.mark.parametrize(("name", "kernel", "file", "old", "new", "ways"), MUTANTS)
def test_a_line_less_in_a_kernel_is_found(
    tmp_path: Path, name: str, kernel: str, file: str, old: str, new: str, ways: tuple[str | None, ...]
) -> None:
    op = registry.get(name)
    mutant = changed(op.kernel_named(kernel), tmp_path, file, old, new)
    case = Case({"M": 3, "N": 1000}) if name == "rms_norm" else Case({"M": 70, "N": 72, "K": 520})
    for sanitize in ways:
        with pytest.raises((KernelFault, AssertionError)):
            agrees(op, mutant, case, {"x": "float16"}, sanitize=sanitize)


# ---- planted faults and their corrected twins --------------------------------------------------------------------

ROTATE = """
    __shared__ float buffer[64];
    buffer[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = buffer[(threadIdx.x + 1) % 64];
"""

#: what is planted, in place of what, the sanitizers that find it, and words of the reason
FAULTS = [
    ("global write", "y[threadIdx.x] =", "y[threadIdx.x + 1] =", (None, "address"), "out of bounds"),
    (
        "global read",
        "= x[threadIdx.x]",
        "= x[threadIdx.x + 5000]",
        ("address",),
        r"out of bounds: reads 4 .*tiny\.cu:4",
    ),
    ("shared read", "% 64", "% 65", ("address",), r"out of bounds: reads 4 bytes .*tiny\.cu:6"),
    ("shared write", "buffer[threadIdx.x] =", "buffer[threadIdx.x + 1] =", (None, "address"), "out of bounds"),
    ("race", "    __syncthreads();\n", "", (None, "thread"), r"shared memory held|data race: .*tiny\.cu"),
    ("divergence", "__syncthreads();", "if (threadIdx.x < 40) __syncthreads();", (None,), "divergent barrier"),
    (
        "two barriers",
        "__syncthreads();",
        "if (threadIdx.x < 40) {\n__syncthreads();\n} else {\n__syncthreads(); }",
        (None,),
        "two __syncthreads at once",
    ),
    (
        "early return",
        "__syncthreads();",
        "if (threadIdx.x == 3) return; __syncthreads();",
        (None,),
        "divergent barrier",
    ),
    ("uninitialized", "buffer[threadIdx.x] =", "if (threadIdx.x) buffer[threadIdx.x] =", (None,), "nobody has written"),
    ("misaligned", "x[threadIdx.x]", "reinterpret_cast<const float2*>(x + 1)->x", ("undefined",), "misaligned address"),
    ("overflow", "(threadIdx.x + 1)", "(0x7fffffff + int(threadIdx.x) + 1)", ("undefined",), "signed integer overflow"),
    ("lane", "x[threadIdx.x]", "__shfl_xor_sync(0xffff, x[threadIdx.x], 1)", (None,), "does not name it"),
    ("trap", "x[threadIdx.x]", "x[threadIdx.x]; if (N == 64) __trap()", (None,), "__trap"),
    ("input", "y[threadIdx.x] =", "const_cast<float*>(x)[0] = y[threadIdx.x] =", (None,), "input changed"),
]


@needs_compiler
@pytest.mark.parametrize("sanitize", [None, "address", "undefined", "thread"])
def test_the_correct_twin_passes(tmp_path: Path, sanitize: str | None) -> None:
    y = run_tiny(tiny_op(tmp_path, ROTATE), sanitize)
    assert np.array_equal(y, np.roll(np.arange(64, dtype=np.float32), -1))


@needs_compiler
@pytest.mark.parametrize(("what", "old", "new", "ways", "reason"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_found(
    tmp_path: Path, what: str, old: str, new: str, ways: tuple[str | None, ...], reason: str
) -> None:
    assert old in ROTATE, what
    op = tiny_op(tmp_path, ROTATE.replace(old, new))
    for sanitize in ways:
        with pytest.raises(KernelFault, match=reason):
            run_tiny(op, sanitize)


TWICE = """
    extern __shared__ float buffer[];
    float sum = 0;
    for (int i = 0; i < 4; ++i) {
        if (threadIdx.x == 0) buffer[0] = x[i];
        __syncthreads();
        sum += buffer[0];
        BARRIER
    }
    y[threadIdx.x] = sum;
"""


@needs_compiler
def test_a_buffer_that_is_reused_too_early_is_found(tmp_path: Path) -> None:
    (tmp_path / "right").mkdir()
    right = tiny_op(tmp_path / "right", TWICE.replace("BARRIER", "__syncthreads();"), shared=4)
    for sanitize in (None, "thread"):
        assert (run_tiny(right, sanitize) == 6).all()
    registry._ops.pop("tests::tiny")
    wrong = tiny_op(tmp_path, TWICE.replace("BARRIER", ""), shared=4)
    with pytest.raises(KernelFault, match=r"data race: .*tiny\.cu:[68].*tiny\.cu:[68]"):
        run_tiny(wrong, "thread")
    with pytest.raises(KernelFault, match="order in which threads"):
        run_tiny(wrong)


@needs_compiler
def test_blocks_that_write_the_same_place_race(tmp_path: Path) -> None:
    op = tiny_op(tmp_path, "y[threadIdx.x] = x[threadIdx.x] + blockIdx.x;", grid=2)
    with pytest.raises(KernelFault, match=r"data race: .*tiny\.cu:2"):
        run_tiny(op, "thread")
    with pytest.raises(KernelFault, match="order in which threads"):
        run_tiny(op)


@needs_compiler
def test_atomics_shuffles_and_votes(tmp_path: Path) -> None:
    op = tiny_op(
        tmp_path,
        """
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    const float below = __shfl_up_sync(0xffffffffu, x[threadIdx.x], 1, 16);
    const int odd = __popc(__ballot_sync(0xffffffffu, threadIdx.x % 2));
    const int most = __reduce_max_sync(0xffffffffu, int(threadIdx.x));
    atomicAdd(&total, 1.0f);
    const int count = __syncthreads_count(threadIdx.x < 5);
    y[threadIdx.x] = below + 100 * odd + 10000 * (total == 64 && count == 5) + (most % 32 == 31 ? 0.5f : 0);
""",
    )
    t = np.arange(64)
    for sanitize in (None, "thread"):
        assert np.array_equal(run_tiny(op, sanitize), np.where(t % 16 == 0, t, t - 1) + 11600.5)


# ---- conversions -------------------------------------------------------------------------------------------------

CONVERT = """#include <cuda_fp8.h>
#include "common/numeric.cuh"
extern "C" __global__ void convert(const float* __restrict__ x, int N, unsigned char* __restrict__ e4m3,
                                   unsigned char* __restrict__ e5m2, int* __restrict__ halves,
                                   float* __restrict__ decoded) {
    for (int i = threadIdx.x; i < N; i += blockDim.x) {
        const unsigned code = static_cast<unsigned>(i) & 0xffffu;
        e4m3[i] = __nv_cvt_float_to_fp8(x[i], __NV_SATFINITE, __NV_E4M3);
        e5m2[i] = __nv_cvt_float2_to_fp8x2(make_float2(0.0f, x[i]), __NV_SATFINITE, __NV_E5M2) >> 8;
        const unsigned bfloat = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
        halves[i] = forge::pack2<__half>(x[i], 0.0f) | bfloat << 16;
        const auto kind = code & 0x100 ? __NV_E4M3 : __NV_E5M2;
        decoded[i] = i < 65536 ? __half2float(__ushort_as_half(code))
                   : i < 131072 ? forge::unpack2<__nv_bfloat16>(code).x
                                : __half2float(__half(__nv_cvt_fp8_to_halfraw(code & 0xffu, kind)));
    }
}
"""


def _hard_values() -> np.ndarray:
    """Every bf16 and fp16 value, every tie of the four formats, and the float32 neighbors of all of those."""
    codes = np.arange(65536, dtype=np.uint16)
    eights = np.arange(256, dtype=np.uint8)
    formats = [codes.view(np.float16), codes.view(ml_dtypes.bfloat16)]
    formats += [eights.view(ml_dtypes.float8_e4m3fn), eights.view(ml_dtypes.float8_e5m2)]
    with np.errstate(all="ignore"):
        values = [np.unique(f.astype(np.float32)[np.isfinite(f.astype(np.float32))]) for f in formats]
        ties = [((v[1:].astype(np.float64) + v[:-1]) / 2).astype(np.float32) for v in values]
        exact = np.concatenate([*values, *ties])
        infinite = np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)
        return np.concatenate([exact, np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf), infinite])


def _same(found: np.ndarray, expected: np.ndarray) -> bool:
    f, e = found.astype(np.float32), expected.astype(np.float32)
    return bool(((f.view(np.uint32) == e.view(np.uint32)) | (np.isnan(f) & np.isnan(e))).all())


@needs_compiler
def test_conversions_are_exact(tmp_path: Path) -> None:
    (tmp_path / "convert.cu").write_text(CONVERT)
    op = Op(
        "tests::convert",
        inputs={"x": Tensor("N", dtype="float32")},
        outputs={
            "e4m3": Tensor("N", dtype="float8_e4m3fn"),
            "e5m2": Tensor("N", dtype="float8_e5m2"),
            "halves": Tensor("N", dtype="int32"),
            "decoded": Tensor("N", dtype="float32"),
        },
    )
    op.kernel(cuda(tmp_path / "convert.cu"))(lambda d: Launch(grid=1, block=64, scalars=(d.N,)))
    x = _hard_values()
    assert x.size > 131072 + 512
    binding = op.bind({"x": x.shape}, {"x": "float32"}, {})
    found = run(op.kernels[0], binding, 0, {"x": x}, TARGET)
    with np.errstate(all="ignore"):
        assert _same(found["e4m3"], np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn))
        assert _same(found["e5m2"], np.clip(x, -57344, 57344).astype(ml_dtypes.float8_e5m2))
        halves = found["halves"].view(np.uint32)
        assert _same((halves & 0xFFFF).astype(np.uint16).view(np.float16), x.astype(np.float16))
        assert _same((halves >> 16).astype(np.uint16).view(ml_dtypes.bfloat16), x.astype(ml_dtypes.bfloat16))
        codes = np.arange(65536, dtype=np.uint16)
        decoded = found["decoded"]
        assert _same(decoded[:65536], codes.view(np.float16))
        assert _same(decoded[65536:131072], codes.view(ml_dtypes.bfloat16))
        eights = np.arange(256, dtype=np.uint8)
        assert _same(decoded[131072 : 131072 + 256], eights.view(ml_dtypes.float8_e5m2))
        assert _same(decoded[131072 + 256 : 131072 + 512], eights.view(ml_dtypes.float8_e4m3fn))


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "to"), [("bfloat16", "float8_e4m3fn"), ("float16", "float8_e5m2"), ("float16", "int8")]
)
def test_every_16_bit_pattern_is_quantized_as_the_reference_does(kind: str, to: str) -> None:
    op = registry.get("quantize_tensor_static")
    case = Case({"M": 16, "K": 4096}, {"to": to})
    dtypes = matching(op, case, {"x": kind})
    inputs = op.sample_inputs(case, dtypes, 0)
    inputs["x"] = np.arange(65536, dtype=np.uint16).view(inputs["x"].dtype).reshape(16, 4096)
    inputs["scale"] = np.full_like(inputs["scale"], 0.037)
    binding = op.bind_case(case, dtypes)
    found = run(op.kernel_named("cuda"), binding, 0, inputs, TARGET)["y"]
    expected = op.run_reference(inputs, {"to": to})["y"]
    assert _same(found, expected)


# ---- the command's side ------------------------------------------------------------------------------------------


@needs_compiler
def test_check_runs_and_says_how() -> None:
    rows = check("rms_norm", device="emulate", kernel="cuda_elementwise", sanitize="undefined", workers=1)
    assert summary(rows) == {"passed": len(rows), "failed": 0, "skipped": 0} and len(rows) >= 8
    assert {r.how for r in rows} == {"emulated, UndefinedBehaviorSanitizer"} and {r.device for r in rows} == {"cpu"}
    assert len({r.tactic_index for r in rows}) > 1
    json.dumps([r.reason for r in rows])


@needs_compiler
def test_check_skips_what_cannot_be_emulated(tmp_path: Path) -> None:
    (tmp_path / "strange.py").write_text(
        "from trtforge.kernels import Case, Launch, Op, Tensor, cuda\n"
        "op = Op('tests::strange', inputs={'x': Tensor('N', dtype='float32')},"
        " outputs={'y': Tensor('N', dtype='float32')}, cases=[Case({'N': 4})])\n"
        "op.reference(lambda x: x)\n"
        "op.kernel(cuda('ptx.cu'), name='ptx')(lambda d: Launch(grid=1, block=32, scalars=(d.N,)))\n"
        "op.kernel(cuda('name.cu'), name='name')(lambda d: Launch(grid=1, block=32, scalars=(d.N,)))\n"
    )
    head = 'extern "C" __global__ void {}(const float* x, int N, float* y) {{ {} }}\n'
    (tmp_path / "ptx.cu").write_text(head.format("ptx", 'asm volatile("nanosleep.u32 20;");'))
    (tmp_path / "name.cu").write_text(head.format("name", "y[0] = __vabsdiffu4(1, 2);"))
    rows = check("strange", device="emulate", loads=[str(tmp_path / "strange.py")], workers=1)
    assert [r.status for r in rows] == ["skipped", "skipped"]
    assert "the PTX instruction nanosleep.u32" in rows[0].reason and "ptx.cu:1" in rows[0].reason
    assert "__vabsdiffu4" in rows[1].reason


def test_without_a_compiler_rows_are_skipped_and_the_function_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependencyError, match=r"no-such-compiler.*C\+\+20 compiler"):
        toolchain.find_compiler()
    rows = check("rms_norm", device="emulate", kernel="cuda_elementwise", workers=1)
    assert {r.status for r in rows} == {"skipped"} and "C++20 compiler" in rows[0].reason


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="accepted: address, undefined, thread"):
        check("rms_norm", device="emulate", sanitize="memory")
    with pytest.raises(UsageError, match="device='emulate'"):
        check("rms_norm", device="cpu", sanitize="thread")


@needs_compiler
def test_parameters_are_held_against_the_declaration(tmp_path: Path) -> None:
    head = HEAD.replace("int N", "long long N")
    with pytest.raises(KernelFault, match=r"takes \(p\?p\), the declaration gives \(pip\)"):
        run_tiny(tiny_op(tmp_path, "y[0] = x[0];", head=head))


@needs_compiler
def test_attributes_reach_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "scaled.cu").write_text(
        'extern "C" __global__ void scaled(const x_t* x, int N, x_t* y)'
        " { y[threadIdx.x] = static_cast<x_t>(static_cast<float>(x[threadIdx.x]) * BY); }\n"
    )
    op = Op(
        "tests::scaled",
        inputs={"x": Tensor("N", dtype="float16")},
        outputs={"y": Tensor("N", dtype="x")},
        attributes={"by": Attr(2.0)},
    )
    op.kernel(cuda(tmp_path / "scaled.cu"))(lambda d: Launch(grid=1, block=32, scalars=(d.N,)))
    x = np.arange(32).astype(np.float16)
    binding = op.bind({"x": (32,)}, {"x": "float16"}, {"by": 3.0})
    assert np.array_equal(run(op.kernels[0], binding, 0, {"x": x}, TARGET)["y"], 3 * x)

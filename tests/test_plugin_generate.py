"""Plugins generated from declarations, through NVIDIA's own validator, driven by the host."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trtforge import plugins
from trtforge.bindings.architectures import architecture
from trtforge.bindings.errors import ContractError, DeclarationError, DeviceError, UnknownNameError
from trtforge.kernels import HALF, Case, Op, Tensor, registry
from trtforge.kernels.embedded import launch_of
from trtforge.plugins import generate, host, jit, nvidia, schema, stand_ins, tactics
from trtforge.plugins.host import Profile
from trtforge.plugins.symbolic import bind

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(stand_ins.BINDINGS) is None, reason=f"needs pip install {stand_ins.WHEEL}"
)
SM90 = architecture("sm_90a")


@pytest.fixture
def unregister() -> Iterator[None]:
    before = dict(registry._ops)
    yield
    registry._ops.clear()
    registry._ops.update(before)


@pytest.fixture
def layer() -> nvidia.Layer:
    return nvidia.host_layer()


def fixed(**shapes: tuple[int, ...]) -> Profile:
    return Profile(shapes, shapes, shapes)


def rms(rows: tuple[int, int, int], columns: tuple[int, int, int], **options: Any) -> host.Hosted:
    ends = [{"x": (m, n), "weight": (n,)} for m, n in zip(rows, columns)]
    options = {"aot": True, **options}
    dtypes = dict.fromkeys(("x", "weight"), options.pop("dtype", "float16"))
    return host.build(registry.get("rms_norm"), Profile(*ends), dtypes, {"eps": 1e-6}, SM90, **options)


def labels(hosted: host.Hosted) -> set[str]:
    return {tactics.label(hosted.spec.op, t).split(" ")[0] for t in hosted.tactics}


# ---- names and registration --------------------------------------------------------------------------------


def test_every_op_registers_and_again(layer: nvidia.Layer) -> None:
    names = generate.register(layer=layer)
    assert generate.register(layer=layer) == names and len(set(names)) == len(names)
    assert {op.name for op in registry.ops()} <= set(names)
    assert {"trtforge::fused_gemm_bias", "trtforge::flash_attention_k_lengths"} <= set(names)
    assert plugins.register("rms_norm", layer=layer) == ["trtforge::rms_norm"]


def test_one_plugin_per_subset_of_optional_inputs() -> None:
    op = registry.get("gated_gemm")
    assert [s.plugin_id.removeprefix("trtforge::gated_gemm") for s in schema.specs_of(op)] == [
        "",
        "_bias_gate",
        "_bias_up",
        "_bias_gate_bias_up",
    ]
    assert plugins.plugin_name(op, ["bias_up", "bias_gate"]) == "trtforge::gated_gemm_bias_gate_bias_up"
    with pytest.raises(ContractError, match="no input dias"):
        plugins.plugin_name(op, ["dias"])


DECLARATION = """
from trtforge.kernels import *
Op("redeclared::op", inputs={"x": Tensor("N", dtype=HALF)}, outputs={"y": Tensor("N", dtype="x")},
   attributes={"alpha": 1.0}, cases=[Case({"N": 4})])
"""


def test_a_plugin_follows_the_latest_declaration(layer: nvidia.Layer, unregister: None, tmp_path: Path) -> None:
    path = tmp_path / "op.py"

    def declare(text: str) -> Op:
        path.write_text(text)
        return registry.load(path)[0]

    first = declare(DECLARATION)
    names = generate.register(first, layer=layer)
    second = declare(DECLARATION.replace('{"N": 4}', '{"N": 5}'))
    assert second is not first and generate.register(second, layer=layer) == names
    assert layer.registry[names[0]].spec.op is second
    for old, new in (('"alpha": 1.0', '"alpha": 1'), ('"alpha": 1.0', ""), ('{"x": Tensor', '{"z": Tensor')):
        changed = DECLARATION.replace(old, new).replace('dtype="x"', 'dtype="z"' if "z" in new else 'dtype="x"')
        with pytest.raises(DeclarationError, match="other inputs, outputs or attributes"):
            generate.register(declare(changed), layer=layer)


def test_a_name_that_someone_else_took_is_refused(layer: nvidia.Layer, unregister: None) -> None:
    p = layer.plugin

    def describe(x: Any) -> Any:
        return x.like()

    describe.__annotations__ = {"x": p.TensorDesc, "return": p.TensorDesc}
    p.register("foreign::taken")(describe)
    op = Op(
        "foreign::taken",
        inputs={"x": Tensor("N", dtype=HALF)},
        outputs={"y": Tensor("N", dtype="x")},
        cases=[Case({"N": 4})],
    )
    with pytest.raises(DeclarationError, match="was not registered here"):
        generate.register(op, layer=layer)


def test_an_op_that_tensorrt_cannot_name_is_refused(layer: nvidia.Layer, unregister: None) -> None:
    reserved = Op(
        "tensorrt::op",
        inputs={"x": Tensor("N", dtype=HALF)},
        outputs={"y": Tensor("N", dtype="x")},
        cases=[Case({"N": 4})],
    )
    with pytest.raises(DeclarationError, match="reserved namespace"):
        generate.register(reserved, layer=layer)
    lonely = Op(
        "lonely::op", inputs={"x": Tensor("N", dtype=HALF, optional=True)}, outputs={"y": Tensor(4, dtype=HALF)}
    )
    with pytest.raises(DeclarationError, match="always there"):
        generate.register(lonely, layer=layer)


def test_attributes_are_completed_in_declared_order(layer: nvidia.Layer) -> None:
    shapes = {"q": (-1, 8, -1, 64), "k": (-1, 2, -1, 64), "v": (-1, 2, -1, 64)}
    found = plugins.complete_attributes(
        registry.get("flash_attention"), {"causal": True}, shapes, dict.fromkeys(shapes, "float16"), layer=layer
    )
    assert list(found.items()) == [("causal", True), ("window", -1), ("soft_cap", 0.0), ("scale", 0.125)]


def test_strings_become_choices_where_bindings_lose_them(layer: nvidia.Layer) -> None:
    spec = schema.plugin_spec(registry.get("fused_gemm"))
    old: Any = SimpleNamespace(strings=False)
    assert spec.attributes(old) == {"activation": int} and spec.attributes(layer) == {
        "activation": str if layer.strings else int
    }
    assert spec.encode(old, {"activation": "gelu_tanh"}) == {"activation": 3}
    assert spec.decode(old, [3]) == {"activation": "gelu_tanh"} == spec.decode(layer, ["gelu_tanh"])


# ---- dtypes, shapes ----------------------------------------------------------------------------------------


def test_combinations_are_the_contracts(layer: nvidia.Layer) -> None:
    op = registry.get("quantize_tensor")
    shapes = {"x": (16, 64), "partials": (7,)}
    hosted = host.build(
        op, fixed(**shapes), {"x": "bfloat16", "partials": "float32"}, {"to": "float8_e4m3fn"}, SM90, aot=False
    )
    wanted = {(x, "float32", "float8_e4m3fn", "float32") for x in ("float16", "bfloat16", "float32")}
    assert set(hosted.combinations) == wanted and hosted.output_dtypes == ("float8_e4m3fn", "float32")


def test_a_type_that_tensorrt_lacks_is_named() -> None:
    with pytest.raises(ContractError, match="float8_e5m2"):
        host.build(
            registry.get("quantize_token"), fixed(x=(16, 64)), {"x": "float16"}, {"to": "float8_e5m2"}, SM90, aot=True
        )


def test_shapes_that_break_the_contract_are_refused_where_they_are_known() -> None:
    op = registry.get("fused_gemm")
    dtypes = dict.fromkeys(("x", "w"), "float16")
    with pytest.raises(ContractError, match=r"'w'.*must be 64"):
        host.build(op, fixed(x=(4, 64), w=(8, 32)), dtypes, {"activation": "none"}, SM90, aot=True)
    with pytest.raises(ContractError, match="rank"):
        host.build(op, fixed(x=(4, 64), w=(64,)), dtypes, {"activation": "none"}, SM90, aot=True)
    with pytest.raises(ContractError, match=r"max shapes of the profile.*at most 32768"):
        rms((1, 1, 1), (8, 1024, 40000), aot=False)


def test_an_axis_that_is_static_by_its_expression_is_accepted() -> None:
    op = registry.get("dequantize_block")
    ends = [{"y": (m, k), "scale": (m, 1)} for m, k in ((1, 1), (4, 24), (9, 51))]
    hosted = host.build(op, Profile(*ends), {"y": "int8", "scale": "float32"}, {"to": "float16"}, SM90, aot=False)
    assert hosted.output_shapes({"y": (3, 50), "scale": (3, 1)}) == [(3, 50)]


# ---- tactics -----------------------------------------------------------------------------------------------


def test_tactics_number_the_whole_table_and_jit_adds_one() -> None:
    op = registry.get("fused_gemm")
    entries = tactics.table(op)
    assert [tactics.identity(c.kernel, c.tactic) for c in entries] == list(range(1, len(entries) + 1))
    first, second = op.kernels[:2]
    begin = len(first.tactics) + 1
    assert tactics.entry(op, begin).kernel is second and tactics.entry(op, begin - 1).kernel is first
    assert tactics.label(op, tactics.choosing(op)) == "chosen per call"
    for unknown in (0, tactics.choosing(op)):
        with pytest.raises(DeclarationError, match="build it again"):
            tactics.entry(op, unknown)


def test_tma_kernels_are_tactics_of_both_kinds() -> None:
    shapes = fixed(x=(64, 64), w=(128, 64))
    dtypes = dict.fromkeys(("x", "w"), "float16")
    op = registry.get("fused_gemm")
    aot, direct = (host.build(op, shapes, dtypes, {"activation": "none"}, SM90, aot=a) for a in (True, False))
    assert labels(direct) >= {"sm90", "chosen", "mma", "mma_elementwise", "triton", "triton_elementwise"}
    assert labels(aot) == labels(direct) - {"chosen"}
    ampere = host.build(op, shapes, dtypes, {"activation": "none"}, architecture("sm_80"), aot=False)
    assert labels(ampere) == {name for name in labels(direct) if not name.startswith("sm90")}


def test_a_requirement_holds_for_every_shape_of_the_profile() -> None:
    assert "cuda" in labels(rms((1, 8, 64), (1024,) * 3))
    jagged = rms((1, 8, 64), (8, 16, 24), aot=False)
    assert labels(jagged) == {"cuda_elementwise", "triton", "chosen"}, "9 is no multiple of 8, 24 fits everywhere"
    wide = rms((1, 8, 64), (8, 16, 16387), aot=False)
    kept = {tactics.label(wide.spec.op, t) for t in wide.tactics}
    assert "cuda_elementwise [THREADS=512]" in kept and "cuda_elementwise [THREADS=256]" not in kept


def test_launches_beyond_cudas_limits_are_refused_when_the_engine_is_built() -> None:
    spec = schema.plugin_spec(registry.get("rms_norm"))
    call = bind(spec, [(None, 1024), (1024,)], dict.fromkeys(spec.inputs, "float16"), {"eps": 1e-6})
    choice = tactics.table(spec.op)[0]
    for largest, refused in ((2**31 - 1, False), (2**31, True)):
        reason = tactics.refusal(choice, call.binding, {"M.0": (1, 8, largest)}, SM90, aot=True)
        assert (reason is not None) == refused and (reason is None or "grid of 2147483648" in reason)


def test_constants_must_be_static_for_aot() -> None:
    with pytest.raises(DeclarationError, match=r"fixed values of N.*or build a JIT plugin"):
        rms((1, 8, 64), (8, 16, 24))


def test_a_requirement_with_too_many_sizes_to_try_drops_the_tactic() -> None:
    assert labels(rms((1, 8, 64), (8, 16, 32768), aot=False)) == {"triton", "chosen"}


# ---- ahead of time -----------------------------------------------------------------------------------------


def test_launch_parameters_follow_the_shape() -> None:
    op = registry.get("flash_attention")

    def shapes(batch: int, queries: int, keys: int) -> dict[str, tuple[int, ...]]:
        return {"q": (batch, 8, queries, 64), "k": (batch, 2, keys, 64), "v": (batch, 2, keys, 64)}

    profile = Profile(shapes(1, 1, 1), shapes(2, 100, 300), shapes(4, 4096, 4096))
    attributes = {"causal": False, "window": -1, "soft_cap": 0.0, "scale": 0.125}
    hosted = host.build(op, profile, dict.fromkeys(("q", "k", "v"), "bfloat16"), attributes, SM90, aot=True)
    kernel = hosted.engine_kernel(hosted.tactics[0])
    assert not kernel.grid[0].is_constant() and kernel.block[0].is_constant()
    choice = tactics.entry(op, hosted.tactics[0])
    for batch, queries, keys in itertools.product((1, 3), (1, 65, 4096), (1, 130)):
        at = shapes(batch, queries, keys)
        bound = op.bind(at, dict.fromkeys(at, "bfloat16"), attributes)
        launch = launch_of(choice.kernel.launch(bound, choice.tactic, SM90), SM90)
        found = kernel.geometry(at)
        assert found["grid"][0] == launch.grid and found["scalars"] == launch.scalars
        assert hosted.output_shapes(at) == [(batch, 8, queries, 64)]


def test_embedded_triton_code_has_no_scratch_parameters() -> None:
    hosted = rms((1, 8, 64), (1024,) * 3)
    number = next(t for t in hosted.tactics if tactics.label(hosted.spec.op, t).startswith("triton"))
    kernel = hosted.engine_kernel(number)
    header = kernel.code.decode().split(f".entry {kernel.entry}(")[1].split(")")[0]
    assert header.count(".param") == 2 + len(kernel.scalars) + 1


def test_strict_and_preferred_requests() -> None:
    spec = schema.plugin_spec(registry.get("rms_norm"))
    layer = nvidia.host_layer()
    generate.register(spec.op, layer=layer)
    kinds = {r: hasattr(host.create(layer, spec, {"eps": 1e-6}, r), "aot_impl_function") for r in
             ("STRICT_AOT", "PREFER_AOT", "STRICT_JIT", "PREFER_JIT")}  # fmt: skip
    assert kinds == {"STRICT_AOT": True, "PREFER_AOT": True, "STRICT_JIT": False, "PREFER_JIT": False}


def test_asking_for_a_tactic_that_was_not_offered() -> None:
    hosted = rms((1, 8, 64), (1024,) * 3)
    with pytest.raises(UnknownNameError, match="offers the tactics"):
        hosted.engine_kernel(99)


def test_without_a_target_and_a_gpu_the_target_is_asked_for() -> None:
    from trtforge.bindings import device

    if device.has_gpu():
        pytest.skip("there is a GPU: it is the target")
    with pytest.raises(DeviceError):
        generate.target_architecture()


# ---- JIT ---------------------------------------------------------------------------------------------------


class Recorder:
    """Stands for a plan: remembers what it was launched with."""

    def __init__(self, label: str):
        self.label = label
        self.calls: list[tuple[list[int], int]] = []

    def launch(self, pointers: list[int], stream: int) -> None:
        self.calls.append((pointers, stream))


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    made: list[Recorder] = []

    def make(kernel: Any, tactic: int, binding: Any) -> Recorder:
        made.append(Recorder(f"{kernel.name} {tactic} {binding.inputs['x']} {binding.dtypes['x']}"))
        return made[-1]

    monkeypatch.setattr(jit.plan, "make", make)
    monkeypatch.setattr(jit.device, "current_ordinal", lambda: 0)
    monkeypatch.setattr(jit.device, "current_device", lambda: SimpleNamespace(architecture=SM90))
    monkeypatch.setattr(jit, "_plans", type(jit._plans)())
    return made


@pytest.mark.parametrize("dtype", HALF)
def test_enqueue_launches_with_raw_pointers_on_the_stream(plans: list[Recorder], dtype: str) -> None:
    hosted = rms((1, 8, 64), (1024,) * 3, aot=False, dtype=dtype)
    at = {"x": (5, 1024), "weight": (1024,)}
    pointers = [0x1000, 0x2000, 0x3000]
    for _ in range(2):
        hosted.enqueue(1, at, pointers, stream=77)
    hosted.enqueue(1, {**at, "x": (6, 1024)}, pointers, stream=78)
    assert [p.label for p in plans] == [f"cuda 0 ({m}, 1024) {dtype}" for m in (5, 6)]
    assert plans[0].calls == [(pointers, 77)] * 2 and plans[1].calls == [(pointers, 78)]


def test_the_choosing_tactic_chooses_per_shape(plans: list[Recorder]) -> None:
    hosted = rms((1, 8, 64), (1, 1024, 8192), aot=False)
    for columns in (1024, 4096, 999):
        at = {"x": (5, columns), "weight": (columns,)}
        hosted.enqueue(tactics.choosing(hosted.spec.op), at, [4096, 8192, 12288])
    assert [p.label.split(" (")[0] for p in plans] == ["cuda 0", "cuda 1", "cuda_elementwise 0"]


def test_a_tactic_that_cannot_serve_the_call_says_so(plans: list[Recorder]) -> None:
    hosted = rms((1, 8, 64), (1024,) * 3, aot=False)
    with pytest.raises(ContractError, match="aligned to 16 bytes"):
        hosted.enqueue(1, {"x": (5, 1024), "weight": (1024,)}, [0x1002, 0x2000, 0x3000])


def test_attributes_survive_serialization() -> None:
    op = registry.get("fused_gemm")
    hosted = host.build(
        op,
        fixed(x=(4, 64), w=(8, 64)),
        dict.fromkeys(("x", "w"), "float16"),
        {"activation": "gelu_tanh"},
        SM90,
        aot=False,
    )
    assert hosted.spec.decode(hosted.layer, hosted.reloaded().attrs.values()) == {"activation": "gelu_tanh"}

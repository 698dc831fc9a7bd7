"""Plan files: what is written is read back, what was altered is refused, and a plan runs like its network."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trt_double
from test_engine_lowering import CASES, network_of
from test_graph_cuda import compare, decoder, mixture, mixture_inputs

from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import FileError, GraphError, PlanError, UsageError
from trtforge.bindings.files import replace_file
from trtforge.graph_api import Network
from trtforge.graph_api.engines import commands, plan
from trtforge.graph_api.engines.arrays_file import load_arrays, save_arrays
from trtforge.graph_api.engines.builder import BuildOptions
from trtforge.graph_api.engines.network_json import decode, encode, network_from_json, network_to_json
from trtforge.graph_api.engines.plan_file import _PREFIX, FORMAT, MAGIC, canonical, read_plan_file
from trtforge.kernels.dims import cdiv, maximum, minimum, next_power_of_2, sym

ADA = BuildOptions(compute_capability="8.9")
MODEL = Path(__file__).parent.parent / "examples" / "pydoc_llama" / "model"


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield trt_double.install(monkeypatch)
    trt_double.remove()


def fused_decoder() -> Network:
    net = decoder("float16")
    net.fuse()
    return net


# --- the container -----------------------------------------------------------------------------------------------


def test_a_plan_runs_like_its_network(doubles: Any, tmp_path: Path) -> None:
    net = fused_decoder()
    made = plan.save_plan(net, tmp_path / "decoder.plan", options=ADA)
    assert made.network is not net and [n.name for n in made.network.nodes] == [n.name for n in net.nodes]
    live, loaded, reference = net.build(backend="tensorrt-rtx"), plan.load_plan(made.file.path), net.build()
    rng = np.random.default_rng(3)
    for rows, start in [(5, 0), (1, 5), (1, 6), (1, 7)]:
        inputs = {"ids": rng.integers(0, 9, (2, rows)).astype(np.int32), "at": np.full(2, start, np.int32)}
        found = loaded(**inputs)
        compare(live(**inputs), found, 0)
        compare(reference(**inputs), found, 2e-2)
    with pytest.raises(GraphError, match="missing"):
        loaded.refit({"table": net.weights["table"]})  # the others are inside the engines only
    every = {n: w * np.float16(0.5) for n, w in net.weights.items()}
    loaded.refit(every)
    live.refit(every)
    live.reset(), loaded.reset()
    compare(live(**inputs), loaded(**inputs), 0)


def test_every_kind_of_step_survives(doubles: Any, tmp_path: Path) -> None:
    net, inputs = mixture(), mixture_inputs()
    expected = net.build(backend="tensorrt-rtx")(**inputs)
    save_arrays(tmp_path / "in.npz", inputs)
    plan.save_plan(net, tmp_path / "mixture.plan", options=ADA)
    commands.run_plan(tmp_path / "mixture.plan", tmp_path / "in.npz", tmp_path / "out.npz")
    compare(expected, load_arrays(tmp_path / "out.npz"), 0)


def test_equal_networks_give_equal_files(doubles: Any, tmp_path: Path) -> None:
    first = plan.save_plan(fused_decoder(), tmp_path / "a", options=ADA)
    second = plan.save_plan(fused_decoder(), tmp_path / "b", options=ADA)
    for key in ("network_digest", "weights_digest"):
        assert first.file.header[key] == second.file.header[key]
    other = decoder("float16")
    other.bind_weights({**other.weights, "table": other.weights["table"] + np.float16(1)})
    third = plan.save_plan(other, tmp_path / "c", options=ADA)
    assert third.file.header["weights_digest"] != first.file.header["weights_digest"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, [b"old"])

    def chunks() -> Iterator[bytes]:
        yield b"half of"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, chunks())
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileError, match="cannot write"):
        replace_file(path / "below" / "a_file", [b"x"])


@pytest.mark.parametrize("primitive", CASES)
def test_networks_survive_json(primitive: str) -> None:
    net, arrays = network_of(primitive, "float32")
    data = json.loads(canonical(network_to_json(net)))
    again = network_from_json(data, {n: np.asarray(t.value) for n, t in net.constants.items()})
    assert canonical(network_to_json(again)) == canonical(data)
    compare(net.build()(**arrays), again.build()(**arrays), 0)


def test_attribute_values_survive_json() -> None:
    s, b = sym("S"), sym("B")
    for value in (
        None, True, 3, "gelu", 0.1, float("-inf"), (1, (2.5, s)), s * b * 3 - 7, cdiv(s + 1, 2), s // (b + 1), s % 4,
        minimum(s, b), maximum(s * 2, 5), next_power_of_2(s),
    ):  # fmt: skip
        assert decode(json.loads(canonical(encode(value)))) == value
    with pytest.raises(PlanError, match="cannot be written"):
        encode(object())


def test_arrays_of_every_dtype_survive_npz(tmp_path: Path) -> None:
    arrays = {name: np.arange(6).reshape(2, 3).astype(row.numpy) for name, row in DTYPES.items()}
    arrays["scalar"] = np.float32(2.5).reshape(())
    save_arrays(tmp_path / "a.npz", arrays)
    found = load_arrays(tmp_path / "a.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.array_equal(found[name].astype(np.float64), array.astype(np.float64))
    np.savez(tmp_path / "b.npz", x=np.array([object()], dtype=object))
    (tmp_path / "c.npz").write_bytes(b"nothing")
    for wrong in ("b.npz", "c.npz", "d.npz"):
        with pytest.raises(UsageError, match="cannot read arrays"):
            load_arrays(tmp_path / wrong)


# --- refusals ----------------------------------------------------------------------------------------------------


def resealed(data: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """The file with an edited header and a digest that fits it."""
    _, _, length, _ = _PREFIX.unpack(data[: _PREFIX.size])
    header = json.loads(data[_PREFIX.size : _PREFIX.size + length])
    edit(header)
    text = canonical(header)
    return _PREFIX.pack(MAGIC, FORMAT, len(text), hashlib.sha256(text).digest()) + text + data[_PREFIX.size + length :]


def edits() -> list[Callable[[dict[str, Any]], None]]:
    """Edits of a header whose digest is then made to fit."""

    def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
        def edit(header: dict[str, Any]) -> None:
            at: Any = header
            for key in path[:-1]:
                at = at[key]
            if value is KeyError:
                del at[path[-1]]
            else:
                at[path[-1]] = value

        return edit

    def reorder(header: dict[str, Any]) -> None:
        header["steps"].reverse()

    def twice(header: dict[str, Any]) -> None:
        header["steps"].append(copy.deepcopy(header["steps"][0]))

    def renamed(header: dict[str, Any]) -> None:
        header["pieces"][0]["name"] = "engine_x"

    top = ("kit", "backend", "library", "compute_capability", "options", "network", "network_digest", "ops", "steps")
    top += ("placed", "pieces", "arrays", "attachments", "language_model", "blobs", "weights_digest")
    return [
        reorder,
        twice,
        renamed,
        *(put(key, value=KeyError) for key in top),
        *(put(key, value=7) for key in top),
        put("kit", value="9.9.9"),
        put("library", value="1.4.0.1"),
        put("library", value="1.5.0.114.1"),
        put("compute_capability", value="8.6"),
        put("compute_capability", value="12.0"),
        put("backend", value="tensorrt-nx"),
        put("network", "dims", 0, 3, value=4096),
        put("network", "nodes", 0, "op", value="exp"),
        put("network", "nodes", 0, "name", value="other"),
        put("network", "inputs", 0, "dtype", value="int64"),
        put("network", "outputs", value=[]),
        put("options", "workspace_mib", value=-5),
        put("options", "surprise", value=1),
        put("steps", 0, value={"eval": "print(1)"}),
        put("steps", 0, value={"engine": "engine_0", "nodes": ["nobody"]}),
        put("steps", 0, value={"engine": "engine_0", "nodes": []}),
        put("steps", value=[]),
        put("pieces", 0, "blob", value=-1),
        put("pieces", 0, "blob", value=10_000),
        put("pieces", 0, "blob", value=True),
        put("pieces", 0, "inspected", value=0),
        put("pieces", value=[]),
        put("arrays", 0, "dtype", value="float128"),
        put("arrays", 0, "shape", value=[1_000_000_000, 1_000_000_000]),
        put("arrays", 0, "shape", value=[-1]),
        put("arrays", 0, "kind", value="code"),
        put("arrays", value=[]),
        put("attachments", "../../etc/passwd", value=99),
        put("language_model", value={"dtype": "float16"}),
        put("blobs", 0, "size", value=1),
        put("blobs", 0, "size", value=-1),
        put("blobs", 0, "sha256", value="0" * 64),
        put("blobs", 0, "sha256", value=None),
    ]


def mutated(data: bytes, seed: int) -> bytes:
    """One of the alterations: bits, cuts, additions, exchanged stretches, versions, resealed headers."""
    rng = random.Random(seed)
    table = edits()
    if seed < len(table):
        return resealed(data, table[seed])
    kind = seed % 6
    _, _, length, _ = _PREFIX.unpack(data[: _PREFIX.size])
    if kind in (0, 1):
        at = rng.randrange(_PREFIX.size + length if kind else len(data))
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 2:
        return data[: rng.choice([rng.randrange(len(data)), rng.randrange(_PREFIX.size + length), len(data) - 1])]
    if kind == 3:
        return data + rng.randbytes(rng.randint(1, 100))
    if kind == 4:
        size = rng.randint(1, 2000)
        a, b = sorted((rng.randrange(len(data) // 2), rng.randrange(len(data) // 2, len(data) - size)))
        exchanged = data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]
        return exchanged if exchanged != data else data[:-1]
    version = rng.choice([0, 2, 255, 2**31])
    return data[:8] + version.to_bytes(4, "little") + data[12:]


def test_200_altered_files_are_refused(doubles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plan.save_plan(
        fused_decoder(), tmp_path / "whole.plan", options=ADA, attachments={"config.json": b"{}"}
    ).file.path
    plan.check_compatible(plan.read_plan(whole))
    data = whole.read_bytes()
    touched: list[str] = []
    monkeypatch.setattr(trt_double.Runtime, "deserialize_cuda_engine", lambda self, d: touched.append("engine"))
    path = tmp_path / "altered.plan"
    reasons = []
    for seed in range(200 + len(edits())):
        altered = mutated(data, seed)
        assert altered != data, seed
        path.unlink(missing_ok=True)  # the one before may still be mapped
        path.write_bytes(altered)
        with pytest.raises(PlanError) as caught:
            plan.load_plan(path)
            pytest.fail(f"alteration {seed} was not noticed")
        assert str(path) in str(caught.value)
        reasons.append(str(caught.value))
    assert not touched and len(set(reasons)) > 40
    assert plan.load_plan.__doc__ and plan.read_plan(whole).file.path == whole


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("a text that is longer than the prefix of a plan, but is none of them at all")
    for name, reason in (("absent", "cannot read"), ("empty", "0 bytes"), ("text", "not a plan"), (".", "cannot read")):
        with pytest.raises(PlanError, match=reason):
            read_plan_file(tmp_path / name)
        assert not commands.is_plan(tmp_path / name)


def test_wrong_gpus_and_versions_say_what_is_needed(
    doubles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plan.save_plan(fused_decoder(), tmp_path / "p", options=ADA).file.path
    assert commands.is_plan(path)
    monkeypatch.setattr(plan.device, "current_device", lambda: SimpleNamespace(cc=90, name="NVIDIA H200"))
    with pytest.raises(PlanError, match=r"compute capability 8.9; NVIDIA H200 has 9.0"):
        plan.load_plan(path)
    monkeypatch.setattr(plan, "library_version", lambda backend: "1.7.1.116")
    with pytest.raises(PlanError, match=r"TensorRT for RTX 1.5.0.0, and 1.7.1.116 is here"):
        plan.load_plan(path)


def test_a_portable_plan_needs_8_0(doubles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plan.save_plan(fused_decoder(), tmp_path / "p").file.path
    assert plan.read_plan(path).file.header["compute_capability"] == "portable"
    plan.load_plan(path)
    monkeypatch.setattr(plan.device, "current_device", lambda: SimpleNamespace(cc=75, name="an old one"))
    with pytest.raises(PlanError, match="and later; an old one has 7"):
        plan.load_plan(path)


def test_what_the_library_finds_wrong_is_told(
    doubles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = plan.save_plan(fused_decoder(), tmp_path / "p", options=ADA).file.path
    import enum

    doubles.EngineValidity = enum.IntEnum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"], start=0)
    doubles.EngineInvalidityDiagnostics = enum.IntFlag("Diagnostics", ["VERSION_MISMATCH", "UNSUPPORTED_CC"])
    verdict = [doubles.EngineValidity.INVALID, 3]
    monkeypatch.setattr(trt_double.Runtime, "get_engine_validity", lambda self, d: verdict, raising=False)
    with pytest.raises(PlanError, match="engine_0 cannot run here: UNSUPPORTED_CC, VERSION_MISMATCH"):
        plan.load_plan(path)
    verdict[1] = 2  # built for this very GPU, which the library has no name for
    with caplog.at_level("WARNING", logger="trtforge.tensorrt"):
        plan.load_plan(path)
    assert "trying" in caplog.text


def test_an_op_that_is_not_here(doubles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plan.save_plan(fused_decoder(), tmp_path / "p", options=ADA).file.path
    data = resealed(path.read_bytes(), lambda h: h["ops"].update({"nobody::op": "x"}))
    path.write_bytes(data)
    with pytest.raises(PlanError, match="nobody::op"):
        plan.read_plan(path)


def test_networks_that_cannot_be_built(doubles: Any, tmp_path: Path) -> None:
    with Network("unbound") as net:
        net.mark_output(net.input("x", "float32", (2,)) + net.parameter("w", (2,), "float32"), "y")
    with pytest.raises(GraphError, match="no weights are bound to w"):
        plan.save_plan(net, tmp_path / "p")
    assert not (tmp_path / "p").exists()
    with pytest.raises(UsageError, match="plans are built with"):
        commands.build_plan(net, tmp_path / "p", backend="cuda")


# --- what is inside ----------------------------------------------------------------------------------------------


def test_inspect_tells_what_is_inside(doubles: Any, tmp_path: Path) -> None:
    path = plan.save_plan(fused_decoder(), tmp_path / "p", options=ADA).file.path
    found = json.loads(json.dumps(commands.inspect_plan(path)))
    assert found["file"]["compute_capability"] == "8.9" and found["file"]["bytes"] == path.stat().st_size
    kernels = {row["op"]: row for row in found["kernels"]}
    assert kernels["trtforge::flash_attention"]["kernel"] or kernels["trtforge::flash_attention"]["refused"]
    first = found["pieces"][0]
    assert first["layers"] and first["precisions"] and first["inspected"] is None
    memory = found["memory"]
    assert 0 < memory["min"]["bytes"] <= memory["opt"]["bytes"] <= memory["max"]["bytes"]
    assert {row["where"] for row in found["nodes"]} >= {"engine_0", "kernel"}


def test_engines_can_be_taken_out(doubles: Any, tmp_path: Path) -> None:
    made = plan.save_plan(fused_decoder(), tmp_path / "p", options=ADA)
    written = commands.export_engines(made.file.path, tmp_path / "engines")
    assert [w.stem for w in written] == [p.name for p in made.partition.pieces]
    assert all(w.read_bytes() == bytes(made.engines[w.stem]) for w in written)


def test_a_language_model_writes_text_from_its_plan(doubles: Any, tmp_path: Path) -> None:
    """Without the checkpoint: tokenizer and configuration come out of the file."""
    from trtforge.graph_api.llm import generate

    path = commands.build_plan(MODEL, tmp_path / "lm.plan", options=ADA, max_length=64, dtype="float32").file.path
    for key, what in (("language_model", {"dtype": "float32", "batch": 1, "max_length": 64}),):
        assert plan.read_plan(path).file.header[key] == what
    expected = generate(MODEL, "def ", max_tokens=6, backend="reference", dtype="float32")
    pieces: list[str] = []
    found = commands.generate_plan(path, "def ", max_tokens=6, on_text=pieces.append)
    assert found.token_ids == expected.token_ids and "".join(pieces) == found.text == expected.text
    assert found.backend == "tensorrt-rtx" and found.dtype == "float32"
    session = commands.plan_session(path)
    assert session.explain().to_dict()["fusion"]["replacements"] == () and session.checkpoint is None


def test_generate_wants_a_language_model(doubles: Any, tmp_path: Path) -> None:
    path = plan.save_plan(fused_decoder(), tmp_path / "p", options=ADA).file.path
    with pytest.raises(UsageError, match="no language model"):
        commands.generate_plan(path, "x")

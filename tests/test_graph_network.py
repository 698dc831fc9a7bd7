"""Networks: dynamic dimensions, names, traversal, modules, weights, executables and their input checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from trtforge.bindings.device import has_gpu
from trtforge.bindings.errors import CheckpointError, DeviceError, MissingDependencyError, UnknownNameError
from trtforge.graph_api import (
    MLP,
    Attention,
    Dim,
    Embedding,
    GatedMLP,
    GraphError,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    Network,
    Parameter,
    RMSNorm,
    Tensor,
    read_safetensors,
)
from trtforge.graph_api import functional as F


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(values: Any) -> np.ndarray:
    return np.array(values, np.int32)


def floats(values: Any) -> np.ndarray:
    return np.array(values, np.float32)


class Block(Module):
    def __init__(self) -> None:
        self.norm = RMSNorm(8, dtype="float32")
        self.attn = Attention(8, 4, 2, causal=True, written_out=True, dtype="float32")
        self.mlp = GatedMLP(8, 12, dtype="float32")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        return x + self.mlp(self.norm(x))


class Model(Module):
    def __init__(self) -> None:
        self.embed = Embedding(11, 8, dtype="float32")
        self.layers = ModuleList([Block() for _ in range(2)])
        self.final = LayerNorm(8, dtype="float32")
        self.head = Linear(8, 11, bias=False, dtype="float32")
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.final(x))


def model_network() -> tuple[Model, Network]:
    model = Model()
    with Network("model") as net:
        ids = net.input("ids", "int32", (Dim("B", max=4), Dim("S", min=1, opt=4, max=16)))
        net.mark_output(model(ids), "logits")
    return model, net


def test_module_paths_name_parameters_and_nodes() -> None:
    model, net = model_network()
    names = list(net.parameters)
    assert "layers.1.attn.q_proj.weight" in names
    assert "layers.0.mlp.down_proj.weight" in names
    assert "head.weight" not in names  # tied: the first path names it
    assert set(names) == set(model.parameters())
    assert net.node("layers.0.attn.q_proj.matmul").op == "matmul"
    assert net.node("layers.1.norm.rms_norm_1").op == "rms_norm"
    assert len({n.name for n in net.nodes}) == len(net.nodes)
    again = model_network()[1]
    assert [n.name for n in again.nodes] == [n.name for n in net.nodes]


def test_dynamic_dimensions_give_the_same_rows_for_any_size() -> None:
    model, net = model_network()
    net.bind_weights({n: normal(p.shape, i) for i, (n, p) in enumerate(model.parameters().items())})
    exe = net.build()
    ids = np.random.default_rng(0).integers(0, 11, (3, 9)).astype(np.int32)
    whole = exe(ids=ids)["logits"]
    assert whole.shape == (3, 9, 11)
    np.testing.assert_allclose(exe(ids=ids[1:2, :5])["logits"], whole[1:2, :5], rtol=1e-4, atol=1e-4)


def test_attention_with_a_cache_equals_attention_without() -> None:
    attn = Attention(8, 4, 2, written_out=True, dtype="float32")
    step = Dim("S", max=8)

    def network(cached: bool) -> Network:
        with Network("attention") as net:
            x = net.input("x", "float32", (2, step, 8))
            at = net.input("at", "int32", (2,))
            tables = F.rope_tables(at.unsqueeze(-1) + F.arange(step), F.rope_frequencies(2))
            cache = (net.state("k", "float32", (2, 2, 8, 2)), net.state("v", "float32", (2, 2, 8, 2)))
            net.mark_output(attn(x, tables, cache if cached else None, at), "y")
        net.bind_weights({n: normal(p.shape, i) * 0.3 for i, (n, p) in enumerate(attn.parameters().items())})
        return net

    x = normal((2, 6, 8))
    whole = network(False).build()(x=x, at=ints([0, 0]))["y"]
    exe = network(True).build()
    steps = [exe(x=x[:, :4], at=ints([0, 0]))["y"]]
    steps += [exe(x=x[:, i : i + 1], at=ints([i, i]))["y"] for i in (4, 5)]
    np.testing.assert_allclose(np.concatenate(steps, 1), whole, rtol=1e-5, atol=1e-6)


def test_traversal() -> None:
    with Network("t") as net:
        x = net.input("x", "float32", (2, 3))
        y = F.exp(x)
        z = y * y + x
        net.mark_output(z, "z")
    exp, mul, add = net.nodes
    assert y.producer is exp
    assert x.consumers == (exp, add)
    assert y.users == ((mul, 0), (mul, 1))
    assert (mul.predecessors, exp.successors, add.predecessors) == ((exp,), (mul,), (mul,))
    assert add.inputs[1] is x and add.outputs == (z,) and z.is_output
    assert [n.op for n in net.walk(lambda n: n.op != "mul")] == ["exp", "add"]
    assert exp.location is not None and exp.location.file == __file__
    assert exp.named_inputs() == {"x": x}
    with pytest.raises(UnknownNameError, match="has no node 'sub'"):
        net.node("sub")


def test_dimension_arithmetic() -> None:
    past, step = Dim("P", max=8), Dim("S", max=8)
    with Network("t") as net:
        a = net.input("a", "float32", (2, past, 4))
        b = net.input("b", "float32", (2, step, 4))
        joined = F.concat([a, b], 1)
        assert joined.shape == (2, past + step, 4)
        assert joined.reshape(-1, 2, 2).shape == (2 * (past.expr + step.expr), 2, 2)
        assert b.reshape(2, step * 2, 2).shape == (2, 2 * step, 2)
        net.mark_output(joined[:, past.expr :], "tail")
        net.mark_output(joined[:, -1], "last")
        net.mark_output(F.dim_value(past + step) + step, "total")
        with pytest.raises(GraphError, match=r"shapes \[2, P, 4\] and \[2, S, 4\] do not broadcast"):
            F.add(a, b)
        with pytest.raises(GraphError, match=r"cannot be proved to have the 8\*S elements"):
            b.reshape(2, 4, 4)
    x, y = normal((2, 3, 4)), normal((2, 5, 4), 1)
    found = net.build()(a=x, b=y)
    np.testing.assert_array_equal(found["tail"], y)
    np.testing.assert_array_equal(found["last"], y[:, -1])
    assert found["total"] == 13


def test_input_checks() -> None:
    size = Dim("S", min=2, max=4)
    with Network("t") as net:
        x = net.input("x", "float32", (size, 3))
        net.mark_output(x + net.input("y", "float32", (size, 3)), "z")
        net.mark_output(F.exp(net.input("w", "float32", (size + 1,))), "e")
    exe = net.build()
    good = {"x": normal((2, 3)), "y": normal((2, 3)), "w": normal((3,))}
    assert exe(**good)["z"].shape == (2, 3)
    for change, message in (
        ({"x": normal((5, 3)), "y": normal((5, 3)), "w": normal((6,))}, r"the dimension S is 5, outside 2\.\.4"),
        ({"y": normal((3, 3))}, r"input 'y' has shape \[3, 3\], but axis 0 must be S = 2"),
        ({"w": normal((4,))}, r"input 'w' has shape \[4\], but axis 0 must be S \+ 1|axis 0 must be 1 \+ S"),
        ({"x": np.zeros((2, 3))}, "input 'x' is float64, but must be float32; use .astype"),
        ({"x": normal((2, 3, 1))}, r"input 'x' has shape \[2, 3, 1\], but must be \[S, 3\]"),
        ({"x": [1, 2]}, "input 'x' is list, but must be an array of float32"),
        ({"q": normal((1,))}, "no input is called 'q'"),
    ):
        with pytest.raises(GraphError, match=message):
            exe(**{**good, **change})
    with pytest.raises(GraphError, match=r"missing input 'y' float32\[S, 3\]; missing input 'w'"):
        exe(x=good["x"])


def test_declaration_errors() -> None:
    with pytest.raises(GraphError, match="1 <= min <= opt <= max must hold"):
        Dim("S", min=4, max=2)
    with Network("t") as net:
        net.input("x", "float32", (Dim("S", max=4),))
        for wrong, message in (
            (lambda: net.input("x", "float32", (1,)), "the name 'x' is taken"),
            (lambda: net.input("a b", "float32", (1,)), "must be an identifier"),
            (lambda: net.input("y", "float64", (1,)), "unknown dtype 'float64'; accepted: float32"),
            (lambda: net.input("y", "float32", (Dim("S", max=5),)), "Dim 'S' has another range already"),
            (lambda: net.input("y", "float32", (Dim("T", max=5) + 1,)), "no Dim is declared for T"),
            (lambda: net.input("y", "float32", 3), "the shape must be a sequence"),
            (lambda: net.state("s", "float32", (Dim("S", max=4),)), "a state needs ints"),
            (lambda: net.parameter("p", (Dim("S", max=4),), "float32"), "weights need ints"),
            (lambda: net.constant(np.array(["a"])), "constant without a name: arrays of type"),
        ):
            with pytest.raises(GraphError, match=message):
                wrong()
    with pytest.raises(GraphError, match=r"has no output; call net\.mark_output"):
        net.build()
    with pytest.raises(GraphError, match="no backend 'tpu'; accepted: reference, cuda"):
        net.build(backend="tpu")


def test_two_modules_without_a_parent_clash() -> None:
    with Network("t") as net:
        x = net.input("x", "float16", (2, 4))
        Linear(4, 4)(x)
        with pytest.raises(GraphError, match="the parameter name 'weight' is taken"):
            Linear(4, 4)(x)


def mlp_network() -> tuple[MLP, Network]:
    mlp = MLP(4, 6, dtype="float32")
    with Network("mlp") as net:
        net.mark_output(mlp(net.input("x", "float32", (2, 4))), "y")
    return mlp, net


def test_weight_problems_are_listed_together() -> None:
    _, net = mlp_network()
    weights = {
        "up_proj.weight": normal((6, 5)),
        "up_proj.bias": np.zeros(6),
        "down_proj.weight": normal((4, 6)),
        "rotary.inv_freq": normal((2,)),
        "other": normal((2,)),
    }
    with pytest.raises(GraphError) as caught:
        net.bind_weights(weights, ignore=("rotary.*",))
    message = str(caught.value)
    assert "missing (1): down_proj.bias float32[4]" in message
    assert "extra (1): other" in message
    assert "wrong shape (1): up_proj.weight: [6, 5] was given, [6, 4] is needed" in message
    assert "wrong dtype (1): up_proj.bias: float64 was given, float32 is needed" in message
    assert not net.weights
    with pytest.raises(GraphError, match=r"parameters without weights: up_proj\.weight, up_proj\.bias"):
        net.build()


def test_weights_are_bound_by_reference_and_refit() -> None:
    mlp, net = mlp_network()
    weights = {n: normal(p.shape, i) for i, (n, p) in enumerate(mlp.parameters().items())}
    net.bind_weights(weights)
    assert all(net.weights[n] is weights[n] for n in weights)
    exe = net.build()
    x = normal((2, 4), 9)
    before = exe(x=x)["y"]
    exe.refit({"down_proj.bias": weights["down_proj.bias"] + 1})
    np.testing.assert_allclose(exe(x=x)["y"], before + 1, rtol=1e-6)
    with pytest.raises(GraphError, match=r"wrong shape \(1\): down_proj\.bias"):
        exe.refit({"down_proj.bias": normal((5,))})


def test_a_network_that_changed_must_be_built_again() -> None:
    mlp, net = mlp_network()
    net.bind_weights({n: normal(p.shape) for n, p in mlp.parameters().items()})
    exe = net.build()
    with net:
        F.exp(net.outputs["y"])
    with pytest.raises(GraphError, match="network 'mlp' was changed after this executable was built; build it again"):
        exe(x=normal((2, 4)))
    assert net.build()(x=normal((2, 4)))["y"].shape == (2, 4)


def test_parameter_with_data_needs_no_binding() -> None:
    class Scale(Module):
        def __init__(self) -> None:
            self.scale = Parameter((3,), "float32", data=floats([1, 2, 3]))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x + self.scale

    with Network("t") as net:
        net.mark_output(Scale()(net.input("x", "float32", (3,))), "y")
    np.testing.assert_array_equal(net.build()(x=floats([1, 1, 2]))["y"], [2, 4, 9])
    with Network("u") as net, pytest.raises(GraphError, match="wrong dtype"):
        Parameter((3,), "float16", data=np.zeros(3, np.float32)).as_tensor(net)


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    mlp, net = mlp_network()
    weights = {n: normal(p.shape, i) for i, (n, p) in enumerate(mlp.parameters().items())}
    save_file({**weights, "half": normal((3, 2)).astype(ml_dtypes.bfloat16)}, path)
    read = read_safetensors(path)
    assert read["half"].dtype == ml_dtypes.bfloat16
    net.bind_weights(path, ignore=("half",))
    np.testing.assert_array_equal(net.weights["up_proj.weight"], weights["up_proj.weight"])
    raw = path.read_bytes()
    for damaged, message in (
        (raw[:-4], "is truncated: "),
        (raw[:40], "cut off in its header"),
        (b"", "is not a safetensors file"),
        (b"\x04" + bytes(7) + b"[12]", "its header is no table of tensors"),
        (b"\x04" + bytes(7) + b"{{{{", "its header is not JSON"),
        (raw.replace(b"F32", b"Q32"), "is damaged or of an unknown dtype"),
        (raw.replace(b"[6,4]", b"[6,5]"), "does not fit its"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            read_safetensors(path)
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        read_safetensors(tmp_path / "absent.safetensors")


def test_listing() -> None:
    _, net = model_network()
    listing = net.to_text()
    assert "input ids int32[B, S]" in listing
    assert "layers.0.attn.q_proj.matmul float32[B, S, 8] = matmul(" in listing
    assert "output logits = head.matmul" in listing
    chart = net.to_mermaid()
    assert chart.startswith("flowchart TD") and chart.count("-->") > len(net.nodes) // 2


def test_outputs_do_not_change_with_later_calls() -> None:
    with Network("t") as net:
        cache = net.state("c", "float32", (1, 1, 2, 1))
        new, at = net.input("n", "float32", (1, 1, 1, 1)), net.input("at", "int32", (1,))
        net.mark_output(F.kv_cache_update(cache, new, at), "c_out")
    exe = net.build()
    first = exe(n=np.ones((1, 1, 1, 1), np.float32), at=ints([0]))["c_out"]
    exe(n=np.full((1, 1, 1, 1), 7, np.float32), at=ints([0]))
    assert first[0, 0, 0, 0] == 1


@pytest.mark.skipif(has_gpu(), reason="tests the error on a machine without a GPU")
def test_cuda_backend_without_a_gpu_says_so() -> None:
    mlp, net = mlp_network()
    net.bind_weights({n: normal(p.shape) for n, p in mlp.parameters().items()})
    with pytest.raises((DeviceError, MissingDependencyError), match="the cuda backend needs"):
        net.build(backend="cuda")

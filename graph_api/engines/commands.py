"""The functions behind ``trtforge build``, ``run``, ``inspect FILE`` and ``generate FILE``."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from trtforge.bindings import device
from trtforge.bindings.architectures import Architecture, architecture
from trtforge.bindings.errors import ContractError, UsageError
from trtforge.bindings.files import replace_file
from trtforge.graph_api.backends import default_fusion
from trtforge.graph_api.engines.arrays_file import load_arrays, save_arrays
from trtforge.graph_api.engines.builder import BuildOptions
from trtforge.graph_api.engines.library import FLAVORS
from trtforge.graph_api.engines.models import open_model
from trtforge.graph_api.engines.partition import KERNEL
from trtforge.graph_api.engines.plan import Plan, arena_bytes, corner_sizes, load, read_plan, save_plan
from trtforge.graph_api.engines.plan_file import MAGIC
from trtforge.graph_api.llm.sampling import Sampling
from trtforge.graph_api.llm.session import GenerationResult, Session
from trtforge.graph_api.network import Network
from trtforge.graph_api.shapes import resolve
from trtforge.graph_api.tensor import Node
from trtforge.kernels import registry


def is_plan(path: str | Path) -> bool:
    """Whether a path is a file that begins like a plan."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def build_plan(
    model: Network | str | Path,
    out: str | Path,
    *,
    backend: str = "tensorrt-rtx",
    fuse: str | Iterable[str] | None = None,
    dtype: str = "auto",
    batch: int = 1,
    max_length: int | None = None,
    options: BuildOptions | None = None,
    progress: Any = None,
) -> Plan:
    """Build ``model`` (see :func:`trtforge.graph_api.engines.models.open_model`) and write the plan file ``out``.

    ``fuse``: "all", "none", or names of ops or patterns; None takes the backend's default, or leaves a network that
    was fused before. Without a GPU the engines are built for ``options.compute_capability``. ``str(plan.partition)``
    says what went where. Raises UsageError, CheckpointError, CompileError, MissingDependencyError.
    """
    if backend not in FLAVORS:
        raise UsageError(f"plans are built with {' or '.join(FLAVORS)}, not with {backend!r}")
    opened = open_model(model, dtype=dtype, batch=batch, max_length=max_length)
    if fuse is not None or opened.network.fusion_report is None:
        chosen = default_fusion(backend) if fuse is None else fuse
        opened.network.fuse(() if chosen == "none" else chosen)
    return save_plan(opened.network, out, backend, options, progress, opened.attachments, opened.language_model)


def run_plan(
    path: str | Path, inputs: str | Path | Mapping[str, np.ndarray], out: str | Path | None = None
) -> dict[str, np.ndarray]:
    """Run a plan once on arrays or a .npz file of them; writes the outputs to ``out`` where it is given.

    Types that NumPy cannot store (bfloat16, 8-bit floats) are stored as unsigned integers with a table of their names.
    Raises PlanError, DeviceError, MissingDependencyError, UsageError, and GraphError for inputs that do not fit.
    """
    arrays = load_arrays(inputs) if isinstance(inputs, (str, Path)) else dict(inputs)
    outputs = load(read_plan(path), graphs=False)(**arrays)
    if out is not None:
        save_arrays(out, outputs)
    return outputs


def export_engines(path: str | Path, folder: str | Path) -> list[Path]:
    """Write each engine of a plan to ``folder/<piece>.engine``, for other programs (see docs/engines.md).

    A TensorRT plan is one such file; a plan with kernels between its engines needs this kit to run. Raises PlanError.
    """
    plan = read_plan(path)
    written = []
    for name, engine in plan.engines.items():
        written.append(Path(folder) / f"{name}.engine")
        replace_file(written[-1], [engine])
    return written


# --- inspect -----------------------------------------------------------------------------------------------------


def inspect_plan(path: str | Path) -> dict[str, Any]:
    """What a plan file holds, as plain data ready for JSON; needs neither a GPU nor the library.

    Keys: ``file`` (size, versions, target, digests), ``network`` (dims, inputs, outputs, states), ``pieces`` (engines
    in order: bytes, nodes, layers, plugins, precisions, and the inspector's data where the plan was built on a GPU),
    ``kernels`` (registered ops between engines, with the kernel and tactic that the target takes at the tuned sizes),
    ``nodes`` (where each went and why), ``memory`` (bytes between the steps for the smallest, tuned and largest sizes).
    """
    plan = read_plan(path)
    header, network = plan.file.header, plan.network
    target = _target(header["compute_capability"])
    return {
        "file": {
            "path": str(plan.file.path),
            "bytes": plan.file.size,
            **{k: header[k] for k in ("kit", "backend", "library", "compute_capability")},
            **{k: header[k] for k in ("network_digest", "weights_digest", "options", "language_model")},
            "attachments": {name: len(plan.attachment(name)) for name in header["attachments"]},
        },
        "network": {
            "name": network.name,
            "dims": {d.name: [d.min, d.tuned, d.max] for d in network.dims.values()},
            "inputs": [str(t) for t in network.inputs.values()],
            "outputs": [f"{name} = {t}" for name, t in network.outputs.items()],
            "states": [str(t) for t in network.states.values()],
            "parameters": len(network.parameters),
        },
        "pieces": [_piece(plan, row) for row in header["pieces"]],
        "kernels": [_kernel(s.node, target) for s in plan.partition.singles if s.kind == KERNEL],
        "nodes": header["placed"],
        "memory": {name: {"sizes": s, "bytes": arena_bytes(plan, s)} for name, s in corner_sizes(network)},
    }


def _piece(plan: Plan, row: Mapping[str, Any]) -> dict[str, Any]:
    piece = next(p for p in plan.partition.pieces if p.name == row["name"])
    inspected = row["inspected"]
    return {
        "name": piece.name,
        "bytes": len(plan.engines[piece.name]),
        "nodes": [n.name for n in piece.nodes],
        "layers": row["layers"],
        "plugins": row["plugins"],
        "precisions": dict(Counter(t.dtype for n in piece.nodes for t in n.outputs)),
        "inputs": [str(t) for t in piece.inputs],
        "outputs": [str(t) for t in piece.outputs],
        "in_place": dict(piece.aliases),
        "parameters": len(piece.parameters),
        "inspected": None if inspected is None else json.loads(bytes(plan.file.blobs[inspected])),
    }


def _target(capability: str) -> Architecture | None:
    """The architecture that a plan's kernels would run on, where it is known."""
    try:
        return architecture(f"sm_{capability.replace('.', '')}")
    except UsageError:
        return device.current_device().architecture if device.has_gpu() else None


def _kernel(node: Node, target: Architecture | None) -> dict[str, Any]:
    dims = {d.name: d.tuned for d in node.network.dims.values()}
    op = registry.get(node.op)
    row: dict[str, Any] = {"node": node.name, "op": node.op, "kernel": None, "tactic": None}
    row["attributes"] = {k: resolve(v, dims) for k, v in node.attributes.items()}
    row["precisions"] = dict(Counter(t.dtype for t in node.outputs))
    if target is not None:
        shapes = {name: resolve(t.shape, dims) for name, t in node.named_inputs().items()}
        dtypes = {name: t.dtype for name, t in node.named_inputs().items()}
        try:
            choice = op.choose(op.bind(shapes, dtypes, row["attributes"]), target)
        except ContractError as error:
            row["refused"] = str(error)
        else:
            row["kernel"], row["tactic"] = choice.kernel.name, choice.kernel.tactic_label(choice.tactic)
    return row


# --- text --------------------------------------------------------------------------------------------------------


def plan_session(path: str | Path, *, graphs: bool = True) -> Session:
    """A session of the language model in a plan file, with the tokenizer and configuration that the plan carries.

    Raises UsageError for a plan of another network, and what :func:`trtforge.graph_api.engines.plan.load` raises.
    """
    from trtforge.graph_api.llm.checkpoint import text_parts

    plan = read_plan(path)
    model = plan.language_model
    if model is None:
        raise UsageError(f"{path} is no language model's plan; trtforge run takes arrays")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in plan.file.header["attachments"]:
            (folder / Path(name).name).write_bytes(plan.attachment(name))
        config, tokenizer = text_parts(folder)
    return Session.of_executable(
        config,
        tokenizer,
        load(plan, graphs),
        dtype=model["dtype"],
        batch=model["batch"],
        max_length=model["max_length"],
    )


def generate_plan(
    path: str | Path,
    prompt: str,
    *,
    max_tokens: int = 100,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    on_text: Any = None,
) -> GenerationResult:
    """Continue ``prompt`` with the language model in a plan file; arguments as for ``trtforge.generate``."""
    sampling = Sampling(temperature, top_k, top_p, seed)
    return plan_session(path).generate(prompt, max_tokens=max_tokens, sampling=sampling, on_text=on_text)


__all__ = [
    "build_plan",
    "export_engines",
    "generate_plan",
    "inspect_plan",
    "is_plan",
    "plan_session",
    "run_plan",
]

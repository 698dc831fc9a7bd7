"""Plans: a network built for one library version and GPU, in one file that runs without the model's source.

The file holds the graph as JSON, the engines, and the arrays that registered ops read. Loading rebuilds the graph
with all its checks, holds versions, GPU and digests against what is here, and only then hands bytes to the library.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trtforge.bindings import device
from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import ForgeError, GraphError, PlanError
from trtforge.graph_api.engines.build import BuiltNetwork, build_engines, executable_of
from trtforge.graph_api.engines.builder import BuildOptions, target_of
from trtforge.graph_api.engines.executable import EngineExecutable, lifetimes
from trtforge.graph_api.engines.library import FLAVORS, LOGGER, library_version, log_of, open_library
from trtforge.graph_api.engines.memory import plan_arena
from trtforge.graph_api.engines.network_json import network_from_json, network_to_json
from trtforge.graph_api.engines.partition import Partition, Piece, Placed, Single, Step, check_order, make_piece
from trtforge.graph_api.engines.plan_file import PlanFile, canonical, digest, read_plan_file, write_plan
from trtforge.graph_api.engines.runtime import Engine, Runtime
from trtforge.graph_api.network import Network
from trtforge.graph_api.primitive import PRIMITIVES
from trtforge.graph_api.tensor import Node
from trtforge.kernels import registry

PORTABLE = "portable"
_OLDEST = 80  # compute capability times ten of the oldest GPU that a portable plan runs on


@dataclass(frozen=True, eq=False)
class Plan:
    """A plan file that was read and verified, with the network that it holds."""

    file: PlanFile
    network: Network
    partition: Partition
    options: BuildOptions
    engines: Mapping[str, memoryview]

    @property
    def backend(self) -> str:
        return str(self.file.header["backend"])

    @property
    def language_model(self) -> dict[str, Any] | None:
        """``dtype``, ``batch`` and ``max_length`` of a language model's plan; None for other networks."""
        found: dict[str, Any] | None = self.file.header["language_model"]
        return found

    def attachment(self, name: str) -> bytes:
        """A file of the model that the plan carries, such as ``tokenizer.json``."""
        return bytes(self.file.blobs[self.file.header["attachments"][name]])


@cache
def kit_version() -> str:
    """The version of this kit, as installed."""
    return importlib.metadata.version("trtforge")


def weights_digest(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of arrays."""
    parts = [[name, str(a.dtype), list(a.shape), digest(_bytes(a))] for name, a in sorted(weights.items())]
    return digest(canonical(parts))


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


# --- writing -----------------------------------------------------------------------------------------------------


def save_plan(
    network: Network,
    path: str | Path,
    backend: str = "tensorrt-rtx",
    options: BuildOptions | None = None,
    progress: Any = None,
    attachments: Mapping[str, bytes] | None = None,
    language_model: Mapping[str, Any] | None = None,
) -> Plan:
    """Build ``network`` and write its plan file; returns the plan as it reads from the file.

    Needs no GPU (then the plan is for ``options.compute_capability``). Raises CompileError, MissingDependencyError.
    """
    chosen = options or BuildOptions()
    trt = open_library(backend)
    _, capability = target_of(trt, chosen.compute_capability)
    unbound = [name for name in network.parameters if name not in network.weights]
    if unbound or not network.outputs:
        raise GraphError(
            f"network {network.name!r} cannot be built: "
            + (f"no weights are bound to {', '.join(unbound[:8])}" if unbound else "it has no output")
        )
    built = build_engines(network, backend, chosen, progress)
    blobs: list[bytes] = []

    def blob(data: bytes) -> int:
        blobs.append(data)
        return len(blobs) - 1

    structure = network_to_json(network)
    header = {
        "kit": kit_version(),
        "backend": backend,
        "library": library_version(backend),
        "compute_capability": capability,
        "options": chosen.to_dict(),
        "network": structure,
        "network_digest": digest(canonical(structure)),
        "weights_digest": weights_digest({n: network.weights[n] for n in network.parameters}),
        "ops": {op: registry.get(op).contract.signature() for op in sorted(_registered(network))},
        "steps": [_step(s) for s in built.partition.steps],
        "placed": [vars(p) for p in built.partition.placed],
        "pieces": _pieces(trt, built, blob),
        "arrays": [
            {"name": name, "kind": kind, "dtype": dtype, "shape": list(array.shape), "blob": blob(bytes(_bytes(array)))}
            for name, kind, dtype, array in _arrays(network, built.partition)
        ],
        "attachments": {name: blob(data) for name, data in sorted((attachments or {}).items())},
        "language_model": None if language_model is None else dict(language_model),
    }
    write_plan(path, header, blobs)
    return read_plan(path)


def _registered(network: Network) -> set[str]:
    return {n.op for n in network.nodes if n.op not in PRIMITIVES}


def _step(step: Step) -> dict[str, Any]:
    if isinstance(step, Piece):
        return {"engine": step.name, "nodes": [n.name for n in step.nodes]}
    return {step.kind: step.node.name}


def _pieces(trt: Any, built: BuiltNetwork, blob: Any) -> list[dict[str, Any]]:
    """One row per engine; with a GPU at hand the inspector's JSON is kept, because reading it needs a loaded engine."""
    runtime = Runtime(trt) if device.has_gpu() else None
    rows = []
    for piece in built.pieces:
        inspected = None
        if runtime is not None:
            inspected = blob(json.dumps(Engine(runtime, piece.piece, piece.engine).describe()).encode())
        rows.append(
            {
                "name": piece.piece.name,
                "blob": blob(piece.engine),
                "layers": list(piece.layers),
                "plugins": list(piece.plugins),
                "inspected": inspected,
            }
        )
    return rows


def _arrays(network: Network, cuts: Partition) -> list[tuple[str, str, str, np.ndarray]]:
    """The constants, and the parameters that something besides an engine reads."""
    read = {t.name for s in cuts.singles for t in s.node.tensors} | {t.name for t in network.outputs.values()}
    rows = [(n, "constant", t.dtype, np.asarray(t.value)) for n, t in network.constants.items()]
    rows += [(n, "parameter", t.dtype, network.weights[n]) for n, t in network.parameters.items() if n in read]
    return rows


# --- reading -----------------------------------------------------------------------------------------------------


def read_plan(path: str | Path) -> Plan:
    """Read and verify a plan file without running anything of it; needs neither the library nor a GPU.

    Raises PlanError for a file that is damaged or of another format, of another version of this kit, or whose ops
    are not registered here as they were when it was built.
    """
    file = read_plan_file(path)
    try:
        return _decoded(file)
    except PlanError as error:
        raise PlanError(f"{file.path}: {error}") from error
    except (ForgeError, LookupError, TypeError, ValueError, AttributeError, AssertionError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise PlanError(f"{file.path} was altered, or does not fit this kit: {what}") from error


def _decoded(file: PlanFile) -> Plan:
    header = file.header
    if header["kit"] != kit_version():
        raise PlanError(f"built by TRTForge {header['kit']}, and this is {kit_version()}; build the plan again")
    if header["backend"] not in FLAVORS:
        raise PlanError(f"built for the backend {header['backend']!r}; known: {', '.join(FLAVORS)}")
    if digest(canonical(header["network"])) != header["network_digest"]:
        raise PlanError("the digest of the network does not fit")
    for op, signature in header["ops"].items():
        if registry.get(op).contract.signature() != signature:
            raise PlanError(f"the op {op} has another contract here: {registry.get(op).contract.signature()}")
    arrays = {e["name"]: _array(file, e) for e in header["arrays"]}
    kinds = {e["name"]: e["kind"] for e in header["arrays"]}
    network = network_from_json(header["network"], {n: a for n, a in arrays.items() if kinds[n] == "constant"})
    network.weights.update((n, a) for n, a in arrays.items() if kinds[n] == "parameter")
    nodes = {n.name: n for n in network.nodes}
    steps = tuple(_read_step(network, nodes, entry) for entry in header["steps"])
    check_order(network, steps)
    placed = tuple(Placed(**row) for row in header["placed"])
    cuts = Partition(network.name, steps, placed, FLAVORS[header["backend"]].title)
    engines = {row["name"]: _blob(file, row["blob"]) for row in header["pieces"]}
    if set(engines) != {p.name for p in cuts.pieces} or len(engines) != len(header["pieces"]):
        raise PlanError("its engines are not those of its steps")
    model = header["language_model"]
    if model is not None and not {"dtype", "batch", "max_length"} <= set(model):
        raise PlanError("the description of its language model is incomplete")
    for index in header["attachments"].values():
        _blob(file, index)
    for row in header["pieces"]:
        if row["inspected"] is not None:
            json.loads(bytes(_blob(file, row["inspected"])))
    _text(header, "library"), _text(header, "compute_capability"), _text(header, "weights_digest")
    return Plan(file, network, cuts, BuildOptions(**header["options"]), engines)


def _blob(file: PlanFile, index: Any) -> memoryview:
    if type(index) is not int or not 0 <= index < len(file.blobs):
        raise PlanError(f"there is no blob {index!r}")
    return file.blobs[index]


def _text(header: Mapping[str, Any], key: str) -> str:
    if not isinstance(header[key], str):
        raise PlanError(f"its {key} is no text")
    return str(header[key])


def _array(file: PlanFile, entry: Mapping[str, Any]) -> np.ndarray:
    row = DTYPES[entry["dtype"]]
    shape = tuple(entry["shape"])
    data = np.frombuffer(bytes(_blob(file, entry["blob"])), np.uint8)
    fits = data.size == int(np.prod(shape, dtype=np.int64)) * row.itemsize
    if not fits or entry["kind"] not in ("constant", "parameter"):
        raise PlanError(f"the array {entry['name']!r} does not fit its bytes")
    return data.view(row.numpy).reshape(shape)


def _read_step(network: Network, nodes: Mapping[str, Node], entry: Mapping[str, Any]) -> Step:
    if "engine" in entry:
        return make_piece(network, entry["engine"], tuple(nodes[n] for n in entry["nodes"]))
    ((kind, name),) = entry.items()
    if kind not in ("kernel", "view", "primitive"):
        raise PlanError(f"there is no step of kind {kind!r}")
    return Single(nodes[name], kind)


# --- running -----------------------------------------------------------------------------------------------------


def check_compatible(plan: Plan) -> None:
    """Raise PlanError unless this library and this GPU can run the plan; nothing is deserialized.

    MissingDependencyError without the library, DeviceError without a GPU.
    """
    header, path = plan.file.header, plan.file.path
    here = library_version(plan.backend)
    title = FLAVORS[plan.backend].title
    if header["library"] != here:
        raise PlanError(f"{path} was built with {title} {header['library']}, and {here} is here; build the plan again")
    device.require_gpu(f"running the plan {path}")
    gpu = device.current_device()
    wanted, found = header["compute_capability"], f"{gpu.cc // 10}.{gpu.cc % 10}"
    if wanted == PORTABLE and gpu.cc < _OLDEST:
        raise PlanError(f"{path} runs on compute capability 8.0 and later; {gpu.name} has {found}")
    if wanted not in (PORTABLE, found):
        raise PlanError(f"{path} was built for compute capability {wanted}; {gpu.name} has {found}; build it here")
    _check_engines(plan)


def _check_engines(plan: Plan) -> None:
    """Ask the library about the engines' own headers, where it can say (TensorRT for RTX)."""
    trt = open_library(plan.backend)
    runtime = trt.Runtime(log_of(trt))
    if not hasattr(runtime, "get_engine_validity"):
        return
    for name, engine in plan.engines.items():
        validity, diagnostics = runtime.get_engine_validity(bytes(engine))
        if validity != trt.EngineValidity.INVALID:
            continue
        kinds = trt.EngineInvalidityDiagnostics.__members__.items()
        reasons = {kind for kind, bit in kinds if int(bit) & int(diagnostics)}
        text = (
            f"{plan.file.path}: {name} cannot run here: {', '.join(sorted(reasons)) or 'the library gives no reason'}"
        )
        # The library has no name for some GPUs that it builds for and runs on, such as those of compute capability 9.0.
        if reasons == {"UNSUPPORTED_CC"} and plan.file.header["compute_capability"] != PORTABLE:
            LOGGER.warning("%s; trying, because it was built for this GPU", text)
            continue
        raise PlanError(text)


def load_plan(path: str | Path, graphs: bool = True, runtime_cache: str = "") -> EngineExecutable:
    """Verify a plan file and make it callable: ``load_plan(path)(**inputs)``.

    Its ``refit`` needs every weight of the network once, because a plan carries those inside its engines only there.
    Raises PlanError, MissingDependencyError, DeviceError.
    """
    return load(read_plan(path), graphs, runtime_cache)


def load(plan: Plan, graphs: bool = True, runtime_cache: str = "") -> EngineExecutable:
    """Make a verified plan callable. Raises PlanError, MissingDependencyError, DeviceError."""
    check_compatible(plan)
    return executable_of(plan.network, plan.partition, plan.engines, plan.backend, plan.options, graphs, runtime_cache)


def arena_bytes(plan: Plan, sizes: Mapping[str, int]) -> int:
    """Bytes of inputs, outputs and values between the steps at these dimensions, without engines' scratch memory."""
    return plan_arena(lifetimes(plan.network, plan.partition).blocks(sizes)).size


def corner_sizes(network: Network) -> Sequence[tuple[str, dict[str, int]]]:
    """The smallest, tuned and largest values of the dimensions."""
    dims = network.dims.values()
    return (
        ("min", {d.name: d.min for d in dims}),
        ("opt", {d.name: d.tuned for d in dims}),
        ("max", {d.name: d.max for d in dims}),
    )

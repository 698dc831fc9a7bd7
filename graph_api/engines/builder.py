"""From a piece of a network to the bytes of an engine."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtforge.bindings import device
from trtforge.bindings.errors import CompileError, UsageError
from trtforge.bindings.files import replace_file
from trtforge.graph_api.engines import rules_compute, rules_elementwise, rules_layout
from trtforge.graph_api.engines.library import errors_of, log_of
from trtforge.graph_api.engines.lowering import RULES, Lowering
from trtforge.graph_api.engines.partition import Piece
from trtforge.graph_api.engines.plugins import add_registered
from trtforge.graph_api.engines.progress import monitor_of
from trtforge.graph_api.network import Network
from trtforge.graph_api.primitive import PRIMITIVES
from trtforge.graph_api.shapes import Dim
from trtforge.kernels.dims import IntLike, constant_value, evaluate, free_symbols

__all__ = ["RULES", "BuildOptions", "BuiltPiece", "build_piece", "profile_of", "target_of"]
_RULE_MODULES = (rules_compute, rules_elementwise, rules_layout)  # importing them fills RULES
_MIB = 1 << 20


@dataclass(frozen=True)
class BuildOptions:
    """What the builder is told.

    ``workspace_mib``: the most scratch memory of a kernel, MiB (0: the library's default). ``optimization_level``: 0
    (fast build) to 5 (long search), -1 for the library's default. ``compute_capability``: "8.9" and the like, or
    "auto": the GPU at hand, where there is none the library's portable target. ``refittable``: engines whose weights
    can be replaced in place (TensorRT only; TensorRT for RTX rebuilds). ``plugins``: how registered ops enter a
    TensorRT engine, "aot" (machine code inside it) or "jit" (Python at run time). ``timing_cache``: a file that keeps
    measured timings between builds (TensorRT). ``tf32``: allow TF32 products of float32. ``detailed``: keep layer
    details for the inspector.
    """

    workspace_mib: int = 0
    optimization_level: int = -1
    compute_capability: str = "auto"
    refittable: bool = True
    plugins: str = "aot"
    timing_cache: str = ""
    tf32: bool = False
    detailed: bool = True

    def __post_init__(self) -> None:
        if self.workspace_mib < 0:
            raise UsageError(f"workspace_mib is {self.workspace_mib}; accepted: 0 (the default) or more")
        if not -1 <= self.optimization_level <= 5:
            raise UsageError(f"optimization_level is {self.optimization_level}; accepted: 0 to 5, or -1 (the default)")
        if self.plugins not in ("aot", "jit"):
            raise UsageError(f"plugins is {self.plugins!r}; accepted: 'aot', 'jit'")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class BuiltPiece:
    """An engine's bytes, with what is known of it before anything runs."""

    piece: Piece
    engine: bytes
    layers: tuple[str, ...]
    plugins: tuple[str, ...] = ()


def target_of(trt: Any, compute_capability: str) -> tuple[Any, str]:
    """The library's enumerator to build for (None: its portable default), and the text that a plan records.

    "auto" is the GPU at hand. A device that the library has no name for (compute capability 9.0 in TensorRT for RTX
    1.5) gets the portable target, which its engines then specialize when they are loaded.
    """
    kinds = getattr(trt, "ComputeCapability", None)
    if compute_capability == "auto":
        if not device.has_gpu():
            return None, "portable"
        cc = device.current_device().cc
    else:
        digits = compute_capability.replace("sm_", "").rstrip("a").replace(".", "")
        if not digits.isdigit() or not 75 <= int(digits) <= 150:
            raise UsageError(f"compute_capability is {compute_capability!r}; accepted: auto, or a number such as 8.9")
        cc = int(digits)
        known = [] if kinds is None else [n[2:] for n in kinds.__members__ if n.startswith("SM")]
        here = device.current_device().cc if device.has_gpu() else None
        if str(cc) not in known and cc != here:
            accepted = ", ".join(f"{k[:-1]}.{k[-1]}" for k in known) or "the GPU at hand only"
            raise UsageError(f"this library cannot build for {cc // 10}.{cc % 10} here; accepted: auto, {accepted}")
    return getattr(kinds, f"SM{cc}", None), f"{cc // 10}.{cc % 10}"


def profile_of(shape: Sequence[IntLike], dims: Mapping[str, Dim]) -> tuple[tuple[int, ...], ...]:
    """The smallest, tuned and largest shape of a tensor.

    Extremes of an expression are taken over the corners of its dimensions' ranges: right for whatever grows or falls
    in each dimension, as sizes of tensors do.
    """
    lows, tuned, highs = [], [], []
    for size in shape:
        known = constant_value(size)
        if known is not None:
            values, best = [known], known
        else:
            names = sorted(free_symbols(size))
            corners = itertools.product(*((dims[n].min, dims[n].max) for n in names))
            best = evaluate(size, {n: dims[n].tuned for n in names})
            values = [best, *(evaluate(size, dict(zip(names, corner))) for corner in corners)]
        lows.append(min(values))
        tuned.append(best)
        highs.append(max(values))
    return tuple(lows), tuple(tuned), tuple(highs)


def build_piece(
    trt: Any,
    network: Network,
    piece: Piece,
    weights: Mapping[str, np.ndarray],
    options: BuildOptions,
    progress: Any = None,
) -> BuiltPiece:
    """Lower the nodes of ``piece`` and build. Raises CompileError with the library's own lines.

    ``progress``: a ``rich.progress.Progress`` that shows the builder's phases, or None.
    """
    errors_of(trt)  # forget lines of earlier builds
    builder = trt.Builder(log_of(trt))
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):  # TensorRT 11 knows no other kind
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(flags)
    definition.name = f"{network.name}.{piece.name}"
    written, plugins = _written(trt, definition, network, piece, weights, options)
    config = builder.create_builder_config()
    target, _ = target_of(trt, options.compute_capability)
    _configure(trt, config, options, target)
    if plugins and piece.aliases:
        _allow_updates(trt, config, piece)
    profile = builder.create_optimization_profile()
    for tensor in (*piece.inputs, *piece.carriers):
        profile.set_shape(tensor.name, *profile_of(tensor.shape, network.dims))
    config.add_optimization_profile(profile)
    layers = tuple(definition.get_layer(i).name for i in range(definition.num_layers))
    monitoring: AbstractContextManager[Any] = nullcontext() if progress is None else monitor_of(trt, progress)
    with _TimingCache(trt, config, options), monitoring as monitor:
        if monitor is not None:
            config.progress_monitor = monitor
        memory = builder.build_serialized_network(definition, config)
    if memory is None:
        raise CompileError(f"{network.name}/{piece.name} ({len(piece.nodes)} nodes) was not built: {errors_of(trt)}")
    del written  # the arrays that the definition points to
    return BuiltPiece(piece, bytes(memory), layers, plugins)


def _written(
    trt: Any,
    definition: Any,
    network: Network,
    piece: Piece,
    weights: Mapping[str, np.ndarray],
    options: BuildOptions,
) -> tuple[Lowering, tuple[str, ...]]:
    lowering = Lowering(trt, definition)
    for tensor in (*piece.inputs, *piece.carriers):
        lowering.input(tensor)
    plugins = []
    for node in piece.nodes:
        for tensor in node.tensors:
            if tensor.kind == "parameter":
                lowering.weight(tensor, weights[tensor.name])
            elif tensor.kind == "constant":
                assert tensor.value is not None
                lowering.weight(tensor, tensor.value)
        arguments = [None if t is None else lowering.values[t] for t in node.inputs]
        if node.op in PRIMITIVES:
            lowering.node(node, arguments)
        else:
            plugins.append(add_registered(lowering, node, arguments, options.plugins))
    for tensor in piece.outputs:
        definition.mark_output(lowering.values[tensor].tensor)
    if options.refittable and trt.__name__ == "tensorrt":
        for name, array in lowering.weights.items():
            if name in network.parameters and not definition.set_weights_name(array, name):
                raise CompileError(f"the weights {name!r} cannot be named for refit: {errors_of(trt)}")
    return lowering, tuple(plugins)


def _configure(trt: Any, config: Any, options: BuildOptions, target: Any) -> None:
    if options.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    if options.optimization_level >= 0:
        config.builder_optimization_level = options.optimization_level
    if options.detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if target is not None and hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)
    if trt.__name__ == "tensorrt" and options.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)


def _allow_updates(trt: Any, config: Any, piece: Piece) -> None:
    """Let plugins of the piece write into their inputs, where one does."""
    from trtforge.plugins.eligibility import ALIASING

    if any(node.updates and node.op not in PRIMITIVES for node in piece.nodes):
        config.set_preview_feature(getattr(trt.PreviewFeature, ALIASING), True)


class _TimingCache:
    """Read the timing cache before a build, and write what it learned afterwards (by rename)."""

    def __init__(self, trt: Any, config: Any, options: BuildOptions):
        # TensorRT for RTX measures nothing while it builds: its kernels are chosen and compiled when they run.
        self.path = Path(options.timing_cache) if options.timing_cache and trt.__name__ == "tensorrt" else None
        self.config = config

    def __enter__(self) -> None:
        if self.path is not None:
            known = self.path.read_bytes() if self.path.is_file() else b""
            self.config.set_TimingCache(self.config.create_TimingCache(known), ignore_mismatch=False)

    def __exit__(self, *exc: object) -> None:
        if self.path is not None and exc[0] is None:
            replace_file(self.path, [bytes(self.config.get_TimingCache().serialize())])

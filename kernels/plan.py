"""A plan: one call of an op, resolved to a loaded kernel with its geometry. What eager calls and networks launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtforge.bindings import ranges
from trtforge.bindings.binary import Binary
from trtforge.bindings.device import current_device
from trtforge.bindings.dtypes import dtype
from trtforge.bindings.errors import DeclarationError
from trtforge.bindings.launch import Launcher, TensorMapSpec
from trtforge.kernels.binding import Binding
from trtforge.kernels.compile import compile_kernel
from trtforge.kernels.contract import Launch
from trtforge.kernels.dims import evaluate
from trtforge.kernels.op import Kernel, Op

_WARP_SIZE = 32


@dataclass(frozen=True)
class Plan:
    """A launchable call. ``launch(pointers, stream)`` takes input then output device pointers, present ones only."""

    kernel: Kernel
    tactic: int
    binding: Binding
    binary: Binary
    launch: Callable[..., None]

    @property
    def label(self) -> str:
        return _label(self.kernel, self.tactic)


def geometry(kernel: Kernel, binding: Binding, launch: Launch, binary: Binary) -> dict[str, Any]:
    """The launch with every expression evaluated: grid, block, shared, scalars, cluster."""

    def triple(value: Any) -> tuple[int, int, int]:
        x, y, z = (evaluate(v, {}) for v in Launch.triple(value))
        return x, y, z

    block = triple(launch.block)
    shared = evaluate(launch.shared, {})
    cluster = triple(launch.cluster) if launch.cluster else None
    if binary.language == "triton":
        block = (_WARP_SIZE * binary.metadata["num_warps"], 1, 1)
        shared = binary.metadata["shared"]
        ctas = binary.metadata.get("num_ctas", 1)
        cluster = (ctas, 1, 1) if ctas > 1 else None
    return {
        "grid": triple(launch.grid),
        "block": block,
        "shared": shared,
        "scalars": tuple(evaluate(s, {}) for s in launch.scalars),
        "cluster": cluster,
    }


def tensor_map_specs(binding: Binding, launch: Launch) -> list[TensorMapSpec]:
    """The declared tensor maps with numbers filled in."""
    order = [*binding.inputs, *binding.outputs]
    specs = []
    for declared in launch.tensor_maps:
        if declared.tensor not in order:
            raise DeclarationError(f"{binding.op}: a tensor map names {declared.tensor!r}, which is not present")
        shape = tuple(evaluate(n, {}) for n in declared.shape)
        if declared.strides is not None:
            strides = tuple(evaluate(n, {}) for n in declared.strides)
        else:
            running, contiguous = 1, []
            for size in shape[:-1]:
                running *= size
                contiguous.append(running)
            strides = tuple(contiguous)
        spec = TensorMapSpec(
            order.index(declared.tensor),
            dtype(declared.dtype or binding.dtypes[declared.tensor]),
            shape,
            strides,
            tuple(evaluate(n, {}) for n in declared.box),
            declared.swizzle,
        )
        spec.check(f"{binding.op}: tensor map of {declared.tensor!r}")
        specs.append(spec)
    return specs


def make(kernel: Kernel, tactic: int, binding: Binding) -> Plan:
    """Compile (or take from the cache), load and prepare a kernel for the current device."""
    target = current_device().architecture
    binary = compile_kernel(kernel, binding, tactic, target)
    launch = kernel.launch(binding, tactic, target)
    launcher = Launcher(
        binary,
        inputs=len(binding.inputs),
        outputs=len(binding.outputs),
        tensor_maps=tensor_map_specs(binding, launch),
        **geometry(kernel, binding, launch, binary),
    )
    launched = ranges.around(launcher, _label(kernel, tactic), lambda: {**_sizes(binding), "tactic": tactic})
    return Plan(kernel, tactic, binding, binary, launched)


def _label(kernel: Kernel, tactic: int) -> str:
    return f"{kernel} [{kernel.tactic_label(tactic)}]"


def _sizes(binding: Binding) -> dict[str, int]:
    return {f"{name}[{axis}]": int(size) for name, s in binding.inputs.items() for axis, size in enumerate(s)}


def plan(
    op: Op,
    shapes: Mapping[str, Sequence[int]],
    dtypes: Mapping[str, str],
    attributes: Mapping[str, Any] | None = None,
    *,
    kernel: str | None = None,
    tactic: int | Mapping[str, Any] | None = None,
    alignment: int = 256,
) -> Plan:
    """Resolve a call on the current device: bind, choose, compile, load. Raises ContractError, CompileError."""
    binding = op.bind({k: tuple(v) for k, v in shapes.items()}, dtypes, attributes)
    choice = op.choose(binding, current_device().architecture, kernel=kernel, tactic=tactic, alignment=alignment)
    return make(choice.kernel, choice.tactic, binding)

"""Whether a kernel can be an ahead-of-time TensorRT plugin, and if not why.

An AOT plugin embeds machine code in the engine; TensorRT computes grid, block, dynamic shared memory and int32
scalars from symbolic shapes and passes nothing else (TensorRT documentation, "Quickly Deployable Plugins", AOT).
Kernels with tensor maps or clusters are embedded in another form (:mod:`trtforge.kernels.embedded`).
"""

from __future__ import annotations

from dataclasses import dataclass

from trtforge.bindings.architectures import INSPECTED, Architecture, architecture
from trtforge.bindings.errors import DeclarationError, ForgeError
from trtforge.kernels import embedded
from trtforge.kernels.binding import Binding
from trtforge.kernels.contract import Launch
from trtforge.kernels.dims import INTEGER_OPERATIONS, IntLike, free_symbols, lower
from trtforge.kernels.op import Kernel, Op

#: What TensorRT's symbolic integers can express (DimensionOperation; % as a - a // b * b).
_EXPRESSIBLE = {name: INTEGER_OPERATIONS[name] for name in ("+", "*", "//", "%", "cdiv", "min", "max")}


#: ``trt.PreviewFeature`` that the builder's configuration must enable where plugins have aliased outputs.
ALIASING = "ALIASED_PLUGIN_IO_10_03"


@dataclass(frozen=True)
class Eligibility:
    """``reason`` says why not, or what else an engine needs; ``static``: dimensions to fix when it is built."""

    aot: bool
    reason: str = ""
    static: tuple[str, ...] = ()


def launch_expressions(launch: Launch) -> tuple[IntLike, ...]:
    """Everything that TensorRT computes from shapes: grid, block, shared memory, scalars."""
    return (*Launch.triple(launch.grid), *Launch.triple(launch.block), launch.shared, *launch.scalars)


def static_symbols(launch: Launch) -> set[str]:
    """Symbols that must have a value when the kernel is compiled or that TensorRT's algebra cannot carry."""
    names: set[str] = set()
    for constant in launch.constants.values():
        names |= free_symbols(constant)
    for value in launch_expressions(launch):
        symbols = free_symbols(value)
        try:
            lower(value, dict.fromkeys(symbols, 1), int, _EXPRESSIBLE)
        except DeclarationError:
            names |= symbols
    return names


def updates_in_place(op: Op) -> str:
    """What a network must ask for so that an op may update its inputs, "" for an op that does not.

    NVIDIA's layer takes aliased outputs of JIT and AOT plugins alike (``TensorDesc.aliased``); the kernel is then given
    one address twice.
    """
    if not op.aliases:
        return ""
    return f"updates {', '.join(op.aliases.values())} in place: with the preview feature {ALIASING}"


def serving_binding(kernel: Kernel, tactic: int, target: Architecture) -> Binding | None:
    """A declared case that the kernel serves with this tactic."""
    op = kernel.op
    for case in op.cases:
        for dtypes in op.dtype_combinations(case):
            binding = op.bind_case(case, dtypes)
            if kernel.refusal(binding, tactic, target) is None:
                return binding
    return None


def aot_eligibility(kernel: Kernel) -> Eligibility:
    """Whether some tactic of the kernel can be embedded: its geometry is evaluated over symbols and looked through."""
    target = next((architecture(a) for a in reversed(INSPECTED) if kernel.serves(architecture(a))), None)
    if target is None:
        return Eligibility(False, "it names no architecture that is served")
    reason = "it serves none of the declared cases"
    for tactic in range(len(kernel.tactics)):
        binding = serving_binding(kernel, tactic, target)
        if binding is None:
            continue
        try:
            launch = kernel.launch(binding.symbolic(), tactic, target)
            obstacle = embedded.obstacle(kernel, tactic, launch)
            if obstacle is None:
                needed = static_symbols(embedded.launch_of(launch, target))
                return Eligibility(True, updates_in_place(kernel.op), tuple(sorted(needed)))
            reason = obstacle
        except ForgeError as error:
            reason = f"its geometry cannot be written over symbolic dimensions: {error}"
    return Eligibility(False, reason)

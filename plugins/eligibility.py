"""Whether a kernel can be an ahead-of-time TensorRT plugin, and if not why.

An AOT plugin embeds machine code in the engine; TensorRT computes grid, block, dynamic shared memory and int32
scalars from symbolic shapes and passes nothing else (TensorRT documentation, "Quickly Deployable Plugins", AOT).
"""

from __future__ import annotations

from dataclasses import dataclass

from trtforge.bindings.architectures import INSPECTED, architecture
from trtforge.bindings.errors import DeclarationError, ForgeError
from trtforge.kernels.contract import Launch
from trtforge.kernels.dims import free_symbols
from trtforge.kernels.op import Kernel


@dataclass(frozen=True)
class Eligibility:
    """``reason`` says why not; ``static`` names the dimensions that must be fixed when the engine is built."""

    aot: bool
    reason: str = ""
    static: tuple[str, ...] = ()


def aot_eligibility(kernel: Kernel) -> Eligibility:
    """Evaluate the kernel's geometry over symbols and look for what an engine cannot pass."""
    op = kernel.op
    target = next((architecture(a) for a in reversed(INSPECTED) if kernel.serves(architecture(a))), None)
    if target is None:
        return Eligibility(False, "it names no architecture that is served")
    binding = next(
        (
            bound
            for case in op.cases
            for dtypes in op.dtype_combinations(case)
            if kernel.refusal(bound := op.bind_case(case, dtypes), 0, target) is None
        ),
        None,
    )
    if binding is None:
        return Eligibility(False, "it serves none of the declared cases")
    try:
        launch = kernel.launch(binding.symbolic(), 0, target)
    except DeclarationError as error:
        return Eligibility(False, f"its geometry cannot be written over symbolic dimensions: {error}")
    if launch.tensor_maps:
        return Eligibility(False, "it takes TMA tensor maps that the host builds")
    if launch.cluster is not None:
        return Eligibility(False, "it is launched in clusters, which an engine's launch parameters do not have")
    try:
        return Eligibility(True, static=_static_dimensions(launch))
    except ForgeError as error:
        return Eligibility(False, str(error))


def _static_dimensions(launch: Launch) -> tuple[str, ...]:
    names: set[str] = set()
    for value in launch.constants.values():
        names |= free_symbols(value)
    for value in (*Launch.triple(launch.grid), *Launch.triple(launch.block), launch.shared, *launch.scalars):
        if "next_power_of_2" in str(value):
            names |= free_symbols(value)
    return tuple(sorted(names))

"""What a quantization pass did to a network."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from trtforge.graph_api.quantization.linears import Skipped
from trtforge.graph_api.quantization.packing import PackedLinear


@dataclass(frozen=True)
class Quantized:
    """One linear layer in codes.

    ``bits``: of a weight's code; ``computed``: ``scaled_gemm`` or ``dequantize + matmul``; ``weight_error`` and
    ``output_error``: ‖q - f‖ / ‖f‖ of the weight, and of the product on calibration rows (None without data); both
    against the layer's float weights after scales were moved, which is what the codes stand for.
    """

    name: str
    node: str
    shape: tuple[int, int]
    bits: int
    computed: str
    weight_error: float
    output_error: float | None
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class QuantizationReport:
    """Layers in codes, layers left in float with the reason, parameters that took moved scales, quantized caches."""

    network: str
    recipe: str
    layers: tuple[Quantized, ...]
    skipped: tuple[Skipped, ...]
    moved: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    kv_cache: str | None = None
    seconds: float = 0.0
    #: The codes by layer name, for :func:`save_quantized`; no part of the report's text.
    packed: dict[str, PackedLinear] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON, without the codes."""
        data = asdict(replace(self, packed={}))
        del data["packed"]
        return data

    def __str__(self) -> str:
        before, after = (sum(getattr(q, f"bytes_{w}") for q in self.layers) for w in ("before", "after"))
        lines = [
            f"{self.recipe} of {self.network}: {len(self.layers)} linear layers, {before:,} -> {after:,} bytes, "
            f"{len(self.skipped)} left in float"
        ]
        lines += [
            f"  {q.name}: {q.bits} bits, {q.computed}, weight error {q.weight_error:.2%}"
            + ("" if q.output_error is None else f", output error {q.output_error:.2%}")
            for q in self.layers
        ]
        lines += [f"  {s.name}: {s.reason}" for s in self.skipped]
        if self.caches:
            lines.append(f"  KV cache as {self.kv_cache}: {len(self.caches)} states")
        return "\n".join(lines)

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(title=str(self).splitlines()[0], title_justify="left")
        for title in ("layer", "bits", "computed by", "weight error", "output error"):
            table.add_column(title, overflow="fold", justify="right" if title.endswith(("bits", "error")) else "left")
        for q in self.layers:
            output = "" if q.output_error is None else f"{q.output_error:.2%}"
            table.add_row(q.name, str(q.bits), q.computed, f"{q.weight_error:.2%}", output)
        for s in self.skipped:
            table.add_row(s.name, "", f"[yellow]{s.reason}", "", "")
        return table

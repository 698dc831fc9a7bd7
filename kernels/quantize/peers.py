"""What quantization is timed against: the same arithmetic in PyTorch, eager and through torch.compile.

The formulations are those that PyTorch users write. They agree with the kernels on finite numbers; NaN and infinities
among the inputs are treated as PyTorch treats them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from trtforge.kernels import Op
from trtforge.kernels.quantize.granularity import BLOCK, Granularity
from trtforge.kernels.quantize.reference import QMAX, SMALLEST_SCALE

#: A plain number: torch.compile does not trace NumPy's scalars in one graph.
_SMALLEST_SCALE = float(SMALLEST_SCALE)
#: A part of quantization per tile or tensor: rows of whole tiles.
_PART_ROWS = 2 * BLOCK

WHOLE = [
    (
        lambda d: all(d[name] % BLOCK == 0 for name in d if name not in ("M", "P")),
        f"is written for whole blocks of {BLOCK}",
    )
]


def both(op: Op, fn: Callable[..., Any], blocks: bool = False) -> None:
    """Declare ``fn`` as it is and through torch.compile. ``blocks``: it needs whole blocks along the dimensions."""
    requires = WHOLE if blocks else []
    op.peer("PyTorch eager", requires=requires)(fn)
    op.peer("torch.compile", compile=True, requires=requires)(fn)


def scale_from(largest: Any, to: str) -> Any:
    """max(largest / qmax, 2^-126) in float32."""
    return (largest.float() / QMAX[to]).clamp_min(_SMALLEST_SCALE)


def codes(quotient: Any, to: str) -> Any:
    """Float32 quotients rounded to int8 or fp8 codes, saturating."""
    import torch

    if to == "int8":
        return quotient.round().clamp(-128, 127).to(torch.int8)
    return quotient.clamp(-QMAX[to], QMAX[to]).to(getattr(torch, to))


def _grouped(x: Any, group: tuple[int, int]) -> Any:
    """A matrix (or its leading dimensions flattened) as [groups down, rows, groups across, columns]."""
    matrix = x.reshape(-1, x.shape[-1])
    rows, columns = group[0] or matrix.shape[0], group[1] or matrix.shape[1]
    return matrix.reshape(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)


def _scales(x: Any, scale: Any, group: tuple[int, int]) -> Any:
    shape = _grouped(x, group).shape
    return scale.reshape(shape[0], 1, shape[2], 1)


def dynamic(op: Op, granularity: Granularity) -> None:
    """Peers of quantize_<granularity> with the scales from the data."""
    group = granularity.group

    def quantize(x: Any, *, to: str) -> Any:
        grouped = _grouped(x, group)
        scale = scale_from(grouped.abs().amax(dim=(1, 3), keepdim=True), to)
        y = codes(grouped.float() / scale, to).reshape(x.shape)
        rows = x.shape[:-1] if group[0] == 1 else (scale.shape[0],)
        return y, scale.reshape(*rows, *(() if granularity.name == "token" else (scale.shape[2],)))

    both(op, quantize, blocks=granularity.name in ("block", "tile"))
    _part_of_tiles(op, granularity, "x", "y", scale="output")


def tensor(absmax_partials: Op, quantize_tensor: Op, parts: int) -> None:
    """Peers of the two halves of per-tensor quantization."""

    def partials(x: Any) -> Any:
        return x.reshape(parts, -1).abs().amax(dim=1).float()

    whole = [(lambda d: d.M * d.K % (8 * parts) == 0, f"is written for {parts} equal shares")]
    absmax_partials.peer("PyTorch eager", requires=whole)(partials)
    absmax_partials.peer("torch.compile", compile=True, requires=whole)(partials)

    def quantize(x: Any, partials: Any, *, to: str) -> Any:
        scale = scale_from(partials.amax().reshape(1), to)
        return codes(x.float() / scale, to), scale

    both(quantize_tensor, quantize)

    @quantize_tensor.part
    def _(rng: np.random.Generator, d: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Some rows; the scale comes from the partial maxima, whatever the rows are."""
        rows = _some_rows(rng, d.M, 1)
        return {"x": rows}, {"y": rows, "scale": np.s_[:]}


def static(op: Op, granularity: Granularity) -> None:
    """Peers of quantize_<granularity>_static."""
    group = granularity.group

    def quantize(x: Any, scale: Any, *, to: str) -> Any:
        return codes(_grouped(x, group).float() / _scales(x, scale, group), to).reshape(x.shape)

    both(op, quantize, blocks=granularity.name in ("block", "tile"))
    _part_of_tiles(op, granularity, "x", "y", scale="input")


def dequantization(op: Op, granularity: Granularity) -> None:
    """Peers of dequantize_<granularity>."""
    group = granularity.group

    def dequantize(y: Any, scale: Any, *, to: str) -> Any:
        import torch

        return (_grouped(y, group).float() * _scales(y, scale, group)).to(getattr(torch, to)).reshape(y.shape)

    both(op, dequantize, blocks=granularity.name in ("block", "tile"))
    _part_of_tiles(op, granularity, "y", "x", scale="input")


def int4(pack: Op, unpack: Op, dequantize: Op) -> None:
    """Peers of packing and unpacking 4-bit weights."""
    group = (1, BLOCK)

    def packing(x: Any) -> Any:
        import torch

        grouped = _grouped(x, group)
        scale = scale_from(grouped.abs().amax(dim=(1, 3), keepdim=True), "int4")
        values = (grouped.float() / scale).round().clamp(-7, 7).to(torch.int8).reshape(x.shape).view(torch.uint8)
        return (values[:, 0::2] & 0xF) | (values[:, 1::2] << 4), scale.reshape(scale.shape[0], scale.shape[2])

    def unpacked(y: Any) -> Any:
        import torch

        low, high = y & 0xF, y >> 4
        both_halves = torch.stack((low, high), dim=-1).reshape(y.shape[0], -1)
        return (both_halves ^ 8).to(torch.int8) - 8

    def dequantizing(y: Any, scale: Any, *, to: str) -> Any:
        import torch

        values = unpacked(y)
        return (
            (_grouped(values, group).float() * _scales(values, scale, group))
            .to(getattr(torch, to))
            .reshape(values.shape)
        )

    both(pack, packing, blocks=True)
    both(unpack, unpacked)
    both(dequantize, dequantizing, blocks=True)


def _part_of_tiles(op: Op, granularity: Granularity, given: str, made: str, scale: str) -> None:
    """Per tile, rows share scales: the part is rows of whole tiles. Other granularities need no declaration."""
    if granularity.group[0] != BLOCK:
        return

    @op.part
    def _(rng: np.random.Generator, d: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        rows = _some_rows(rng, d.N, BLOCK)
        tiles = np.s_[rows.start // BLOCK : -(-rows.stop // BLOCK)]
        inputs, outputs = {given: rows}, {made: rows}
        (inputs if scale == "input" else outputs)["scale"] = tiles
        return inputs, outputs


def _some_rows(rng: np.random.Generator, rows: int, step: int) -> slice:
    """A run of rows that begins at a multiple of ``step`` and ends at one, or at the end."""
    start = int(rng.integers(-(-rows // step))) * step
    return slice(start, min(start + max(_PART_ROWS, step) // step * step, rows))

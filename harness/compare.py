"""Comparing a kernel's output with the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trtforge.bindings.dtypes import dtype, name_of
from trtforge.kernels.contract import DEFAULT_TOLERANCE, Tolerance
from trtforge.kernels.op import Op

#: Outputs are filled with bytes 0xFF before a kernel runs, which are NaN in every floating dtype.
UNWRITTEN = " (outputs are NaN before the launch: was it written?)"


@dataclass(frozen=True)
class Comparison:
    """``error`` is ||o - r|| / ||r|| for floats, the fraction of differing elements for integers and 8-bit floats."""

    passed: bool
    error: float
    tolerance: float
    reason: str = ""


def tolerance_of(op: Op, dtype_name: str) -> Tolerance:
    """The op's tolerance for an output dtype, completed by the defaults of that dtype."""
    default = DEFAULT_TOLERANCE.get(dtype_name, Tolerance())
    declared = op.tolerance.get(dtype_name, default)
    return Tolerance(
        declared.l2 or default.l2,
        declared.rtol if declared.rtol is not None else default.rtol,
        declared.atol if declared.atol is not None else default.atol,
        declared.steps,
        declared.fraction,
    )


def compare(output: np.ndarray, reference: np.ndarray, tolerance: Tolerance) -> Comparison:
    """Hold an output against the reference. Non-finite values must agree in place and kind."""
    kind = dtype(name_of(reference.dtype))
    if not kind.floating or kind.itemsize == 1:
        return _compare_codes(output, reference, tolerance)
    o, r = output.astype(np.float64), reference.astype(np.float64)
    odd = ~np.isfinite(r)
    if not np.array_equal(np.isfinite(o), ~odd):
        at = _first(np.isfinite(o) == odd)
        told = f"{o[at]:g} at {list(at)}, the reference has {r[at]:g}"
        return Comparison(False, float("inf"), tolerance.l2, told + (UNWRITTEN if np.isnan(o[at]) else ""))
    if odd.any() and not np.array_equal(o[odd], r[odd], equal_nan=True):
        return Comparison(False, float("inf"), tolerance.l2, "infinities or NaN of another kind than the reference's")
    o, r = np.where(odd, 0.0, o), np.where(odd, 0.0, r)
    norm = float(np.linalg.norm(r))
    error = float(np.linalg.norm(o - r)) / norm if norm else float(np.linalg.norm(o))
    if error > tolerance.l2:
        at = tuple(int(i) for i in np.unravel_index(int(np.argmax(np.abs(o - r))), r.shape))
        told = f"relative L2 error {error:.2g} above the tolerance {tolerance.l2:g}"
        told += f", most at {list(at)}: {o[at]:g}, the reference has {r[at]:g}"
        return Comparison(False, error, tolerance.l2, told)
    if tolerance.rtol is not None and tolerance.atol is not None and r.size:
        rms = norm / np.sqrt(r.size)
        excess = np.abs(o - r) - (tolerance.atol * rms + tolerance.rtol * np.abs(r))
        if (excess > 0).any():
            at = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess)), r.shape))
            return Comparison(False, error, tolerance.l2, f"{o[at]:g} at {list(at)}, the reference has {r[at]:g}")
    return Comparison(True, error, tolerance.l2)


def _first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _compare_codes(output: np.ndarray, reference: np.ndarray, tolerance: Tolerance) -> Comparison:
    distance = np.abs(_position(output) - _position(reference))
    if dtype(name_of(reference.dtype)).floating:
        both_nan = np.isnan(output.astype(np.float32)) & np.isnan(reference.astype(np.float32))
        distance = np.where(both_nan, 0, distance)
    differing = float(np.mean(distance > 0)) if distance.size else 0.0
    if differing > tolerance.fraction or (distance.max(initial=0) > tolerance.steps):
        at = np.unravel_index(int(np.argmax(distance)), distance.shape)
        where = [int(i) for i in at]
        return Comparison(
            False, differing, tolerance.fraction, f"{output[at]} at {where} where the reference has {reference[at]}"
        )
    return Comparison(True, differing, tolerance.fraction)


def _position(codes: np.ndarray) -> np.ndarray:
    """Integers in the order of the represented values, so that neighbors differ by one (both zeros are one)."""
    if not dtype(name_of(codes.dtype)).floating:
        return codes.astype(np.int64)
    bits = codes.view(np.uint8).astype(np.int64)
    return np.where(bits < 128, bits, 128 - bits)

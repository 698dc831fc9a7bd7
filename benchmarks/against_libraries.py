"""Our kernels and the libraries' on the declarations' benchmark cases: ``python benchmarks/against_libraries.py``.

Contenders alternate in one process with a cold L2 cache, inputs are N(0, 1), medians are reported, and every
contender's output is held against a float32 computation of sampled rows in the same run: one that is wrong has no time.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from peers import REFERENCES

from trtforge.bindings import device
from trtforge.harness.environment import about
from trtforge.harness.timing import Timing, time_alternating
from trtforge.kernels import Case, Op, registry

ROWS_CHECKED = 64
#: Relative L2 error that any bf16 or fp16 contender must stay under.
WRONG = 2e-2


@dataclass
class Measured:
    """One contender on one case. ``rate`` in TFLOP/s where the op computes much per byte, else in GB/s."""

    op: str
    case: str
    dtype: str
    contender: str
    microseconds: float | None
    spread: float | None
    rate: float | None
    unit: str
    error: float
    note: str = ""


def _tensors(op: Op, case: Case, dtypes: dict[str, str]) -> dict[str, torch.Tensor]:
    binding = op.bind_case(case, dtypes)
    torch.manual_seed(1)
    return {
        name: torch.randn(tuple(int(s) for s in shape), device="cuda").to(getattr(torch, binding.dtypes[name]))
        for name, shape in binding.inputs.items()
    }


def measure(op: Op, case: Case, dtypes: dict[str, str], seconds: float) -> list[Measured]:
    """Check and time our chosen kernel, our best Triton kernel and every peer."""
    tensors = _tensors(op, case, dtypes)
    binding = op.bind_case(case, dtypes)
    reference = REFERENCES[op.name]
    target = device.current_device().architecture
    contenders: dict[str, Any] = {}
    chosen = op.choose(binding, target)
    label = f"ours: {chosen.kernel.name} [{chosen.kernel.tactic_label(chosen.tactic)}]"
    contenders[label] = lambda: op(**tensors, **case.attributes)
    if chosen.kernel.language == "cuda" and any(k.name == "triton" for k in op.kernels):
        contenders["ours: triton"] = lambda: op(**tensors, **case.attributes, kernel="triton")
    contenders.update(reference.peers(tensors, binding.attributes))

    (output,) = binding.outputs.values()
    count = 1
    for size in output[:-1]:
        count *= int(size)
    rows = torch.randperm(count, device="cuda")[:ROWS_CHECKED]
    right = reference.oracle(tensors, binding.attributes, rows)
    results, correct = [], {}
    cost = op.cost_of(binding)
    heavy = cost.flops / (cost.bytes or 1) > 50
    for name, call in contenders.items():
        try:
            found = call().reshape(count, -1)[rows].float()
        except RuntimeError as error:
            results.append(_row(op, case, binding, name, None, None, heavy, float("nan"), f"absent: {error}"[:120]))
            continue
        error = float((found - right).norm() / right.norm())
        plain_product = name == "cuBLAS" and (binding.attributes["activation"] != "none" or "bias" in tensors)
        if error < WRONG or plain_product:
            correct[name] = (call, error, "the bare product" if plain_product else "")
        else:
            results.append(_row(op, case, binding, name, None, None, heavy, error, "wrong: not timed"))
    timings = time_alternating({name: call for name, (call, _, _) in correct.items()}, seconds)
    for name, (_, error, note) in correct.items():
        results.append(_row(op, case, binding, name, timings[name], cost, heavy, error, note))
    return results


def _row(
    op: Op, case: Case, binding: Any, name: str, timing: Timing | None, cost: Any, heavy: bool, error: float, note: str
) -> Measured:
    rate = None
    if timing is not None:
        rate = cost.flops / timing.median / 1e12 if heavy else cost.bytes / timing.median / 1e9
    return Measured(
        op.name,
        case.label,
        next(iter(binding.dtypes.values())),
        name,
        None if timing is None else round(timing.median * 1e6, 2),
        None if timing is None else round(timing.spread, 4),
        None if rate is None else round(rate, 1),
        "TFLOP/s" if heavy else "GB/s",
        error,
        note,
    )


def run(names: list[str], contains: str = "", seconds: float = 0.1, every_dtype: bool = False) -> list[Measured]:
    """Measure the benchmark cases of the given ops (all that have peers when empty) and print each as it is done."""
    torch.cuda.init()
    results: list[Measured] = []
    for name in names or list(REFERENCES):
        op = registry.get(name)
        for case in op.cases:
            if "bench" not in case.tags or contains not in case.label:
                continue
            for dtypes in op.dtype_combinations(case)[: None if every_dtype else 1]:
                rows = measure(op, case, dtypes, seconds)
                results += rows
                _print(rows)
    return results


def _print(rows: list[Measured]) -> None:
    ours = next((r.microseconds for r in rows if r.contender.startswith("ours") and r.microseconds), None)
    print(f"{rows[0].op}  {rows[0].case}  {rows[0].dtype}")
    for r in rows:
        if r.microseconds is None:
            print(f"    {r.contender:<58} {r.note}")
            continue
        ratio = f"{r.microseconds / ours:6.2f}x ours" if ours else ""
        print(f"    {r.contender:<58} {r.microseconds:>10.1f} us {r.rate or 0:>8.1f} {r.unit:<8} {ratio} {r.note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="*")
    parser.add_argument("--case", default="", help="only cases whose label contains this text")
    parser.add_argument("--seconds", type=float, default=0.1, help="device time per contender and case")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    arguments = parser.parse_args()
    results = run(arguments.ops, arguments.case, arguments.seconds)
    if arguments.json:
        versions = {**about(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        text = json.dumps({"about": versions, "results": [asdict(r) for r in results]}, indent=1)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()

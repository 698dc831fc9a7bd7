"""The process that a profiling tool watches when a plan file is profiled: ``python -m trtforge.profile_plan FILE``.

Arrays come from ``--inputs``, or are made at the dimensions that the plan was tuned for: N(0, 1) for floats, zeros for
everything else. Step by step each node runs under its own range; ``--graphs`` replays the captured CUDA graph.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from trtforge.bindings import device
from trtforge.bindings.dtypes import DTYPES
from trtforge.graph_api.engines.arrays_file import load_arrays
from trtforge.graph_api.engines.plan import load, read_plan
from trtforge.graph_api.network import Network
from trtforge.graph_api.shapes import resolve
from trtforge.harness.profile_target import SEED, add_work, describe, finish, profiled
from trtforge.kernels import registry


def sample_inputs(network: Network) -> dict[str, np.ndarray]:
    """Arrays for every input at the tuned dimensions."""
    dims = {d.name: d.tuned for d in network.dims.values()}
    rng = np.random.default_rng(SEED)
    arrays = {}
    for name, tensor in network.inputs.items():
        kind, shape = DTYPES[tensor.dtype], resolve(tensor.shape, dims)
        values = rng.standard_normal(shape, dtype=np.float32) if kind.floating else np.zeros(shape)
        arrays[name] = np.asarray(values).astype(kind.numpy)
    return arrays


def _run(arguments: argparse.Namespace) -> None:
    for target in arguments.load:
        registry.load(target)
    device.require_gpu(f"profiling {arguments.plan}")
    plan = read_plan(arguments.plan)
    arrays = load_arrays(arguments.inputs) if arguments.inputs else sample_inputs(plan.network)
    shapes = " ".join(f"{name}{list(array.shape)}" for name, array in arrays.items())
    describe(arguments.describe, {"op": plan.network.name, "case": shapes, "tactic": "", "dtype": ""})
    executable = load(plan, graphs=arguments.graphs)
    for _ in range(max(arguments.warmup, 3)):  # compiles, captures, replays once
        executable(**arrays)
    with profiled():
        for _ in range(arguments.launches):
            executable(**arrays)
    print(f"{plan.network.name}: {arguments.launches} runs", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the plan; returns 0, or 2 with one line on standard error."""
    parser = argparse.ArgumentParser(prog="trtforge.profile_plan")
    parser.add_argument("plan")
    parser.add_argument("--inputs", metavar="X.npz")
    parser.add_argument("--graphs", action="store_true")
    add_work(parser)
    return finish(lambda: _run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

"""``trtforge build``, ``run`` and ``inspect FILE``: plan files from the command line."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.markup import escape

from trtforge import show
from trtforge.graph_api.engines.builder import BuildOptions
from trtforge.graph_api.engines.commands import build_plan, inspect_plan, run_plan
from trtforge.kernels import registry

_MIB = 1 << 20


def _load_ops(arguments: argparse.Namespace) -> None:
    for target in arguments.load:
        registry.load(target)


def build(arguments: argparse.Namespace) -> int:
    """Build a plan file; raises UsageError, CheckpointError, CompileError, MissingDependencyError."""
    _load_ops(arguments)
    options = BuildOptions(
        workspace_mib=arguments.workspace_mib,
        optimization_level=arguments.optimization_level,
        compute_capability=arguments.compute_capability,
        plugins=arguments.plugins,
        timing_cache=arguments.timing_cache,
        tf32=arguments.tf32,
    )
    fuse = arguments.fuse if not arguments.fuse or arguments.fuse[0] not in ("all", "none") else arguments.fuse[0]
    with show.progress(show.console(stderr=True)) as bar:
        plan = build_plan(
            arguments.model,
            arguments.out,
            backend=arguments.backend,
            fuse=fuse or None,
            dtype=arguments.dtype,
            batch=arguments.batch,
            max_length=arguments.max_length,
            options=options,
            progress=bar,
        )
    if arguments.json:
        print(json.dumps(plan.partition.to_dict(), indent=1, default=str))
    else:
        out = show.console()
        out.print(str(plan.partition), markup=False)
        out.print(f"wrote {arguments.out}: {plan.file.size / _MIB:.1f} MiB", markup=False)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Run a plan once on a file of arrays; raises PlanError, DeviceError, UsageError, GraphError."""
    _load_ops(arguments)
    outputs = run_plan(arguments.plan, arguments.inputs, arguments.out)
    described = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in outputs.items()}
    if arguments.json:
        print(json.dumps({"out": arguments.out, "outputs": described}, indent=1))
    else:
        for name, what in described.items():
            print(f"{name}: {what['dtype']} {what['shape']}")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """Print what a plan file holds; raises PlanError."""
    _load_ops(arguments)
    found = inspect_plan(arguments.target)
    if arguments.json:
        print(json.dumps(found, indent=1, default=str))
        return 0
    _print(found)
    return 0


def _print(found: dict[str, Any]) -> None:
    out = show.console()
    file, network = found["file"], found["network"]
    out.print(
        f"[bold]{escape(file['path'])}[/]: {file['bytes'] / _MIB:.1f} MiB, {file['backend']} {file['library']}, "
        f"compute capability {file['compute_capability']}, kit {file['kit']}"
    )
    out.print(f"network {escape(network['name'])}: {network['parameters']} parameters")
    for name in ("inputs", "outputs", "states"):
        for line in network[name]:
            out.print(f"  {name.removesuffix('s')} {escape(line)}")
    for name, (least, tuned, most) in network["dims"].items():
        out.print(f"  {escape(name)}: {least} to {most}, tuned for {tuned}")
    rows = [
        (p["name"], len(p["nodes"]), len(p["layers"]), f"{p['bytes'] / 1024:.0f}", p["parameters"],
         ", ".join(f"{kind} {count}" for kind, count in p["precisions"].items()))
        for p in found["pieces"]
    ]  # fmt: skip
    out.print(show.table("engines", ("piece", "nodes", "layers", "KiB", "parameters", "outputs by precision"), rows))
    if found["kernels"]:
        between = [
            (k["node"], k["op"], k["kernel"] or k.get("refused", ""), k["tactic"] or "") for k in found["kernels"]
        ]
        out.print(show.table("kernels between the engines", ("node", "op", "kernel", "tactic"), between))
    memory = [(name, m["sizes"], f"{m['bytes'] / 1024:.0f}") for name, m in found["memory"].items()]
    out.print(show.table("memory between the steps", ("sizes", "dimensions", "KiB"), memory))

"""``make demo``: the whole idea on any machine, in a few minutes.

A kernel is checked, inspected, called, found by a fusion pass in a network, and a small language model writes text.
Every step prints the command that does the same.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np

import trtforge
from trtforge import cli, show
from trtforge.bindings import device
from trtforge.kernels import registry

HERE = Path(__file__).parent
OUT = show.console()
PROMPT = "The following"


def step(number: int, title: str, command: str = "") -> None:
    """Announce a step, and the command that a reader can type."""
    OUT.print(f"\n[bold cyan]{number}. {title}[/]")
    if command:
        OUT.print(f"[dim]$ {command}[/]")
    sys.stdout.flush()


def run(number: int, title: str, arguments: list[str]) -> None:
    """Run one command of the kit in this process; stop when it fails."""
    step(number, title, "trtforge " + " ".join(f"'{a}'" if " " in a else a for a in arguments))
    status = cli.main(arguments)
    if status:
        sys.exit(status)


def fusion() -> None:
    """A gated MLP written in primitive ops, and what the fusion pass makes of it."""
    step(4, "A network in primitive ops, fused by the patterns that the ops declare")
    f = trtforge.functional
    rng = np.random.default_rng(0)
    with trtforge.Network("gated_mlp") as network:
        x = network.input("x", "float16", (trtforge.Dim("tokens", min=1, opt=16, max=512), 128))
        weights = rng.standard_normal((2, 384, 128)).astype(np.float16) / 12
        gate, up = network.constant(weights[0], "gate"), network.constant(weights[1], "up")
        y = f.mul(f.silu(f.matmul(x, gate, transpose_b=True)), f.matmul(x, up, transpose_b=True))
        network.mark_output(y, "y")
    OUT.print(str(trtforge.fuse(network)), markup=False)
    result = network.build(backend="reference")(x=rng.standard_normal((5, 128)).astype(np.float16))["y"]
    OUT.print(f"y: {result.dtype} {list(result.shape)}, computed by the reference backend", markup=False)


def main() -> None:
    started = time.perf_counter()
    where = "a GPU" if device.has_gpu() else "no GPU: kernels are interpreted, compiled and verified statically"
    OUT.print(f"[bold]TRTForge {trtforge.__version__}[/] on a machine with {where}")
    example = os.path.relpath(HERE / "squared_relu.py")
    run(1, "An op in one file of your own, checked", ["check", "squared_relu", "--load", example])
    hopper = ["inspect", "flash_attention/sm90", "--arch", "sm_90a", "--case", "Sq4096"]
    run(2, "A hand-written Hopper kernel, inspected without a GPU", hopper)
    step(3, "An op called on arrays", "python -c 'import trtforge; trtforge.get(\"rms_norm\")(x, weight)'")
    x = np.linspace(-1, 1, 8, dtype=np.float16).reshape(1, 8)
    OUT.print(str(registry.get("rms_norm")(x, np.ones(8, np.float16))), markup=False)
    fusion()
    run(5, "The same kernels as TensorRT plugins, driven without TensorRT", ["check", "rms_norm", "--as-plugin", "aot"])
    model = os.path.relpath(HERE / "pydoc_llama" / "model")
    write = ["generate", model, "--prompt", PROMPT, "--max-tokens", "60", "--explain"]
    run(6, "A language model, its fusion report, and its text", write)
    OUT.print(f"\n[bold green]done[/] in {time.perf_counter() - started:.0f} s")
    activate = os.path.join(sys.prefix, "bin", "activate")
    if shutil.which("trtforge") is None and os.path.isfile(activate):
        OUT.print(f"$ source {os.path.relpath(activate)}", markup=False, soft_wrap=True)
    OUT.print("$ trtforge new peak --template cuda-reduction      # a kernel of your own: docs/new.md", markup=False)


if __name__ == "__main__":
    main()

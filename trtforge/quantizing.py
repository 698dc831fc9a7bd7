"""``trtforge quantize`` and ``trtforge accuracy``: a checkpoint in codes, and what that costs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from trtforge import __version__
from trtforge.bindings.errors import UsageError
from trtforge.bindings.files import replace_file
from trtforge.graph_api.quantization.observers import OBSERVERS
from trtforge.graph_api.quantization.recipes import CACHES, RECIPES


def add_quantize_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the directory of a Llama checkpoint in float")
    parser.add_argument("--recipe", required=True, choices=tuple(RECIPES), help="formats, and how scales are found")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="the checkpoint to write")
    _text_options(parser)
    parser.add_argument("--observer", choices=tuple(OBSERVERS), default="absmax", help="for static scales")
    parser.add_argument("--skip", action="append", metavar="PATTERN", help="layers left in float (default: lm_head)")


def add_accuracy_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the directory of a Llama checkpoint in float")
    parser.add_argument(
        "--recipes",
        nargs="+",
        choices=tuple(RECIPES),
        metavar="RECIPE",
        help="default: all, with both --caches",
    )
    parser.add_argument(
        "--caches", nargs="*", choices=CACHES, metavar="FORMAT", help="KV caches in codes to measure with float weights"
    )
    parser.add_argument("--tokens", type=int, help="measure on the first so many tokens (default: all)")
    _text_options(parser)


def _text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text (default: Python's own documentation)")
    parser.add_argument("--samples", type=int, default=16, help="windows of text to calibrate on (default 16)")
    parser.add_argument("--kv-cache", choices=CACHES, help="keep the KV cache in codes too")


def _opened(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The checkpoint and the text."""
    from trtforge.graph_api.llm import open_checkpoint
    from trtforge.graph_api.quantization.text import documentation, from_file
    from trtforge.kernels import registry

    for target in arguments.load:
        registry.load(target)
    if arguments.samples < 1:
        raise UsageError(f"--samples is {arguments.samples}; accepted is an integer of at least 1")
    checkpoint = open_checkpoint(arguments.model)
    if arguments.text:
        return checkpoint, from_file(arguments.text, checkpoint.tokenizer)
    return checkpoint, documentation(checkpoint.tokenizer, checkpoint.config)


def quantize(arguments: argparse.Namespace) -> int:
    """Carry out ``trtforge quantize``; raises UsageError, CheckpointError, FileError."""
    from trtforge import show
    from trtforge.graph_api.quantization import SKIPPED, quantize_network, save_quantized
    from trtforge.graph_api.quantization.accuracy import WINDOW, fresh_network
    from trtforge.graph_api.quantization.text import samples

    checkpoint, text = _opened(arguments)
    if checkpoint.config.quantization is not None:
        raise UsageError(f"{arguments.model}: is quantized already; accepted is the float checkpoint")
    window = min(WINDOW, checkpoint.config.max_position_embeddings)
    network = fresh_network(checkpoint, window)
    report = quantize_network(
        network,
        arguments.recipe,
        samples(text.calibration, arguments.samples, window),
        skip=tuple(arguments.skip) if arguments.skip else SKIPPED,
        observer=arguments.observer,
        kv_cache=arguments.kv_cache,
    )
    sizes = save_quantized(arguments.out, network, report, like=arguments.model)
    if arguments.json:
        print(json.dumps({"directory": str(arguments.out), "files": sizes, **report.to_dict()}, indent=1))
    else:
        show.console().print(report)
        print(f"{arguments.out}: {sum(sizes.values()):,} bytes; trtforge generate {arguments.out} --prompt ...")
    return 0


def accuracy(arguments: argparse.Namespace) -> int:
    """Carry out ``trtforge accuracy``; raises UsageError, CheckpointError, FileError."""
    from dataclasses import replace

    from trtforge import show
    from trtforge.graph_api.quantization.accuracy import document, measure

    target = arguments.json if arguments.json not in (None, "-") else None
    if target is not None and not Path(target).resolve().parent.is_dir():
        raise UsageError(f"--json {target}: there is no folder {Path(target).resolve().parent}")
    checkpoint, text = _opened(arguments)
    if arguments.tokens is not None:
        text = replace(text, held_out=text.held_out[: max(0, arguments.tokens)])
    caches = arguments.caches
    if caches is None:
        caches = [] if arguments.recipes else CACHES
    rows = measure(
        checkpoint,
        text,
        arguments.recipes or ([] if arguments.caches else list(RECIPES)),
        calibration_windows=arguments.samples,
        kv_cache=arguments.kv_cache,
        caches=caches,
        on_row=lambda row: print(f"{row.label}: perplexity {row.perplexity:.3f}", file=sys.stderr, flush=True),
    )
    made = json.dumps(document(checkpoint, text, rows, __version__), indent=1, allow_nan=False) + "\n"
    if arguments.json == "-":
        print(made, end="")
        return 0
    if target is not None:
        replace_file(target, made)
    columns = ("recipe", "perplexity", "loss", "bound", "bytes", "worst layer", "its error", "s", "s on the text")
    table = [
        (
            row.label,
            f"{row.perplexity:.3f}",
            f"{row.loss:+.2%}",
            "" if row.bound is None else f"{row.bound:.0%}: {'kept' if row.within else 'MISSED'}",
            f"{row.nbytes:,}",
            row.worst[0],
            f"{row.worst[1]:.2%}" if row.layers else "",
            f"{row.quantize_seconds:.1f}",
            f"{row.run_seconds:.1f}",
        )
        for row in rows
    ]
    title = f"{arguments.model}, {len(text.held_out)} tokens of {text.source}"
    show.console().print(show.table(title, columns, table))
    return 0

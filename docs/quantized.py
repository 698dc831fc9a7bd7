"""docs/quantized_models.md from benchmarks/results/accuracy_*.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tables import table

HEAD = """# What quantization costs

<!-- Written by docs/generate.py from benchmarks/results/accuracy_*.json; measure again and run it. -->

Each recipe of [quantization.md](quantization.md) on a model, against the float model on the same text. *Loss* is how
much larger the perplexity is; *bound* the most that the recipe may lose. *Layer error* is ‖q − f‖ / ‖f‖ of a linear
layer's output with everything before it quantized too. Bytes are those of all weights; the embedding, which is also the
head, stays in float. Seconds are those of NumPy on a CPU and say nothing about a GPU.
"""


def page(results: Path) -> str:
    """The page, a section for every model that was measured."""
    parts = [HEAD]
    for path in sorted(results.glob("accuracy_*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        about, rows = found["about"], found["rows"]
        parts.append(f"## {about['model']}\n")
        parts.append(
            f"{about['tokens']:,} tokens of {about['text']}, in windows of {about['window']}; {about['dtype']}, "
            f"{about['backend']} backend, Python {about['python']} on {about['machine']}, {about['date']}.\n"
        )
        columns = (
            "recipe",
            "perplexity",
            "loss",
            "bound",
            "bytes",
            "of float",
            "median layer error",
            "worst layer",
            "s",
        )
        parts.append(table(columns, [_row(row, rows[0]["nbytes"]) for row in rows]))
        parts.append("### Layer by layer\n")
        recipes = [row for row in rows if row["layers"]]
        layers = list(recipes[0]["layers"]) if recipes else []
        parts.append(
            table(
                ("layer", *(_label(row) for row in recipes)),
                [(f"`{layer}`", *(f"{row['layers'][layer]:.2%}" for row in recipes)) for layer in layers],
            )
        )
    return "\n".join(parts)


def _label(row: dict[str, Any]) -> str:
    return row["recipe"] + (f" + {row['kv_cache']} cache" if row.get("kv_cache") else "")


def _row(row: dict[str, Any], float_bytes: int) -> tuple[str, ...]:
    bound = row["bound"]
    kept = "" if bound is None else f"{bound:.0%}, " + ("kept" if row["loss"] < bound else "**missed**")
    errors = sorted(row["layers"].items(), key=lambda entry: entry[1])
    median = f"{errors[len(errors) // 2][1]:.2%}" if errors else ""
    worst = f"`{errors[-1][0].removeprefix('model.')}` {errors[-1][1]:.2%}" if errors else ""
    loss = f"{row['loss']:+.2%}" if row["layers"] else ""
    share = f"{row['nbytes'] / float_bytes:.0%}"
    seconds = f"{row['quantize_seconds'] + row['run_seconds']:.0f}"
    return _label(row), f"{row['perplexity']:.3f}", loss, kept, f"{row['nbytes']:,}", share, median, worst, seconds

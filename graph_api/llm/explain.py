"""What became of a model: which nodes the fusion passes replaced, and what runs each node that is left."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trtforge.graph_api.fusion import FusionReport

LAYER = re.compile(r"(?<=\blayers\.)\d+(?=\.)")


@dataclass(frozen=True)
class Placed:
    """One node of the network that runs: its name, its op, and the kernel or library that computes it."""

    node: str
    op: str
    runs_on: str


@dataclass(frozen=True)
class Explanation:
    """The fusion report and the placement of every node; as text, equal layers are told once with their number."""

    backend: str
    dtype: str
    fusion: FusionReport
    nodes: tuple[Placed, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, every node by itself, ready for JSON."""
        nodes = [{"node": placed.node, "op": placed.op, "runs_on": placed.runs_on} for placed in self.nodes]
        return {"backend": self.backend, "dtype": self.dtype, "fusion": self.fusion.to_dict(), "nodes": nodes}

    def __str__(self) -> str:
        fusion = self.fusion
        lines = [f"fusion: {fusion.nodes_before} nodes -> {fusion.nodes_after}"]
        for (node, op, replaced), count in _told_once(
            (r.node, r.op, ", ".join(_short(name, r.node) for name in r.replaced)) for r in fusion.replacements
        ):
            lines += [f"  {_times(count)}{node} = {op}", f"      in place of {replaced}"]
        for (node, op, reason), count in _told_once((r.node, r.op, r.reason) for r in fusion.refusals):
            lines += [f"  {_times(count)}{node} is not {op}:", f"      {reason}"]
        lines.append(f"placement ({self.backend} backend, {self.dtype}):")
        rows = _told_once((placed.node, placed.op, placed.runs_on) for placed in self.nodes)
        widths = [max((len(row[i]) for row, _ in rows), default=0) for i in (0, 1)]
        for (node, op, where), count in rows:
            lines.append(f"  {_times(count)}{node:<{widths[0]}}  {op:<{widths[1]}}  {where}")
        return "\n".join(lines)


def _told_once(rows: Iterable[tuple[str, str, str]]) -> list[tuple[tuple[str, str, str], int]]:
    """Rows with layer numbers replaced by ``*``, in order of first appearance, and how often each occurs."""
    return list(Counter((LAYER.sub("*", a), LAYER.sub("*", b), LAYER.sub("*", c)) for a, b, c in rows).items())


def _times(count: int) -> str:
    return f"{count:>3} × "


def _short(name: str, node: str) -> str:
    """``name`` without the path that it shares with ``node``."""
    path = node.rpartition(".")[0] + "."
    return name.removeprefix(path)

"""Plots of a benchmark run as SVG or PNG: ratio bars against peers, a roofline scatter, and scaling over sizes.

What is drawn is decided in :mod:`trtforge.harness.plot_data`; this module draws it, with Matplotlib (the extra
``plots``). An SVG carries the digest of its data, so that a reader can tell whether it shows a given run: layout
differs between versions of fonts and libraries, the digest does not.
"""

from __future__ import annotations

import importlib
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trtforge.bindings.errors import MissingDependencyError, UsageError
from trtforge.bindings.files import replace_file
from trtforge.harness.measurement import Run
from trtforge.harness.plot_data import MOST_PANELS, OURS, TRITON, Figure, contests
from trtforge.harness.plot_data import figures as all_figures
from trtforge.harness.plot_data import ratios as ratio_figure

WIDTH = 9.0  # inches, of every picture
INK, FAINT, GRID = "#222222", "#6b6b6b", "#e4e4e4"
#: Okabe and Ito's colors, which people with any kind of color vision can tell apart on white.
BLUE, ORANGE = "#0072B2", "#E69F00"
PEERS = ("#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#333333", "#8C6D1F", "#7F7FBF", "#A9A9A9")
FAMILIES = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#8C6D1F")
MARKERS = "osD^vPX*"
_FONTS = "'DejaVu Sans', Verdana, 'Segoe UI', Helvetica, Arial, sans-serif"
_STYLE: Mapping[str, Any] = {
    "svg.hashsalt": "trtforge",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_SUFFIXES = (".svg", ".png")


def figures(run: Run) -> dict[str, str]:
    """Every plot that the run has data for, as SVG text by file name. Raises MissingDependencyError."""
    return {f"{figure.name}.svg": svg(figure) for figure in all_figures(run)}


def one(run: Run, title: str = "benchmark: time of the others over ours") -> Figure:
    """The plot of a whole run: ratios of every case; where nobody else has a time, the roofline or the scaling.

    Raises UsageError where the run has nothing to draw.
    """
    found = [ratio_figure(run, contests(run), "all", title), *reversed(all_figures(run))]
    figure = next((f for f in found if f is not None), None)
    if figure is None:
        raise UsageError("the run has no case of a declared op with a time, so that there is nothing to plot")
    return figure


def write(run: Run, path: str | Path) -> None:
    """Draw a run into one file, an SVG or a PNG by its suffix. Raises UsageError, MissingDependencyError, FileError."""
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise UsageError(f"a plot is written as {' or '.join(_SUFFIXES)}, not as {Path(path).name!r}")
    figure = one(run)
    replace_file(path, svg(figure) if suffix == ".svg" else png(figure))


def svg(figure: Figure) -> str:
    """The picture as an SVG document without dates, with the digest of its data as Dublin Core identifier."""
    metadata = {"Date": None, "Creator": "TRTForge", "Title": figure.title, "Identifier": f"sha256:{figure.digest}"}
    text = _drawn(figure, "svg", metadata=metadata).decode()
    text = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", _FONTS, text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def png(figure: Figure) -> bytes:
    """The picture as a PNG, 150 pixels to the inch."""
    return _drawn(figure, "png", dpi=150)


def digest_in(svg_text: str) -> str | None:
    """The digest of the data that an SVG of :func:`svg` was drawn from."""
    found = _DIGEST.search(svg_text)
    return found[1] if found else None


def _library(part: str) -> Any:
    """A module of Matplotlib. Raises MissingDependencyError."""
    try:
        return importlib.import_module(f"matplotlib{part}")
    except ImportError as error:
        raise MissingDependencyError(f"plots need Matplotlib ({error}); pip install 'trtforge[plots]'") from error


def _drawn(figure: Figure, form: str, **options: Any) -> bytes:
    library = _library("")
    with library.rc_context({**library.rcParamsDefault, **_STYLE}):
        picture = _library(".figure").Figure()
        _KINDS[figure.kind](picture, figure)
        stream = io.BytesIO()
        picture.savefig(stream, format=form, **options)
    return stream.getvalue()


def _frame(picture: Any, figure: Figure, height: float, legend: Sequence[Any], columns: int = 4) -> tuple[float, float]:
    """Title above, caption below, legend under the title; returns where panels may begin and end, as fractions."""
    picture.set_size_inches(WIDTH, height)
    title = figure.title[0].upper() + figure.title[1:]
    picture.text(0.012, 1 - 0.13 / height, title, size=12, weight="bold", va="top", ha="left")
    picture.text(0.012, 0.1 / height, figure.caption, size=7.5, color=FAINT, va="bottom", ha="left")
    rows = -(-len(legend) // columns)
    if legend:
        place = {"loc": "upper left", "bbox_to_anchor": (0.003, 1 - 0.36 / height)}
        picture.legend(handles=legend, ncols=columns, fontsize=8.5, handlelength=1.6, columnspacing=1.6, **place)
    return 0.42 / height, 1 - (0.5 + 0.2 * rows) / height


def _colors(names: Sequence[str]) -> dict[str, str]:
    fixed = {OURS: BLUE, TRITON: ORANGE}
    peers = [name for name in dict.fromkeys(names) if name not in fixed]
    return {**fixed, **{name: PEERS[i % len(PEERS)] for i, name in enumerate(peers)}}


# ---- ratios ----------------------------------------------------------------------------------------------------------

_ROW = 0.25  # inches
_TICKS = (0.1, 0.2, 0.33, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10)


def _draw_ratios(picture: Any, figure: Figure) -> None:
    line, patch = _library(".lines").Line2D, _library(".patches").Patch
    panels = figure.panels
    everyone = [name for p in panels for row in p["rows"] for name in row["ratios"]]
    colors = _colors(everyone)
    fastest = {row["fastest"] for p in panels for row in p["rows"]}
    partial = {name for p in panels for row in p["rows"] for name in row["partial"]}
    legend: list[Any] = [
        patch(color=colors[name], label=f"{name} (bar: the fastest peer)")
        for name in dict.fromkeys(everyone)
        if name in fastest
    ]
    for name in dict.fromkeys(everyone):
        if name not in fastest:
            look: dict[str, Any] = {"markerfacecolor": "white"} if name in partial else {}
            label = f"{name} (does less)" if name in partial else name
            legend.append(line([], [], color=colors[name], marker="o", markersize=5, linestyle="", label=label, **look))
    heights = [len(p["rows"]) * _ROW for p in panels]
    height = sum(heights) + 0.75 * len(panels) + 0.9 + 0.2 * -(-len(legend) // 3)
    _, top = _frame(picture, figure, height, legend, columns=3)
    values = [r for p in panels for row in p["rows"] for r in row["ratios"].values()]
    limits = min(0.9, min(values) * 0.9), max(1.25, max(values) * 1.12)
    spent = 1 - top
    for panel, tall in zip(panels, heights):
        spent += 0.32 / height
        axes = picture.add_axes((0.27, 1 - spent - tall / height, 0.675, tall / height))
        spent += (tall + 0.43) / height
        _ratio_panel(axes, panel, colors, limits)
    axes.set_xlabel("time of the contender / our time (logarithmic)", size=8.5)


def _ratio_panel(axes: Any, panel: Mapping[str, Any], colors: Mapping[str, str], limits: tuple[float, float]) -> None:
    rows = panel["rows"]
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvspan(limits[0], 1, color="#f5f5f5", zorder=0, linewidth=0)
    axes.axvline(1, color=INK, linewidth=1, zorder=3)
    for at, row in enumerate(rows):
        for name, ratio in row["ratios"].items():
            if name == row["fastest"]:
                axes.barh(at, ratio - 1, left=1, height=0.62, color=colors[name], zorder=2)
                place = {"xycoords": ("axes fraction", "data"), "xytext": (32, 0), "textcoords": "offset points"}
                axes.annotate(f"{ratio:.2f}×", (1, at), va="center", ha="right", size=8, **place)
            else:
                face = "white" if name in row["partial"] else colors[name]
                axes.plot(ratio, at, "o", color=colors[name], markerfacecolor=face, markersize=4.5, zorder=4)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], size=8)
    ticks = [t for t in _TICKS if limits[0] <= t <= limits[1]]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks], size=8)
    axes.set_xticks([], minor=True)
    axes.tick_params(length=0)
    axes.grid(axis="y", visible=False)
    axes.set_title(f"{panel['op']}  {panel['common']}".strip(), x=-0.385, pad=5)
    axes.annotate(
        "ours is faster →", (1, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", ha="right", size=8
    )


# ---- roofline --------------------------------------------------------------------------------------------------------


def _draw_roofline(picture: Any, figure: Figure) -> None:
    line = _library(".lines").Line2D
    (panel,) = figure.panels
    points, copy, peaks = panel["points"], panel["copy"], panel["peaks"]
    families = list(dict.fromkeys(p["family"] for p in points))
    colors = {name: FAMILIES[i % len(FAMILIES)] for i, name in enumerate(families)}
    marks = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(families)}
    common = {"linestyle": "", "markersize": 6}
    legend = [line([], [], color=colors[n], marker=marks[n], label=n.replace("_", " "), **common) for n in families]
    legend.append(
        line([], [], color=FAINT, marker="o", markerfacecolor="white", label="hollow: fastest peer", **common)
    )
    bottom, top = _frame(picture, figure, 5.6, legend)
    axes = picture.add_axes((0.085, bottom + 0.085, 0.895, top - bottom - 0.12))
    axes.set_xscale("log")
    axes.set_yscale("log")
    for p in points:
        face = colors[p["family"]] if p["ours"] else "white"
        axes.plot(
            p["intensity"],
            p["tflops"],
            marks[p["family"]],
            color=colors[p["family"]],
            markerfacecolor=face,
            markersize=5.5 if p["ours"] else 5,
            alpha=0.9,
            zorder=4 if p["ours"] else 3,
        )
    label: dict[str, Any] = {"textcoords": "offset points", "zorder": 5}
    label["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    low, high = axes.get_xlim()
    bottom_rate = axes.get_ylim()[0]
    for kind, peak in sorted(peaks.items(), key=lambda item: item[1]):
        ridge = peak * 1e3 / copy if copy else low
        axes.plot([min(max(ridge, low), high), high], [peak, peak], color=INK, linewidth=1.1, zorder=2)
        axes.annotate(f"{kind} {peak:,.0f} TFLOP/s", (max(ridge, low), peak), (3, 5), size=8, **label)
    if copy:
        end = min(high, max(peaks.values(), default=copy * high * 1e-3) * 1e3 / copy)
        axes.plot([low, end], [copy * low * 1e-3, copy * end * 1e-3], color=INK, linewidth=1.1, zorder=2)
        middle = (low * end) ** 0.5
        axes.annotate(f"copy {copy:,.0f} GB/s", (middle, copy * middle * 1e-3), (-6, 4), size=8, ha="right", **label)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=bottom_rate)
    if not peaks and not copy:
        note = "ceilings were not measured in this run"
        axes.annotate(note, (0.99, 0.02), xycoords="axes fraction", ha="right", size=8, color=FAINT)
    axes.set_xlabel("intensity, floating-point operations per byte of device memory")
    axes.set_ylabel("rate, TFLOP/s")
    axes.grid(which="minor", visible=False)


# ---- scaling ---------------------------------------------------------------------------------------------------------

_COLUMNS = 3
_TITLE_LETTERS = 108  # of the titles of panels beside each other
_LOG_FROM = 15.0  # the ratio of largest to smallest rate from which a panel's axis is logarithmic


def _draw_scaling(picture: Any, figure: Figure) -> None:
    line = _library(".lines").Line2D
    panels = figure.panels[:MOST_PANELS]
    names = list(dict.fromkeys(name for p in panels for name in p["lines"]))
    colors = _colors(names)
    marks = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}
    legend = [line([], [], color=colors[n], marker=marks[n], markersize=5, label=n) for n in names]
    across = min(_COLUMNS, len(panels))
    down = -(-len(panels) // across)
    several = len({p["op"] for p in panels}) > 1
    titles = [f"{p['op']}: {p['title']}" if several else p["title"] for p in panels]
    lines = [textwrap.wrap(title, _TITLE_LETTERS // across) for title in titles]
    room = 0.13 * (max(map(len, lines)) - 1)
    height = (2.35 + room) * down + 1.05 + 0.2 * -(-len(legend) // 4)
    bottom, top = _frame(picture, figure, height, legend)
    cell_width, cell_height = 1 / across, (top - bottom) / down
    for at, panel in enumerate(panels):
        left, low = at % across * cell_width, top - (at // across + 1) * cell_height
        margin = 0.62 / WIDTH
        area = (
            left + margin,
            low + 0.42 / height,
            cell_width - margin - 0.15 / WIDTH,
            cell_height - (0.8 + room) / height,
        )
        axes = picture.add_axes(area)
        axes.set_title("\n".join(lines[at]), size=8.5, x=-0.5 / WIDTH / area[2], pad=5)
        _scaling_panel(axes, panel, colors, marks)


def _scaling_panel(axes: Any, panel: Mapping[str, Any], colors: Mapping[str, str], marks: Mapping[str, str]) -> None:
    ticker = _library(".ticker")
    axes.set_xscale("log", base=2)
    for name, points in panel["lines"].items():
        style = {"linewidth": 2.0, "zorder": 4} if name == OURS else {"linewidth": 1.2, "zorder": 3}
        axes.plot(*zip(*points), color=colors[name], marker=marks[name], markersize=4.5, **style)
    rates = [rate for points in panel["lines"].values() for _, rate in points]
    if max(rates) / min(rates) > _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.set_ylim(0, max(rates) * 1.1)
    sizes = sorted({size for points in panel["lines"].values() for size, _ in points})
    axes.set_xticks(sizes, [_size(size) for size in sizes], size=7.5)
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="y", labelsize=7.5)
    axes.set_xlabel(panel["axis"], size=8.5, labelpad=1)
    axes.set_ylabel(panel["unit"], size=8, labelpad=2)
    axes.grid(which="minor", visible=False)


def _size(size: int) -> str:
    return f"{size // 1024}k" if size >= 1024 and size % 1024 == 0 else str(size)


_KINDS: Mapping[str, Callable[[Any, Figure], None]] = {
    "ratios": _draw_ratios,
    "roofline": _draw_roofline,
    "scaling": _draw_scaling,
}

"""The report page: what it holds against the files it was made of, read as text and seen in a browser."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import trtforge
from trtforge import cli
from trtforge.bindings.errors import FileError, MissingDependencyError, UsageError
from trtforge.harness import check as checking
from trtforge.harness import measurement, plots
from trtforge.harness import profile as profiling
from trtforge.harness.inspection import inspect
from trtforge.harness.jobs import Row, plain
from trtforge.harness.measurement import Measurement, Run
from trtforge.harness.profile import Profile
from trtforge.harness.report import page as page_module
from trtforge.harness.report import pictures, session, sources
from trtforge.harness.report.tables import Table
from trtforge.kernels import registry

pytest.importorskip("jinja2", reason="the report needs Jinja: pip install 'trtforge[report]'")

ROOT = Path(__file__).parent.parent
OP = "trtforge::rms_norm"
HOSTILE = "<script>alert(1)</script> & \"quoted\" 'text' </table>"
NONE = "–"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


# ---- a session with known figures -----------------------------------------------------------------------------------


def _checks() -> dict[str, Any]:
    def row(kernel: str, error: float | None, status: str, reason: str = "", tactic: str = "THREADS=128") -> Row:
        return Row(
            OP, kernel, "cuda", tactic, 0, "M7 N1000", "float16", "cuda", "launched", error, 1e-3, status, reason
        )

    return checking.report(
        [
            row("cuda", 5e-4, "passed"),
            row("cuda", 2.5e-4, "passed", tactic="THREADS=256"),
            row("cuda", None, "skipped", "N is odd"),
            row("triton", 3e-3, "failed", HOSTILE),
            row("triton", float("inf"), "failed", HOSTILE, tactic="num_warps=8"),
        ]
    )


def _run() -> Run:
    rows = []
    for scale, size in ((1.0, "M16 N4096"), (30.0, "M4096 N4096"), (90.0, "M16384 N4096")):
        common: dict[str, Any] = {"op": OP, "case": size, "dtype": "bfloat16", "repeats": 50, "unit": "GB/s"}
        ours: dict[str, Any] = {"ours": True, "form": "direct"}
        rows += [
            Measurement(contender="ours: cuda", kernel="cuda", tactic="THREADS=256", microseconds=2.0 * scale,
                        spread=0.011, rate=4123.25, roofline=0.912, error=1.7e-3, chosen=True, **common, **ours),
            Measurement(contender="ours: triton", kernel="triton", tactic="num_warps=4", microseconds=2.5 * scale,
                        spread=0.012, rate=3300.0, roofline=0.73, error=1.7e-3, **common, **ours),
            Measurement(contender="PyTorch eager", microseconds=3.0 * scale, spread=0.013, rate=2748.5, roofline=0.6,
                        error=1.8e-3, **common),
            Measurement(contender="torch.compile", note=f"wrong: {HOSTILE}", **common),
            Measurement(contender="copy", note="moves the bytes alone", microseconds=1.0 * scale, **common),
        ]  # fmt: skip
    return Run({"date": "2026-11-23", "gpu": "NVIDIA H200", "torch": "2.11"}, {measurement.COPY: 4321.5}, rows)


def _profile() -> Profile:
    return Profile(
        OP, "cuda", "THREADS=256", "M4096 N4096", "bfloat16", "ncu", "rms_norm.ncu-rep", 60.25,
        metrics={"DRAM GB/s": 4102.125, "registers": 34.0},
        stalls=[("long scoreboard", 0.625), ("barrier", 0.125)],
        occupancy_limiter="registers",
        bound="device memory",
        findings=["Device memory is 95% busy.", HOSTILE],
        roofline={"flops": 67108864, "bytes": 67117056, "intensity": 0.9999, "unit": "GB/s"},
        function="rms_norm_kernel",
    )  # fmt: skip


@dataclass
class Files:
    checks: Path
    bench: Path
    profile: Path
    report: Path

    @property
    def command(self) -> list[str]:
        given = ["--checks", self.checks, "--bench", self.bench, "--profile", self.profile]
        return ["report", OP, "-o", str(self.report), "--arch", "sm_90a", *map(str, given)]


def _write(folder: Path) -> Files:
    files = Files(*(folder / name for name in ("check.json", "bench.json", "profile.json", "report.html")))
    files.checks.write_text(json.dumps(plain(_checks()), allow_nan=False))
    measurement.write(_run(), files.bench)
    files.profile.write_text(json.dumps(profiling.to_json([_profile()], {}, "ncu")))
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    made = _write(tmp_path_factory.mktemp("report"))
    assert cli.main([*made.command, "--title", HOSTILE]) == 0
    return made


# ---- read as text ---------------------------------------------------------------------------------------------------

VOID = {"meta", "link", "br", "input", "img", "hr"}


@dataclass
class Page(HTMLParser):
    """A page, parsed strictly: every element closed in turn; tables by id, as texts and as the numbers behind them."""

    text: str
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    values: dict[str, list[list[float | None]]] = field(default_factory=dict)
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.table = ""
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        assert len(attributes) == len(attrs), f"an attribute twice in {tag}: {attrs}"
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = attributes["id"]
            self.tables[self.table], self.values[self.table] = [], []
        elif tag == "tr":
            self.tables[self.table].append([])
            self.values[self.table].append([])
        elif tag in ("td", "th"):
            self.tables[self.table][-1].append("")
            value = attributes.get("data-value")
            self.values[self.table][-1].append(None if value is None else float(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[self.table][-1][-1] += data
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    def column(self, table: str, name: str) -> list[float | None]:
        at = self.tables[table][0].index(name)
        return [row[at] for row in self.values[table][1:]]

    def texts(self, table: str, name: str) -> list[str]:
        at = self.tables[table][0].index(name)
        return [row[at] for row in self.tables[table][1:]]


@pytest.fixture(scope="module")
def page(files: Files) -> Page:
    return Page(files.report.read_text(encoding="utf-8"))


def test_the_page_loads_nothing(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name.rpartition(":")[2] in ("src", "href", "srcset", "data", "action"):
                assert value.startswith(("#", "data:")), (tag, name, value)
    for style in re.findall(r"<style[^>]*>(.*?)</style>", page.text, re.S):
        assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")


def test_what_files_say_is_text_and_no_markup(page: Page) -> None:
    assert [tag for tag, _ in page.elements].count("script") == 1
    shown = "".join(page.words)
    assert shown.count(HOSTILE) >= 4  # title, heading, failure, note of a contender, finding
    assert "<script>alert(1)" not in page.text


def test_ids_are_unique_and_links_lead_somewhere(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name.rpartition(":")[2] == "href" and value.startswith("#"):
                assert value[1:] in ids, (tag, value)
        for target in re.findall(r"url\(#([^)]+)\)", " ".join(attributes.values())):
            assert target in ids


def test_checks_are_those_of_the_file(page: Page, files: Files) -> None:
    kernels = json.loads(files.checks.read_text())["kernels"]
    for name in ("passed", "failed", "skipped"):
        assert page.column("checks-0", name) == [k[name] for k in kernels]
    assert page.texts("checks-0", "worst error, of the tolerance") == ["50%", "∞"]
    assert page.column("failures-0", "rows") == [2]
    assert page.texts("failures-0", "reason") == [HOSTILE]


def test_inspection_is_what_inspect_finds(page: Page) -> None:
    found = inspect(OP, arch="sm_90a")
    name = "inspection-trtforge-rms_norm"
    assert page.texts(name, "kernel") == [i.kernel for i in found]
    assert page.texts(name, "tactic") == [i.tactic for i in found]
    for column, values in {
        "registers": [i.registers for i in found],
        "spills, B": [i.spills for i in found],
        "shared, B": [i.static_shared + i.dynamic_shared for i in found],
        "blocks/SM": [i.blocks_per_sm for i in found],
        "occupancy": [i.occupancy for i in found],
        "cubin, B": [i.cubin_bytes for i in found],
    }.items():
        assert page.column(name, column) == values, column
    first = [next(i for i in found if i.kernel == kernel) for kernel in dict.fromkeys(i.kernel for i in found)]
    assert page.column(f"{name}-mix", "total") == [i.instructions["total"] for i in first]
    assert page.column(f"{name}-mix", "LDG") == [i.instructions["LDG"] for i in first]


def test_benchmarks_are_those_of_the_file_with_ratios(page: Page, files: Files) -> None:
    rows = measurement.read(files.bench).rows
    name = "contenders-0-trtforge-rms_norm"
    assert page.column(name, "µs") == [r.microseconds for r in rows]
    assert page.column(name, "rate") == [r.rate for r in rows]
    assert page.column(name, "of the roofline") == [r.roofline for r in rows]
    assert page.column(name, "time over ours") == 3 * [1.0, 1.25, 1.5, None, 0.5]
    assert page.texts(name, "note")[3] == f"wrong: {HOSTILE}" and page.texts(name, "µs")[3] == NONE
    assert page.column("standings-0", "its time over ours") == 3 * [1.5]
    assert page.texts("standings-0", "its time over ours") == 3 * ["1.50×"]
    assert page.texts("standings-0", "fastest peer") == 3 * ["PyTorch eager"]  # the copy computes less than the op
    assert page.column("ceilings-0", "measured") == [4321.5]


def test_profiles_are_those_of_the_file(page: Page) -> None:
    assert page.column("profile-0-0-metrics", "value") == list(_profile().metrics.values())
    assert page.column("profile-0-0-stalls", "of the warps' time") == [0.625, 0.125]
    assert page.column("profile-0-0-roofline", "value") == [67108864, 67117056, 0.9999, None]
    shown = " ".join(page.words)
    assert "Device memory is 95% busy." in shown and "60.25 µs" in shown


def test_a_timeline_is_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _write(tmp_path)
    functions = [
        Profile(OP, name, "", "M1 N1", "", "nsys", "a.nsys-rep", time, {"launches": 20.0}, function=name)
        for name, time in (("first_kernel", 2.5), ("second_kernel", 1234.5))
    ]
    made.profile.write_text(json.dumps(profiling.to_json(functions, {}, "nsys")))
    assert cli.main(made.command) == 0
    page = Page(made.report.read_text(encoding="utf-8"))
    assert page.texts("profile-0", "GPU function") == ["first_kernel", "second_kernel"]
    assert page.column("profile-0", "median µs") == [2.5, 1234.5]


def test_pictures_stand_in_the_page(page: Page) -> None:
    pytest.importorskip("matplotlib", reason="the plots need Matplotlib: pip install 'trtforge[plots]'")
    drawn = [a for tag, a in page.elements if tag == "svg"]
    assert len(drawn) == len(plots.figures(_run())) >= 2
    assert all("viewbox" in a and a["aria-label"] and "width" not in a for a in drawn)


def test_without_matplotlib_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Run) -> dict[str, str]:
        raise MissingDependencyError("plots need Matplotlib")

    monkeypatch.setattr(plots, "figures", refuse)
    made = _write(tmp_path)
    assert cli.main(made.command) == 0
    page = Page(made.report.read_text(encoding="utf-8"))
    assert "There are no plots here: plots need Matplotlib." in " ".join(page.words)
    assert "svg" not in [tag for tag, _ in page.elements]


def test_json_says_what_was_written(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = _write(tmp_path)
    assert cli.main([*made.command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["out"] == str(made.report) and told["bytes"] == made.report.stat().st_size
    assert told["ops"] == 1 and told["failed"] == 2 and told["not_inspected"] == 0
    assert told["inspections"] == len(inspect(OP, arch="sm_90a"))
    assert told["benchmarks"] == [str(made.bench)] and told["profiles"] == [str(made.profile)]


def test_an_op_of_ones_own_is_checked_for_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own.html"
    load = ["--load", str(ROOT / "examples" / "squared_relu.py")]
    command = ["report", "examples::squared_relu", "-o", str(out), "--arch", "sm_90a", "--device", "cpu", *load]
    assert cli.main(command) == 0
    assert "0 failed" in capsys.readouterr().out
    page = Page(out.read_text(encoding="utf-8"))
    rows = checking.check("examples::squared_relu", device="cpu", architectures=("sm_90a",), loads=load[1:])
    assert sum(v or 0 for v in page.column("checks-0", "passed")) == checking.summary(rows)["passed"]
    assert "No benchmark was given" in " ".join(page.words) and "run for this report" in " ".join(page.words)


def test_without_arguments_it_shows_every_op_and_the_committed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = registry.get(OP)
    monkeypatch.setattr(registry, "ops", lambda: [one])
    made = trtforge.report(tmp_path / "all.html", architectures=("sm_90a",))
    assert [c.source for c in made.checks] == [str(p) for p in sources.committed("check.json")]
    assert [source for source, _ in made.runs] == [str(p) for p in sources.committed("bench.json")]
    assert [i.kernel for i in made.inspections] == [k.name for k in one.kernels]
    page = Page((tmp_path / "all.html").read_text(encoding="utf-8"))
    for index, path in enumerate(sources.committed("check.json")):
        data = json.loads(path.read_text())
        assert page.column(f"checks-{index}", "passed") == [k["passed"] for k in data["kernels"]]


# ---- what is refused ------------------------------------------------------------------------------------------------


def _damage(change: Callable[[Any], Any]) -> Callable[[str], str]:
    def damaged(text: str) -> str:
        data = json.loads(text)
        return json.dumps(change(data) or data)

    return damaged


DAMAGES = {
    "checks": {
        "cut short": lambda text: text[: len(text) // 2],
        "a list": lambda text: "[1, 2]",
        "no kernels": _damage(lambda d: {k: v for k, v in d.items() if k != "kernels"}),
        "a count of text": _damage(lambda d: d["kernels"][0].update(passed="many")),
        "a worst error of text": _damage(lambda d: d["kernels"][0].update(worst_over_tolerance="large")),
        "a failure without its reason": _damage(lambda d: d["failed"][0].pop("reason") and None),
        "rows of check --json": lambda text: json.dumps({"rows": [], "summary": {}}),
        "not UTF-8": lambda text: "\udcff",
    },
    "bench": {
        "cut short": lambda text: text[: len(text) // 2],
        "another format": _damage(lambda d: d.update(format="trtforge.bench/99")),
        "no rows": _damage(lambda d: {k: v for k, v in d.items() if k != "rows"}),
        "a time of text": _damage(lambda d: d["rows"][0].update(microseconds="fast")),
        "an op of numbers": _damage(lambda d: d["rows"][0].update(op=[1])),
        "a row that is no object": _damage(lambda d: d["rows"].append(3)),
    },
    "profile": {
        "cut short": lambda text: text[: len(text) // 2],
        "another format": _damage(lambda d: d.update(format="trtforge.bench/1")),
        "metrics of text": _damage(lambda d: d["profiles"][0].update(metrics={"a": "b"})),
        "a roofline that is a list": _damage(lambda d: d["profiles"][0].update(roofline=[1])),
        "a name that is missing": _damage(lambda d: d["profiles"][0].pop("op") and None),
        "none at all": _damage(lambda d: d.update(profiles=[])),
    },
}


@pytest.mark.parametrize("kind, damage", [(kind, damage) for kind, damages in DAMAGES.items() for damage in damages])
def test_a_damaged_file_is_refused_by_name(
    kind: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = _write(tmp_path)
    path: Path = getattr(made, kind)
    path.write_text(DAMAGES[kind][damage](path.read_text()), errors="surrogateescape")
    assert cli.main(made.command) == 2
    told = capsys.readouterr().err
    assert "FileError" in told and str(path) in told and told.count("\n") == 1, told
    assert not made.report.exists()


def test_other_bad_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = _write(tmp_path)
    absent = tmp_path / "absent.json"
    for option in ("--checks", "--bench", "--profile"):
        assert cli.main([*made.command, option, str(absent)]) == 2
        assert "absent.json" in capsys.readouterr().err
    for out, message in ((tmp_path, "is a folder"), (tmp_path / "no" / "x.html", "there is no folder")):
        with pytest.raises(UsageError, match=message):
            trtforge.report(out, [OP])
    for command in (["report", "absent", "-o", str(made.report)], [*made.command, "--arch", "sm_1"]):
        assert cli.main(command) == 2
        assert "trtforge: " in capsys.readouterr().err
    assert not made.report.exists()


def test_a_full_disk_keeps_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = _write(tmp_path)
    made.report.write_text("the old page")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        gathered = session.gather([OP], checks=[made.checks], architectures=("sm_90a",))
        patched.setattr(session, "gather", lambda *arguments, **options: gathered)
        patched.setattr(os, "write", full)
        status = cli.main(made.command)
    assert status == 2
    told = capsys.readouterr().err
    assert "FileError" in told and str(made.report) in told and "No space left" in told
    assert made.report.read_text() == "the old page" and sorted(tmp_path.iterdir()) == before


def test_without_jinja_the_way_to_get_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "available", lambda module: module != "jinja2")
    with pytest.raises(MissingDependencyError, match=r"jinja2.*trtforge\[report\]"):
        trtforge.report(tmp_path / "x.html", [OP])


def test_pictures_lose_what_runs_and_what_is_fetched() -> None:
    svg = (
        '<?xml version="1.0"?><!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg" width="40pt" height="20pt" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" onload="alert(1)"><metadata>m</metadata><script>alert(1)</script>'
        "<style>* { fill: url(http://x.test) }</style><defs>"
        '<clipPath id="c"><rect width="9" height="9"/></clipPath></defs>'
        '<rect clip-path="url(#c)" style="clip-path: url(#c)" width="9" height="9"/><use xlink:href="#c"/>'
        '<use href="http://x.test/a.svg#b"/><image href="http://x.test/a.png"/><text>1 &lt; 2</text></svg>'
    )
    made = pictures.inline(svg, "p1-", 'a "label"')
    assert made.startswith("<svg ") and 'viewBox="0 0 40 20"' in made and "1 &lt; 2" in made
    assert 'id="p1-c"' in made and made.count("url(#p1-c)") == 2 and 'href="#p1-c"' in made
    assert not re.search(r"alert|x\.test|metadata|onload|DOCTYPE| width=\"40pt", made)
    for bad in ("", "<svg", "<html/>"):
        with pytest.raises(trtforge.ForgeError, match="is no SVG"):
            pictures.inline(bad, "p", "label")


# ---- seen in a browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium: $TRTFORGE_CHROMIUM, one on the PATH, or Playwright's own."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="looking at the page needs Playwright: pip install playwright"
    )
    named = os.environ.get("TRTFORGE_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    with api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip(
                f"no Chromium: set TRTFORGE_CHROMIUM, put one of {', '.join(BROWSERS)} on the PATH, or run "
                "'playwright install chromium'"
            )
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
        started = playwright.chromium.launch(executable_path=found, args=quiet)
        yield started
        started.close()


@dataclass
class Seen:
    """An opened page, with what the browser said and asked for while it was open."""

    page: Any
    said: list[str]
    requests: list[str]


@pytest.fixture
def opened(browser: Any, files: Files) -> Iterator[Callable[..., Seen]]:
    contexts = []

    def open_page(**options: Any) -> Seen:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        seen = Seen(context.new_page(), [], [])
        seen.page.on("console", lambda message: seen.said.append(message.text))
        seen.page.on("pageerror", lambda error: seen.said.append(str(error)))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(files.report.as_uri())
        return seen

    yield open_page
    for context in contexts:
        context.close()


_TABLES = """() => Object.fromEntries([...document.querySelectorAll("table")].map((table) => [table.id,
    [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent))]))"""
_BOXES = """() => [...document.querySelectorAll("figure svg")].map((svg) => {
    const box = svg.getBoundingClientRect(), drawn = svg.getBBox();
    return {width: box.width, height: box.height, left: box.left, right: box.right,
            drawn: Math.min(drawn.width, drawn.height), shapes: svg.querySelectorAll("path, text, use, rect").length};
})"""
_OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
_COLORS = """async (png) => {
    const image = new Image();
    image.src = "data:image/png;base64," + png;
    await image.decode();
    const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);
    const counts = new Map();
    for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
    return {colors: counts.size, most: Math.max(...counts.values()) / pixels.length};
}"""
_CONTRAST = """() => {
    const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = light(getComputedStyle(document.body).backgroundColor);
    const worst = [...document.querySelectorAll("h1, h2, dt, dd, td, th, a, .note, .figure, .label, .detail, footer")]
        .map((element) => light(getComputedStyle(element).color))
        .map((ink) => (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05));
    return {ground, worst: Math.min(...worst)};
}"""


def test_the_browser_shows_every_table_and_has_no_complaint(
    opened: Callable[..., Seen], page: Page, files: Files
) -> None:
    seen = opened()
    assert seen.page.evaluate(_TABLES) == page.tables
    assert seen.said == [] and seen.requests == [files.report.as_uri()]
    assert seen.page.title() == HOSTILE and seen.page.locator("h1").inner_text() == HOSTILE
    for table in page.tables:
        box = seen.page.locator(f"[id='{table}']").bounding_box()
        assert box["width"] > 100 and box["height"] > 20, table


def test_pictures_have_a_size_and_stay_inside(opened: Callable[..., Seen]) -> None:
    pytest.importorskip("matplotlib", reason="the plots need Matplotlib: pip install 'trtforge[plots]'")
    boxes = opened().page.evaluate(_BOXES)
    assert len(boxes) == len(plots.figures(_run()))
    for box in boxes:
        assert box["width"] > 400 and box["height"] > 100 and box["drawn"] > 50 and box["shapes"] > 10
        assert box["left"] >= 0 and box["right"] <= 1280


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows(opened: Callable[..., Seen], width: int) -> None:
    assert opened(viewport={"width": width, "height": 800}).page.evaluate(_OVERFLOW) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable_and_not_blank(opened: Callable[..., Seen], browser: Any, scheme: str) -> None:
    page = opened(color_scheme=scheme).page
    contrast = page.evaluate(_CONTRAST)
    assert (contrast["ground"] > 0.5) == (scheme == "light") and contrast["worst"] >= 4.5, contrast
    picture = base64.b64encode(page.screenshot(full_page=True)).decode()
    blank = browser.new_page()
    found = blank.evaluate(_COLORS, picture)
    blank.close()
    assert found["colors"] > 50 and found["most"] < 0.98, found


def test_a_click_sorts_and_words_filter(opened: Callable[..., Seen]) -> None:
    page = opened().page
    table = page.locator("#contenders-0-trtforge-rms_norm")
    times = table.locator("tbody td:nth-child(5)")
    heading = table.locator("thead th", has_text="µs")
    heading.locator("button").click()
    expected = sorted(r.microseconds for r in _run().rows if r.microseconds)
    assert times.all_inner_texts() == [f"{t:,.2f}" for t in expected] + 3 * [NONE]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").click()
    assert times.all_inner_texts() == 3 * [NONE] + [f"{t:,.2f}" for t in reversed(expected)]
    box = page.locator("section.table", has=table).get_by_label("Filter rows")
    box.fill("pytorch m4096")
    assert table.locator("tbody tr:visible").count() == 1
    box.fill("")
    assert table.locator("tbody tr:visible").count() == len(_run().rows)


def test_it_reads_without_scripts_and_prints(opened: Callable[..., Seen], page: Page) -> None:
    seen = opened(java_script_enabled=False)
    assert seen.page.locator("button, input").count() == 0
    for name, rows in page.tables.items():
        shown = seen.page.locator(f"[id='{name}'] tr").count()
        assert shown == len(rows)
    printed = opened(viewport={"width": 1050, "height": 700})
    printed.page.emulate_media(media="print")
    assert not printed.page.locator("nav").is_visible() and printed.page.evaluate(_OVERFLOW) <= 0
    assert printed.page.pdf(format="A4", landscape=True).startswith(b"%PDF")


def test_rows_of_the_session_are_plain_data(files: Files) -> None:
    """What the page was made of can be read again by the same readers."""
    assert [asdict(r) for r in measurement.read(files.bench).rows] == [asdict(r) for r in _run().rows]
    with pytest.raises(FileError, match="check --report FILE"):
        sources.read_checks(files.bench)


def test_committed_files_are_named_from_the_top_of_the_checkout(tmp_path: Path) -> None:
    (file, *_) = sources.committed("bench.json")
    assert sources.named(str(file)) == f"benchmarks/results/{file.parent.name}/bench.json"
    for other in (tmp_path / "bench.json", Path("bench.json")):
        assert sources.named(str(other)) == str(other)


def test_a_part_with_many_ops_has_links_to_each() -> None:
    tables = [Table(f"t-{op}-{what}", f"trtforge::{op}: {what}", ("a",)) for op in "abc" for what in ("one", "two")]
    section = page_module.Section("inspection", "Inspection", [page_module.Group(tables=tables)])
    assert section.links == [("title-t-a-one", "a"), ("title-t-b-one", "b"), ("title-t-c-one", "c")]
    section.groups[0].tables = tables[:4]
    assert section.links == []

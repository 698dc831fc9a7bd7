"""What `trtforge profile` reads out of a report: units, quantities, stalls, roofline, words."""

from __future__ import annotations

from pathlib import Path

import pytest
from ncu_double import COUNTERS, raw_page

from trtforge import cli
from trtforge.bindings.errors import FileError, ProfileError
from trtforge.harness import profile_csv
from trtforge.harness import profile_reading as reading
from trtforge.harness.profile import read


def counters(**changed: float) -> dict[str, float]:
    (launch,) = profile_csv.parse_raw(raw_page(COUNTERS))
    short = {"dram": "gpu__dram_throughput", "tensor": "sm__pipe_tensor_cycles_active", "sm": "sm__throughput"}
    metrics = dict(launch.metrics)
    for name, value in changed.items():
        key = next(k for k in metrics if k.startswith(short.get(name, name)))
        metrics[key] = value
    return metrics


def test_units_become_seconds_bytes_and_hertz() -> None:
    for unit, scale in (("usecond", 1e-6), ("ns", 1e-9), ("Gbyte/second", 1e9), ("Kbyte/block", 1e3), ("%", 1.0),
                        ("cycle/nsecond", 1e9), ("Ghz", 1e9), ("register/thread", 1.0), ("", 1.0)):  # fmt: skip
        assert profile_csv.scale_of(unit) == pytest.approx(scale), unit
    metrics = counters()
    assert metrics["gpu__time_duration.sum"] == pytest.approx(20e-6)
    assert metrics["launch__shared_mem_per_block"] == pytest.approx(1152)


def test_one_metric_a_line_reads_the_same() -> None:
    lines = ['"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"']
    lines += [f'"0","1","rms_norm","S","{name}","{unit}","{value}"' for name, (unit, value) in COUNTERS.items()]
    (launch,) = profile_csv.parse_raw("\n".join(lines))
    assert launch.function == "rms_norm" and launch.metrics == counters()


def test_stalls_limiter_and_quantities() -> None:
    metrics = counters()
    assert reading.stalls(metrics)[:2] == [("long_scoreboard", 0.6), ("barrier", 0.2)]
    assert reading.occupancy_limiter(metrics) == "registers"
    assert reading.occupancy_limiter({**metrics, "launch__occupancy_limit_warps": 6}) == "registers, threads per block"
    found = reading.quantities(metrics)
    assert found["l2_gb_s"] == pytest.approx(2097152 * 32 / 20e-6 * 1e-9)
    assert found["dram_peak_gb_s"] == pytest.approx(4917, rel=1e-3)
    sampled = {"smsp__pcsamp_warps_issue_stalled_wait": 30.0, "smsp__pcsamp_warps_issue_stalled_selected": 70.0,
               "smsp__pcsamp_warps_issue_stalled_wait_not_issued": 9.0}  # fmt: skip
    assert reading.stalls(sampled) == [("wait", 0.3)]


def test_other_names_of_the_same_quantity() -> None:
    assert reading.quantities({"dram__throughput.avg.pct_of_peak_sustained_elapsed": 7.0})["dram_pct"] == 7.0
    one = {
        f"sm__pipe_tensor_op_{k}_cycles_active.avg.pct_of_peak_sustained_active": v
        for k, v in (("hmma", 40.0), ("imma", 2.0))
    }
    assert reading.quantities(one)["tensor_pct"] == 40.0
    assert reading.quantities({"smsp__issue_active.avg.per_cycle_active": 0.25})["issue_pct"] == 25.0
    conflicts = {f"l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_{k}.sum": v for k, v in (("ld", 3.0), ("st", 4.0))}
    assert reading.quantities(conflicts)["bank_conflicts"] == 7.0


def test_what_bounds_a_kernel_in_words() -> None:
    def words(**changed: float) -> str:
        metrics = counters(**changed)
        return reading.bound(reading.quantities(metrics), reading.stalls(metrics))

    assert words() == "device memory, at 85% of its peak"
    assert words(dram=70.0) == "mostly device memory, at 70% of its peak"
    assert words(tensor=91.0, sm=88.0) == "the tensor pipe, at 91% of its peak"
    assert words(sm=97.0) == "a pipe of the multiprocessor, at 97% of its peak"
    assert words(dram=20.0).startswith("latency: warps wait for data from device memory")
    assert reading.bound({}, []).startswith("not in this report")


def test_the_roofline_of_the_declared_cost() -> None:
    found = reading.quantities(counters())
    line = reading.roofline(reading.Work(67108864, 67117056, "bfloat16", 90, 132), found)
    assert line["bound"] == "memory" and line["unit"] == "GB/s"
    assert line["ceiling"] == pytest.approx(4917, rel=1e-3)
    assert line["fraction"] == pytest.approx(67117056 / 4.917e12 / 20e-6, rel=1e-3)
    product = reading.Work(2 * 4096**3, 3 * 2 * 4096**2, "bfloat16", 90, 132)
    line = reading.roofline(product, reading.quantities(counters(tensor=70.0)))
    assert line["bound"] == "compute" and line["peak_tflops"] == pytest.approx(4096 * 132 * 1.7e9 * 1e-12)
    eight = reading.Work(product.flops, product.bytes, "float8_e4m3fn", 90, 132)
    double = reading.roofline(eight, reading.quantities(counters(tensor=70.0)))
    assert double["peak_tflops"] == pytest.approx(2 * float(line["peak_tflops"]))
    unknown = {k: v for k, v in found.items() if k not in ("dram_peak_gb_s", "sm_ghz")}
    assert "ceiling" not in reading.roofline(product, unknown)


def test_findings_name_what_stands_out() -> None:
    metrics = counters()
    found, waits = reading.quantities(metrics), reading.stalls(metrics)
    said = " ".join(reading.findings(found, waits, "registers", reading.Work(1, 30_000_000)))
    assert "2.24 times the bytes" in said and "limited by registers" in said and "60% of warp time" in said
    assert "10% of the shared-memory wavefronts" in said
    few = " ".join(reading.findings({**found, "waves": 0.4, "occupancy_pct": 20.0}, [], "", reading.Work()))
    assert "fills 40% of the GPU" in few and "Occupancy is 20% where 75% would fit" in few


def test_a_quantity_that_the_report_lacks_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bare.csv"
    file.write_text(raw_page({"gpu__time_duration.sum": ("usecond", "3.5")}))
    assert cli.main(["profile", str(file)]) == 0
    out = capsys.readouterr().out
    assert "3.50 µs" in out and out.count("not in this report") >= 8


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "==ERROR== nothing here", "no CSV of ncu's raw page"),
        ("a.csv", raw_page(), "holds no kernel"),
        ("a.json", "{}", "its format is None"),
        ("a.json", '{"format": "trtforge.profile/1", "profiles": [{"op": 1}]}', "damaged profile"),
        ("a.json", '{"format": "trtforge.profile/1", "profiles": []}', "holds no profile"),
        ("a.json", "[", "damaged profile"),
    ],
)
def test_files_that_are_no_profiles(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises((FileError, ProfileError), match=message):
        read(tmp_path / name)

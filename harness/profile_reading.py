"""What the counters of Nsight Compute say about a kernel.

``ncu --page raw --csv`` gives one column per metric. Names differ between releases and chips, so each quantity has a
list of names that mean the same; the first that a report holds is taken. A quantity that no name gives is absent from
the result, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trtforge.harness.profile_csv import Launch

Metrics = Mapping[str, float]


# ---- quantities ---------------------------------------------------------------------------------------------------

Read = Callable[[Metrics], "float | None"]


def _first(*names: str, by: float = 1.0) -> Read:
    return lambda m: next((m[n] * by for n in names if n in m), None)


def _total(*names: str) -> Read:
    return lambda m: sum(m.get(n, 0.0) for n in names) if any(n in m for n in names) else None


def _most(*names: str) -> Read:
    return lambda m: max((m[n] for n in names if n in m), default=None)


@dataclass(frozen=True)
class Quantity:
    """``ways`` to find it, in order of preference."""

    label: str
    unit: str
    ways: tuple[Read, ...]

    def read(self, metrics: Metrics) -> float | None:
        return next((v for v in (way(metrics) for way in self.ways) if v is not None), None)


_PEAK = "avg.pct_of_peak_sustained"
_CONFLICTS = "l1tex__data_bank_conflicts_pipe_lsu_mem_shared"
_WAVEFRONTS = "l1tex__data_pipe_lsu_wavefronts_mem_shared"
_KINDS = ("hmma", "imma", "dmma", "gmma", "qmma", "omma")

QUANTITIES: dict[str, Quantity] = {
    "time_us": Quantity("time", "µs", (_first("gpu__time_duration.sum", "gpu__time_duration.avg", by=1e6),)),
    "sm_pct": Quantity("SM throughput", "%", (_first(f"sm__throughput.{_PEAK}_elapsed"),)),
    "memory_pct": Quantity("memory throughput", "%", (_first(f"gpu__compute_memory_throughput.{_PEAK}_elapsed"),)),
    "dram_pct": Quantity(
        "DRAM", "%", (_first(f"gpu__dram_throughput.{_PEAK}_elapsed", f"dram__throughput.{_PEAK}_elapsed"),)
    ),
    "dram_gb_s": Quantity("DRAM", "GB/s", (_first("dram__bytes.sum.per_second", by=1e-9),)),
    "dram_bytes": Quantity(
        "DRAM bytes", "B", (_first("dram__bytes.sum"), _total("dram__bytes_read.sum", "dram__bytes_write.sum"))
    ),
    "l2_pct": Quantity("L2", "%", (_first(f"lts__throughput.{_PEAK}_elapsed", f"lts__t_sectors.{_PEAK}_elapsed"),)),
    "l2_gb_s": Quantity("L2", "GB/s", (_first("lts__t_bytes.sum.per_second", by=1e-9),)),
    "l2_hit_pct": Quantity("L2 hits", "%", (_first("lts__t_sector_hit_rate.pct"),)),
    "l1_pct": Quantity(
        "L1 and shared memory",
        "%",
        (_first(f"l1tex__throughput.{_PEAK}_elapsed", f"l1tex__throughput.{_PEAK}_active"),),
    ),
    "tensor_pct": Quantity(
        "tensor pipe",
        "%",
        (
            _first(f"sm__pipe_tensor_cycles_active.{_PEAK}_active", f"sm__pipe_tensor_cycles_active.{_PEAK}_elapsed"),
            _most(*(f"sm__pipe_tensor_op_{kind}_cycles_active.{_PEAK}_active" for kind in _KINDS)),
            _first(f"sm__inst_executed_pipe_tensor.{_PEAK}_active"),
            _most(*(f"sm__inst_executed_pipe_tensor_op_{kind}.{_PEAK}_active" for kind in _KINDS)),
        ),
    ),
    "issue_pct": Quantity(
        "issue slots",
        "%",
        (
            _first(f"smsp__issue_active.{_PEAK}_active", f"sm__inst_issued.{_PEAK}_active"),
            _first("smsp__issue_active.avg.per_cycle_active", by=100.0),
        ),
    ),
    "occupancy_pct": Quantity("occupancy achieved", "%", (_first(f"sm__warps_active.{_PEAK}_active"),)),
    "theoretical_pct": Quantity("occupancy possible", "%", (_first("sm__maximum_warps_per_active_cycle_pct"),)),
    "registers": Quantity("registers per thread", "", (_first("launch__registers_per_thread"),)),
    "shared_bytes": Quantity(
        "shared memory per block",
        "B",
        (
            _first("launch__shared_mem_per_block"),
            _total("launch__shared_mem_per_block_static", "launch__shared_mem_per_block_dynamic"),
        ),
    ),
    "bank_conflicts": Quantity(
        "bank conflicts",
        "",
        (_first(f"{_CONFLICTS}.sum"), _total(f"{_CONFLICTS}_op_ld.sum", f"{_CONFLICTS}_op_st.sum")),
    ),
    "shared_wavefronts": Quantity(
        "shared-memory wavefronts",
        "",
        (_first(f"{_WAVEFRONTS}.sum"), _total(f"{_WAVEFRONTS}_op_ld.sum", f"{_WAVEFRONTS}_op_st.sum")),
    ),
    "blocks": Quantity("blocks", "", (_first("launch__grid_size"),)),
    "threads": Quantity("threads per block", "", (_first("launch__block_size"),)),
    "waves": Quantity("waves", "", (_first("launch__waves_per_multiprocessor"),)),
    "sm_ghz": Quantity(
        "SM clock",
        "GHz",
        (
            _first(
                "smsp__cycles_elapsed.avg.per_second",
                "sm__cycles_elapsed.avg.per_second",
                "gpc__cycles_elapsed.avg.per_second",
                by=1e-9,
            ),
        ),
    ),
    "sms": Quantity("multiprocessors", "", (_first("device__attribute_multiprocessor_count"),)),
    "cc": Quantity(
        "compute capability",
        "",
        (
            lambda m: (
                m["device__attribute_compute_capability_major"] * 10 + m["device__attribute_compute_capability_minor"]
                if "device__attribute_compute_capability_major" in m
                else None
            ),
        ),
    ),
}


def quantities(metrics: Metrics) -> dict[str, float]:
    """Every quantity that the metrics give, by its key in :data:`QUANTITIES`, and what follows from those."""
    found = {key: value for key, q in QUANTITIES.items() if (value := q.read(metrics)) is not None}
    seconds = found.get("time_us", 0.0) * 1e-6
    if seconds and "dram_gb_s" not in found and "dram_bytes" in found:
        found["dram_gb_s"] = found["dram_bytes"] / seconds * 1e-9
    if seconds and "dram_bytes" not in found and "dram_gb_s" in found:
        found["dram_bytes"] = found["dram_gb_s"] * 1e9 * seconds
    sectors = metrics.get("lts__t_sectors.sum")
    if seconds and "l2_gb_s" not in found and sectors is not None:
        found["l2_gb_s"] = sectors * _SECTOR_BYTES / seconds * 1e-9
    peak = _dram_peak(metrics, found)
    if peak is not None:
        found["dram_peak_gb_s"] = peak
    return found


_SECTOR_BYTES = 32


def _dram_peak(metrics: Metrics, found: Metrics) -> float | None:
    """GB/s that the memory could move: two transfers a clock over the bus, or what the counters' percentage implies."""
    clock = metrics.get("device__attribute_max_mem_frequency_khz")
    bus = metrics.get("device__attribute_global_memory_bus_width")
    if clock and bus:
        hertz = clock * 1e3 if clock < _SLOWEST_HERTZ else clock  # by its name in kilohertz, unless it has a unit too
        return 2 * hertz * bus / 8 * 1e-9
    if found.get("dram_pct", 0.0) > _TRUSTED_PERCENT and "dram_gb_s" in found:
        return found["dram_gb_s"] / found["dram_pct"] * 100
    return None


_TRUSTED_PERCENT = 5.0
_SLOWEST_HERTZ = 1e8

# ---- occupancy and stalls -----------------------------------------------------------------------------------------

_LIMITS = {
    "registers": "registers",
    "shared_mem": "shared memory",
    "warps": "threads per block",
    "blocks": "blocks per multiprocessor",
    "barriers": "barriers",
}


def occupancy_limiter(metrics: Metrics) -> str:
    """What keeps more blocks from a multiprocessor, "registers" or "registers, shared memory"; "" when unknown."""
    limits = {text: metrics[f"launch__occupancy_limit_{name}"] for name, text in _LIMITS.items()
              if f"launch__occupancy_limit_{name}" in metrics}  # fmt: skip
    if not limits:
        return ""
    least = min(limits.values())
    return ", ".join(text for text, value in limits.items() if value == least)


_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active(?:\.ratio)?")
_SAMPLED = re.compile(r"smsp__pcsamp_warps_issue_stalled_(\w+)")

#: What a warp waits for, by the name of the stall reason.
STALLS = {
    "long_scoreboard": "data from device memory, L2 or L1",
    "short_scoreboard": "data from shared memory or the special-function units",
    "barrier": "other warps at a block-wide barrier",
    "membar": "a memory fence",
    "wait": "a fixed latency between dependent instructions",
    "math_pipe_throttle": "a busy arithmetic or tensor pipe",
    "mio_throttle": "a full queue to shared memory and special functions",
    "lg_throttle": "a full queue to global and local memory",
    "tex_throttle": "a full queue to the texture unit",
    "drain": "its last stores to be written",
    "branch_resolving": "the target of a branch",
    "no_instruction": "instructions to be fetched",
    "imc_miss": "constants to be fetched",
    "dispatch_stall": "the dispatcher",
    "sleeping": "its own sleep (or a suspended mbarrier try_wait)",
    "gmma": "the warp group's matrix products (wgmma)",
    "warpgroup_arrive": "the warp group's matrix products (wgmma)",
    "not_selected": "the scheduler, which had another warp ready",
    "misc": "something that has no name of its own",
}


def stalls(metrics: Metrics) -> list[tuple[str, float]]:
    """Why warps did not issue: (reason, share of all warp time), the largest first; time that issued has no entry."""
    for pattern in (_STALL, _SAMPLED):
        found = {m[1]: v for name, v in metrics.items() if (m := pattern.fullmatch(name))}
        found = {name: v for name, v in found.items() if not name.endswith("_not_issued")}
        total = sum(found.values())
        if total > 0:
            shares = [(name, value / total) for name, value in found.items() if name != "selected" and value > 0]
            return sorted(shares, key=lambda item: -item[1])
    return []


# ---- roofline -----------------------------------------------------------------------------------------------------

#: Floating-point operations per clock and multiprocessor of the tensor cores, dense, float32 accumulation: 16-bit and
#: 8-bit inputs; and of the ordinary float32 units. NVIDIA's architecture papers for A100, Ada, H100 and Blackwell.
_PER_CLOCK = {80: (2048, 2048, 128), 89: (1024, 2048, 256), 90: (4096, 8192, 256), 100: (8192, 16384, 256)}
_EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2", "int8")
_TENSOR_USED = 1.0  # percent; below that, other instructions that share the pipe


@dataclass(frozen=True)
class Work:
    """What was launched: the declaration's operations and bytes, and the dtype of the first input."""

    flops: int = 0
    bytes: int = 0
    dtype: str = ""
    cc: int = 0
    sms: int = 0


def roofline(work: Work, found: Metrics) -> dict[str, float | str]:
    """The least time that the declared work could take on this GPU at the clock that the profiler saw.

    Keys where they are known: flops, bytes, intensity (FLOP per byte), dram_peak_gb_s, peak_tflops, least_us, bound
    ("memory" or "compute"), ceiling with its unit (the rate at ``least_us``), rate (achieved, same unit), fraction.
    """
    line: dict[str, float | str] = {"flops": work.flops, "bytes": work.bytes}
    if work.bytes:
        line["intensity"] = work.flops / work.bytes
    times = {}
    memory = found.get("dram_peak_gb_s")
    if memory and work.bytes:
        line["dram_peak_gb_s"] = memory
        times["memory"] = work.bytes / memory * 1e-3
    peak = _peak_tflops(work, found)
    if peak and work.flops:
        line["peak_tflops"] = peak
        times["compute"] = work.flops / peak * 1e-6
    if not times:
        return line
    bound = max(times, key=lambda name: times[name])
    least = times[bound]
    line.update(least_us=least, bound=bound)
    amount, unit, by = (work.flops, "TFLOP/s", 1e-6) if bound == "compute" else (work.bytes, "GB/s", 1e-3)
    line.update(ceiling=amount / least * by, unit=unit)
    time = found.get("time_us")
    if time:
        line.update(rate=amount / time * by, fraction=least / time)
    return line


def _peak_tflops(work: Work, found: Metrics) -> float | None:
    rates = _PER_CLOCK.get(int(found.get("cc", work.cc)))
    sms, clock = found.get("sms", work.sms), found.get("sm_ghz")
    if rates is None or not sms or not clock or "tensor_pct" not in found:
        return None
    if found["tensor_pct"] < _TENSOR_USED:
        rate = rates[2]
    else:
        rate = rates[1] if work.dtype in _EIGHT_BITS else rates[0]
    return rate * sms * clock * 1e-3


# ---- in words -----------------------------------------------------------------------------------------------------

_SATURATED, _BUSY = 80.0, 60.0
_UNITS = {
    "tensor_pct": "the tensor pipe",
    "dram_pct": "device memory",
    "l2_pct": "the L2 cache",
    "l1_pct": "L1 and shared memory",
    "issue_pct": "instruction issue",
}
_CLEARLY = 5.0  # percent that the multiprocessor's own figure, the largest of many pipes, must lie above the named ones


def bound(found: Metrics, waiting: list[tuple[str, float]]) -> str:
    """What bounds the kernel, in a few words; says so when the counters that decide it are absent."""
    units = {text: found[key] for key, text in _UNITS.items() if key in found}
    if not units:
        return "not in this report: it holds no throughput counters"
    name = max(units, key=lambda text: units[text])
    if found.get("sm_pct", 0.0) > units[name] + _CLEARLY:
        name = "a pipe of the multiprocessor"
        units[name] = found["sm_pct"]
    level = units[name]
    if level >= _SATURATED:
        return f"{name}, at {level:.0f}% of its peak"
    if level >= _BUSY:
        return f"mostly {name}, at {level:.0f}% of its peak"
    why = f": warps wait for {STALLS.get(waiting[0][0], waiting[0][0])}" if waiting else ""
    return f"latency{why} (no unit above {level:.0f}%: {name})"


_MORE_BYTES, _LOW_OCCUPANCY, _CONFLICT_SHARE, _LARGE_STALL = 1.25, 0.8, 0.05, 0.15


def findings(found: Metrics, waiting: list[tuple[str, float]], limiter: str, work: Work) -> list[str]:
    """What stands out, one sentence each."""
    said = []
    moved = found.get("dram_bytes")
    if moved and work.bytes and moved / work.bytes > _MORE_BYTES:
        said.append(f"Device memory moved {moved / work.bytes:.2f} times the bytes that the declaration counts.")
    waves = found.get("waves")
    if waves is not None and waves < 1:
        said.append(f"The grid fills {waves:.0%} of the GPU once; a smaller tile or a split would use the rest.")
    elif waves is not None and waves < 4 and waves % 1 and waves % 1 < 0.5:
        said.append(f"The grid is {waves:.2f} waves: the last one leaves most multiprocessors idle.")
    achieved, possible = found.get("occupancy_pct"), found.get("theoretical_pct")
    if achieved is not None and possible and achieved < _LOW_OCCUPANCY * possible:
        said.append(
            f"Occupancy is {achieved:.0f}% where {possible:.0f}% would fit: blocks are few or of uneven length."
        )
    if possible is not None and possible < 100 and limiter:
        said.append(f"Occupancy cannot exceed {possible:.0f}%: limited by {limiter}.")
    for reason, share in waiting[:3]:
        if share >= _LARGE_STALL and reason != "not_selected":
            said.append(f"{share:.0%} of warp time waits for {STALLS.get(reason, 'an unnamed reason')} ({reason}).")
    conflicts, wavefronts = found.get("bank_conflicts"), found.get("shared_wavefronts")
    if conflicts and wavefronts and conflicts / wavefronts > _CONFLICT_SHARE:
        said.append(f"{conflicts / wavefronts:.0%} of the shared-memory wavefronts are bank conflicts.")
    return said


@dataclass
class Reading:
    """Quantities, stalls and words of one launch; what :class:`trtforge.harness.profile.Profile` is made of."""

    metrics: dict[str, float]
    stalls: list[tuple[str, float]]
    limiter: str
    bound: str
    findings: list[str]
    roofline: dict[str, float | str] = field(default_factory=dict)


def read_launch(launch: Launch, work: Work) -> Reading:
    """Everything that a launch's metrics say."""
    found = quantities(launch.metrics)
    waiting, limiter = stalls(launch.metrics), occupancy_limiter(launch.metrics)
    line = roofline(work, found) if work.flops or work.bytes else {}
    return Reading(found, waiting, limiter, bound(found, waiting), findings(found, waiting, limiter, work), line)

"""What NVIDIA's profilers print, for tests: the raw page of ncu and the kernel table of nsys."""

from __future__ import annotations

# A memory-bound kernel on a GPU of 132 multiprocessors, as ncu's raw page has it. (name, unit, value)
COUNTERS = {
    "gpu__time_duration.sum": ("ns", "20,000"),
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "31.5"),
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed": ("%", "85.2"),
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": ("%", "85.2"),
    "dram__bytes.sum.per_second": ("byte/s", "3,355,443,200,000"),
    "dram__bytes_read.sum": ("byte", "33,554,432"),
    "dram__bytes_write.sum": ("byte", "33,554,432"),
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": ("%", "44"),
    "lts__t_sectors.sum": ("sector", "2,097,152"),
    "lts__t_sector_hit_rate.pct": ("%", "50.1"),
    "l1tex__throughput.avg.pct_of_peak_sustained_active": ("%", "40.0"),
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": ("%", "0"),
    "smsp__issue_active.avg.pct_of_peak_sustained_active": ("%", "22.5"),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("%", "61.0"),
    "sm__maximum_warps_per_active_cycle_pct": ("%", "75"),
    "launch__registers_per_thread": ("register/thread", "40"),
    "launch__occupancy_limit_registers": ("block", "6"),
    "launch__occupancy_limit_shared_mem": ("block", "12"),
    "launch__occupancy_limit_warps": ("block", "8"),
    "launch__occupancy_limit_blocks": ("block", "32"),
    "launch__shared_mem_per_block": ("Kbyte/block", "1.152"),
    "launch__waves_per_multiprocessor": ("", "5.17"),
    "launch__grid_size": ("", "4,096"),
    "launch__block_size": ("", "256"),
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": ("", "1,000"),
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": ("", "10,000"),
    "smsp__cycles_elapsed.avg.per_second": ("Ghz", "1.70"),
    "device__attribute_multiprocessor_count": ("", "132"),
    "device__attribute_compute_capability_major": ("", "9"),
    "device__attribute_compute_capability_minor": ("", "0"),
    "device__attribute_max_mem_frequency_khz": ("", "3,201,000"),
    "device__attribute_global_memory_bus_width": ("", "6,144"),
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": ("inst", "12"),
    "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio": ("inst", "3"),
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": ("inst", "4"),
    "smsp__average_warps_issue_stalled_selected_per_issue_active.ratio": ("inst", "1"),
}
HEAD = ("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size")
NSYS = """Generating SQLite file rms.sqlite from rms.nsys-rep

 ** CUDA GPU Kernel Summary (cuda_gpu_kern_sum):

Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
90.0,"420,000",20,21000.0,20500.0,20000,30000,100.5,rms_norm
10.0,46000,20,2300.0,2300.0,2200,2500,10.0,"void fill<float, 4>(float *)"
"""


def raw_page(*launches: dict[str, tuple[str, str]], functions: tuple[str, ...] = ("rms_norm",)) -> str:
    names = list(dict.fromkeys(name for one in launches for name in one))
    units = {name: one[name][0] for one in launches for name in one}
    lines = [(*HEAD, *names), (*("" for _ in HEAD), *(units[n] for n in names))]
    for index, (one, function) in enumerate(zip(launches, functions)):
        fixed = (str(index), "4711", "python3", "127.0.0.1", function, "1", "7", "(256, 1, 1)", "(4096, 1, 1)")
        lines.append((*fixed, *(one.get(n, ("", "n/a"))[1] for n in names)))
    return "==PROF== a line that is not part of the table\n" + "\n".join(
        ",".join(f'"{cell}"' for cell in line) for line in lines
    )

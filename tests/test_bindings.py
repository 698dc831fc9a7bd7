"""Compilation without a GPU: resources, parameters, errors with file and line, and the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trtforge.bindings import arrays, cache, device, launch
from trtforge.bindings.architectures import INSPECTED, architecture, of_device
from trtforge.bindings.binary import Binary, Parameter, entry_parameters, report_resources
from trtforge.bindings.disassemble import instruction_mix, sass
from trtforge.bindings.dtypes import DTYPES, dtype, name_of
from trtforge.bindings.errors import (
    CompileError,
    ContractError,
    DeviceError,
    ForgeError,
    MissingDependencyError,
    UsageError,
)
from trtforge.bindings.nvrtc import compile_cuda
from trtforge.bindings.optional import available, require
from trtforge.bindings.per_launch import LaunchConfig
from trtforge.kernels import registry
from trtforge.kernels.compile import compile_kernel

SOURCE = """#include "scale.cuh"
extern "C" __global__ void scale(const float* x, int n, float* y) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = scaled(x[i]);
}
"""
HEADER = "__device__ inline float scaled(float v) { return v * FACTOR; }\n"


@pytest.fixture
def kernel_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTFORGE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "scale.cuh").write_text(HEADER)
    path = tmp_path / "scale.cu"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize("arch", INSPECTED)
def test_cuda_compiles_for_every_architecture(kernel_file: Path, arch: str) -> None:
    binary = compile_cuda(kernel_file, "scale", arch, {"FACTOR": "2.0f"})
    assert binary.parameters == (Parameter("pointer", 8), Parameter("int32", 4), Parameter("pointer", 8))
    assert 0 < binary.resources.registers < 64 and binary.resources.spill_stores == 0
    assert f".target {arch}" in binary.ptx and binary.cubin[:4] == b"\x7fELF"


def test_the_instruction_mix_counts_loads_and_stores(kernel_file: Path) -> None:
    mix = instruction_mix(sass(compile_cuda(kernel_file, "scale", "sm_90a", {"FACTOR": "2.0f"})))
    assert mix["LDG"] == 1 and mix["STG"] == 1 and mix["total"] > 10
    assert "LDL" not in mix


def test_a_compile_error_shows_the_compilers_lines_with_file_and_line(kernel_file: Path) -> None:
    kernel_file.with_suffix(".cuh").write_text("\n\n__device__ float scaled(float v) { return v * FACTR; }\n")
    with pytest.raises(CompileError) as caught:
        compile_cuda(kernel_file, "scale", "sm_90a", {"FACTOR": "2.0f"})
    text = str(caught.value)
    assert f"{kernel_file.with_suffix('.cuh')}(3): error" in text and "FACTR" in text


def test_a_missing_entry_lists_the_entries_there_are(kernel_file: Path) -> None:
    with pytest.raises(CompileError, match=r"no kernel 'rescale' \(it has: scale\)"):
        compile_cuda(kernel_file, "rescale", "sm_90a", {"FACTOR": "2.0f"})


def test_a_missing_file_is_a_compile_error(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"cannot read .*nowhere\.cu"):
        compile_cuda(tmp_path / "nowhere.cu", "nowhere", "sm_90a")


def test_the_cache_is_keyed_by_source_headers_flags_and_architecture(kernel_file: Path) -> None:
    def key(**changes: str) -> str:
        return compile_cuda(
            kernel_file, "scale", changes.get("arch", "sm_80"), {"FACTOR": changes.get("f", "2.0f")}
        ).key

    first = key()
    assert key() == first
    assert len({first, key(f="3.0f"), key(arch="sm_89")}) == 3
    kernel_file.with_suffix(".cuh").write_text(HEADER + "// another header\n")
    changed = key()
    assert changed != first
    kernel_file.write_text(SOURCE + "// another source\n")
    assert key() not in (first, changed)


def test_a_cached_kernel_is_read_back_unchanged(kernel_file: Path) -> None:
    made = compile_cuda(kernel_file, "scale", "sm_90a", {"FACTOR": "2.0f"})
    read = cache.load(made.key)
    assert read == made and isinstance(read, Binary)


@pytest.mark.parametrize("victim", ["kernel.cubin", "kernel.ptx", "kernel.json", "digest"])
def test_a_damaged_cache_entry_is_made_anew(kernel_file: Path, victim: str) -> None:
    made = compile_cuda(kernel_file, "scale", "sm_90a", {"FACTOR": "2.0f"})
    folder = cache.directory() / made.key[:2] / made.key
    content = (folder / victim).read_bytes()
    (folder / victim).write_bytes(content[: len(content) // 2])
    assert cache.load(made.key) is None
    again = compile_cuda(kernel_file, "scale", "sm_90a", {"FACTOR": "2.0f"})
    assert again.cubin == made.cubin and cache.load(made.key) == again
    (folder / victim).unlink()
    assert compile_cuda(kernel_file, "scale", "sm_90a", {"FACTOR": "2.0f"}).cubin == made.cubin


def test_many_processes_compile_the_same_kernel_at_once(kernel_file: Path) -> None:
    program = (
        "from trtforge.bindings.nvrtc import compile_cuda\n"
        "for f in range(4):\n"
        f"    print(compile_cuda({str(kernel_file)!r}, 'scale', 'sm_90a', {{'FACTOR': f'{{f}}.0f'}}).key)\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [child.communicate()[0].split() for child in children]
    assert all(child.returncode == 0 for child in children)
    assert len(outputs[0]) == 4 and all(keys == outputs[0] for keys in outputs)
    assert all(cache.load(key) is not None for key in outputs[0])
    leftovers = [p for p in cache.directory().rglob(".*") if p.is_dir()]
    assert leftovers == []


def test_an_unwritable_cache_says_what_to_set(kernel_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = kernel_file.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("TRTFORGE_CACHE_DIR", str(blocked))
    with pytest.raises(ForgeError, match="TRTFORGE_CACHE_DIR"):
        compile_cuda(kernel_file, "scale", "sm_90a", {"FACTOR": "2.0f"})


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120a"])
def test_triton_compiles_for_explicit_targets(arch: str) -> None:
    op = registry.get("rms_norm")
    case = op.cases[3]
    binding = op.bind_case(case, {"x": "float16", "weight": "float16"})
    binary = compile_kernel(op.kernel_named("triton"), binding, 0, architecture(arch))
    assert binary.metadata["scratch_parameters"] == 2 and binary.metadata["global_scratch_size"] == 0
    assert [p.kind for p in binary.parameters[:5]] == ["pointer", "pointer", "int32", "int32", "pointer"]
    assert binary.resources.registers > 0


def test_ptx_parameters_of_both_spellings() -> None:
    ptx = """
    .visible .entry k(
        .param .u64 .ptr .global .align 16 k_param_0,
        .param .u32 k_param_1,
        .param .align 64 .b8 k_param_2[128]
    ) .maxntid 128 { ret; }
    """
    assert entry_parameters(ptx, "k") == (Parameter("pointer", 8), Parameter("int32", 4), Parameter("bytes", 128))


def test_a_report_without_resources_is_an_error() -> None:
    with pytest.raises(CompileError, match="no resources"):
        report_resources("nothing here", "k")


def test_serialized_products_are_a_warning() -> None:
    log = """ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized in 'k'
    ptxas info    : Compiling entry function 'k' for 'sm_90a'
    ptxas info    : Used 58 registers, used 0 barriers"""
    assert [line[:21] for line in report_resources(log, "k").warnings] == ["ptxas info    : (C751"]
    assert not report_resources(log.split("\n", 1)[1], "k").warnings


def test_occupancy_follows_the_limits() -> None:
    hopper = architecture("sm_90a")
    assert hopper.occupancy(256, 32, 0) == (8, "warps")
    assert hopper.occupancy(128, 128, 0) == (4, "registers")
    assert hopper.occupancy(128, 32, 100 * 1024) == (2, "shared memory")
    assert architecture("sm_80").occupancy(32, 16, 0) == (32, "blocks")


def test_devices_of_unlisted_capability_take_the_nearest_older_row() -> None:
    assert of_device(90, 114, 232448).name == "sm_90a" and of_device(90, 114, 232448).sms == 114
    assert of_device(121, 48, 101376).name == "sm_121"
    with pytest.raises(UsageError, match="older than"):
        of_device(75, 40, 65536)


@pytest.mark.parametrize("cluster", [None, (2, 1, 1)])
def test_the_launch_configuration_has_the_drivers_layout(cluster: tuple[int, int, int] | None) -> None:
    cu = pytest.importorskip("cuda.bindings.driver")
    theirs = cu.CUlaunchConfig()
    theirs.gridDimX, theirs.gridDimY, theirs.gridDimZ = 11, 12, 13
    theirs.blockDimX, theirs.blockDimY, theirs.blockDimZ = 14, 15, 16
    theirs.sharedMemBytes, theirs.hStream = 17, cu.CUstream(0x1234567890)
    if cluster:
        attribute = cu.CUlaunchAttribute()
        attribute.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z = cluster
        theirs.attrs, theirs.numAttrs = [attribute], 1
    ours = LaunchConfig.of((11, 12, 13), (14, 15, 16), 17, cluster)
    ours.stream = 0x1234567890
    seen = LaunchConfig.from_address(int(theirs.getPtr()))
    for name in ("grid", "block"):
        assert list(getattr(ours, name)) == list(getattr(seen, name))
    assert (ours.shared, ours.stream, ours.count) == (seen.shared, seen.stream, seen.count)
    if cluster:
        assert bytes(ours.attributes[0]) == bytes(seen.attributes[0])


def test_shared_memory_beyond_48_kib_is_asked_for_and_the_limit_only_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static and dynamic shared memory share the 48 KiB that need no permission; launchers share the kernel's limit."""
    asked: list[int] = []

    class Driver:
        CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)

        def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:
            return 0, ordinal

        def cuKernelSetAttribute(self, attribute: int, value: int, kernel: int, device: int) -> tuple[int]:
            asked.append(value)
            return (0,)

    monkeypatch.setattr(launch, "driver", Driver)
    monkeypatch.setattr(launch, "load", lambda binary: 7)
    monkeypatch.setattr(launch, "current_ordinal", lambda: 0)
    monkeypatch.setattr(launch, "device", lambda ordinal: SimpleNamespace(architecture=architecture("sm_90a")))
    monkeypatch.setattr(launch.per_launch, "launcher", lambda: None)
    monkeypatch.setattr(launch, "_allowed", {})
    binary: Any = SimpleNamespace(key="k", entry="kernel", metadata={}, resources=SimpleNamespace(static_shared=128))
    for dynamic in (40_960, 49_152, 200_000, 60_000):
        launch.Launcher(binary, (1, 1, 1), (32, 1, 1), dynamic, inputs=1, outputs=1)
    assert asked == [49_152, 200_000]
    with pytest.raises(ContractError, match="exceed the 232448 bytes"):
        launch.Launcher(binary, (1, 1, 1), (32, 1, 1), 232_400, inputs=1, outputs=1)


def test_dtypes_round_trip_and_unknown_ones_are_listed() -> None:
    for name, row in DTYPES.items():
        assert name_of(row.numpy) == name and row.storage.itemsize == row.itemsize
    with pytest.raises(ContractError, match="float8_e4m3fn"):
        dtype("fp8")
    with pytest.raises(ContractError, match="complex64"):
        name_of(np.complex64)


def test_views_of_host_arrays_and_of_nonsense() -> None:
    array = np.zeros((3, 4), dtype("bfloat16").numpy)
    seen = arrays.view(array)
    assert (seen.shape, seen.dtype, seen.device, seen.contiguous) == ((3, 4), "bfloat16", "cpu", True)
    assert not arrays.view(array.T).contiguous
    with pytest.raises(ContractError, match="weight: a str was given"):
        arrays.view("text", "weight")


def test_absent_packages_say_how_to_get_them() -> None:
    assert not available("no_such_package_here")
    with pytest.raises(MissingDependencyError, match=r"drawing needs .*no_such_package_here.*pip install"):
        require("no_such_package_here", "drawing")


@pytest.mark.skipif(device.has_gpu(), reason="there is a GPU here")
def test_without_a_gpu_device_calls_say_so() -> None:
    with pytest.raises(DeviceError, match="timing needs an NVIDIA GPU"):
        device.require_gpu("timing")
    op = registry.get("rms_norm")
    x = np.ones((2, 8), np.float16)
    with pytest.raises(DeviceError, match="NVIDIA GPU"):
        op(x, x[0], device="cuda")
    assert op(x, x[0]).shape == (2, 8)

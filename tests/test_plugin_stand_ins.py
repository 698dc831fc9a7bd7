"""Stand-ins for TensorRT's libraries, and NVIDIA's layer over them."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from trtforge.bindings.errors import ForgeError, MissingDependencyError
from trtforge.plugins import nvidia, stand_ins
from trtforge.plugins.elf import Links, links, null_library

MACHINES = {"x86_64": 62, "aarch64": 183}
HERE = MACHINES.get(platform.machine())

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or HERE is None, reason="stand-in libraries exist for Linux on x86-64 and AArch64"
)
needs_bindings = pytest.mark.skipif(
    importlib.util.find_spec(stand_ins.BINDINGS) is None, reason=f"needs pip install {stand_ins.WHEEL}"
)


def test_a_null_library_loads_and_every_function_returns_null(tmp_path: Path) -> None:
    assert HERE is not None
    path = tmp_path / "libtrtforge_nothing.so.3"
    path.write_bytes(null_library(HERE, path.name, ["first", "second_INTERNAL", "third"]))
    library = ctypes.CDLL(str(path))
    for name in ("first", "second_INTERNAL", "third"):
        function = getattr(library, name)
        function.restype = ctypes.c_void_p
        assert function() is None
    assert not hasattr(library, "fourth")
    assert ctypes.CDLL(path.name)._handle == library._handle, "found again by its name, as the loader does"


def test_a_null_library_may_export_nothing(tmp_path: Path) -> None:
    assert HERE is not None
    path = tmp_path / "libtrtforge_empty.so.1"
    path.write_bytes(null_library(HERE, path.name, []))
    ctypes.CDLL(str(path))
    assert len(path.read_bytes()) < 1024


def test_both_machines_have_code_and_others_are_refused() -> None:
    for machine in MACHINES.values():
        assert null_library(machine, "libx.so", ["f"])[18] == machine
    with pytest.raises(ForgeError, match="machine 8"):
        null_library(8, "libx.so", ["f"])


def test_a_file_that_is_no_shared_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tensorrt.pyd"
    path.write_bytes(b"MZ" + bytes(200))
    with pytest.raises(ForgeError, match="Linux"):
        links(path)


@needs_bindings
def test_names_are_read_from_the_wheel() -> None:
    found = links(stand_ins.native_module())
    libraries = [name for name in found.needed if name.startswith("libnv")]
    assert {name.split(".so")[0] for name in libraries} == {"libnvinfer", "libnvinfer_plugin", "libnvonnxparser"}
    functions = stand_ins.unresolved_functions(found)
    assert "getPluginRegistry" in functions and not any(name.startswith(("Py", "_Py", "dl")) for name in functions)


@needs_bindings
def test_nothing_is_replaced_where_the_libraries_are_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "absent_libraries", lambda found: [])
    monkeypatch.setattr(stand_ins, "_loaded", {})
    assert stand_ins.load() == []


@needs_bindings
def test_a_damaged_stand_in_is_written_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRTFORGE_CACHE_DIR", str(tmp_path))
    native = stand_ins.native_module()
    found = links(native)
    first, *_ = stand_ins.build(native, found, ["libnvinfer.so.99"])
    whole = first.read_bytes()
    first.write_bytes(whole[:40])
    assert stand_ins.build(native, found, ["libnvinfer.so.99"]) == [first] and first.read_bytes() == whole
    assert [p.name for p in first.parent.iterdir()] == ["libnvinfer.so.99"]


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("TRTFORGE_CACHE_DIR", str(file))
    with pytest.raises(ForgeError, match="TRTFORGE_CACHE_DIR"):
        stand_ins.build(Path("tensorrt.so"), Links(62, (), ()), ["libnvinfer.so.11"])


def test_without_the_wheel_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install tensorrt-cu12-bindings"):
        stand_ins.native_module()


def test_without_tensorrt_the_engine_layer_says_why() -> None:
    reason = nvidia.why_no_engine_layer()
    if not reason:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(MissingDependencyError, match="full TensorRT library"):
        nvidia.engine_layer()


@needs_bindings
def test_the_host_layer_is_private() -> None:
    layer = nvidia.host_layer()
    assert layer.host and nvidia.host_layer() is layer
    bindings = sys.modules[stand_ins.BINDINGS]
    assert bindings.IDimensionExpr is not layer.trt.IDimensionExpr
    if nvidia.why_no_engine_layer():
        assert "tensorrt" not in sys.modules and layer.stand_ins
        assert nvidia.default_layer() is layer


@needs_bindings
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs pip install tensorrt-rtx-cu12")
@pytest.mark.parametrize("first", ["host", "rtx"])
def test_host_and_tensorrt_for_rtx_share_a_process(first: str) -> None:
    steps = ["from trtforge.plugins import nvidia; nvidia.host_layer()", "import tensorrt_rtx; tensorrt_rtx.Builder"]
    code = "; ".join(steps if first == "host" else reversed(steps))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

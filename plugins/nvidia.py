"""NVIDIA's Python plugin layer (``tensorrt.plugin``), in the two ways that the kit needs it.

* The *engine layer* is TensorRT itself: what is registered there can be put into networks. It needs the full library.
* The *host layer* is a private copy of the same Python package over NVIDIA's bindings, in which the classes that live
  inside libnvinfer's builder (symbolic integers, the registry) are Python values. It needs the bindings' wheel only;
  stand-in libraries are used where the real ones are absent. Nothing that it does is seen by ``import tensorrt``.

Without TensorRT, importing the bindings leaves no module named ``tensorrt`` behind.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from trtforge.bindings.errors import MissingDependencyError
from trtforge.plugins import stand_ins
from trtforge.plugins.symbols import DimensionExpr, DimsExprs, Registry, SymExpr

_HOST_PACKAGE = "trtforge_host_tensorrt_plugin"
_log = logging.getLogger("trtforge.plugins")
_importing = threading.RLock()


@dataclass(frozen=True, eq=False)
class Layer:
    """``trt``: the module ``tensorrt``; ``plugin``: its plugin package. ``stand_ins``: libraries that are not real."""

    trt: Any
    plugin: Any
    host: bool
    stand_ins: tuple[str, ...] = ()
    registry: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @cached_property
    def strings(self) -> bool:
        """Whether plugin fields carry strings: bindings before 10.16 give back the first character, repeated."""
        field_type = self.trt.PluginFieldType.CHAR
        text = b"ab"
        return bool(self.trt.PluginField("probe", text, field_type).data.tobytes() == text)

    @property
    def definitions(self) -> dict[str, Any]:
        """NVIDIA's table of registered plugins by ``namespace::name``."""
        table: dict[str, Any] = importlib.import_module(f"{self.plugin.__name__}._lib").QDP_REGISTRY
        return table

    @contextlib.contextmanager
    def expressions_released(self) -> Iterator[None]:
        """Afterwards no expression builder is set: NVIDIA's layer leaves it set when a plugin function raises."""
        try:
            yield
        finally:
            importlib.import_module(f"{self.plugin.__name__}._tensor").SymIntExpr._exprBuilder = None

    def __str__(self) -> str:
        return f"the plugin host over NVIDIA's bindings {self.version}" if self.host else f"TensorRT {self.version}"


class _QuietLogger:
    """Stands for ``tensorrt.Logger`` while NVIDIA's package is imported: its lines go to Python's logging."""

    WARNING = "warning"

    def log(self, _severity: Any, message: str) -> None:
        _log.debug("%s", message)


def _field_collection(bindings: ModuleType) -> type:
    """NVIDIA's ``PluginFieldCollection`` points into its fields but does not keep them alive; this one does."""

    class FieldCollection(bindings.PluginFieldCollection):  # type: ignore[name-defined]
        def __init__(self, fields: Any = ()):
            super().__init__(fields)
            self.kept = list(fields)

    return FieldCollection


def _bindings() -> tuple[ModuleType, tuple[str, ...]]:
    """NVIDIA's native bindings, over the real libraries or over stand-ins; and the names of the latter."""
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorrt_libs")  # the wheel that carries the real libraries; loads them
    replaced = tuple(stand_ins.load())
    try:
        return importlib.import_module(stand_ins.BINDINGS), replaced
    except ImportError as error:
        raise MissingDependencyError(
            f"NVIDIA's TensorRT bindings are installed but cannot be imported ({error}); reinstall {stand_ins.WHEEL} "
            "for this Python"
        ) from error


@contextlib.contextmanager
def _module_named_tensorrt(module: ModuleType) -> Iterator[None]:
    """While NVIDIA's plugin package is imported, ``import tensorrt`` means ``module``."""
    before = sys.modules.get("tensorrt")
    sys.modules["tensorrt"] = module
    try:
        yield
    finally:
        if before is None:
            del sys.modules["tensorrt"]
        else:
            sys.modules["tensorrt"] = before


@cache
def host_layer() -> Layer:
    """The host's private copy of NVIDIA's plugin layer.

    Raises MissingDependencyError without the bindings' wheel, ForgeError when stand-ins cannot be made.
    """
    with _importing:
        bindings, replaced = _bindings()
        registry = Registry()
        trt = ModuleType("tensorrt", f"NVIDIA's bindings {bindings.__version__} with a symbolic builder in Python")
        trt.__dict__.update({k: v for k, v in vars(bindings).items() if k not in ("__name__", "__spec__", "__path__")})
        trt.__dict__.update(
            IDimensionExpr=DimensionExpr,
            DimsExprs=DimsExprs,
            ISymExpr=SymExpr,
            PluginFieldCollection=_field_collection(bindings),
            Logger=_QuietLogger,
            get_plugin_registry=lambda: registry,
        )
        folder = Path(str(bindings.__file__)).parent / "plugin"
        spec = importlib.util.spec_from_file_location(
            _HOST_PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
            raise MissingDependencyError(
                f"NVIDIA's bindings {bindings.__version__} have no plugin layer ({folder}); install version 10.13 or "
                f"later of {stand_ins.WHEEL}"
            )
        package = importlib.util.module_from_spec(spec)
        sys.modules[_HOST_PACKAGE] = package
        try:
            with _module_named_tensorrt(trt):
                spec.loader.exec_module(package)
        except BaseException:
            for name in [n for n in sys.modules if n.split(".")[0] == _HOST_PACKAGE]:
                del sys.modules[name]
            raise
        return _with_aot(Layer(trt, package, host=True, stand_ins=replaced))


def why_no_engine_layer() -> str:
    """Why TensorRT itself cannot be used here, "" when it can. Does not import anything heavy without need."""
    return _engine()[1]


def engine_layer() -> Layer:
    """TensorRT with its plugin layer. Raises MissingDependencyError with the reason."""
    layer, reason = _engine()
    if layer is None:
        raise MissingDependencyError(
            f"TensorRT plugins need the full TensorRT library (10.13 or later): {reason}; pip install tensorrt from "
            "NVIDIA's package index"
        )
    return layer


@cache
def _engine() -> tuple[Layer | None, str]:
    with _importing:
        if importlib.util.find_spec("tensorrt") is None:
            return None, "there is no module named 'tensorrt'"
        try:
            trt = importlib.import_module("tensorrt")
            plugin = importlib.import_module("tensorrt.plugin")
            return _with_aot(Layer(trt, plugin, host=False)), ""
        except Exception as error:  # NVIDIA's front module raises whatever its libraries make of their absence
            return None, f"the module 'tensorrt' cannot be used ({type(error).__name__}: {error})"


def _with_aot(layer: Layer) -> Layer:
    if not hasattr(layer.plugin, "aot_impl"):
        raise MissingDependencyError(
            f"{layer} has no ahead-of-time plugins; version 10.13 or later of TensorRT is needed"
        )
    return layer


def default_layer() -> Layer:
    """TensorRT where it is installed, else the host's copy."""
    layer, _ = _engine()
    return layer or host_layer()

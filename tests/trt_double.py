"""A stand-in for TensorRT over NumPy: what the lowering writes, the engines' runtime, and plugins by their references.

The definition (``trt_definition_double``) is strict where a strongly typed network is: operands of a layer have one
type and one rank, names are unique, a cache update must be an output. An "engine" is a number that stands for a
definition; it runs on the arrays of ``cupy_double``. That the real library accepts the same calls is shown by building
real engines elsewhere.
"""

from __future__ import annotations

import ctypes
import types
from typing import Any

import cupy_double
import numpy as np
import trt_definition_double as definition_double
from trt_definition_double import NUMPY, INetworkDefinition, Tensor, Weights, enumeration, evaluate

from trtforge.graph_api.engines import build, plan
from trtforge.kernels import registry
from trtforge.plugins.schema import specs_of


class _Plugins:
    """``trt.plugin.op``: namespaces of plugins, which are called with tensors and attributes."""

    def __init__(self, namespace: str = ""):
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        if not self._namespace:
            return _Plugins(name)
        wanted = f"{self._namespace}::{name}"
        spec = next(s for op in registry.ops() for s in specs_of(op) if s.plugin_id == wanted)
        return lambda *tensors, **attributes: (spec, tensors, attributes)


class Refitter:
    def __init__(self, engine: Engine, log: Any):
        self.engine, self.given = engine, {}  # type: ignore[var-annotated]

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        self.given[name] = weights.read()
        return name in self.engine.definition.named

    def get_missing_weights(self) -> list[str]:
        return []

    def refit_cuda_engine(self) -> bool:
        for name, value in self.given.items():
            layer = self.engine.definition.named[name]
            shaped = value.reshape(layer.compute().shape)
            layer.compute = lambda shaped=shaped: shaped
        Refitter.refits += 1
        return True

    refits = 0


ENGINES: list[INetworkDefinition] = []


class Config:
    num_compute_capabilities = 0
    in_place = False  # plugins may write into their inputs

    def __init__(self) -> None:
        self.profiles: list[Profile] = []

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profiles.append(profile)

    def clear_flag(self, flag: Any) -> None:
        assert flag.name == "TF32"

    def set_flag(self, flag: Any) -> None:
        assert flag.name == "REFIT"

    def set_preview_feature(self, feature: Any, on: bool) -> None:
        assert feature.name == "ALIASED_PLUGIN_IO_10_03" and on
        self.in_place = True

    def set_compute_capability(self, target: Any, index: int) -> None:
        self.target = target


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        low, best, high = shapes
        assert all(a <= b <= c for a, b, c in zip(low, best, high))
        self.shapes[name] = shapes


class Builder:
    def __init__(self, log: Any):
        pass

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, definition: INetworkDefinition, config: Config) -> bytes:
        names = [layer.name for layer in definition.layers]
        assert len(set(names)) == len(names) and all(names)
        (profile,) = config.profiles
        assert set(profile.shapes) == {t.name for t in definition.inputs}
        for layer in definition.cache_updates:
            assert layer.outputs[0] in definition.outputs, "a cache update must be an output"
        for layer, aliases in definition.in_place:
            assert config.in_place, "a plugin has aliased outputs, and the preview feature is off"
            assert all(layer.outputs[i] in definition.outputs for i in aliases), "an updated state must be an output"
            assert all(layer.inputs[i] in definition.inputs for i in aliases.values()), "states are inputs"
        for layer in definition.layers:  # weights are read while the arrays live
            if not layer.inputs:
                value = layer.compute()
                layer.compute = lambda value=value: value
        ENGINES.append(definition)
        return b"engine " + str(len(ENGINES) - 1).encode()


class Context:
    def __init__(self, definition: INetworkDefinition):
        self.definition = definition
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return index == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self.shapes) == {t.name for t in self.definition.inputs}
        return 1000 + sum(int(np.prod(s)) for s in self.shapes.values())

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = address, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        definition = self.definition
        arrays = {}
        for tensor in definition.inputs:
            array = self._array(tensor)
            assert array.shape == self.shapes[tensor.name]
            arrays[tensor.name] = array
        ctypes.memset(self.scratch[0], 0xFF, self.scratch[1])  # an engine leaves anything in its scratch memory
        for name, value in evaluate(definition, {n: a.copy() for n, a in arrays.items()}).items():
            place = self._array(next(t for t in definition.outputs if t.name == name))
            assert place.shape == value.shape, name
            place[...] = value
        return True

    def _array(self, tensor: Tensor) -> np.ndarray:
        stored = cupy_double.ARRAYS[self.addresses[tensor.name]].view(np.ndarray)
        return stored.view(NUMPY[tensor.dtype.name])


class RuntimeConfig:
    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        assert strategy.name == "USER_MANAGED"

    def create_runtime_cache(self) -> Any:
        return types.SimpleNamespace(serialize=lambda: b"cache", deserialize=lambda data: True)

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class Engine:
    contexts = 0

    def __init__(self, definition: INetworkDefinition):
        self.definition = definition

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def get_aliased_input_tensor(self, name: str) -> str | None:
        updates = {layer.outputs[0].name: layer.inputs[0].name for layer in self.definition.cache_updates}
        for layer, aliases in self.definition.in_place:
            updates.update((layer.outputs[i].name, layer.inputs[j].name) for i, j in aliases.items())
        return updates.get(name)

    def create_execution_context(self, config: Any) -> Context:
        Engine.contexts += 1
        return Context(self.definition)


class Runtime:
    def __init__(self, log: Any):
        pass

    def deserialize_cuda_engine(self, data: bytes) -> Engine:
        kind, number = bytes(data).split()
        assert kind == b"engine"
        return Engine(ENGINES[int(number)])


class ILogger:
    pass


def install(monkeypatch: Any, name: str = "tensorrt_rtx") -> Any:
    """Put the stand-ins for TensorRT, CuPy and a GPU (8.9) under the engines; returns the module."""
    cupy_double.install(monkeypatch)
    trt = module(name)
    for one in (build, plan):
        monkeypatch.setattr(one, "open_library", lambda backend: trt)
    monkeypatch.setattr(plan, "library_version", lambda backend: trt.__version__)
    monkeypatch.setattr(build, "require_gpu", lambda purpose: None)
    monkeypatch.setattr(plan.device, "require_gpu", lambda purpose: None)
    monkeypatch.setattr(plan.device, "current_device", lambda: types.SimpleNamespace(cc=89, name="a stand-in"))
    Engine.contexts = Refitter.refits = 0
    return trt


def remove() -> None:
    """Forget what the stand-ins hold."""
    cupy_double.ARRAYS.clear()
    ENGINES.clear()


def module(name: str = "tensorrt_rtx") -> Any:
    """The stand-in as a module that looks like TensorRT for RTX, or like TensorRT."""
    made: Any = types.ModuleType(name)
    made.__version__ = "1.5.0.0" if name == "tensorrt_rtx" else "11.4.0.0"
    made.__dict__.update({k: v for k, v in globals().items() if isinstance(v, type) and v.__module__ == __name__})
    public = {k: v for k, v in vars(definition_double).items() if isinstance(v, type) and k != "Callable"}
    made.__dict__.update({k: v for k, v in public.items() if v.__module__ == definition_double.__name__})
    made.Permutation = list
    if name == "tensorrt":
        made.plugin = types.SimpleNamespace(op=_Plugins())
    for kind, members in {
        "MatrixOperation": "NONE TRANSPOSE",
        "TopKOperation": "MAX MIN",
        "FillOperation": "LINSPACE",
        "KVCacheMode": "LINEAR",
        "NetworkDefinitionCreationFlag": "STRONGLY_TYPED",
        "BuilderFlag": "TF32 REFIT",
        "PreviewFeature": "ALIASED_PLUGIN_IO_10_03",
        "ComputeCapability": "SM80 SM89",
        "ProfilingVerbosity": "DETAILED",
        "CudaGraphStrategy": "DISABLED",
        "DynamicShapesKernelSpecializationStrategy": "NONE LAZY EAGER",
        "ExecutionContextAllocationStrategy": "USER_MANAGED",
    }.items():
        setattr(made, kind, enumeration(kind, members))
    if name == "tensorrt":  # what TensorRT for RTX alone has
        del made.DynamicShapesKernelSpecializationStrategy, made.ComputeCapability, made.CudaGraphStrategy
    return made

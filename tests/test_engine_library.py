"""The names and signatures of the real library that are used only when engines run, which takes a GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest

from trtforge.graph_api.engines import library

ABSENT = {backend: library.why_absent(backend) for backend in library.FLAVORS}

#: Class, method, and what is passed after self; None: a property.
USED: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    ("Runtime", "deserialize_cuda_engine", ("Buffer",)),
    ("ICudaEngine", "create_execution_context", ("ExecutionContextAllocationStrategy",)),
    ("ICudaEngine", "create_engine_inspector", ()),
    ("ICudaEngine", "get_aliased_input_tensor", ("str",)),
    ("ICudaEngine", "device_memory_size_v2", None),
    ("ICudaEngine", "num_optimization_profiles", None),
    ("EngineInspector", "get_engine_information", ("LayerInformationFormat",)),
    ("IExecutionContext", "set_optimization_profile_async", ("Int", "Int")),
    ("IExecutionContext", "set_input_shape", ("str", "tuple")),
    ("IExecutionContext", "update_device_memory_size_for_shapes", ()),
    ("IExecutionContext", "set_device_memory", ("Int", "Int")),
    ("IExecutionContext", "set_tensor_address", ("str", "Int")),
    ("IExecutionContext", "execute_async_v3", ("Int",)),
)
USED_BY_RTX: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    ("Runtime", "get_engine_validity", ("Buffer",)),
    ("ICudaEngine", "create_runtime_config", ()),
    ("ICudaEngine", "create_execution_context", ("IRuntimeConfig",)),
    ("IRuntimeConfig", "set_execution_context_allocation_strategy", ("ExecutionContextAllocationStrategy",)),
    ("IRuntimeConfig", "cuda_graph_strategy", None),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy", None),
    ("IRuntimeConfig", "create_runtime_cache", ()),
    ("IRuntimeConfig", "set_runtime_cache", ("IRuntimeCache",)),
    ("IRuntimeCache", "serialize", ()),
    ("IRuntimeCache", "deserialize", ("Buffer",)),
    ("IExecutionContext", "is_stream_capturable", ("Int",)),
)
#: What is read of each result as a truth value: False must mean that it went wrong.
TOLD = (
    ("IExecutionContext", "set_optimization_profile_async"),
    ("IExecutionContext", "set_input_shape"),
    ("IExecutionContext", "set_tensor_address"),
    ("IExecutionContext", "execute_async_v3"),
)
MEMBERS = {
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "LayerInformationFormat": ("JSON",),
}
MEMBERS_OF_RTX = {
    "CudaGraphStrategy": ("DISABLED",),
    "DynamicShapesKernelSpecializationStrategy": ("NONE", "LAZY", "EAGER"),
    "EngineValidity": ("INVALID",),
    "EngineInvalidityDiagnostics": ("UNSUPPORTED_CC",),
}


def signatures(function: Any) -> list[tuple[list[str], str]]:
    """Parameter types without self, and the result, of every overload that pybind11's docstring lists."""
    found = []
    for parameters, result in re.findall(rf"{function.__name__}\((self.*?)\) -> (\S+)", function.__doc__ or ""):
        types = [part.split("=")[0].strip() for part in re.split(r", (?=\w+: )", parameters)[1:]]
        found.append(([t.split(": ")[-1] for t in types], result))
    return found


def check(trt: Any, used: Any, members: Any) -> None:
    for class_name, name, wanted in used:
        found = getattr(getattr(trt, class_name), name)
        if wanted is None:
            assert isinstance(found, property), f"{class_name}.{name}"
            continue
        overloads = [types for types, _ in signatures(found)]
        fits = [len(types) == len(wanted) and all(w in t for w, t in zip(wanted, types)) for types in overloads]
        assert any(fits), f"{class_name}.{name}{wanted}: the library has {overloads}"
    for enumeration, names in members.items():
        assert set(names) <= set(getattr(trt, enumeration).__members__)


@pytest.mark.parametrize("backend", list(library.FLAVORS))
def test_what_runs_engines_is_in_the_library(backend: str) -> None:
    if ABSENT[backend]:
        pytest.skip(ABSENT[backend])
    trt = library.open_library(backend)
    check(trt, USED, MEMBERS)
    for class_name, name in TOLD:
        assert {result for _, result in signatures(getattr(getattr(trt, class_name), name))} == {"bool"}
    if backend == "tensorrt-rtx":
        check(trt, USED_BY_RTX, MEMBERS_OF_RTX)
    else:
        for name in ("set_named_weights", "get_missing_weights", "refit_cuda_engine"):
            assert hasattr(trt.Refitter, name)

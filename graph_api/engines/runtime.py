"""Engines that are loaded: deserialized once, run through contexts whose memory the caller gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trtforge.bindings.dtypes import DTYPES
from trtforge.bindings.errors import DeviceError
from trtforge.bindings.files import replace_file
from trtforge.graph_api.engines.library import LOGGER, errors_of, log_of, type_of
from trtforge.graph_api.engines.partition import Piece

#: How TensorRT for RTX treats kernels for one shape: a generic one, one compiled in the background, or at once.
SPECIALIZATIONS = ("NONE", "LAZY", "EAGER")


class Runtime:
    """The library's runtime with the kernels that it compiled (TensorRT for RTX), kept in a file between processes."""

    def __init__(self, trt: Any, cache_file: str = ""):
        self.trt = trt
        self.runtime = trt.Runtime(log_of(trt))
        self.cache: Any = None
        self._file = Path(cache_file) if cache_file else None

    def configure(self, config: Any) -> None:
        """Give a runtime configuration the shared cache."""
        if self.cache is None:
            self.cache = config.create_runtime_cache()
            known = self._file.read_bytes() if self._file is not None and self._file.is_file() else b""
            if known and not self.cache.deserialize(known):
                LOGGER.warning("the runtime cache %s is not taken: %s", self._file, errors_of(self.trt))
        if not config.set_runtime_cache(self.cache):
            LOGGER.warning("the runtime cache is not used: %s", errors_of(self.trt))

    def save_cache(self) -> None:
        """Write the compiled kernels to the cache file, where one was named."""
        if self._file is not None and self.cache is not None:
            replace_file(self._file, [bytes(self.cache.serialize())])


class Engine:
    """One piece, deserialized. Raises DeviceError with the library's reason."""

    def __init__(self, runtime: Runtime, piece: Piece, data: bytes | memoryview):
        self.trt = runtime.trt
        self.runtime = runtime
        self.piece = piece
        self.engine = runtime.runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise DeviceError(f"{piece.name} cannot be loaded: {errors_of(self.trt)}")
        self._check_aliases()

    def _check_aliases(self) -> None:
        """What the library writes into the buffer of an input (KV caches) must be that buffer here too."""
        aliased = getattr(self.engine, "get_aliased_input_tensor", None)
        if aliased is None:
            return
        for tensor in self.piece.outputs:
            wanted, found = self.piece.aliases.get(tensor.name), aliased(tensor.name) or None
            if found is not None and found != wanted:
                raise DeviceError(
                    f"{self.piece.name}: the library writes {tensor.name} into the buffer of {found}, and the graph "
                    f"into {wanted or 'memory of its own'}; build the engine again with this version of the kit"
                )
            if found != wanted:
                LOGGER.warning("%s: %s is not known to be written into %s", self.piece.name, tensor.name, wanted)

    def context(self, specialization: str) -> Context:
        """A context with memory of the caller's; ``specialization`` is one of SPECIALIZATIONS."""
        user_managed = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(self.trt, "DynamicShapesKernelSpecializationStrategy"):
            config = self.engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(user_managed)
            config.cuda_graph_strategy = self.trt.CudaGraphStrategy.DISABLED  # all pieces are captured as one graph
            strategies = self.trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, specialization)
            self.runtime.configure(config)
            made = self.engine.create_execution_context(config)
        else:
            made = self.engine.create_execution_context(user_managed)
        if made is None:
            raise DeviceError(f"{self.piece.name} gives no execution context: {errors_of(self.trt)}")
        return Context(self, made)

    def refit(self, changed: Mapping[str, np.ndarray], every: Mapping[str, np.ndarray]) -> bool:
        """Replace weights by name in place (TensorRT); False where the engine does not allow it."""
        refitter = self.trt.Refitter(self.engine, log_of(self.trt))
        held: list[Any] = []

        def give(name: str, array: np.ndarray) -> bool:
            dtype = next(d.name for d in DTYPES.values() if d.numpy == array.dtype)
            data = np.ascontiguousarray(array)
            held.append(data)
            weights = self.trt.Weights(type_of(self.trt, dtype), data.ctypes.data, data.size)
            return bool(refitter.set_named_weights(name, weights))

        if not all(give(name, array) for name, array in changed.items()):
            return False
        # Weights that were folded together with a changed one must be given again.
        if not all(name in every and give(name, every[name]) for name in refitter.get_missing_weights()):
            return False
        return bool(refitter.refit_cuda_engine())

    def describe(self) -> Any:
        """The engine inspector's layers as plain data, and the memory that the engine wants."""
        inspector = self.engine.create_engine_inspector()
        text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        return {
            "layers": json.loads(text).get("Layers", []),
            "device_memory": int(self.engine.device_memory_size_v2),
            "profiles": int(self.engine.num_optimization_profiles),
        }


class Context:
    """An execution context of one piece."""

    def __init__(self, engine: Engine, made: Any):
        self.engine = engine
        self._context = made
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._scratch = 0

    def shape(self, shapes: Mapping[str, tuple[int, ...]], stream: int) -> int:
        """Set the shapes of the inputs; returns the bytes of scratch memory that a run then needs."""
        if shapes == self._shapes:
            return self._scratch
        piece = self.engine.piece.name
        if self._shapes is None and not self._context.set_optimization_profile_async(0, stream):
            raise DeviceError(f"{piece} refuses its profile: {errors_of(self.engine.trt)}")
        for name, sizes in shapes.items():
            if not self._context.set_input_shape(name, sizes):
                raise DeviceError(f"{piece} refuses {name} of shape {list(sizes)}: {errors_of(self.engine.trt)}")
        self._scratch = int(self._context.update_device_memory_size_for_shapes())
        self._shapes = dict(shapes)
        return self._scratch

    def capturable(self, stream: int) -> bool:
        """Whether a run can become part of a CUDA graph, as far as the library can tell."""
        tell = getattr(self._context, "is_stream_capturable", None)
        return True if tell is None else bool(tell(stream))

    def run(self, addresses: Mapping[str, int], scratch: int, stream: int) -> None:
        """Enqueue on ``stream``. ``addresses``: of inputs and outputs by name; ``scratch``: of the scratch memory."""
        self._context.set_device_memory(scratch, self._scratch)
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise DeviceError(f"{self.engine.piece.name} refuses {name}: {errors_of(self.engine.trt)}")
        if not self._context.execute_async_v3(stream):
            raise DeviceError(f"{self.engine.piece.name} did not run: {errors_of(self.engine.trt)}")

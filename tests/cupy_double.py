"""A stand-in for CuPy over NumPy, so that the cuda backend's bookkeeping runs on a machine without a GPU.

Kernels are recognized by name and computed by the primitive's NumPy function on decoded storage; a captured graph
repeats the node-by-node run that was captured. What the CUDA code computes is not tested here: its sources are
compiled elsewhere, and run on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from trtforge.bindings.dtypes import DTYPES, name_of
from trtforge.graph_api.backends import cuda, nodes, on_device
from trtforge.graph_api.backends.reference import run_primitive
from trtforge.graph_api.engines.executable import EngineExecutable
from trtforge.graph_api.primitive import PRIMITIVES

ARRAYS: dict[int, np.ndarray] = {}  # by address; kept, so that an address means one array


class Array(np.ndarray):
    """An array with the parts of cupy.ndarray that the backend uses."""

    @property
    def data(self) -> Any:
        address = self.__array_interface__["data"][0]
        ARRAYS[address] = self
        return SimpleNamespace(ptr=address)

    def get(self, stream: Any = None) -> np.ndarray:
        return np.array(self.view(np.ndarray))

    def set(self, value: np.ndarray, stream: Any = None) -> None:
        assert value.shape == self.shape and value.dtype == self.dtype, (value.dtype, self.dtype)
        assert value.flags.c_contiguous
        self[...] = value


def decode(storage: np.ndarray) -> np.ndarray:
    plain = np.ascontiguousarray(storage.view(np.ndarray)).reshape(storage.shape)
    return plain.view(ml_dtypes.bfloat16) if plain.dtype == np.uint16 else plain


def encode(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).view(DTYPES[name_of(value.dtype)].storage).reshape(value.shape)


class ElementwiseKernel:
    def __init__(self, inputs: str, output: str, body: str, name: str, preamble: str = ""):
        self.count, self.body, self.name = len(inputs.split(",")), body, name.removeprefix("forge_")
        self.output = output.split()[-2]

    def __call__(self, *arrays: Any) -> None:
        if self.name == "rope":
            x, cos, sin, _, rows, _, stride, out = arrays
            tables = [t.reshape(-1, rows, t.shape[-1]) for t in (cos, sin)]
            assert stride == (0 if tables[0].shape[0] == 1 else rows * cos.shape[-1])
            out[...] = self.run([decode(x), *tables], {}, out)
            return
        *inputs, out = arrays
        assert len(inputs) == self.count and out.dtype == np.dtype(self.output)
        attributes = {}
        if self.name == "gelu":
            attributes["approximate"] = "tanh" if "tanhf" in self.body else "none"
        if self.name == "cast":
            attributes["dtype"] = self.target(out)
        out[...] = self.run([decode(a) for a in inputs], attributes, out)

    def target(self, out: np.ndarray) -> str:
        return "bfloat16" if out.dtype == np.uint16 else name_of(out.dtype)

    def run(self, inputs: list[Any], attributes: dict[str, Any], out: np.ndarray) -> np.ndarray:
        (result,) = run_primitive(PRIMITIVES[self.name], inputs, attributes, [self.target(out)])
        assert result.shape == out.shape
        return encode(result)


class Stream:
    ptr = 0
    captures = 0

    def __init__(self, non_blocking: bool = False):
        assert non_blocking, "a capturing stream must be non-blocking"
        self.capturing = False
        self.last_run: Callable[[], None] = lambda: None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: Any) -> None:
        return None

    def synchronize(self) -> None:
        assert not self.capturing

    def begin_capture(self) -> None:
        self.capturing = True
        Stream.captures += 1

    def end_capture(self) -> Any:
        self.capturing = False
        again = self.last_run
        return SimpleNamespace(launch=lambda stream: again())


class Double:
    """The module. Functions that it does not define are NumPy's, with results turned into :class:`Array`."""

    ElementwiseKernel = ElementwiseKernel

    def __init__(self) -> None:
        @contextlib.contextmanager
        def using_allocator(malloc: Any) -> Iterator[None]:
            yield

        errors = SimpleNamespace(CUDARuntimeError=type("CUDARuntimeError", (RuntimeError,), {}))
        memory = SimpleNamespace(OutOfMemoryError=type("OutOfMemoryError", (MemoryError,), {}))
        self.cuda = SimpleNamespace(
            Stream=Stream,
            MemoryPool=lambda allocator: SimpleNamespace(malloc=allocator),
            using_allocator=using_allocator,
            runtime=errors,
            memory=memory,
        )

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name)
        if isinstance(value, type) or not callable(value):
            return value

        def function(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            return result.view(Array) if isinstance(result, (np.ndarray, np.generic)) and result.ndim >= 0 else result

        return function


class Gemm:
    """cuBLAS by address."""

    def __init__(self, stream: int, workspace: int):
        assert workspace in ARRAYS

    def __call__(
        self, dtype: str, a: int, b: int, c: int, m: int, n: int, k: int, *, transpose_a: bool, transpose_b: bool,
        batch: int = 1, stride_a: int = 0, stride_b: int = 0,
    ) -> None:  # fmt: skip
        def operand(address: int, rows: int, columns: int, stride: int) -> np.ndarray:
            flat = decode(ARRAYS[address]).reshape(-1).astype(np.float32)
            assert flat.size == (rows * columns if stride == 0 else batch * stride)
            starts = range(0, batch * stride, stride) if stride else [0] * batch
            return np.stack([flat[at : at + rows * columns].reshape(rows, columns) for at in starts])

        left = operand(a, k, m, stride_a).swapaxes(1, 2) if transpose_a else operand(a, m, k, stride_a)
        right = operand(b, n, k, stride_b).swapaxes(1, 2) if transpose_b else operand(b, k, n, stride_b)
        out = ARRAYS[c]
        out[...] = encode((left @ right).astype(DTYPES[dtype].numpy)).reshape(out.shape)


def plan(op: Any, shapes: Any, dtypes: Any, attributes: Any, alignment: int) -> Any:
    """A registered op: its reference, by address."""
    binding = op.bind(shapes, dtypes, attributes)
    assert alignment >= 1

    def typed(address: int, dtype: str) -> np.ndarray:
        storage = ARRAYS[address].view(np.ndarray)
        return storage.view(DTYPES[dtype].numpy)

    def launch(pointers: list[int], stream: int) -> None:
        inputs = {n: typed(p, binding.dtypes[n]) for n, p in zip(binding.inputs, pointers)}
        results = op.run_reference(inputs, attributes)
        for (name, value), pointer in zip(results.items(), pointers[len(inputs) :]):
            typed(pointer, binding.dtypes[name])[...] = value

    return SimpleNamespace(launch=launch, label=f"{op.name}/double")


def install(monkeypatch: Any) -> Double:
    """Put the stand-in under the backends that run on a GPU; a captured graph repeats the run that was captured."""
    module = Double()
    monkeypatch.setattr(on_device, "require", lambda name, purpose: module)
    monkeypatch.setattr(on_device, "require_gpu", lambda purpose: None)
    monkeypatch.setattr(on_device, "current_ordinal", lambda: 0)
    monkeypatch.setattr(nodes, "Gemm", Gemm)
    monkeypatch.setattr(nodes, "plan", plan)
    for executable in (cuda.CudaExecutable, EngineExecutable):
        monkeypatch.setattr(executable, "_run", _recorded(executable._run))
    Stream.captures = 0
    return module


def _recorded(run: Any) -> Any:
    def recorded(self: Any, inputs: Any, dims: Any) -> Any:
        outputs = run(self, inputs, dims)

        def again() -> None:
            for name, value in run(self, inputs, dims).items():
                outputs[name][...] = value

        self._stream.last_run = again
        return outputs

    return recorded

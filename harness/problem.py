"""One case of a benchmark on the device: its inputs, in several copies where they are small, and their readers.

Inputs are N(0, 1), uniform integers, or what the declaration's ``sample`` gives; of a large array the sample gives some
rows, which are dealt out to all rows at random on the device. Small ones lie in several places in turn, so that
neither the L2 cache nor a memoizing contender sees the same addresses in successive calls.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from trtforge.bindings import arrays
from trtforge.bindings.arrays import Array
from trtforge.bindings.device import current_device
from trtforge.bindings.dtypes import DType, dtype
from trtforge.bindings.optional import available, require
from trtforge.harness.jobs import dtype_label
from trtforge.harness.oracle import EVERYTHING, Answer, Index, answers, judge
from trtforge.kernels.binding import Binding
from trtforge.kernels.contract import Case, call_by_name, parameter_names, plain_sample
from trtforge.kernels.op import Op

#: Copies of the inputs of a small problem.
COPIES = 3
#: Host-made inputs that are kept for the next case: 16384 x 8192 numbers take seconds, and many cases share them.
_KEPT_BYTES = 4 << 30
#: A declared sample of more than twice as many numbers is drawn for some rows only: NumPy makes 1e8 in a second or two.
_DRAWN = 1 << 22
_LEAST_ROWS = 16
_kept: OrderedDict[Any, Array] = OrderedDict()


class Problem:
    """An op's case with dtypes. ``sets``: equal inputs at different addresses, by name."""

    def __init__(self, op: Op, case: Case, dtypes: Mapping[str, str], seed: int = 0):
        self.op, self.case, self.seed = op, case, seed
        self.binding: Binding = op.bind_case(case, dtypes)
        self.cost = op.cost_of(self.binding)
        self.written = sum(
            math.prod(int(size) for size in shape) * dtype(self.binding.dtypes[name]).itemsize
            for name, shape in self.binding.outputs.items()
        )
        self.dtype = next(iter(self.binding.dtypes.values()))
        self.dtype_label = dtype_label(op, dtypes)
        first = {name: self._input(index, name) for index, name in enumerate(self.binding.inputs)}
        self._pristine = {name: Array(first[name].storage.copy(), first[name].dtype) for name in self._updated}
        first.update({name: Array(a.storage.copy(), a.dtype) for name, a in self._pristine.items()})
        self.sets = [first]
        if sum(a.storage.nbytes for a in first.values()) < current_device().l2_bytes:
            self.sets += [{n: Array(a.storage.copy(), a.dtype) for n, a in first.items()} for _ in range(COPIES - 1)]

    def _input(self, index: int, name: str) -> Array:
        shape = tuple(int(size) for size in self.binding.inputs[name])
        kind = dtype(self.binding.dtypes[name])
        sample = self.op.inputs[name].sample
        if sample is None:
            make = normal if kind.floating else integers
            made = make(shape, kind.name, self.seed + index)
            if made is not None:
                return made
        context = self.binding.context()
        used = parameter_names(sample) if sample is not None else ()
        given = {k: context[k] for k in used if k in context}
        key = (sample, shape, kind.name, self.seed + index, *(str(sorted(v._values.items())) for v in given.values()))
        if key not in _kept:
            rng = np.random.default_rng(self.seed + index)
            drawn = (rows_drawn(shape, kind) or shape[0], *shape[1:]) if shape else shape
            if sample is not None:
                host = np.asarray(call_by_name(sample, rng=rng, shape=drawn, **context))
            else:
                host = plain_sample(rng, drawn, kind)
            made = arrays.to_device(np.ascontiguousarray(host.astype(kind.numpy, copy=False)).reshape(drawn))
            _keep(key, made if drawn == shape else dealt(made, shape[0], rng))
        _kept.move_to_end(key)
        return _kept[key]

    @property
    def _updated(self) -> list[str]:
        """Inputs that the op updates in place."""
        return list(dict.fromkeys(self.binding.aliases.values()))

    def restore(self, index: int) -> None:
        """Give the inputs of a set that calls have updated in place their first values."""
        for name, array in self._pristine.items():
            self.sets[index][name].storage[...] = array.storage

    def torch(self, index: int) -> list[Any]:
        """The inputs of a set as PyTorch tensors in declared order, None where absent."""
        views = self._torch_views[index]
        return [views.get(name) for name in self.op.inputs]

    @cached_property
    def _torch_views(self) -> list[dict[str, Any]]:
        return [{name: array.to_torch() for name, array in one.items()} for one in self.sets]

    def empty_outputs(self, index: int) -> list[Array]:
        """Outputs of a set: fresh, filled with bytes of ones so that what a kernel leaves out shows, or the input."""
        made = []
        for name, shape in self.binding.outputs.items():
            updated = self.binding.aliases.get(name)
            if updated is not None:
                made.append(self.sets[index][updated])
                continue
            array = arrays.empty(tuple(int(size) for size in shape), self.binding.dtypes[name])
            poison(array)
            made.append(array)
        return made

    @cached_property
    def answers(self) -> list[Answer]:
        """The oracle on parts of the problem. Raises UsageError where it would take too long."""
        self.restore(0)
        return answers(self.op, self.binding, lambda name, index: fetch(self.sets[0][name], index), self.seed)

    def judge(self, outputs: Any) -> tuple[float, str]:
        """The relative L2 error of a contender's outputs (device arrays in declared order), and why they are wrong."""
        given = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        by_name = dict(zip(self.binding.outputs, given))

        def values(name: str, index: Index) -> np.ndarray | None:
            array = by_name.get(name)
            if array is None:
                return None
            return fetch(array, index, tuple(int(size) for size in self.binding.outputs[name]))

        return judge(self.binding, self.answers, values)


def _keep(key: Any, array: Array) -> None:
    _kept[key] = array
    while sum(a.storage.nbytes for a in _kept.values()) > _KEPT_BYTES and len(_kept) > 1:
        _kept.popitem(last=False)


def rows_drawn(shape: tuple[int, ...], kind: DType) -> int | None:
    """Of how many leading rows a large array's sample is drawn; None: of all.

    Numbers that are data may repeat; indices (32 bits and wider) belong together, and small arrays have special rows.
    """
    size = math.prod(shape)
    if len(shape) < 2 or size <= 2 * _DRAWN or not (kind.floating or kind.itemsize == 1):
        return None
    rows = -(-_DRAWN * shape[0] // size)
    return rows if rows >= _LEAST_ROWS else None


def dealt(drawn: Array, rows: int, rng: np.random.Generator) -> Array:
    """An array of ``rows`` leading rows, each one of the drawn ones at random: a kernel that mixes up rows is seen."""
    which = require("cupy", "device arrays").asarray(rng.integers(0, drawn.storage.shape[0], rows))
    return Array(drawn.storage.take(which, axis=0), drawn.dtype)


def integers(shape: tuple[int, ...], kind: str, seed: int) -> Array | None:
    """Integers of the type within -128 to 255, made on the device; None where PyTorch is absent or lacks the type."""
    if kind not in ("int8", "uint8", "int32", "int64") or not available("torch"):
        return None
    torch = require("torch", "making inputs")
    generator = torch.Generator(device="cuda").manual_seed(seed)
    low, high = max(np.iinfo(kind).min, -128), min(np.iinfo(kind).max, 255) + 1
    made = torch.randint(low, high, shape, generator=generator, device="cuda", dtype=getattr(torch, kind))
    return _from_torch(made, shape, kind)


def _from_torch(made: Any, shape: tuple[int, ...], kind: str) -> Array:
    torch = require("torch", "making inputs")
    storage = require("cupy", "device arrays").from_dlpack(made.contiguous().view(torch.uint8).reshape(-1))
    return Array(storage.view(dtype(kind).storage).reshape(shape), kind)


def normal(shape: tuple[int, ...], kind: str, seed: int) -> Array | None:
    """N(0, 1) made on the device; None where no library here rounds to that type."""
    if available("torch"):
        torch = require("torch", "making inputs")
        generator = torch.Generator(device="cuda").manual_seed(seed)
        values = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32)
        return _from_torch(values.to(getattr(torch, kind)), shape, kind)
    if kind in ("float16", "float32"):
        cupy = require("cupy", "device arrays")
        made = cupy.random.default_rng(seed).standardnormal(shape, dtype=np.float32)
        return Array(made.astype(dtype(kind).numpy, copy=False), kind)
    return None


def poison(array: Any) -> None:
    """Fill a contiguous device array with bytes of ones."""
    if isinstance(array, Array):
        cupy = require("cupy", "device arrays")
        array.storage.reshape(-1).view(cupy.uint8).fill(0xFF)
    elif array.is_contiguous():
        torch = require("torch", "PyTorch arrays")
        array.reshape(-1).view(torch.uint8).fill_(0xFF)


def fetch(array: Any, index: Index = EVERYTHING, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A piece of a device array on the host: the kit's arrays in their own type, PyTorch tensors as float32.

    ``shape``: what the array is reshaped to before. Wider element types of PyTorch stay what they are.
    """
    if isinstance(array, Array):
        cupy = require("cupy", "device arrays")
        fits = shape is not None and array.storage.size == int(np.prod(shape))
        storage = array.storage.reshape(shape) if fits else array.storage
        piece = storage[_on_device(index, cupy.asarray)]
        return np.ascontiguousarray(piece.get()).view(dtype(array.dtype).numpy)
    torch = require("torch", "PyTorch arrays")
    tensor = array if shape is None or array.numel() != int(np.prod(shape)) else array.reshape(shape)
    piece = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
    piece = piece[_on_device(index, lambda i: torch.as_tensor(i, device=tensor.device))]
    narrow = piece.element_size() < 4
    return (piece.to(torch.float32) if narrow else piece).cpu().numpy()


def _on_device(index: Index, upload: Any) -> Index:
    if isinstance(index, tuple):
        return tuple(_on_device(one, upload) for one in index)
    return upload(index) if isinstance(index, np.ndarray) else index

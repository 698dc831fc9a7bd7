"""One case of a benchmark on the device: its inputs, in several copies where they are small, and their readers.

Inputs are N(0, 1) or what the declaration's ``sample`` gives. Small ones lie in several places in turn, so that
neither the L2 cache nor a memoizing contender sees the same addresses in successive calls.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from trtforge.bindings import arrays
from trtforge.bindings.arrays import Array
from trtforge.bindings.device import current_device
from trtforge.bindings.dtypes import dtype
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
_kept: OrderedDict[Any, Array] = OrderedDict()


class Problem:
    """An op's case with dtypes. ``sets``: equal inputs at different addresses, by name."""

    def __init__(self, op: Op, case: Case, dtypes: Mapping[str, str], seed: int = 0):
        self.op, self.case, self.seed = op, case, seed
        self.binding: Binding = op.bind_case(case, dtypes)
        self.cost = op.cost_of(self.binding)
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
        if sample is None and kind.floating:
            made = normal(shape, kind.name, self.seed + index)
            if made is not None:
                return made
        context = self.binding.context()
        used = parameter_names(sample) if sample is not None else ()
        given = {k: context[k] for k in used if k in context}
        key = (sample, shape, kind.name, self.seed + index, *(str(sorted(v._values.items())) for v in given.values()))
        if key not in _kept:
            rng = np.random.default_rng(self.seed + index)
            if sample is not None:
                host = np.asarray(call_by_name(sample, rng=rng, shape=shape, **context))
            else:
                host = plain_sample(rng, shape, kind)
            _keep(key, arrays.to_device(np.ascontiguousarray(host.astype(kind.numpy, copy=False)).reshape(shape)))
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


def normal(shape: tuple[int, ...], kind: str, seed: int) -> Array | None:
    """N(0, 1) made on the device; None where no library here rounds to that type."""
    if available("torch"):
        torch = require("torch", "making inputs")
        generator = torch.Generator(device="cuda").manual_seed(seed)
        values = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32)
        rounded = values.to(getattr(torch, kind)).contiguous()
        storage = require("cupy", "device arrays").from_dlpack(rounded.view(torch.uint8).reshape(-1))
        return Array(storage.view(dtype(kind).storage).reshape(shape), kind)
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

"""The vocabulary of an op declaration.

A contract speaks of *named dimensions*: ``Tensor("*M", "K")`` is any number of leading dimensions whose product is
M, followed by K. :mod:`trtforge.kernels.binding` holds calls against contracts.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from trtforge.bindings.dtypes import DType
from trtforge.bindings.errors import ContractError, DeclarationError, ForgeError, UnknownNameError
from trtforge.kernels.dims import Expr, IntLike

HALF = ("float16", "bfloat16")
FLOATS = ("float16", "bfloat16", "float32")

#: Magnitudes from here on are infinite in float32, and up to here zero.
_FLOAT32_OVERFLOW, _FLOAT32_UNDERFLOW = 2**128 - 2**103, 2.0**-150

Shape = tuple[IntLike, ...]
#: A condition over d, a, dt, has and so on, and what is said where it does not hold.
Predicate = tuple[Callable[..., Any], str]


@dataclass(frozen=True)
class AttributeRef:
    """A dtype that an attribute chooses: ``Tensor("M", dtype=attr("to"))``."""

    name: str


def attr(name: str) -> AttributeRef:
    return AttributeRef(name)


@dataclass(frozen=True, init=False)
class Tensor:
    """One input or output of an op.

    ``dims``: names, ints, expressions over names, and at most one leading ``"*NAME"``, a run of zero or more
    dimensions whose product is NAME. ``dtype``: one name, several, the name of another tensor, or ``attr(...)``.
    ``sample(rng, shape, d, a)``: any subset of these parameters; makes test data where N(0, 1) is not right.
    ``alias``: an output that is an input updated in place, named here instead of dims and dtype, which are the input's.
    """

    dims: tuple[Any, ...]
    dtype: Any
    optional: bool
    sample: Callable[..., np.ndarray] | None
    doc: str
    alias: str

    def __init__(
        self,
        *dims: str | int | Expr,
        dtype: str | Sequence[str] | AttributeRef = "",
        optional: bool = False,
        sample: Callable[..., np.ndarray] | None = None,
        doc: str = "",
        alias: str = "",
    ):
        if bool(alias) == bool(dtype) or (alias and dims):
            raise DeclarationError(
                f"a tensor has a dtype, or an alias whose dims and dtype it takes; got dims {dims}, dtype {dtype!r}, "
                f"alias {alias!r}"
            )
        for i, d in enumerate(dims):
            if isinstance(d, str) and d.startswith("*") and i:
                raise DeclarationError(f"{d!r} must be the first dimension, got position {i} of {dims}")
        object.__setattr__(self, "dims", dims)
        object.__setattr__(self, "dtype", tuple(dtype) if isinstance(dtype, (list, tuple)) else dtype)
        object.__setattr__(self, "optional", optional)
        object.__setattr__(self, "sample", sample)
        object.__setattr__(self, "doc", doc)
        object.__setattr__(self, "alias", alias)

    def updating(self, inputs: Mapping[str, Tensor], op: str) -> Tensor:
        """An aliased output with the dims and dtype of its input; any other tensor as it is."""
        if not self.alias:
            return self
        source = inputs.get(self.alias)
        if source is None or source.optional:
            what = "is optional" if source else "is no input"
            raise DeclarationError(f"{op}: an output is an alias of {self.alias!r}, which {what}")
        made = Tensor(*source.dims, dtype=self.alias, doc=self.doc or f"{self.alias}, updated in place")
        object.__setattr__(made, "alias", self.alias)
        return made

    @property
    def run(self) -> str | None:
        """The name of the leading run of dimensions, if there is one."""
        first = self.dims[0] if self.dims else None
        return first[1:] if isinstance(first, str) and first.startswith("*") else None

    @property
    def fixed_dims(self) -> tuple[Any, ...]:
        return self.dims[1:] if self.run else self.dims

    def __str__(self) -> str:
        return "[" + ", ".join(map(str, self.dims)) + "]"


@dataclass(frozen=True)
class Attr:
    """A compile-time constant of an op: bool, int, float, or a string out of ``choices``.

    ``default`` may be a function of ``d``, the bound dimensions.
    """

    default: Any
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    doc: str = ""

    @property
    def kind(self) -> type:
        return float if callable(self.default) else type(self.default)

    def check(self, op: str, name: str, given: Any) -> Any:
        """``given`` as this attribute's type; raises ContractError."""
        where = f"{op}: attribute {name!r}"
        value: Any = given.item() if isinstance(given, np.generic) else given
        if self.kind is float and type(value) is int:
            value = float(min(max(value, -_FLOAT32_OVERFLOW), _FLOAT32_OVERFLOW))  # an int may be too large for a float
        if type(value) is not self.kind:  # bool is an int to isinstance
            raise ContractError(f"{where} is {value!r}, but must be of type {self.kind.__name__}")
        self._check_range(where, value)
        return value

    def _check_range(self, where: str, value: Any) -> None:
        if self.choices is not None and value not in self.choices:
            raise ContractError(f"{where} is {value!r}; accepted: {', '.join(map(repr, self.choices))}")
        if self.kind is float and math.isnan(value):
            raise ContractError(f"{where} is NaN")
        if self.kind is float and (
            _FLOAT32_OVERFLOW <= abs(value) < math.inf or 0.0 < abs(value) <= _FLOAT32_UNDERFLOW
        ):
            rounded = "0" if abs(value) < 1.0 else "infinite"
            raise ContractError(f"{where} is {value!r}, which is {rounded} in float32, as kernels take it")
        if self.minimum is not None and value < self.minimum:
            raise ContractError(f"{where} is {value!r}, but must be at least {self.minimum}")
        if self.maximum is not None and value > self.maximum:
            raise ContractError(f"{where} is {value!r}, but must be at most {self.maximum}")


@dataclass(frozen=True)
class Tolerance:
    """What a kernel may differ by from the float64 reference ``r`` (rounded to the output's dtype).

    ``l2``: bound of ||o - r|| / ||r||. Elementwise: |o - r| <= atol * rms(r) + rtol * |r|. For integer and 8-bit
    outputs: at most ``fraction`` of the elements differ, none by more than ``steps`` representable values.
    """

    l2: float = 0.0
    rtol: float | None = None
    atol: float | None = None
    steps: int = 0
    fraction: float = 0.0


DEFAULT_TOLERANCE = {
    "float64": Tolerance(l2=1e-12, rtol=1e-10, atol=1e-10),
    "float32": Tolerance(l2=1e-5, rtol=1e-4, atol=1e-4),
    "float16": Tolerance(l2=2e-3, rtol=1e-2, atol=1e-2),
    "bfloat16": Tolerance(l2=1e-2, rtol=4e-2, atol=4e-2),
}


@dataclass(frozen=True)
class Cost:
    """Work that the op cannot avoid: floating-point operations, and bytes of device memory read and written.

    ``bytes=None`` means each input read once and each output written once.
    """

    flops: int
    bytes: int | None = None


@dataclass(frozen=True)
class Case:
    """One problem that check, inspect and bench run.

    ``dims`` values of the named dimensions; ``optional`` the optional inputs that are present; ``leading`` the shape
    of the leading run where it should not be one dimension; ``dtypes`` restricts dtypes by tensor. Tags: ``bench``
    for benchmark shapes, ``gpu`` for shapes too large for an interpreter; cases without a tag run everywhere.
    """

    dims: Mapping[str, int]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    leading: tuple[int, ...] | None = None
    dtypes: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    name: str = ""

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        parts = [f"{k}{v}" for k, v in self.dims.items()]
        if self.leading is not None:
            parts.append("lead" + "x".join(map(str, self.leading)))
        parts += [
            k if v is True else f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in self.attributes.items()
            if v is not False
        ]
        return " ".join([*parts, *(f"+{o}" for o in self.optional)])


@dataclass(frozen=True)
class TensorMap:
    """A TMA descriptor that the host builds (CUDA driver API, cuTensorMapEncodeTiled).

    ``tensor`` names the input or output; ``shape`` and ``box`` in elements, innermost dimension first; ``strides``
    in elements for dimensions 1.. (contiguous when None); ``swizzle`` in bytes: 0, 32, 64 or 128. Elements out of
    bounds read as zero and are not written.
    """

    tensor: str
    shape: tuple[IntLike, ...]
    box: tuple[IntLike, ...]
    strides: tuple[IntLike, ...] | None = None
    swizzle: int = 128
    dtype: str | None = None


@dataclass(frozen=True)
class Launch:
    """How one kernel is started, as expressions over the named dimensions."""

    grid: Any
    block: Any = 1
    shared: IntLike = 0
    cluster: tuple[int, ...] | None = None
    scalars: tuple[IntLike, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    tensor_maps: tuple[TensorMap, ...] = ()

    @staticmethod
    def triple(value: Any) -> tuple[IntLike, IntLike, IntLike]:
        parts = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if not 1 <= len(parts) <= 3:
            raise DeclarationError(f"a grid, block or cluster has one to three dimensions, got {value!r}")
        x, y, z = (*parts, 1, 1)[:3]
        return x, y, z


class Names:
    """Read-only attribute access to a dict of names; an unknown name lists the known ones."""

    def __init__(self, kind: str, values: Mapping[str, Any], seen: set[str] | None = None):
        self.__dict__["_kind"], self.__dict__["_values"], self.__dict__["_seen"] = kind, values, seen

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._values:
            known = ", ".join(map(str, self._values)) or "none"
            raise UnknownNameError(f"there is no {self._kind} {name!r}; known: {known}")
        if self._seen is not None:
            self._seen.add(name)
        return self._values[name]

    __getitem__ = __getattr__

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(name, default)


@lru_cache(maxsize=4096)
def parameter_names(fn: Callable[..., Any]) -> tuple[str, ...]:
    """The values that a function of a declaration asks for."""
    return tuple(inspect.signature(fn).parameters)


def call_by_name(fn: Callable[..., Any], **available: Any) -> Any:
    """Call a function of a declaration with those of the available values that it names.

    Whatever it raises becomes a DeclarationError that names the line, unless it is an error of the kit's own.
    """
    wanted = parameter_names(fn)
    unknown = [name for name in wanted if name not in available]
    if unknown:
        raise DeclarationError(
            f"{fn.__qualname__} asks for {', '.join(unknown)}; a function in a declaration may take: "
            f"{', '.join(available)}"
        )
    try:
        return fn(**{name: available[name] for name in wanted})
    except Exception as error:
        blame(error, fn)


def blame(error: Exception, fn: Callable[..., Any], what: str = "") -> NoReturn:
    """Raise what a function of a declaration raised, with its file and line. ``what``: how the message names it."""
    place = place_of(error, fn)
    if not isinstance(error, ForgeError):
        raised = f"{type(error).__name__}: {error}"
        raise DeclarationError(f"{what} raised {raised} ({place})" if what else f"{place}: {raised}") from error
    if type(error) in (DeclarationError, UnknownNameError):
        raise type(error)(f"{error} ({place})") from error
    raise error


def place_of(error: BaseException, fn: Callable[..., Any]) -> str:
    """The innermost line of the function's own file where the error came by, as "swish/op.py:12"."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return getattr(fn, "__qualname__", repr(fn))
    line, trace = code.co_firstlineno, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == code.co_filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{'/'.join(Path(code.co_filename).parts[-2:])}:{line}"


def grid(where: Callable[..., bool] | None = None, **parameters: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """The product table of tactics; ``where(t)`` keeps some of it."""
    table = [dict(zip(parameters, values)) for values in itertools.product(*parameters.values())]
    return tuple(t for t in table if where is None or where(Names("tactic parameter", t)))


def plain_sample(rng: np.random.Generator, shape: tuple[int, ...], kind: DType) -> np.ndarray:
    """Test data where a declaration says nothing: N(0, 1), or integers of the type within -128 to 255."""
    if kind.floating:
        return rng.standard_normal(shape, dtype=np.float32)
    if kind.name == "bool":
        return rng.integers(0, 2, shape)
    info = np.iinfo(kind.numpy)
    return rng.integers(max(info.min, -128), min(info.max, 255) + 1, shape)

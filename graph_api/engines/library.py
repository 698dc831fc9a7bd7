"""TensorRT and TensorRT for RTX as one thing: the module, its version, its types, and its log through ``logging``."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import re
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

from trtforge.bindings.errors import MissingDependencyError

LOGGER = logging.getLogger("trtforge.tensorrt")
_LINES_KEPT = 20

#: The element types that a network definition computes with, by the kit's names (attributes of ``trt.DataType``).
TYPE_NAMES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "float8_e4m3fn": "FP8",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}


@dataclass(frozen=True)
class Flavor:
    """One of the two libraries. ``minimum`` and ``below`` bound the versions whose Python API this kit was held to."""

    backend: str
    module: str
    title: str
    minimum: tuple[int, int]
    below: tuple[int, int]
    install: str


FLAVORS = {
    "tensorrt": Flavor(
        "tensorrt",
        "tensorrt",
        "TensorRT",
        (10, 13),
        (12, 0),
        "pip install 'trtforge[tensorrt]' where NVIDIA's own package index can be reached",
    ),
    "tensorrt-rtx": Flavor(
        "tensorrt-rtx",
        "tensorrt_rtx",
        "TensorRT for RTX",
        (1, 5),
        (1, 8),
        "pip install 'trtforge[rtx]' (the wheel tensorrt-rtx-cu12 from PyPI)",
    ),
}


def version_pair(text: str) -> tuple[int, int]:
    """Major and minor number of a version."""
    numbers = re.findall(r"\d+", text)
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)


@cache
def open_library(backend: str) -> Any:
    """The Python module behind a backend. Raises MissingDependencyError with the way to get it.

    NVIDIA's ``tensorrt`` bindings can be present without the library behind them (and can be imported over stand-in
    libraries); then no builder can be made, and that is found out here.
    """
    flavor = FLAVORS[backend]
    try:
        trt = importlib.import_module(flavor.module)
    except (ImportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingDependencyError(
            f"the {backend} backend needs {flavor.title}, which cannot be loaded ({reason}); {flavor.install}"
        ) from error
    found = version_pair(trt.__version__)
    if not flavor.minimum <= found < flavor.below:
        accepted = ".".join(map(str, flavor.minimum)), ".".join(map(str, flavor.below))
        raise MissingDependencyError(
            f"the {backend} backend was written for {flavor.title} from {accepted[0]} to below {accepted[1]}; "
            f"{trt.__version__} is installed; {flavor.install}"
        )
    try:
        trt.Builder(log_of(trt))
    except (TypeError, RuntimeError) as error:
        raise MissingDependencyError(
            f"the Python bindings of {flavor.title} {trt.__version__} are installed, but the library behind them gives "
            f"no builder ({error}); {flavor.install}"
        ) from error
    return trt


def why_absent(backend: str) -> str:
    """The reason why a backend's library cannot be used here, "" when it can."""
    try:
        open_library(backend)
    except MissingDependencyError as error:
        return str(error)
    return ""


@cache
def library_version(backend: str) -> str:
    """The version of the library as it names itself, for instance ``1.5.0.114``."""
    return str(open_library(backend).__version__)


class _Recent:
    """The last error lines, for messages."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)

    def take(self) -> str:
        text = "; ".join(self.lines)
        self.lines.clear()
        return text


@cache
def _recent(trt: Any) -> _Recent:
    return _Recent()


def errors_of(trt: Any) -> str:
    """The error lines that the library wrote since the last call, in one line."""
    return _recent(trt).take() or "the library gave no reason"


#: What the library says of inputs that only lend their shape (see Piece.carriers); expected, hence not a warning.
_EXPECTED = ("is unused or used only at compile-time",)


@cache
def log_of(trt: Any) -> Any:
    """The library's logger object; its lines go to the Python logger ``trtforge.tensorrt``."""
    levels = {
        "INTERNAL_ERROR": logging.CRITICAL,
        "ERROR": logging.ERROR,
        "WARNING": logging.WARNING,
        "INFO": logging.INFO,
        "VERBOSE": logging.DEBUG,
    }
    recent = _recent(trt)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity.name, logging.INFO)
            if level >= logging.ERROR:
                recent.lines.append(message.strip())
                level = logging.ERROR
            elif any(text in message for text in _EXPECTED):
                level = logging.DEBUG
            LOGGER.log(level, "%s", message.strip())

    return Log()


def type_of(trt: Any, dtype: str) -> Any:
    """The library's element type of that name."""
    return getattr(trt.DataType, TYPE_NAMES[dtype])

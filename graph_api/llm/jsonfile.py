"""Reads the JSON files of a checkpoint; every fault is one :class:`CheckpointError` that names the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from trtforge.bindings.errors import CheckpointError


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``; NaN, infinities and anything but an object are refused."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: byte {error.start} is not UTF-8; a JSON file in UTF-8 is expected") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}; "
            "download it again or mend it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}; an object {{...}} is expected")
    return value


class Fields:
    """Typed access to the keys of one JSON object. A key that is absent or null takes the default."""

    def __init__(self, path: Path, values: dict[str, Any], inside: str = "") -> None:
        self.path = path
        self.values = values
        self.inside = inside

    def present(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = 2**31 - 1) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.error(key, value, f"an integer from {minimum} to {maximum}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
            raise self.error(key, value, "a positive finite number")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def choice(self, key: str, accepted: tuple[str, ...], default: str | None = None) -> str:
        value = self._value(key, default)
        if value not in accepted:
            raise self.error(key, value, "one of " + ", ".join(f'"{name}"' for name in accepted))
        return value

    def error(self, key: str, value: object, accepted: str) -> CheckpointError:
        shown = json.dumps(value, default=str)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return CheckpointError(f"{self.path}: {self.inside}{key} is {shown}; accepted is {accepted}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise CheckpointError(f"{self.path}: the key {self.inside}{key} is missing; a Llama configuration needs it")
        return default


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")

"""Optional packages: imported when first needed, and named with the way to get them when absent."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

from trtforge.bindings.errors import MissingDependencyError

_EXTRA = "pip install 'trtforge[cuda12]' (or [cuda13] on a CUDA 13 system)"


@cache
def require(module: str, purpose: str) -> ModuleType:
    """Import ``module``, or raise MissingDependencyError saying what it is for and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs the Python module {module!r}, which cannot be imported ({error}); {_EXTRA}"
        ) from error


def available(module: str) -> bool:
    """Whether ``module`` can be imported here."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True

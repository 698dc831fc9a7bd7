"""Registered ops as TensorRT plugins, generated from their declarations.

``register`` makes ops known to TensorRT (:mod:`trtforge.plugins.generate`); :mod:`trtforge.plugins.host` drives the
plugins without TensorRT; :mod:`trtforge.plugins.eligibility` tells which kernels can live inside an engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtforge.plugins.generate import complete_attributes as complete_attributes
    from trtforge.plugins.generate import register as register
    from trtforge.plugins.schema import plugin_name as plugin_name

_HOME = {"register": "generate", "complete_attributes": "generate", "plugin_name": "schema"}

__all__ = ["complete_attributes", "plugin_name", "register"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trtforge.plugins' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"trtforge.plugins.{_HOME[name]}"), name)

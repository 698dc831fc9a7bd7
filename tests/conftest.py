"""Shared fixtures: a cache of its own per test run, and skips that say why."""

from __future__ import annotations

import os
import tempfile

import pytest

os.environ.setdefault("TRTFORGE_CACHE_DIR", os.path.join(tempfile.gettempdir(), "trtforge-test-cache"))

from trtforge.bindings import device


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = device.why_no_gpu()
    if not reason:
        return
    skip = pytest.mark.skip(reason=f"needs an NVIDIA GPU: {reason}")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)

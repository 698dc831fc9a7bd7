"""What tests/ and benchmarks/ share: what needs a GPU is skipped without one, and says why."""

from __future__ import annotations

import pytest

from trtforge.bindings import device


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = device.why_no_gpu()
    if not reason:
        return
    skip = pytest.mark.skip(reason=f"needs an NVIDIA GPU: {reason}")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)

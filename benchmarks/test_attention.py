"""Attention over prompts and caches, on the device: ``pytest benchmarks/test_attention.py``."""

from __future__ import annotations

from typing import Any

import pytest
import suite

from trtforge.harness.bench import Planned

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(timer=suite.TIME)]


@suite.cases("attention")
def test_attention(benchmark: Any, planned: Planned, who: str) -> None:
    suite.run(benchmark, planned, who)

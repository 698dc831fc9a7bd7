"""Quantization, alone and fused with other row operations: ``pytest benchmarks/test_quantization.py``."""

from __future__ import annotations

from typing import Any

import pytest
import suite

from trtforge.harness.bench import Planned

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(timer=suite.TIME)]


@suite.cases("quantization")
def test_quantization(benchmark: Any, planned: Planned, who: str) -> None:
    suite.run(benchmark, planned, who)

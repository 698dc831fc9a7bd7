"""Matrix products with their epilogues, on the device: ``pytest benchmarks/test_gemm.py``."""

from __future__ import annotations

from typing import Any

import pytest
import suite

from trtforge.harness.bench import Planned

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(timer=suite.TIME)]


@suite.cases("gemm")
def test_gemm(benchmark: Any, planned: Planned, who: str) -> None:
    suite.run(benchmark, planned, who)

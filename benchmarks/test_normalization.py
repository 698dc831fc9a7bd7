"""Row normalization, on the device: ``pytest benchmarks/test_normalization.py``."""

from __future__ import annotations

from typing import Any

import pytest
import suite

from trtforge.harness.bench import Planned

pytestmark = [pytest.mark.gpu, pytest.mark.benchmark(timer=suite.TIME)]


@suite.cases("normalization")
def test_normalization(benchmark: Any, planned: Planned, who: str) -> None:
    suite.run(benchmark, planned, who)

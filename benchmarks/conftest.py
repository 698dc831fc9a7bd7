"""pytest-benchmark's files carry the kit's description of the machine and the ceilings of the session."""

from __future__ import annotations

from typing import Any

import suite


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    from trtforge.harness.bench import about

    machine_info["trtforge"] = about()


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["ceilings"] = suite.STATE.limits

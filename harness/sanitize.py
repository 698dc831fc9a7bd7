"""The kernels under compute-sanitizer: ``compute-sanitizer --tool memcheck python -m trtforge.harness.sanitize``.

``OP`` and ``OP/KERNEL`` arguments choose among them.

One process launches every kernel and tactic on a few small cases and the first tactic of each on all of them, then
compares with the reference as ``check`` does. The tool adds its own verdict through ``--error-exitcode``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np

from trtforge.bindings import device
from trtforge.harness import on_device
from trtforge.harness.compare import compare, tolerance_of
from trtforge.kernels import registry
from trtforge.kernels.contract import Case
from trtforge.kernels.op import Kernel, Op

CASES_PER_TACTIC = 2


def launches(op: Op, kernels: Sequence[Kernel]) -> Iterator[tuple[Kernel, int, Case, dict[str, str]]]:
    """Kernels, tactics and small cases: every case for the first tactic that serves any, two for each other tactic.

    Cases take turns with the dtypes.
    """
    target = device.current_device().architecture
    for kernel in kernels:
        whole = False
        for tactic in range(len(kernel.tactics)):
            served = []
            for index, case in enumerate(case for case in op.cases if not case.tags):
                combinations = op.dtype_combinations(case)
                dtypes = combinations[index % len(combinations)]
                if kernel.refusal(op.bind_case(case, dtypes), tactic, target) is None:
                    served.append((case, dtypes))
            some = [served[(tactic + i * 7) % len(served)] for i in range(CASES_PER_TACTIC)] if served else []
            for case, dtypes in some if whole else served:
                yield kernel, tactic, case, dtypes
            whole = whole or bool(served)


def main(names: list[str]) -> int:
    """Run the given ops or kernels, or all; returns 1 when a result is wrong."""
    device.require_gpu("running kernels under compute-sanitizer")
    wrong = count = 0
    for name in names or [op.name for op in registry.ops()]:
        op_name, _, kernel_name = name.partition("/")
        op = registry.get(op_name)
        kernels = [op.kernel_named(kernel_name)] if kernel_name else op.kernels
        for kernel, tactic, case, dtypes in launches(op, kernels):
            inputs = op.sample_inputs(case, dtypes, seed=7)
            expected = op.run_reference(inputs, case.attributes)
            binding = op.bind_case(case, dtypes)
            outputs = on_device.run(kernel, binding, tactic, inputs)
            count += 1
            for output, reference in expected.items():
                found = compare(outputs[output], np.asarray(reference), tolerance_of(op, binding.dtypes[output]))
                if not found.passed:
                    wrong += 1
                    print(f"WRONG {kernel} [{kernel.tactic_label(tactic)}] {case.label}: {output}: {found.reason}")
    print(f"{count} launches, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

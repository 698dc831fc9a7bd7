"""Whether the emulation can run here: what tests that need a C++ compiler are skipped by."""

import pytest

from trtforge.bindings.errors import ForgeError
from trtforge.harness.emulate import toolchain


def _why_not() -> str:
    try:
        toolchain.runtime_object()
    except ForgeError as error:
        return str(error)
    return ""


_REASON = _why_not()
#: Whether kernels can be emulated here.
FOUND = not _REASON
needs_compiler = pytest.mark.skipif(bool(_REASON), reason=_REASON or "a compiler is here")

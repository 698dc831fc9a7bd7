"""A kernel cache of its own for the tests."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("TRTFORGE_CACHE_DIR", os.path.join(tempfile.gettempdir(), "trtforge-test-cache"))

"""``python -m trtforge`` is the ``trtforge`` command."""

import sys

from trtforge.cli import main

sys.exit(main())

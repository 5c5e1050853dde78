"""Whether a run takes the whole of what a usual run takes a part of: ``scripts/test.sh --whole``."""

from __future__ import annotations

import os

#: Set by ``TDEFS_TEST_WHOLE=1``.
WHOLE = os.environ.get("TDEFS_TEST_WHOLE", "") not in ("", "0")

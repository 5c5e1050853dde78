"""Long campaigns have a short form, which a usual run takes. ``scripts/test.sh --whole`` takes the whole."""

from __future__ import annotations

import os

#: Whether this run takes the whole of each campaign: ``TDEFS_TEST_WHOLE=1``.
WHOLE = os.environ.get("TDEFS_TEST_WHOLE", "") not in ("", "0")

"""Shows a warning on stderr."""

from __future__ import annotations

import sys


def warn_on_stderr(message: str, *, detail: str = "", hint: str = "") -> None:
    print(f"tdefs: warning: {message}\nDETAIL:  {detail}\nHINT:  {hint}", file=sys.stderr, flush=True)

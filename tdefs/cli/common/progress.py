"""The progress of a long read: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_SECONDS = 10.0


class ReadProgress:
    """The progress of reading *files* files of *size* bytes, shown on standard error during a ``with`` block."""

    def __init__(self, files: int, size: int, *, quiet: bool) -> None:
        self._files = files
        self._size = size
        self._quiet = quiet
        self._bar = tqdm(
            total=size,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=quiet or not sys.stderr.isatty(),
            file=sys.stderr,
        )
        self._begun = self._said = time.monotonic()

    def update(self, files: int, read: int) -> None:
        """Say that *files* files and *read* bytes are done so far."""
        if not self._bar.disable:
            self._bar.update(read - self._bar.n)
        elif not self._quiet and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            print(f"tdefs: {self._line(files, read, self._said - self._begun)}", file=sys.stderr)

    def _line(self, files: int, read: int, seconds: float) -> str:
        rate = read / seconds
        left = f", about {(self._size - read) / rate:.0f} s left" if 0 < read < self._size else ""
        done, size, speed = (tqdm.format_sizeof(number, "B") for number in (read, self._size, rate))
        return f"{files} of {self._files} files and {done} of {size} are read, {speed}/s{left}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

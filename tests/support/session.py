"""A psql that stays connected, to hold something open while the test looks at the files."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from types import TracebackType
from typing import IO, Self


class Session:
    """One connection; each call of :meth:`sql` returns its rows when it has finished."""

    _END = "-- end of the answer --"

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd="/",
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def sql(self, text: str) -> str:
        """Run SQL; an error ends psql, and is an assertion error with the message of the server."""
        self._input.write(f"{text}\n;\n\\echo {self._END}\n")
        self._input.flush()
        lines: list[str] = []
        for line in self._output:
            if line.rstrip("\n") == self._END:
                return "".join(lines).rstrip("\n")
            lines.append(line)
        raise AssertionError(f"psql ended: {''.join(lines)}")

    @property
    def _input(self) -> IO[str]:
        assert self._process.stdin
        return self._process.stdin

    @property
    def _output(self) -> IO[str]:
        assert self._process.stdout
        return self._process.stdout

    def close(self) -> None:
        with suppress(BrokenPipeError):  # psql was gone before the last line reached it
            self._input.close()
        self._output.close()
        self._process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

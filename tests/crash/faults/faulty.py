"""tdefs whose system calls on the backing directory fail when a test says so.

Called like tdefs, with a directory outside of the mount as the first argument:
``faulty.py DIRECTORY mount BACKING MOUNTPOINT ...``. In the directory a test leaves orders while the mount serves,
see ``tests.crash.faults.orders``; what was called and what failed is written down there.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from tdefs.cli import main, mount
from tdefs.data import complaints
from tdefs.data.calls import SystemCalls

METHODS = [name for name, value in vars(SystemCalls).items() if callable(value) and not name.startswith("_")]


class FaultyCalls(SystemCalls):
    """The real calls, except for those that the orders name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        #: the number of the orders in force; a test raises the one in the file when it has written new ones
        self._number = -1
        self._orders: list[dict[str, Any]] = []
        self._seen: set[tuple[str, str]] = set()
        with (directory / "number").open("r+b") as file:
            self._current = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
        self._journal = os.open(
            directory / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        for method in METHODS:
            # one for each call, so that an instance still is a SystemCalls with all of them
            setattr(self, method, partial(self._call, method, getattr(self, method)))

    def _call(self, method: str, real: Any, label: str, *arguments: Any) -> Any:
        order = self._order_for(method, label)
        if order is None:
            return real(label, *arguments)
        if order["sleep"]:
            time.sleep(order["sleep"])
            return real(label, *arguments)
        if method == "pread_cached":
            return None  # as it tells every failure: the waiting read says the rest
        if method == "close":
            # the descriptor is gone whatever close(2) returns
            real(label, *arguments)
        elif method == "pwrite" and order["half"]:
            fd, data, offset = arguments
            # a disk writes whole sectors, and a file's header lies in one
            real(label, fd, bytes(data[: len(data) // 2 // 512 * 512]), offset)
        raise OSError(order["errno"], os.strerror(order["errno"]))

    def _order_for(self, method: str, label: str) -> dict[str, Any] | None:
        """The order that this call falls under, if any, and take note of both."""
        with self._lock:
            number = int.from_bytes(self._current[:8], "little")
            if number != self._number:
                self._orders = json.loads((self._directory / "orders").read_text())
                self._number = number
                self._seen.clear()
            if (method, label) not in self._seen:
                self._seen.add((method, label))
                self._note("called", method, label)
            for order in self._orders:
                if label not in (order["labels"] or [label]) or method not in (order["methods"] or [method]):
                    continue
                order["skip"] -= 1
                if order["skip"] >= 0 or order["times"] == 0:
                    continue
                order["times"] -= 1
                if not order["sleep"]:
                    self._note("failed", method, label, errno.errorcode[order["errno"]])
                return order
        return None

    def _note(self, *words: str) -> None:
        os.write(self._journal, (json.dumps([self._number, *words]) + "\n").encode())


def run(directory: Path, arguments: list[str]) -> int:
    """Runs tdefs with the faulty calls."""
    if (directory / "log-all").exists():
        # the oracle looks for every failure in the log; how often it may say so is tested elsewhere
        assert hasattr(complaints, "_MOST_COMPLAINTS")
        complaints._MOST_COMPLAINTS = 1 << 30
    assert hasattr(mount, "SystemCalls")
    mount.SystemCalls = partial(FaultyCalls, directory)
    return main.main(arguments)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))

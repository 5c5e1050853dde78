"""Making the system calls of a mounted tdefs fail, from the outside: the orders for ``faulty.py``."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.volume import Volume

_PROGRAM = Path(__file__).with_name("faulty.py")


@dataclass(frozen=True)
class Order:
    """Which calls fail how: those with one of the labels and one of ``SystemCalls``' methods; none: any."""

    labels: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    errno: int = errno.EIO
    #: How many calls work before the first that fails, and how many fail then; -1: all, until the orders change.
    skip: int = 0
    times: int = -1
    #: A write stores the first half of its bytes before it fails, as on a disk that becomes full.
    half: bool = False
    #: Instead of failing the call waits so many seconds and works.
    sleep: float = 0

    @property
    def name(self) -> str:
        """The errno's name."""
        return errno.errorcode[self.errno]


@dataclass(frozen=True)
class Call:
    """One kind of call that was made: method and label."""

    method: str
    label: str


class Faults:
    """The faults of one volume. Belongs to it from before it is mounted until it is unmounted."""

    def __init__(self, volume: Volume, directory: Path, *, log_all: bool = True) -> None:
        """:param log_all: take away the log's limit on complaints in a time"""
        self._directory = directory
        self._number = 0
        (directory / "number").write_bytes(bytes(8))
        (directory / "orders").write_text("[]")
        (directory / "journal").touch()
        if log_all:
            (directory / "log-all").touch()
        volume.program = [sys.executable, str(_PROGRAM), str(directory)]

    def order(self, *orders: Order) -> None:
        """Puts these orders in force, instead of all before."""
        new = self._directory / "orders.new"
        new.write_text(json.dumps([asdict(order) for order in orders]))
        new.replace(self._directory / "orders")
        self._number += 1
        with (self._directory / "number").open("r+b") as file:
            file.write(self._number.to_bytes(8, "little"))

    @contextmanager
    def armed(self, *orders: Order) -> Iterator[None]:
        """These orders are in force during the block, and none afterwards."""
        self.order(*orders)
        try:
            yield
        finally:
            self.order()

    @property
    def number(self) -> int:
        """The number of the orders in force."""
        return self._number

    def called(self, number: int | None = None) -> set[Call]:
        """What was called, at all or under the orders of that number."""
        return {Call(method, label) for _, method, label in self._noted("called", number)}

    def failed(self, number: int | None = None) -> list[tuple[Call, str]]:
        """Which calls failed, and with which errno's name."""
        return [(Call(method, label), name) for _, method, label, name in self._noted("failed", number)]

    def _noted(self, kind: str, number: int | None) -> Iterable[list[str]]:
        for line in (self._directory / "journal").read_text().splitlines():
            under, word, *rest = json.loads(line)
            if word == kind and (number is None or under == number):
                yield [under, *rest]

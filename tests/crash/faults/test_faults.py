"""Each system call that the file core makes fails, at each place in the code, with each errno that it may have.

The client gets the errno, nothing half-written is seen, the daemon lives, logs and counts it, and when the fault
is gone everything works.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tdefs.control import ask
from tdefs.volume.description import read_volume
from tests.crash.conftest import Dice
from tests.crash.faults.call_sites import call_sites
from tests.crash.faults.orders import Call, Faults, Order
from tests.crash.faults.places import Place, verified
from tests.crash.faults.scripts import SCRIPTS, Script
from tests.support.children import needs_root
from tests.support.processes import wait_until
from tests.support.volume import Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

PLAIN_POLICY = """\
version: 1
default: plain
"""

_FULL = ("ENOSPC", "EDQUOT")
_CHANGES = (*_FULL, "EIO", "EROFS")
#: The errnos that each method may fail with.
ERRNOS = {
    "open": ("EIO", "EMFILE", "ENFILE", "ENOMEM"),
    "create": (*_CHANGES, "EMFILE", "ENFILE"),
    "close": ("EIO",),
    "pread": ("EIO",),
    "pread_cached": ("EIO",),
    "pwrite": _CHANGES,
    "ftruncate": _CHANGES,
    "fsync": _CHANGES,
    "fdatasync": _CHANGES,
    "syncfs": _CHANGES,
    "stat": ("EIO", "ENOMEM"),
    "handle": ("EOPNOTSUPP", "EPERM"),
    "fstat": ("EIO",),
    "listdir": ("EIO",),
    "readlink": ("EIO",),
    "statvfs": ("EIO",),
    "seek_data": ("EIO",),
    "getxattr": ("EIO",),
    "setxattr": _CHANGES,
    "removexattr": _CHANGES,
    "fchmod": _CHANGES,
    "chmod": _CHANGES,
    "fchown": _CHANGES,
    "chown": _CHANGES,
    "futimens": _CHANGES,
    "utimens": _CHANGES,
    "set_mtime": _CHANGES,
    "mkdir": _CHANGES,
    "mknod": _CHANGES,
    "symlink": _CHANGES,
    "link": _CHANGES,
    "rename": _CHANGES,
    "unlink": ("EIO", "EROFS", "ENOSPC"),
    "rmdir": ("EIO", "EROFS", "ENOSPC"),
}
#: Calls that may fail without an error for the client, and why.
ABSORBED = {
    Call("removexattr", "settle:unmark"): "who finds the header does not look at the mark",
    Call("pread_cached", "read:cached"): "the read that waits says the rest",
    Call("pread", "read"): "the kernel asks again for what it has read ahead",
    Call("pread", "read:again"): "the kernel asks again for what it has read ahead",
    Call("fstat", "file:last"): "the file has no name any more",
    Call("open", "inodes:hold"): "the name goes all the same; the kernel looks it up again",
    Call("open", "close:hold"): "the file was closed; the kernel looks its name up again",
    Call("handle", "inodes:handle"): "the file gets a generation of our own",
    Call("open", "rename:directory"): "the rename has happened, and the header names both places",
    Call("fsync", "rename:sync"): "the rename has happened, and the header names both places; a sync tells of it",
    Call("pwrite", "bind:settle"): "the header names both places, and the file can be opened",
}
#: Of these a full disk keeps nobody from changing a file: rather nothing is bound any more.
ABSORBED_WHEN_FULL = {Call("pwrite", "journal:write"), Call("fdatasync", "journal:sync")}
#: What need not be in the log, since another call tells the same.
_SILENT = ("read:cached", "inodes:handle")
#: What is about no file that has a name, so that the log does not say it again for another one.
_NAMELESS = ("file:last", "statfs", "journal:write", "journal:sync")

#: Reached when a mount begins or ends, or when its policy is exchanged: see the tests below.
AT_THE_ENDS = {
    Call("fstat", "inodes:root"),
    Call("syncfs", "session:recover"),
    Call("syncfs", "session:sync"),
    Call("syncfs", "policy:sync"),
    Call("pwrite", "journal:begin"),
    Call("fdatasync", "journal:begin"),
    Call("close", "close:directory"),
    Call("close", "inodes:close"),
}


@dataclass
class Bench:
    """A mounted volume whose calls can be made to fail."""

    volume: Volume
    faults: Faults
    places: list[Place]
    numbers: Iterator[int]
    counted: int = 0
    pid: int = 0

    def place(self, directory: str) -> Place:
        place = Place(self.volume, f"{directory}/{next(self.numbers)}")
        self.places.append(place)
        return place

    def has_counted(self) -> bool:
        """Whether the daemon has counted more failures than the last time, and is the one that it was then."""
        status = ask(read_volume(self.volume.backing), "status")
        assert status is not None, "the daemon does not answer"
        assert self.pid in (0, status["pid"]), "it is another daemon"
        before, self.counted = self.counted, sum(status["failures"].values())
        self.pid = status["pid"]
        return self.counted > before

    def bind(self) -> None:
        """Has the manifest bind all that is there now."""
        self.volume.umount()
        self.volume.mount()
        self.counted = self.pid = 0


def _bench(workspace: Workspace, name: str, policy: str | None) -> Iterator[Bench]:
    volume = workspace.volume(name)
    volume.init(policy=policy)
    faults = Faults(volume, workspace.directory("faults"))
    volume.mount()
    volume.mountpoint.chmod(0o755)
    bench = Bench(volume, faults, [], itertools.count(1000))
    yield bench
    faults.order()
    # what could not be undone is left for the next mount
    said = [""]

    def goes() -> bool:
        said[0] = volume.tdefs("umount", volume.mountpoint, check=False).stderr
        return "mounted elsewhere" not in said[0]

    assert wait_until(goes, 60), "a namespace that another test is making has a copy of every mount for a moment"
    assert policy is None or said[0] == ""
    volume.mount()
    for place in bench.places:
        place.check()
    assert volume.status()["tampering"]["differences"] == [], "nobody has touched the volume"
    volume.umount()
    verified(volume)
    workspace.volumes.remove(volume)


@pytest.fixture(scope="module")
def encrypted(workspace: Workspace) -> Iterator[Bench]:
    """Where everything is encrypted."""
    yield from _bench(workspace, "faults", None)


@pytest.fixture(scope="module")
def plain(workspace: Workspace) -> Iterator[Bench]:
    """Where nothing but relations is encrypted."""
    yield from _bench(workspace, "faults-plain", PLAIN_POLICY)


@pytest.fixture(scope="module")
def bound(workspace: Workspace) -> Iterator[Bench]:
    """Where everything is encrypted, and each script finds its files bound by the manifest."""
    yield from _bench(workspace, "faults-bound", None)


@dataclass(frozen=True)
class Benches:
    """Where each script works."""

    encrypted: Bench
    plain: Bench
    bound: Bench

    def of(self, script: Script) -> Bench:
        return self.bound if script.bound else self.plain if script.plain else self.encrypted


@pytest.fixture(scope="module")
def benches(encrypted: Bench, plain: Bench, bound: Bench) -> Benches:
    return Benches(encrypted, plain, bound)


def _prepared(bench: Bench, script: Script) -> Place:
    place = bench.place(script.directory)
    script.prepare(place, bench.faults)
    if script.bound:
        bench.bind()
    return place


def _reached(bench: Bench, script: Script) -> set[Call]:
    """The calls that a script makes when none fails but those that must for it."""
    place = _prepared(bench, script)
    with bench.faults.armed(*script.enabling):
        number = bench.faults.number
        try:
            script.act(place)
        except OSError as error:
            assert script.enabling, f"{script.name}: {error}"
    place.check()
    return {call for call in bench.faults.called(number) if not script.labels or call.label in script.labels}


@pytest.fixture(scope="module")
def reaching(benches: Benches) -> dict[Call, list[Script]]:
    """Which scripts reach each call; those that are for it first."""
    found: dict[Call, list[Script]] = defaultdict(list)
    for script in sorted(SCRIPTS, key=lambda script: not script.labels):
        for call in _reached(benches.of(script), script):
            found[call].append(script)
    return found


def test_every_call_site_is_reached(reaching: dict[Call, list[Script]]) -> None:
    assert call_sites() - set(reaching) - AT_THE_ENDS == set()
    assert set(reaching) - call_sites() == set(), "the source was not read right"
    assert {call.method for call in call_sites()} <= set(ERRNOS)


def _log(bench: Bench) -> list[str]:
    return bench.volume.log.read_text(errors="replace").splitlines()


def _fail(bench: Bench, script: Script, call: Call, order: Order) -> list[str]:
    """Runs a script while a call fails; returns what is wrong with how that went."""
    place = _prepared(bench, script)
    logged = len(_log(bench))
    error: OSError | None = None
    problems = []
    with bench.faults.armed(order, *script.enabling):
        number = bench.faults.number
        try:
            script.act(place)
        except OSError as raised:
            error = raised
        except AssertionError as wrong:
            problems.append(f"meanwhile: {wrong}")
    if (call, order.name) not in bench.faults.failed(number):
        problems.append("the call was not made")
    spared = call.method in ("open", "create") and order.name in ("EMFILE", "ENFILE") and order.times == 1
    may_pass = call in ABSORBED or (call in ABSORBED_WHEN_FULL and order.name in _FULL)
    if error is None:
        if not may_pass and call.method != "close" and not spared:
            problems.append("the client was not told")
    elif error.errno not in {order.errno, *(other.errno for other in script.enabling)}:
        problems.append(f"the client was told {error}")
    if not spared and call.label not in _SILENT:
        problems += _wrong_in_log(place, call, order, _log(bench)[logged:])
    if error is not None and not bench.has_counted():
        problems.append("it is not counted")
    try:
        place.check()
        if script.again:
            script.act(place)
            place.check()
    except (AssertionError, OSError) as wrong:
        problems.append(f"afterwards: {wrong}")
    return problems


def _wrong_in_log(place: Place, call: Call, order: Order, log: list[str]) -> Iterator[str]:
    """Each failure is in the log once, with path, operation, errno and what to do about it."""
    about = [line for line in log if os.strerror(order.errno) in line]
    if not about and (call.label not in _NAMELESS or order.times == 1):
        yield "nothing is in the log"
    about = [line for line in about if f"{call.label}: close failed" not in line]
    if len({line.split(" ", 2)[2] for line in about}) < len(about):
        yield f"it is in the log twice: {about}"
    for line in about:
        if f"({order.name}; HINT: " not in line or (place.relpath not in line and call.label not in _NAMELESS):
            yield f"the log says: {line}"
    yield from (f"the log says: {line}" for line in log if "unexpected" in line or "Traceback" in line)


def _orders(call: Call, code: str) -> Iterator[Order]:
    for times in (1, -1):
        yield Order((call.label,), (call.method,), getattr(errno, code), times=times)
    if call.method == "pwrite":
        yield Order((call.label,), (call.method,), getattr(errno, code), times=1, half=True)


@pytest.mark.slow(seconds=90)
def test_every_call_site_may_fail(reaching: dict[Call, list[Script]], benches: Benches, dice: Dice) -> None:
    problems = []
    tried = 0
    for call, scripts in sorted(reaching.items(), key=lambda item: (item[0].label, item[0].method)):
        for code, script in itertools.product(ERRNOS[call.method], scripts[: dice.rounds(1)]):
            for order in _orders(call, code):
                tried += 1
                wrong = _fail(benches.of(script), script, call, order)
                if wrong:
                    fault = f"{call.method} {call.label} {code} x{order.times}{' half' if order.half else ''}"
                    problems.append(f"{fault} in '{script.name}': {'; '.join(wrong)}")
    for script in SCRIPTS:
        _reached(benches.of(script), script)
    print(f"{tried} faults at {len(reaching)} call sites")
    assert not problems, f"{len(problems)} of {tried} faults:\n" + "\n".join(problems)

"""What one process replaces or removes, another can use that found it a moment before, as in a plain directory."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.libc import RENAME_EXCHANGE, renameat2
from tests.fs.twins import Failure, Twins, outcome
from tests.support.children import repeated
from tests.support.processes import wait_until
from tests.support.volume import Volume

#: How long each race goes on, and how often at least one side runs.
SECONDS = 0.6
FEWEST = 200
TEXT = b"x" * 100


def _new(path: Path) -> Path:
    path.write_bytes(TEXT)
    return path


def _rename(directory: Path) -> None:
    _new(directory / "new").rename(directory / "final")


def _create_again(directory: Path) -> None:
    (directory / "final").unlink(missing_ok=True)
    _new(directory / "final")


def _link(directory: Path) -> None:
    new = _new(directory / "new")
    (directory / "linked").hardlink_to(new)
    (directory / "linked").rename(directory / "final")
    new.unlink()


def _exchange(directory: Path) -> None:
    new = _new(directory / "new")
    if not (directory / "final").exists():
        new.rename(directory / "final")
        return
    renameat2(new, directory / "final", RENAME_EXCHANGE)
    new.unlink()


def _symlink(directory: Path) -> None:
    (directory / "new").symlink_to("target")
    (directory / "new").rename(directory / "final")


def _directory(directory: Path) -> None:
    (directory / "new").mkdir()
    (directory / "new").rename(directory / "final")


def _read(path: Path) -> None:
    with path.open("rb") as file:
        assert file.read() in (TEXT, b"")


def _link_it(path: Path) -> None:
    other = path.with_name("other")
    try:
        other.hardlink_to(path)
    finally:
        other.unlink(missing_ok=True)


def _readlink(path: Path) -> None:
    assert path.readlink() == Path("target")


def _list(path: Path) -> None:
    assert os.listdir(path) == []


RACES: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "rename, open": (_rename, _read),
    "rename, open to write": (_rename, lambda path: os.close(os.open(path, os.O_RDWR))),
    "rename, stat": (_rename, lambda path: path.stat()),
    "rename, chmod": (_rename, lambda path: path.chmod(0o640)),
    "rename, truncate": (_rename, lambda path: os.truncate(path, len(TEXT))),
    "rename, set times": (_rename, lambda path: os.utime(path)),
    "rename, link": (_rename, _link_it),
    "unlink and create, open": (_create_again, _read),
    "link and rename, open": (_link, _read),
    "exchange, open": (_exchange, _read),
    "symlink, readlink": (_symlink, _readlink),
    "directory, list": (_directory, _list),
    "directory, stat": (_directory, lambda path: path.stat()),
}
#: Where a plain directory may say so, too: the file has no name for a moment, or link(2) finds none left.
MAY_BE_GONE = {"unlink and create, open", "rename, link"}


@pytest.mark.parametrize("race", RACES)
def test_what_is_replaced_all_the_time_can_be_used_all_the_time(twins: Twins, race: str) -> None:
    replace, use = RACES[race]
    failures: Counter[str] = Counter()
    replace(twins.mount)
    end = time.monotonic() + SECONDS
    done = 0
    with repeated(lambda: replace(twins.mount)):
        while done < FEWEST or time.monotonic() < end:
            done += 1
            try:
                use(twins.mount / "final")
            except OSError as error:
                failures[errno.errorcode[error.errno or 0]] += 1
    if race in MAY_BE_GONE:
        del failures["ENOENT"]
    assert not failures, f"of {done} tries"


#: What can be done with a path of /proc that leads to what has no name: it has been opened by O_PATH.
USES: dict[str, Callable[[Path], object]] = {
    "read": lambda path: path.read_bytes(),
    "write": lambda path: _written(path, os.O_WRONLY),
    "append": lambda path: _written(path, os.O_RDWR | os.O_APPEND),
    "empty": lambda path: _written(path, os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda path: _changed(path, lambda: os.truncate(path, 8193)),
    "stat": lambda path: _shown(path),
    "chmod": lambda path: _changed(path, lambda: path.chmod(0o710)),
    "chown": lambda path: _changed(path, lambda: os.chown(path, os.geteuid(), os.getegid())),
    "utime": lambda path: _changed(path, lambda: os.utime(path, ns=(10**18, 2 * 10**18))),
    "list": lambda path: os.listdir(path),
    "sync": lambda path: _synced(path),
    "make in it": lambda path: (path / "new").mkdir(),
    "find in it": lambda path: (path / "inner").stat(),
}


def _written(path: Path, flags: int) -> bytes:
    fd = os.open(path, flags)
    try:
        os.write(fd, b"written")
        os.fsync(fd)
    finally:
        os.close(fd)
    return path.read_bytes()


def _synced(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _changed(path: Path, change: Callable[[], object]) -> tuple[int, ...]:
    change()
    return (*_shown(path), path.stat().st_mtime_ns if path.stat().st_mtime_ns == 2 * 10**18 else 0)


def _shown(path: Path) -> tuple[int, ...]:
    status = path.stat()
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return status.st_mode, status.st_nlink, status.st_uid, status.st_gid, size


def _make(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(kind.encode() * 3000)
    if kind == "linked file":
        path.with_name(path.name + "-linked").hardlink_to(path)


@pytest.mark.parametrize("kind", ["file", "linked file", "directory"])
@pytest.mark.parametrize("how", ["removed", "replaced", "exchanged and removed"])
def test_what_was_removed_and_is_not_open_is_what_it_was_for_who_holds_it(
    twins: Twins, kind: str, how: str
) -> None:
    def remove(path: Path) -> None:
        new = path.with_name(path.name + "-new")
        if how != "removed":
            _make(new, "directory" if kind == "directory" else "other file")
        if how == "replaced":
            new.rename(path)
            return
        if how == "exchanged and removed":
            renameat2(path, new, RENAME_EXCHANGE)
            path = new
        if kind == "directory":
            path.rmdir()
        else:
            path.unlink()

    def use(directory: Path) -> list[tuple[str, object]]:
        results: list[tuple[str, object]] = []
        for number, (name, action) in enumerate(USES.items()):
            path = directory / f"1{number}"
            _make(path, kind)
            fd = os.open(path, os.O_PATH)
            try:
                remove(path)
                results.append((name, outcome(action, Path(f"/proc/self/fd/{fd}"))))
            finally:
                os.close(fd)
        return results

    assert Failure("ESTALE") not in [result for _, result in twins.same(use)]


@pytest.mark.parametrize("how", ["never opened", "open until then", "held"])
def test_the_space_of_removed_and_replaced_files_is_given_back_soon(encrypted: Volume, how: str) -> None:
    """The daemon keeps no descriptor of them, as long as nobody uses them."""
    directory = encrypted.mountpoint / f"space {how}"
    directory.mkdir()
    for number in range(60):
        (directory / str(number)).write_bytes(bytes(100_000))
    flags = os.O_RDONLY if how == "open until then" else os.O_PATH
    used = [] if how == "never opened" else [os.open(directory / str(number), flags) for number in range(60)]
    for number in range(0, 60, 2):
        (directory / str(number)).rename(directory / str(number + 1))
    for number in range(1, 60, 2):
        (directory / str(number)).unlink()
    for fd in used:
        os.close(fd)
    directory.rmdir()
    assert wait_until(lambda: not _removed_but_open(encrypted), 10)


def _removed_but_open(volume: Volume) -> list[str]:
    (daemon,) = volume.daemons
    found = []
    for entry in os.listdir(f"/proc/{daemon}/fd"):
        try:
            found.append(os.readlink(f"/proc/{daemon}/fd/{entry}"))  # noqa: PTH115 - it need not lead to a path
        except FileNotFoundError:
            continue
    return [target for target in found if target.startswith(str(volume.backing)) and target.endswith(" (deleted)")]

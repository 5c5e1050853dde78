"""What a daemon of root makes for a user is the user's, whenever the daemon dies."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tdefs.data.calls import Owner
from tests.support.children import NOBODY, needs_root
from tests.support.served_volume import Crash, ServedVolume

pytestmark = needs_root

USER = Owner(NOBODY, NOBODY)
ROOT = Owner(0, 0)

MAKERS: dict[str, Callable[[ServedVolume], object]] = {
    "file": lambda served: served.namespace.create(*served.place("home/new"), stat.S_IFREG | 0o600, USER),
    "directory": lambda served: served.namespace.mkdir(*served.place("home/new"), 0o700, USER),
    "fifo": lambda served: served.namespace.mknod(*served.place("home/new"), stat.S_IFIFO | 0o600, 0, USER),
    "link": lambda served: served.namespace.symlink(*served.place("home/new"), b"target", USER),
}


@pytest.fixture
def home(served: ServedVolume) -> ServedVolume:
    served.mkdirs("home")
    os.chown(served.data / "home", *USER)
    return served


@pytest.mark.parametrize("kind", MAKERS)
def test_what_a_crash_leaves_of_a_new_node_is_its_owners(home: ServedVolume, kind: str) -> None:
    new = home.data / "home" / "new"
    for crash_before in range(100):
        home.calls.crash_before = len(home.calls.made) + crash_before
        try:
            MAKERS[kind](home)
        except Crash:
            finished = False
        else:
            finished = True
        home.remount(after_crash=True)
        if os.path.lexists(new):
            status = new.lstat()
            assert (status.st_uid, status.st_gid) == USER, f"after {crash_before} calls"
            _remove(home)
        if finished:
            return
    raise AssertionError("it never came to an end")


def _remove(served: ServedVolume) -> None:
    place = served.place("home/new")
    if (served.data / "home" / "new").is_dir():
        served.namespace.rmdir(*place)
    else:
        served.namespace.unlink(*place)


def test_the_daemon_is_itself_again_after_it_made_something(home: ServedVolume) -> None:
    for make in MAKERS.values():
        make(home)
        _remove(home)
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert status["Uid"].split() == status["Gid"].split() == ["0"] * 4


def test_a_user_who_may_write_by_a_supplementary_group_alone_gets_the_file(home: ServedVolume) -> None:
    """The daemon does not know the caller's supplementary groups; the kernel has checked them."""
    os.chown(home.data / "home", 0, 4242)
    (home.data / "home").chmod(0o770)
    for make in MAKERS.values():
        make(home)
        status = (home.data / "home" / "new").lstat()
        # a file gets its owner with hand_over(), which follows create()
        assert (status.st_uid, status.st_gid) in (USER, ROOT)
        _remove(home)

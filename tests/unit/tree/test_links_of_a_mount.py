"""Symbolic links of a mount: bound to their place, taken along by renames, and readable whenever one stops."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import EEXIST, EIO, ENAMETOOLONG, ENOENT, ENOKEY, EROFS
from functools import partial
from pathlib import Path

import pytest

from tdefs.data.calls import Owner
from tdefs.data.link_encryption import LinkCipher
from tdefs.format.links import MAX_TARGET_BYTES, PREFIX
from tdefs.fuse.appearance import appearance
from tdefs.keys.hierarchy import KeyRing
from tdefs.policy.parse import load_policy
from tdefs.tree.namespace import Namespace
from tdefs.tree.renaming import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.errnos import errno_of
from tests.support.served_volume import DK_2, VOLUME_ID, Crash, ServedVolume

ONE, TWO = "pg_tblspc/16385", "pg_tblspc/16386"
DEEP = "pg_tblspc/deep/er/link"


def make(served: ServedVolume, path: str, target: str) -> None:
    owner = Owner(os.geteuid(), os.getegid())
    served.namespace.symlink(*served.place(path), target.encode(), owner)


def target(served: ServedVolume, path: str) -> str:
    return served.namespace.readlink(served.inode(path)).decode()


def text(served: ServedVolume, path: str) -> bytes:
    return os.fsencode((served.data / path).readlink())


def places_of(served: ServedVolume, path: str) -> int:
    """How many places the stored link may lie at."""
    return len(LinkCipher(lambda: served.forms.ring).decrypt(text(served, path)).places)


@pytest.fixture
def spaces(served: ServedVolume) -> ServedVolume:
    """Two links, one more deep below, and a file."""
    served.mkdirs("pg_tblspc/deep/er", "other")
    make(served, ONE, "/srv/one")
    make(served, TWO, "/srv/two")
    make(served, DEEP, "../here")
    served.create("pg_tblspc/deep/file", b"rows")
    return served


# --- what is stored


def test_the_backing_directory_does_not_tell_where_a_link_leads(spaces: ServedVolume) -> None:
    assert text(spaces, ONE).startswith(PREFIX)
    assert b"srv" not in text(spaces, ONE)
    spaces.remount()
    assert [target(spaces, path) for path in (ONE, TWO, DEEP)] == ["/srv/one", "/srv/two", "../here"]


def test_a_link_has_the_key_that_the_policy_names_and_is_sealed_where_files_are_plain(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\ndefault: plain\nkinds:\n  wal: dk_2\n")
    (tmp_path / "backing").mkdir()
    served = ServedVolume(tmp_path / "backing", load_policy(tmp_path / "policy.yaml"))
    served.mkdirs("pg_wal")
    for path in ("pg_wal/link", "link"):
        make(served, path, "/srv/one")
        assert text(served, path).startswith(PREFIX)
    served.remount(ring=KeyRing(VOLUME_ID, "dk_2", [DK_2], destroyed={("dk_1", 1): None}))
    assert target(served, "pg_wal/link") == "/srv/one"
    assert errno_of(lambda: target(served, "link")) == ENOKEY
    served.unlink("link")
    served.close()


def test_a_target_is_as_long_as_docs_say(served: ServedVolume) -> None:
    longest = "t" * MAX_TARGET_BYTES
    make(served, "longest", longest)
    assert target(served, "longest") == longest
    served.rename("longest", "renamed")
    assert target(served, "renamed") == longest
    assert errno_of(lambda: make(served, "longer", longest + "t")) == ENAMETOOLONG
    assert not (served.data / "longer").is_symlink()
    docs = Path(__file__).parents[3] / "docs"
    for page in ("FILE-SYSTEM.md", "FORMAT.md"):
        assert f"{MAX_TARGET_BYTES:,} bytes" in (docs / page).read_text()


# --- what is refused


def planted(served: ServedVolume, path: str) -> None:
    (served.data / path).symlink_to("/etc/passwd")


def copied(served: ServedVolume, path: str) -> None:
    os.symlink(text(served, ONE), served.data / path)


def hard_linked(served: ServedVolume, path: str) -> None:
    os.link(served.data / ONE, served.data / path, follow_symlinks=False)


@pytest.mark.parametrize("plant", [planted, copied, hard_linked])
def test_a_link_that_tdefs_did_not_make_there_can_be_seen_and_removed_but_not_followed(
    spaces: ServedVolume, plant: Callable[[ServedVolume, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    plant(spaces, "other/planted")
    spaces.remount()
    assert errno_of(lambda: target(spaces, "other/planted")) == EIO
    assert "other/planted: " in caplog.text
    assert "HINT" in caplog.text
    assert spaces.namespace.names_in(spaces.inode("other")) == [b"planted"]
    assert errno_of(lambda: spaces.link("other/planted", "other/third")) == EIO
    # it can be moved out of the way, or replaced, and is refused there, too
    spaces.rename("other/planted", "other/elsewhere")
    assert errno_of(lambda: target(spaces, "other/elsewhere")) == EIO
    make(spaces, "other/good", "/srv/good")
    spaces.rename("other/good", "other/elsewhere")
    assert target(spaces, "other/elsewhere") == "/srv/good"
    plant(spaces, "other/again")
    spaces.unlink("other/again")
    assert not (spaces.data / "other/again").is_symlink()
    assert target(spaces, ONE) == "/srv/one"


def test_two_links_that_were_exchanged_are_both_refused(spaces: ServedVolume) -> None:
    one, two, other = (spaces.data / path for path in (ONE, TWO, "other/kept"))
    one.rename(other)
    two.rename(one)
    other.rename(two)
    spaces.remount()
    assert [errno_of(partial(target, spaces, path)) for path in (ONE, TWO)] == [EIO, EIO]
    # whoever puts them back has what was there
    spaces.rename(ONE, TWO, RENAME_EXCHANGE)
    assert [target(spaces, path) for path in (ONE, TWO)] == ["/srv/one", "/srv/two"]


def test_a_link_goes_with_its_directory_only_through_the_mount(spaces: ServedVolume) -> None:
    (spaces.data / "pg_tblspc/deep").rename(spaces.data / "pg_tblspc/moved")
    spaces.remount()
    assert errno_of(lambda: target(spaces, "pg_tblspc/moved/er/link")) == EIO


# --- renames


def test_a_rename_binds_the_link_to_its_new_place_alone(spaces: ServedVolume) -> None:
    spaces.rename(ONE, "other/new")
    assert target(spaces, "other/new") == "/srv/one"
    assert places_of(spaces, "other/new") == 1
    (spaces.data / "other/new").rename(spaces.data / ONE)
    spaces.remount()
    assert errno_of(lambda: target(spaces, ONE)) == EIO


def test_a_renamed_link_keeps_its_number_owner_and_times(spaces: ServedVolume) -> None:
    path = spaces.data / ONE
    if os.geteuid() == 0:
        os.chown(path, 12345, 12346, follow_symlinks=False)
    os.utime(path, ns=(10**18 + 1, 10**18 + 2), follow_symlinks=False)
    before = path.lstat()
    inode = spaces.inode(ONE)
    inode.looked_up()
    number = inode.number
    spaces.rename(ONE, "other/new")
    after = (spaces.data / "other/new").lstat()
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, before.st_mtime_ns)
    # the kernel goes on asking by the number that it knows
    assert spaces.inode("other/new") is inode
    assert spaces.inodes[number] is inode
    assert inode.backing == (after.st_dev, after.st_ino)
    assert spaces.namespace.readlink(inode) == b"/srv/one"
    # and another file may get the number that the old one had
    for n in range(50):
        spaces.create(f"other/file{n}", b"")
        assert spaces.inode(f"other/file{n}").number != number


def test_links_below_a_directory_go_along_at_any_depth(spaces: ServedVolume) -> None:
    spaces.rename("pg_tblspc", "other/spaces")
    spaces.remount()
    found = [target(spaces, path.replace("pg_tblspc", "other/spaces")) for path in (ONE, TWO, DEEP)]
    assert found == ["/srv/one", "/srv/two", "../here"]
    assert places_of(spaces, DEEP.replace("pg_tblspc", "other/spaces")) == 1


def test_noreplace_and_exchange_of_links(spaces: ServedVolume) -> None:
    before = text(spaces, ONE)
    assert errno_of(lambda: spaces.rename(ONE, TWO, RENAME_NOREPLACE)) == EEXIST
    assert text(spaces, ONE) == before
    spaces.rename(ONE, TWO, RENAME_EXCHANGE)
    assert (target(spaces, ONE), target(spaces, TWO)) == ("/srv/two", "/srv/one")
    spaces.rename("pg_tblspc", "other", RENAME_EXCHANGE)
    spaces.remount()
    assert target(spaces, "other/16385") == "/srv/two"


def test_a_hard_link_of_a_link_is_another_link_with_its_target(spaces: ServedVolume) -> None:
    os.utime(spaces.data / ONE, ns=(10**18 + 1, 10**18 + 2), follow_symlinks=False)
    spaces.link(ONE, "other/second")
    assert (target(spaces, ONE), target(spaces, "other/second")) == ("/srv/one", "/srv/one")
    assert (spaces.data / "other/second").lstat().st_mtime_ns == 10**18 + 2
    assert errno_of(lambda: spaces.link(TWO, "other/second")) == EEXIST
    spaces.unlink(ONE)
    assert target(spaces, "other/second") == "/srv/one"
    assert staged(spaces) == []


def staged(served: ServedVolume) -> list[Path]:
    return list(served.data.with_name(f"{served.data.name}.staging").iterdir())


@pytest.mark.parametrize(
    "label", ["relink:make", "relink:made", "relink:times", "relink:rename", "rename", "readlink"]
)
def test_a_rename_that_fails_leaves_every_link_where_it_was(spaces: ServedVolume, label: str) -> None:
    for spare in range(3):
        spaces.calls.fail[label] = EIO
        spaces.calls.spare = spare
        try:
            spaces.rename("pg_tblspc", "other/spaces")
        except OSError:
            home = "pg_tblspc"
        else:
            home = "other/spaces"  # what fails after the rename is none of its failures
        spaces.calls.fail.clear()
        spaces.remount()
        for path, expected in ((ONE, "/srv/one"), (TWO, "/srv/two"), (DEEP, "../here")):
            assert target(spaces, path.replace("pg_tblspc", home)) == expected
            assert places_of(spaces, path.replace("pg_tblspc", home)) == 1
        if home != "pg_tblspc":
            spaces.rename(home, "pg_tblspc")


ACTIONS: dict[str, Callable[[ServedVolume], None]] = {
    "make": lambda s: make(s, "other/made", "/srv/made"),
    "rename": lambda s: s.rename(ONE, "other/new"),
    "replace": lambda s: s.rename(ONE, TWO),
    "exchange": lambda s: s.rename(ONE, TWO, RENAME_EXCHANGE),
    "exchange with a directory": lambda s: s.rename(ONE, "pg_tblspc/deep", RENAME_EXCHANGE),
    "directory": lambda s: s.rename("pg_tblspc", "other/spaces"),
    "hard link": lambda s: s.link(ONE, "other/second"),
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=list(ACTIONS))
def test_a_crash_before_any_system_call_leaves_every_link_readable(
    tmp_path: Path, action: Callable[[ServedVolume], None]
) -> None:
    crashes = 0
    while True:
        (tmp_path / str(crashes)).mkdir()
        served = ServedVolume(tmp_path / str(crashes))
        served.mkdirs("pg_tblspc/deep/er", "other")
        for path, to in ((ONE, "/srv/one"), (TWO, "/srv/two"), (DEEP, "../here")):
            make(served, path, to)
        served.calls.crash_before = len(served.calls.made) + crashes
        try:
            action(served)
        except Crash:
            pass
        else:
            served.close()
            break
        served.remount(after_crash=True)
        assert staged(served) == []
        found = []
        for entry in sorted(served.data.rglob("*")):
            if entry.is_symlink():
                relative = str(entry.relative_to(served.data))
                found.append(target(served, relative))
                assert places_of(served, relative) == 1, "the rename was not ended"
        assert set(found) >= {"../here", "/srv/one"}
        assert len(found) in (2, 3, 4)
        served.close()
        crashes += 1
    assert crashes > (3 if action is ACTIONS["make"] else 6)


def test_a_volume_that_is_only_read_is_not_written_to(spaces: ServedVolume) -> None:
    """A rename that a crash stopped is not ended either, and the link can be read."""
    spaces.calls.fail["rename"] = EIO
    spaces.calls.fail["relink:rename"] = EIO
    spaces.calls.spare = 1  # both places are named, and the undoing fails
    assert errno_of(lambda: spaces.rename(ONE, "other/new")) == EIO
    spaces.remount()
    assert places_of(spaces, ONE) == 2
    spaces.namespace = Namespace(spaces.files)
    assert target(spaces, ONE) == "/srv/one"
    assert places_of(spaces, ONE) == 2
    assert errno_of(lambda: spaces.rename(ONE, "other/new")) == EROFS
    assert errno_of(lambda: spaces.link(ONE, "other/new")) == EROFS
    assert errno_of(lambda: target(spaces, "other/new")) == ENOENT


# --- FIFOs, sockets and devices

NODES = {
    "fifo": (stat.S_IFIFO, 0),
    "socket": (stat.S_IFSOCK, 0),
    "character device": (stat.S_IFCHR, os.makedev(1, 3)),
    "block device": (stat.S_IFBLK, os.makedev(259, 1048575)),
}


@pytest.mark.parametrize(("kind", "device"), NODES.values(), ids=list(NODES))
def test_a_node_is_stored_as_a_file_and_stays_what_it_is(served: ServedVolume, kind: int, device: int) -> None:
    def seen(path: str) -> tuple[int, int, int]:
        inode, status = served.namespace.lookup(*served.place(path))
        return appearance(served.files, inode, status)

    owner = Owner(os.geteuid(), os.getegid())
    served.mkdirs("d", "e")
    served.namespace.mknod(*served.place("d/node"), kind | 0o640, device, owner)
    assert stat.S_ISREG((served.data / "d/node").lstat().st_mode)
    expected = (kind | 0o640, device, 0)
    assert seen("d/node") == expected
    served.remount()
    assert seen("d/node") == expected
    served.link("d/node", "e/second")
    served.rename("d/node", "e/renamed")
    served.rename("e", "d/e")
    served.remount()
    assert seen("d/e/second") == seen("d/e/renamed") == expected
    # nobody can read it as a file
    assert errno_of(lambda: served.read("d/e/second")) == EIO
    served.unlink("d/e/second")
    assert not (served.data / "d/e/second").exists()


def test_a_fifo_in_the_place_of_a_file_does_not_hold_the_daemon(served: ServedVolume) -> None:
    """Also between the moment that the file is looked up and the moment that its header is read."""
    served.create("file", b"rows")
    served.remount()
    inode = served.inode("file")
    (served.data / "file").unlink()
    os.mkfifo(served.data / "file")
    assert errno_of(lambda: served.files.headers.form(inode)) is not None
    assert errno_of(lambda: served.opener.open(inode, writable=False)) is not None


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_a_planted_node_is_refused_by_name_and_can_be_removed(
    served: ServedVolume, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    served.mkdirs("d")
    os.mknod(served.data / "d/planted", NODES[kind][0] | 0o666)
    inode, status = served.namespace.lookup(*served.place("d/planted"))
    # the kernel asks the daemon, and does not serve it itself
    assert appearance(served.files, inode, status) == (stat.S_IFREG | stat.S_IMODE(status.st_mode), 0, 0)
    assert errno_of(lambda: served.opener.open(inode, writable=False)) == EIO
    assert "d/planted: " in caplog.text
    assert errno_of(lambda: served.link("d/planted", "d/second")) == EIO
    served.rename("d/planted", "d/aside")
    served.unlink("d/aside")
    assert list((served.data / "d").iterdir()) == []

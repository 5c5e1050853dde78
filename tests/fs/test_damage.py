"""A damaged or foreign backing file is an error for who opens it, named in the log, and for nobody else.

What the manifest notices is served all the same here: this is what each file tells by itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fs.twins import Failure, outcome
from tests.support.volume import Volume
from tests.support.workspace import Workspace

HEADER = 8192
PAGE = b"the same page" + bytes(8192 - 13)
VICTIM = "base/5/16385"
SWAPPED = "base/5/16386"
SOUND = ("base/5/16387", "global/1260", "pg_wal/000000010000000000000001", "PG_VERSION")


@pytest.fixture
def filled(volume: Volume) -> Volume:
    """A volume with some files, not mounted."""
    volume.mount()
    fill(volume, VICTIM, SWAPPED)
    volume.umount()
    return volume


def fill(volume: Volume, *names: str) -> None:
    for name in (*names, *SOUND):
        path = volume.mountpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() + PAGE * 2)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int) -> None:
    patch(path, offset, bytes([path.read_bytes()[offset] ^ 0x10]))


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def of_another_volume(path: Path, space: Workspace) -> None:
    """Puts the file of another volume that has the same number in its place."""
    other = space.volume("other")
    other.init()
    other.mount()
    name = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
    (other.mountpoint / name).parent.mkdir(parents=True)
    (other.mountpoint / name).write_bytes(PAGE)
    other.umount()
    shutil.copyfile(other.data / name, path)


Damage = Callable[[Path, Workspace], object]

DAMAGES: dict[str, Damage] = {
    "flipped bit in the magic": lambda path, _: flip(path, 3),
    "flipped bit in the first byte": lambda path, _: flip(path, 0),
    "flipped bit in the version": lambda path, _: flip(path, 8),
    "flipped bit in the suite": lambda path, _: flip(path, 10),
    "flipped bit in the page size": lambda path, _: flip(path, 13),
    "flipped bit in the volume id": lambda path, _: flip(path, 20),
    "flipped bit in the file id": lambda path, _: flip(path, 40),
    "flipped bit in the key name": lambda path, _: flip(path, 49),
    "flipped bit in the key round": lambda path, _: flip(path, 80),
    "flipped bit in the fingerprint": lambda path, _: flip(path, 85),
    "flipped bit in the identity": lambda path, _: flip(path, 104),
    "flipped bit in the reserved bytes": lambda path, _: flip(path, 150),
    "flipped bit in the checksum": lambda path, _: flip(path, 200),
    "flipped bit in the MAC": lambda path, _: flip(path, 250),
    "header truncated to one byte": lambda path, _: cut(path, 1),
    "header truncated to 200 bytes": lambda path, _: cut(path, 200),
    "header truncated to one byte less than whole": lambda path, _: cut(path, HEADER - 1),
    "header wiped": lambda path, _: patch(path, 0, bytes(HEADER)),
    "record wiped": lambda path, _: patch(path, 0, bytes(512)),
    "all wiped": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "data cut inside the first block": lambda path, _: cut(path, HEADER + 7),
    "a file of another volume": lambda path, space: of_another_volume(path, space),
    "random bytes": lambda path, _: path.write_bytes(os.urandom(30_000)),
    "a few random bytes": lambda path, _: path.write_bytes(os.urandom(100)),
    "a text": lambda path, _: path.write_text("put here by hand\n" * 1000),
    "a short text": lambda path, _: path.write_text("15\n"),
    "zeros": lambda path, _: path.write_bytes(bytes(100)),
}


@pytest.fixture(scope="module")
def damaged(workspace: Workspace) -> Iterator[Volume]:
    """A mounted volume with sound files, and one relation file for each damage, see :func:`victim`."""
    volume = workspace.volume("damaged")
    volume.init()
    volume.mount()
    fill(volume, *(victim(name) for name in DAMAGES))
    volume.umount()
    for name, damage in DAMAGES.items():
        damage(volume.data / victim(name), workspace)
    volume.mount(*volume.reporting)
    yield volume
    volume.umount()


def victim(name: str) -> str:
    return f"base/6/{16385 + list(DAMAGES).index(name)}"


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_an_error_that_the_log_explains_and_others_are_served(
    damaged: Volume, name: str
) -> None:
    relpath = victim(name)
    backing, path = damaged.data / relpath, damaged.mountpoint / relpath
    evidence = backing.read_bytes()
    said = len(damaged.log.read_text())
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        with pytest.raises(OSError, match="Input/output"):
            os.open(path, flags)
    new = damaged.log.read_text()[said:]
    assert relpath in new
    assert "HINT" in new
    assert "Traceback" not in new
    # it can be looked at, listed, made another user's, moved and removed
    assert path.stat().st_nlink == 1
    assert path.name in os.listdir(path.parent)
    path.chmod(0o640)
    os.utime(path, ns=(1, 2))
    assert (path.stat().st_mode & 0o777, path.stat().st_mtime_ns) == (0o640, 2)
    for sound in SOUND:
        assert (damaged.mountpoint / sound).read_bytes() == sound.encode() + PAGE * 2
    path.rename(path.with_name("16999"))
    path.with_name("16999").rename(path)
    assert backing.read_bytes() == evidence, "the evidence was changed"
    path.unlink()
    path.write_bytes(b"a new file in its place")
    assert path.read_bytes() == b"a new file in its place"
    assert not backing.read_bytes().startswith(b"a new")


def test_a_damaged_file_can_be_replaced_by_a_rename(filled: Volume) -> None:
    flip(filled.data / VICTIM, 40)
    filled.mount(*filled.reporting)
    (filled.mountpoint / "base/5/16385.new").write_bytes(b"restored")
    (filled.mountpoint / "base/5/16385.new").rename(filled.mountpoint / VICTIM)
    assert (filled.mountpoint / VICTIM).read_bytes() == b"restored"


def test_each_kind_of_damage_is_told_apart(scratch: Workspace, volume: Volume) -> None:
    kinds = [
        "flipped bit in the file id",
        "header truncated to 200 bytes",
        "header wiped",
        "a file of another volume",
        "a text",
    ]
    volume.mount()
    fill(volume, *map(victim, kinds))
    volume.umount()
    for name in kinds:
        DAMAGES[name](volume.data / victim(name), scratch)
    volume.mount(*volume.reporting)
    messages = {}
    for name in kinds:
        said = len(volume.log.read_text())
        with pytest.raises(OSError, match="Input/output"):
            (volume.mountpoint / victim(name)).open("rb")
        lines = volume.log.read_text()[said:].splitlines()
        of_format = [line for line in lines if "as the last unmount left it" not in line]
        messages[name] = of_format[0].partition(victim(name))[2]
    assert len(set(messages.values())) == len(messages), messages


def test_two_relation_files_that_were_swapped_are_caught(filled: Volume) -> None:
    one, two = filled.data / VICTIM, filled.data / SWAPPED
    one.rename(one.with_name("aside"))
    two.rename(one)
    one.with_name("aside").rename(two)
    filled.mount(*filled.reporting)
    for name in (VICTIM, SWAPPED):
        with pytest.raises(OSError, match="Input/output"):
            (filled.mountpoint / name).open("rb")
        assert f"{name}: " in filled.log.read_text()
    for name in SOUND:
        assert (filled.mountpoint / name).read_bytes() == name.encode() + PAGE * 2


def test_a_copy_of_a_relation_file_in_another_place_is_caught(filled: Volume) -> None:
    """Another segment, fork, database or number, and no relation file at all."""
    places = ["base/5/16385.1", "base/5/16385_fsm", "base/6/16385", "global/16385", "base/5/16400", "pg_wal/0"]
    for place in places:
        (filled.data / place).parent.mkdir(exist_ok=True)
        shutil.copyfile(filled.data / VICTIM, filled.data / place)
    filled.mount(*filled.reporting)
    assert (filled.mountpoint / VICTIM).read_bytes() == VICTIM.encode() + PAGE * 2
    for place in places:
        assert outcome(Path.read_bytes, filled.mountpoint / place) == Failure("EIO"), place


def test_a_hard_link_made_outside_of_the_mount_to_another_place_is_caught(filled: Volume) -> None:
    """The two are one inode, and the kernel does not say by which name it is opened: neither is believed then."""
    (filled.data / SWAPPED).unlink()
    os.link(filled.data / VICTIM, filled.data / SWAPPED)
    filled.mount(*filled.reporting)
    assert (filled.mountpoint / VICTIM).read_bytes() == VICTIM.encode() + PAGE * 2
    for name in (SWAPPED, VICTIM):
        assert outcome(Path.read_bytes, filled.mountpoint / name) == Failure("EIO"), name
    assert (
        f"{VICTIM}, {SWAPPED}: the header belongs to relation file 16385 of database 5" in filled.log.read_text()
    )


def test_an_emptied_file_with_two_names_is_readable_under_both(filled: Volume) -> None:
    os.link(filled.data / VICTIM, filled.data / "base/5/16400")
    cut(filled.data / VICTIM, 0)
    filled.mount(*filled.reporting)
    for name in (VICTIM, "base/5/16400"):
        (filled.mountpoint / name).stat()
    for name in (VICTIM, "base/5/16400"):
        assert (filled.mountpoint / name).read_bytes() == b""


def test_a_file_of_no_relation_in_a_relations_place_is_caught(filled: Volume) -> None:
    shutil.copyfile(filled.data / "PG_VERSION", filled.data / VICTIM)
    filled.mount(*filled.reporting)
    with pytest.raises(OSError, match="Input/output"):
        (filled.mountpoint / VICTIM).open("rb")


def test_a_plain_file_in_the_place_of_an_encrypted_one_is_told_where_nothing_is_plain(filled: Volume) -> None:
    (filled.data / "postgresql.conf").write_text("shared_preload_libraries = 'evil'\n")
    filled.mount(*filled.reporting)
    with pytest.raises(OSError, match="Input/output"):
        (filled.mountpoint / "postgresql.conf").open("rb")


def test_damage_to_the_data_stays_within_its_blocks(filled: Volume) -> None:
    """Suite 1 does not notice it; PostgreSQL's checksums do. Nothing else of the file is lost."""
    flip(filled.data / VICTIM, HEADER + 8192 + 100)
    filled.mount(*filled.reporting)
    data = (filled.mountpoint / VICTIM).read_bytes()
    whole = VICTIM.encode() + PAGE * 2
    assert len(data) == len(whole)
    different = [position for position in range(len(data)) if data[position] != whole[position]]
    assert different
    assert {position // 16 for position in different} == {(8192 + 100) // 16}


def test_damage_in_names_of_any_bytes_is_named_in_the_log(volume: Volume) -> None:
    name = b"\xff\xfename"
    volume.mount()
    with open(os.fsencode(volume.mountpoint) + b"/" + name, "wb") as file:  # noqa: PTH123
        file.write(b"1" * 100)
    volume.umount()
    flip(Path(os.fsdecode(os.fsencode(volume.data) + b"/" + name)), 40)
    volume.mount(*volume.reporting)
    with pytest.raises(OSError, match="Input/output"):
        os.open(os.fsencode(volume.mountpoint) + b"/" + name, os.O_RDONLY)
    assert b"name: the header is damaged" in volume.log.read_bytes()


def test_a_line_break_in_a_name_makes_no_line_in_the_log(volume: Volume) -> None:
    name = "a\n2026-11-22 00:00:00,000 INFO tdefs.daemon.session: forged"
    volume.mount()
    (volume.mountpoint / name).write_bytes(b"1" * 100)
    volume.umount()
    flip(volume.data / name, 40)
    volume.mount(*volume.reporting)
    with pytest.raises(OSError, match="Input/output"):
        (volume.mountpoint / name).open("rb")
    assert not any(line.startswith("2026-11-22 00:00:00,000") for line in volume.log.read_text().splitlines())


def test_a_failed_mount_does_not_make_the_next_one_believe_in_a_crash(filled: Volume) -> None:
    """Only after a crash may a wiped header mean that the file was never synced."""
    done = filled.tdefs(
        "mount",
        filled.backing,
        filled.mountpoint,
        *filled.unlock,
        "--log-file",
        filled.log,
        "-o",
        "nonsense",
        check=False,
    )
    assert done.returncode != 0
    patch(filled.data / VICTIM, 0, bytes(HEADER))
    filled.mount(*filled.reporting)
    assert outcome(Path.read_bytes, filled.mountpoint / VICTIM) == Failure("EIO")


def test_a_wiped_header_after_a_crash_is_an_empty_file_and_says_so(filled: Volume) -> None:
    filled.mount()
    (filled.mountpoint / VICTIM).write_bytes(b"not synced")
    filled.kill()
    patch(filled.data / VICTIM, 0, bytes(HEADER))
    filled.mount()
    assert (filled.mountpoint / VICTIM).read_bytes() == b""
    assert VICTIM in filled.log.read_text()
    (filled.mountpoint / VICTIM).write_bytes(b"again")
    filled.umount()
    filled.mount()
    assert (filled.mountpoint / VICTIM).read_bytes() == b"again"


def test_a_wiped_header_after_a_crash_is_damage_where_nobody_has_changed_the_file(filled: Volume) -> None:
    """The crash can have lost no header that the unmount before had made durable."""
    filled.mount()
    (filled.mountpoint / SWAPPED).write_bytes(b"not synced")
    filled.kill()
    patch(filled.data / VICTIM, 0, bytes(HEADER))
    filled.mount(*filled.reporting)
    assert outcome(Path.read_bytes, filled.mountpoint / VICTIM) == Failure("EIO")


def test_strange_things_in_the_backing_directory_do_no_harm(filled: Volume) -> None:
    """What somebody put there by hand: nodes, a loop of links, a link out, a directory without rights."""
    backing = filled.data
    (backing / "loop").symlink_to("loop")
    (backing / "out").symlink_to("/etc/passwd")
    (backing / "base/5/16388").symlink_to(backing / VICTIM)
    os.mkfifo(backing / "fifo")
    (backing / "empty").touch()
    (backing / "no rights").mkdir(mode=0)
    filled.mount(*filled.reporting)
    seen = [Path(above, name) for above, _, names in os.walk(filled.mountpoint) for name in names]
    for path in seen:
        path.lstat()
        with suppress(OSError):
            path.open("rb").close()
    for name in ("loop", "out", "base/5/16388", "fifo"):
        with pytest.raises(OSError, match="Input/output error"):
            (filled.mountpoint / name).open("rb")
        assert f"{name}: " in filled.log.read_text()
        (filled.mountpoint / name).unlink()
    for name in SOUND:
        assert (filled.mountpoint / name).read_bytes() == name.encode() + PAGE * 2
    assert (filled.mountpoint / "empty").read_bytes() == b""

"""ls and verify list every symbolic link with its target, and name what tdefs did not make."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tdefs.cli import ls, verify
from tdefs.cli.key.files import KeyFiles
from tdefs.errors import Exit
from tdefs.offline.link_targets import leads_out
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume

UNLOCK = ("--key-command", KEY_COMMAND)


@pytest.fixture
def linked(small: SmallVolume) -> SmallVolume:
    """A cluster, mounted at /mnt when it was last mounted, with links of every kind."""
    small.cluster()
    small.mounted_at("/mnt", clean=True)
    small.path("pg_tblspc").mkdir()
    small.link("pg_tblspc/16400", "/mnt/spaces/one")
    small.link("pg_tblspc/16401", "/srv/clear", key="dk_2")
    small.link("inside", "base/../PG_VERSION")
    return small


def test_without_a_secret_the_targets_stay_sealed(linked: SmallVolume, command: Command) -> None:
    _, output = command.run(ls, linked.volume.backing)
    rows = {line.split()[0]: line.split() for line in output.splitlines()}
    assert rows["pg_tblspc/16401"][1:] == ["link", "yes", "dk_2", "1", "aes-256-gcm", "10", "->", "(encrypted)"]
    found = {one["path"]: one for one in command.json(ls, linked.volume.backing)}
    assert (found["inside"]["target"], found["inside"]["leads_out"]) == (None, None)
    assert found["inside"]["size"] == len("base/../PG_VERSION")
    assert "target" not in found["PG_VERSION"]


def test_with_a_secret_every_target_is_told_and_whether_it_is_in_the_clear(
    linked: SmallVolume, command: Command
) -> None:
    found = {one["path"]: one for one in command.json(ls, linked.volume.backing, *UNLOCK)}
    told = {path: (one["target"], one["leads_out"]) for path, one in found.items() if one["kind"] == "link"}
    assert told == {
        "pg_tblspc/16400": ("/mnt/spaces/one", False),
        "pg_tblspc/16401": ("/srv/clear", True),
        "inside": ("base/../PG_VERSION", False),
    }
    assert "-> /srv/clear (on no tdefs volume)" in command.run(ls, linked.volume.backing, *UNLOCK)[1]
    code, output = command.run(verify, linked.volume.backing, *UNLOCK, "-q")
    assert code == Exit.OK
    assert "note: pg_tblspc/16400: leads to /mnt/spaces/one\n" in output
    assert "note: pg_tblspc/16401: leads to /srv/clear, on no tdefs volume that is known here" in output


PLANTED: dict[str, tuple[Callable[[SmallVolume, Path], object], str]] = {
    "a link of somebody": (lambda small, path: path.symlink_to("/etc/passwd"), "was not made by tdefs"),
    "a link that was moved": (
        lambda small, path: small.link("planted", "/x", of="pg_tblspc/16402"),
        "was made for another place",
    ),
    "a link that was altered": (
        lambda small, path: path.symlink_to("tdefs:2:" + "A" * 200),
        "not in the form that tdefs writes",
    ),
    "a hard link of a link": (
        lambda small, path: os.link(small.path("inside"), path, follow_symlinks=False),
        "has several names",
    ),
    "a FIFO": (lambda small, path: os.mkfifo(path), "a FIFO, socket or device lies in the backing directory"),
    "a socket": (
        lambda small, path: os.mknod(path, 0o140600),
        "a FIFO, socket or device lies in the backing directory",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_damage_by_its_name(linked: SmallVolume, command: Command, name: str) -> None:
    plant, text = PLANTED[name]
    plant(linked, linked.path("planted"))
    code, output = command.run(verify, linked.volume.backing, *UNLOCK, "-q")
    assert code == Exit.VERIFY_FOUND_DAMAGE
    assert any(line.startswith("planted: ") and text in line for line in output.splitlines())
    assert "HINT:  " in output
    found = {one["path"]: one for one in command.json(ls, linked.volume.backing, *UNLOCK)}
    assert found["planted"]["state"] == "damaged"
    assert text in found["planted"]["error"]
    assert not found["planted"]["encrypted"]


def test_the_data_key_of_a_link_is_in_use(linked: SmallVolume) -> None:
    """So a command that destroys it names the link."""
    assert KeyFiles.scan([linked.volume], "dk_2", [1]).paths == ["pg_tblspc/16401"]


@pytest.mark.parametrize(
    ("path", "target", "own", "others", "out"),
    [
        ("link", "file", ["/mnt"], [], False),
        ("a/link", "../file", [], [], False),
        ("a/link", "../../file", ["/mnt"], [], True),
        ("a/link", "../../mnt/file", ["/mnt"], [], False),
        ("link", "../space", ["/srv/mnt"], ["/srv/space"], False),
        ("link", "/mnt", ["/mnt"], [], False),
        ("link", "/mnt/../etc", ["/mnt"], [], True),
        ("link", "/mnt2", ["/mnt"], [], True),
        ("link", "/space/x", ["/mnt"], ["/space"], False),
        ("link", "/space/x", [], [], True),
        ("link", "..", ["/mnt"], [], True),
    ],
)
def test_a_link_leads_out_where_no_volume_is(
    path: str, target: str, own: list[str], others: list[str], *, out: bool
) -> None:
    assert leads_out(path, target, list(map(Path, own)), list(map(Path, others))) is out

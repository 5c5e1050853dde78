"""Two servers with streaming replication: the standby has a copy of the primary's keystore, or one of its own.

Run with ``-s``, each scenario is told step by step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tdefs.keys.keystore.file import load_keystore
from tests.postgres.replication import CHEAP, Host
from tests.support.volume import Volume
from tests.support.workspace import Workspace

pytestmark = pytest.mark.slow(seconds=30)

ALL = "SELECT count(*), sum(i), md5(string_agg(text, ',' ORDER BY i)) FROM items"
KINDS = ("copy", "own")


def say(text: str) -> None:
    print(f"  {text}")


def add(primary: Host, rows: int = 2000) -> None:
    primary.server.psql(
        f"INSERT INTO items SELECT i, md5(i::text) FROM generate_series(1, {rows}) i;"
        "CREATE TABLE IF NOT EXISTS made_anew AS SELECT 1 AS i; VACUUM FULL made_anew"
    )


@pytest.fixture(scope="module")
def primary(workspace: Workspace) -> Iterator[Host]:
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    try:
        host = Host.new(workspace, "primary")
        host.make_primary(workspace)
        host.server.psql("CREATE TABLE items (i int, text text)")
        add(host)
        yield host
    finally:
        workspace.release(volumes, servers)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def standby(scratch: Workspace, primary: Host, kind: str) -> Host:
    """A standby of its own keys and secret, or a copy of the primary's keystore that its host opens."""
    print(f"\nstandby with {'a copy of the keystore' if kind == 'copy' else 'a keystore of its own'}")
    host = Host.new(scratch, "standby")
    if kind == "copy":
        volume = host.volume
        brought = volume.root / "brought"
        shutil.copy2(primary.volume.keystore, brought)
        volume.key_file = primary.volume.key_file
        volume.init("--existing-keystore", brought)
        brought.unlink()
        volume.enable_auto_open()
        say("init --existing-keystore, auto-open enable")
    else:
        host.volume.init(*CHEAP)
        say("init: its own keys, its own secret")
    host.follow(primary, scratch)
    say("mount, pg_basebackup -R into it, server started")
    return host


def keys(volume: Volume) -> dict[tuple[str, int], bytes]:
    """The fingerprint of each round."""
    document = load_keystore(volume.keystore).document
    return {(key.name, one.round): one.fingerprint for key in document.data_keys for one in key.rounds}


def file_ids(data: Path) -> dict[str, bytes]:
    """The file id in the header of each relation file (docs/FORMAT.md)."""
    return {
        str(path.relative_to(data)): path.read_bytes()[32:48]
        for path in (data / "base").rglob("[0-9]*")
        if path.is_file()
    }


def test_keys_of_primary_and_standby_change_apart(primary: Host, standby: Host, kind: str) -> None:
    standby.has_all_of(primary, ALL)
    same = keys(standby.volume).items() & keys(primary.volume).items()
    assert bool(same) == (kind == "copy")
    ours, theirs = file_ids(standby.volume.data), file_ids(primary.volume.data)
    assert len(ours.keys() & theirs.keys()) > 300
    assert not set(ours.values()) & set(theirs.values()), "a file of the standby has a file key of the primary's"
    say(f"the same data keys: {'yes' if same else 'no'}; {len(ours)} relation files, each with its own file key")

    keystore, daemons = standby.volume.keystore.read_bytes(), standby.volume.daemons
    started = standby.server.psql("SELECT pg_postmaster_start_time()")
    for command in (("key", "rotate-master"), ("key", "rotate", "dk_1")):
        primary.volume.run(*command)
        add(primary)
        standby.has_all_of(primary, ALL)
        say(f"primary: {' '.join(command)}; the standby has all that was written since")
    old = primary.volume.change_passphrase()
    add(primary)
    standby.has_all_of(primary, ALL)
    assert not primary.volume.opens_with(old)
    say("primary: protector change; the standby has all that was written since")
    assert standby.volume.keystore.read_bytes() == keystore
    assert standby.volume.daemons == daemons
    assert standby.server.psql("SELECT pg_postmaster_start_time()") == started
    say("standby: the same keystore, daemon and server as before; nothing was copied or reopened")

    assert not standby.volume.opens_with(primary.volume.key_file)
    assert standby.volume.opens_with(old) == (kind == "copy")
    standby.restart()
    primary.restart()
    add(primary)
    standby.has_all_of(primary, ALL)
    say(
        "both restarted, the standby "
        + ("by auto-open; its copy still has the old passphrase" if kind == "copy" else "with its own passphrase")
    )

    if kind == "own":
        words = ("verify", standby.volume.backing, "--keystore", primary.volume.keystore)
        refused = standby.volume.tdefs(*words, *primary.volume.unlock, check=False)
        assert refused.returncode == Exit.KEYSTORE_FOREIGN
        say("the primary's keystore is refused here: it belongs to another volume")

    before = keys(primary.volume)
    standby.server.psql("SELECT pg_promote()")
    standby.volume.run("key", "rotate-master")
    standby.volume.run("key", "rotate", "dk_1")
    add(standby)
    expected = standby.server.psql(ALL)
    standby.restart()
    assert standby.server.psql(ALL) == expected
    assert keys(primary.volume) == before
    # of the same name, but each has made its own
    assert keys(standby.volume)["dk_1", 2] != before["dk_1", 2]
    say("standby promoted; its keys rotate, and it restarts; the old primary's keystore is as it was")

    history = json.loads(standby.volume.run("key", "history", "--json"))
    assert history["findings"] == []
    first = history["records"][0]
    assert first["event"] == ("keystore copy" if kind == "copy" else "keystore create")
    say(f"standby: key history: whole, {len(history['records'])} records, the first: {first['event']}")

"""Random damage to an unmounted cluster: found where that is possible, named, contained, and never believed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tdefs.pg.pages import bad_pages
from tdefs.policy.parse import parse_policy
from tdefs.policy.paths import Kind, classify
from tests.crash.conftest import Dice
from tests.crash.damage.damages import DAMAGES, Scene
from tests.crash.damage.oracle import (
    ANOTHER_FILES,
    BLOCK,
    HEADER,
    PAGE,
    RECORD,
    SHARED_ID,
    Oracle,
    Original,
    Verdict,
    fork_of,
    is_relation,
)
from tests.support.volume import TDEFS, Volume, relative_files
from tests.support.workspace import Workspace

PARTLY_PLAIN = "version: 1\ndefault: plain\nkinds: {slru: dk_1, control: dk_1, two_phase: dk_1}\n"
EVERYTHING = "version: 1\n"
LINK = "extras/deep/er/symbolic"
EXTRAS = (0, 1, 15, 16, 17, 100, 511, 513, 4095, 8191, 8192, 8193, 12_345, 70_001)
#: How a finding of the manifest begins.
NOTICED = "not as the last unmount left it"
#: Files that are damaged in one round.
VICTIMS = 120
_SQL = """
CREATE TABLE filled AS SELECT i, md5(i::text) t FROM generate_series(1, 20000) i;
CREATE INDEX ON filled (t);
CREATE UNLOGGED TABLE fleeting AS SELECT 1 i;
VACUUM filled;
CREATE DATABASE second;
"""


@dataclass(frozen=True)
class Subject:
    """A volume with a stopped cluster in it, as it was before any damage."""

    volume: Volume
    policy: str
    originals: dict[str, Original]
    oracle: Oracle

    @property
    def data(self) -> Path:
        return self.volume.data

    @property
    def backing(self) -> Path:
        return self.volume.backing

    def encrypts(self, path: str) -> bool:
        return parse_policy(self.policy.encode(), "policy").decide(classify(path), path).encrypted

    def changed(self) -> list[str]:
        """The paths at which something else lies than before, or nothing, or something where nothing was."""
        there = set(relative_files(self.data))
        return sorted(
            path
            for path in there | self.originals.keys()
            if path not in there
            or path not in self.originals
            or (self.data / path).read_bytes() != self.originals[path].stored
        )

    def mend(self) -> None:
        for path in self.changed():
            if path in self.originals:
                (self.data / path).write_bytes(self.originals[path].stored)
            else:
                (self.data / path).unlink()


@dataclass(frozen=True)
class Scenery:
    """The same cluster in a volume where everything is encrypted, and in one with plain files."""

    sealed: Subject
    mixed: Subject


@pytest.fixture(scope="module")
def scenery(workspace: Workspace) -> Iterator[Scenery]:
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    try:
        sealed, mixed = workspace.volume("sealed"), workspace.volume("mixed")
        sealed.init(policy=EVERYTHING)
        mixed.init(policy=PARTLY_PLAIN)
        sealed.mount(owner=workspace.account)
        mixed.mount(owner=workspace.account)
        server = workspace.server("15", sealed.mountpoint)
        server.initdb("--no-sync")
        server.configure({"fsync": "off"})
        server.start()
        server.psql(_SQL)
        server.stop()
        _add_extras(sealed.mountpoint)
        subprocess.run(["cp", "-a", f"{sealed.mountpoint}/.", str(mixed.mountpoint)], check=True)
        yield Scenery(_subject(sealed, EVERYTHING), _subject(mixed, PARTLY_PLAIN))
    finally:
        workspace.release(volumes, servers)


def _add_extras(directory: Path) -> None:
    """Files of every odd length, links of both kinds, and a relation file that has lost its identity to a link."""
    (directory / "extras/deep/er").mkdir(parents=True)
    for length in EXTRAS:
        (directory / f"extras/{length}").write_bytes(bytes(number * 7 % 256 for number in range(length)))
    os.link(directory / "extras/100", directory / "extras/deep/linked")
    (directory / LINK).symlink_to("../../4095")
    main = next(path for path in sorted((directory / "base/1").iterdir()) if path.stat().st_size == 2 * PAGE)
    os.link(main, directory / "base/1/99999")


def _subject(volume: Volume, policy: str) -> Subject:
    plain = {path: (volume.mountpoint / path).read_bytes() for path in relative_files(volume.mountpoint)}
    volume.umount()
    originals = {path: Original(path, (volume.data / path).read_bytes(), plain[path]) for path in plain}
    description = json.loads((volume.backing / ".tdefs/volume.json").read_text())
    volume_id = bytes.fromhex(description["volume_id"])
    # what the format alone holds is looked at, so what the manifest notices is to be served all the same
    (volume.root / "config.yaml").write_text(f"version: 1\nvolumes:\n  {volume.backing}:\n    tampering: report\n")
    subject = Subject(volume, policy, originals, Oracle(volume_id, policy == PARTLY_PLAIN, originals))
    assert _findings(subject) == {}, "the cluster is whole, and verify must say so"
    return subject


def _verify(subject: Subject) -> tuple[int, Any]:
    volume = subject.volume
    done = volume.tdefs("verify", volume.backing, *volume.unlock, "--json", check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def _findings(subject: Subject) -> dict[str, str]:
    """What verify finds, by path."""
    code, report = _verify(subject)
    found: dict[str, str] = {}
    for finding in report["findings"]:
        assert finding["hint"] and finding["error"], finding
        found.setdefault(finding["path"], finding["error"])
    damaged = any(not finding["error"].startswith(NOTICED) for finding in report["findings"])
    assert code == (42 if damaged else 45 if found else 0)
    return found


@pytest.mark.parametrize("which", ["sealed", "mixed"])
@pytest.mark.slow
def test_damage_is_found_named_and_contained(scenery: Scenery, dice: Dice, which: str) -> None:
    subject: Subject = getattr(scenery, which)
    other = scenery.mixed if subject is scenery.sealed else scenery.sealed
    for number in range(dice.rounds(1)):
        _one_round(subject, other, dice, number)


def _one_round(subject: Subject, other: Subject, dice: Dice, number: int) -> None:
    random = dice.random(number)
    kinds: dict[Kind, list[str]] = {}
    # with a damaged pg_control nobody knows about checksums, so that is not damaged every time
    spared = Kind.CONTROL if random.random() < 0.8 else None
    for path in sorted(subject.originals):
        kinds.setdefault(classify(path).kind, []).append(path)
    if spared is not None:
        kinds.pop(spared)
    paths = sorted(path for found in kinds.values() for path in found)
    scene = Scene(random, subject.data, paths, other.data)
    done: list[str] = []
    try:
        for _ in range(VICTIMS):
            # every kind as often as every file: there are many catalogs, and one pg_control
            path = random.choice(kinds[random.choice(sorted(kinds))] if random.random() < 0.3 else paths)
            name = random.choice(sorted(DAMAGES))
            try:
                DAMAGES[name](scene, path)
            except FileNotFoundError:
                continue  # removed before
            done.append(f"{path}: {name}")
        print(f"round {number} on {len(done)} places")
        tally = _check(subject)
        print(f"  {dict(tally)}")
        assert tally["damaged"] > VICTIMS / 3, "hardly anything is damaged"
    except AssertionError as error:
        error.add_note("\n".join(done))
        raise
    finally:
        if subject.volume.is_mounted:
            subject.volume.umount()
        subject.mend()


def _check(subject: Subject) -> Counter[str]:
    """Compare what the volume now gives with what it must."""
    changed = subject.changed()
    names = _names(subject)
    verdicts = {
        path: _judge(subject, names, path)
        for path in names
        # a file that is whole is another one's place's content, if it has a name there, too
        if path in changed or set(names[path]) & set(changed)
    }
    shown, refused = _with_shared_ids(subject, names)
    for path in refused:
        if path not in verdicts or not verdicts[path].error:
            verdicts[path] = Verdict(True, reason=SHARED_ID)
    found = _findings(subject)
    assert shown <= found.keys(), "verify does not name all that have one file id"
    tally = Counter({"damaged": len(changed), "files": len(subject.originals)})
    said = len(subject.volume.log.read_text())
    subject.volume.mount("--config", subject.volume.root / "config.yaml")
    contents = {
        path: _read(subject.volume.mountpoint / path) for path in relative_files(subject.volume.mountpoint)
    }
    # only now can what reads the backing directory tell a wiped header from one that is about to be written
    subject.volume.umount()
    log = subject.volume.log.read_text()[said:]
    assert "Traceback" not in log
    # what the manifest notices is in it besides
    refusals = "\n".join(line for line in log.splitlines() if re.search(r" ERROR tdefs\.(tree|data|fuse)\.", line))
    for path, original in subject.originals.items():
        if path not in verdicts and path not in changed:
            assert contents[path] == original.plain, f"{path} was not touched, and reads otherwise"
    for path, verdict in verdicts.items():
        _compare(path, verdict, contents[path])
        if verdict.error:
            said_of = [refusals.partition(f"{name}: ")[2].partition("\n")[0] for name in names[path]]
            assert any(said_of), f"{path}: the log does not name it ({verdict.reason})"
            assert all("HINT: " in line for line in said_of if line)
            tally["error"] += 1
        if verdict.reason != SHARED_ID:  # of which cat, which opens one file, knows nothing
            _compare_cat(subject, path, contents[path], tally)
    _check_ls(subject, verdicts)
    control_is_whole = "global/pg_control" not in changed
    for path in changed:
        demand = _must_be_found(subject, path, verdicts.get(path), contents.get(path), control_is_whole)
        assert path in found or not demand, f"{path}: verify does not find it: {demand}"
        tally["found by verify" if path in found else "beyond the format"] += 1
    surprising = found.keys() - set(changed) - shown - _without_majority(found, contents)
    assert not surprising, f"verify finds what is whole: {surprising}"
    return tally


def _without_majority(found: dict[str, str], contents: dict[str, bytes | None]) -> set[str]:
    """All files PG_VERSION that hold a version, if they contradict each other and no version has a majority."""
    said = {
        path: content
        for path, content in contents.items()
        if Path(path).name == "PG_VERSION"
        and content is not None
        and (path not in found or "here or elsewhere" in found[path])
    }
    ((_, times),) = Counter(said.values()).most_common(1) or [(b"", 0)]
    return set(said) if times <= len(said) / 2 else set()


def _names(subject: Subject) -> dict[str, list[str]]:
    """All names of each file, itself among them."""
    by_inode: dict[int, list[str]] = {}
    for path in relative_files(subject.data):
        by_inode.setdefault((subject.data / path).stat().st_ino, []).append(path)
    return {path: found for found in by_inode.values() for path in found}


def _with_shared_ids(subject: Subject, names: dict[str, list[str]]) -> tuple[set[str], set[str]]:
    """The first names of all files that have one file id; and all names of those that a mount must refuse."""
    shown: dict[bytes, set[str]] = {}
    at_home: dict[bytes, set[str]] = {}
    for path, same in names.items():
        stored = (subject.data / path).read_bytes()
        file_id = subject.oracle.shown_id(stored)
        if file_id is None or path != same[0]:
            continue
        shown.setdefault(file_id, set()).add(path)
        if all(subject.oracle.may_lie(stored, name) for name in same):
            at_home.setdefault(file_id, set()).add(path)
    refused = {path for paths in at_home.values() if len(paths) > 1 for path in paths}
    return (
        {path for paths in shown.values() if len(paths) > 1 for path in paths},
        {name for path in refused for name in names[path]},
    )


def _judge(subject: Subject, names: dict[str, list[str]], path: str) -> Verdict:
    """What must come of opening *path*; the kernel does not tell by which of a file's names it is opened."""
    stored = (subject.data / path).read_bytes()
    verdicts = [subject.oracle.judge(one, stored, encrypted_place=subject.encrypts(one)) for one in names[path]]
    own = verdicts[names[path].index(path)]
    foreign = [verdict for verdict in verdicts if verdict.reason == ANOTHER_FILES]
    return foreign[0] if foreign else own


def _read(path: Path) -> bytes | None:
    """The content; none for an error of reading."""
    try:
        return path.read_bytes()
    except OSError as error:
        assert error.errno == 5, error
        return None


def _compare(path: str, verdict: Verdict, content: bytes | None) -> None:
    if verdict.error:
        assert content is None, f"{path} is presented as if it were right: {verdict.reason}"
        return
    assert content is not None, f"{path} cannot be read: {verdict.reason}"
    assert len(content) == len(verdict.content), f"{path}: {verdict.reason}"
    if content != verdict.content:
        for block in range(-(-len(content) // BLOCK)):
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            assert content[part] == verdict.content[part] or block in verdict.garbled, (
                f"{path}: block {block} differs and was not touched ({verdict.reason})"
            )


def _compare_cat(subject: Subject, path: str, content: bytes | None, tally: Counter[str]) -> None:
    """``tdefs cat`` gives what the mount gives; tried for a few, each is a process."""
    if tally["cat"] >= 3:
        return
    tally["cat"] += 1
    command = [str(TDEFS), "cat", path, "--volume", str(subject.backing), *subject.volume.unlock]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert b"Traceback" not in done.stderr
    if content is None and done.returncode == 0:
        # the file is right under this name, and wrong under another one, which cat does not look for
        assert done.stdout == subject.originals[path].plain
    elif content is None:
        assert done.returncode == 41, done.stderr
        assert path.encode() in done.stderr
        assert b"HINT" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, content), done.stderr


def _check_ls(subject: Subject, verdicts: dict[str, Verdict]) -> None:
    """``tdefs ls`` lists every file, and says of each what can be told without a key."""
    done = subject.volume.tdefs("ls", subject.backing, "--json")
    listed = {one["path"]: one for one in json.loads(done.stdout)}
    assert listed.keys() == {*relative_files(subject.data), LINK}
    for path, verdict in verdicts.items():
        if not verdict.error:
            assert listed[path]["state"] != "damaged", listed[path]
        elif verdict.reason not in (ANOTHER_FILES, SHARED_ID):
            assert listed[path]["state"] == "damaged", f"{path}: {verdict.reason}"
            assert listed[path]["error"]


def _must_be_found(
    subject: Subject, path: str, verdict: Verdict | None, content: bytes | None, control_is_whole: bool
) -> str:
    """Say why verify must find it, or nothing if nobody can tell."""
    original = subject.originals.get(path)
    if original is None or verdict is None:
        return "what the last unmount left was removed, or something added"
    stored = (subject.data / path).read_bytes()
    if len(stored) != len(original.stored):
        return "another length than at the last unmount"
    if original.is_encrypted and original.plain and stored[:RECORD] != original.stored[:RECORD]:
        return "another header than at the last unmount"
    if verdict.error:
        return verdict.reason
    assert content is not None
    if verdict.reason == "intact header" and any(stored[512:HEADER]):
        return "the header page"
    name, kind = Path(path).name, classify(path).kind
    if name in ("PG_VERSION", "pg_control", "pg_filenode.map"):
        # one that was copied from another database is right in itself
        legal = [one.plain for one in subject.originals.values() if Path(one.path).name == name]
        return "" if content in legal else "a file that PostgreSQL does not start without"
    if is_relation(path):
        if len(content) % PAGE:
            return "a part of a page"
        block = fork_of(path)[1] * 131072
        if control_is_whole and any(bad_pages(content, block, checksums=True)):
            return "a page with a wrong checksum"
    if control_is_whole and kind == Kind.WAL and len(name) == 24 and len(content) != 16 << 20:
        return "a WAL segment of another size"
    return ""

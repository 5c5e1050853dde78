#!/usr/bin/env python3
"""Makes the golden backing directory of the current format version, with a real mount.

    .venv/bin/python scripts/make-golden.py tests/golden/v2

It is run for each format version, the last time before its release; until then: remove the directory, and run it
again. What it made stays in the tests for ever: that a later tdefs reads it is the promise that nobody's
files become unreadable. It never overwrites: a new version gets a new directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TDEFS = Path(sys.executable).with_name("tdefs")

# In the tests' repository on purpose: it protects nothing but these files.
KEY = "600d" * 16

POLICY = """\
version: 1
default: dk_1
relations:
  - {database: 16384, relfilenodes: [16390], key: dk_2}
kinds:
  version: plain
"""

LENGTHS = (0, 1, 15, 16, 17, 8191, 8192, 8193)


def pattern(name: str, size: int) -> bytes:
    """Return *size* bytes that differ from page to page and from file to file, and can be recognised."""
    lines = (f"{name}: line {number}\n".encode() for number in range(size))
    out = bytearray()
    while len(out) < size:
        out += next(lines)
    return bytes(out[:size])


def fill(root: Path) -> None:
    """Write the files through the mount at *root*."""
    for directory in ("base/16384", "pg_wal", "pg_xact", "pg_stat", "pg_tblspc", "log", "lengths"):
        (root / directory).mkdir(parents=True)
    (root / "PG_VERSION").write_text("15\n")
    (root / "postgresql.conf").write_text("shared_buffers = 128MB  # canary in a comment\n" * 3)
    for name, pages in (("16385", 2), ("16385.1", 1), ("16390", 1)):
        (root / "base/16384" / name).write_bytes(pattern(name, 8192 * pages))

    # a zero page between two that are not, as relation extension leaves it
    free_space = root / "base/16384/16385_fsm"
    free_space.write_bytes(pattern("16385_fsm", 8192) + bytes(8192) + pattern("16385_fsm, page 2", 8192))

    # bound to a class, and renamed within it
    (root / "pg_stat/pgstat.tmp").write_bytes(pattern("pgstat.tmp", 3000))
    (root / "pg_stat/pgstat.tmp").rename(root / "pg_stat/pgstat.stat")

    # bound to a name, and renamed to another one
    (root / "postgresql.auto.conf.tmp").write_bytes(pattern("postgresql.auto.conf", 700))
    (root / "postgresql.auto.conf.tmp").rename(root / "postgresql.auto.conf")

    # emptied, and filled again under another file id
    (root / "log/postgresql.log").write_bytes(pattern("postgresql.log", 5000))
    (root / "log/postgresql.log").write_bytes(pattern("postgresql.log, again", 2500))

    # two names under two identities: the file is bound to none any more
    (root / "base/16384/16391").write_bytes(pattern("16391", 1000))
    os.link(root / "base/16384/16391", root / "base/16384/16392")

    # renamed, so that its identity was written twice; and a segment written piece by piece, zeros behind
    (root / "base/16384/16400").write_bytes(pattern("16400", 100))
    (root / "base/16384/16400").rename(root / "base/16384/16401")
    with (root / "pg_wal/000000010000000000000001").open("xb", buffering=0) as segment:
        segment.truncate(2 * 8192)
        for offset in range(0, 9000, 1000):
            os.pwrite(segment.fileno(), pattern(f"record at {offset}", 1000), offset)
            os.fsync(segment.fileno())

    # a hole of a page, and one that begins in the middle of a sector: made longer after it was written
    with (root / "pg_xact/0000").open("xb", buffering=0) as holey:
        for offset in (100, 600, 17000):
            os.pwrite(holey.fileno(), f"island at {offset}".encode(), offset)
        os.fsync(holey.fileno())
        holey.truncate(20001)

    # links: one as it was made, and one that was made anew by a rename
    (root / "pg_tblspc/16500").symlink_to("/srv/spaces/fast")
    (root / "pg_tblspc/16501").symlink_to("/srv/spaces/slow")
    (root / "pg_tblspc/16501").rename(root / "pg_tblspc/16502")

    for length in LENGTHS:
        (root / "lengths" / str(length)).write_bytes(pattern(str(length), length))


def listing(root: Path) -> dict[str, dict[str, int | str]]:
    """Return length and SHA-256 of the content of every file below *root*, and the target of every link."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(root))] = {"target": str(path.readlink())}
        elif path.is_file():
            data = path.read_bytes()
            found[str(path.relative_to(root))] = {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return found


def main() -> int:
    """Make the directory that the command line names."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    golden = Path(sys.argv[1]).absolute()
    if golden.exists():
        print(f'make-golden: "{golden}" exists, and a golden directory is never made anew', file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="tdefs-golden-") as directory:
        if not make(Path(directory)):
            print("make-golden: the mount and a plain directory with the same files differ", file=sys.stderr)
            return 1
        tidy(Path(directory), golden.name)
        shutil.copytree(directory, golden, symlinks=True)
    return 0


def make(root: Path) -> bool:
    """Make a volume below *root*, and fill it; return whether it holds then what a plain directory would."""
    (root / "key.txt").write_text(KEY + "\n")
    (root / "policy.yaml").write_text(POLICY)
    backing = root / "backing"
    unlock = ["--key-command", f"cat {shlex.quote(str(root / 'key.txt'))}"]

    def tdefs(*words: str | Path) -> None:
        subprocess.run([TDEFS, *words], check=True)

    tdefs("init", backing, "--policy", root / "policy.yaml", *unlock)
    with tempfile.TemporaryDirectory() as mountpoint, tempfile.TemporaryDirectory() as plain:
        fill(Path(plain))
        files = listing(Path(plain))
        found = []
        # the second time what is compared has been on the disk
        for work in (fill, listing):
            tdefs("mount", backing, mountpoint, "--log-file", root / "log", *unlock)
            try:
                found.append(work(Path(mountpoint)))
            finally:
                tdefs("umount", mountpoint)
    (root / "expected.json").write_text(json.dumps(files, indent=2) + "\n")
    return found[-1] == files


def tidy(root: Path, name: str) -> None:
    """Remove what depends on this machine; a test that uses the directory writes its own paths."""
    (root / "log").unlink()
    private = root / "backing/.tdefs"
    for path in private.iterdir():
        if path.name not in ("volume.json", "keystore"):
            path.rmdir() if path.is_dir() else path.unlink()
    description = private / "volume.json"
    fields = json.loads(description.read_text())
    for field, value in fields.items():
        if isinstance(value, str):
            fields[field] = value.replace(str(root), f"/golden/{name}")
    description.write_text(json.dumps(fields, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

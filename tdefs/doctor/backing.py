"""Nodes in a backing directory that tdefs did not encrypt: links, special files, plain files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from errno import ELOOP
from pathlib import Path

from tdefs.doctor.findings import Finding, advice, note, risk
from tdefs.format.header import resembles_header
from tdefs.keys.keystore.entries import Statements
from tdefs.mounts.table import all_mounts
from tdefs.offline.reader import (
    DAMAGED,
    MOST_LEVELS,
    PLAIN,
    describe_content,
    doubts_of,
    first_bytes,
    open_directory,
    open_without_links,
)
from tdefs.policy.model import Policy
from tdefs.policy.paths import classify
from tdefs.volume.backing import weaknesses
from tdefs.volume.believed import Believed
from tdefs.volume.description import Volume

#: At most so many files are opened, and for at most so long; relation files come last.
_MOST_OPENED = 20_000
_MOST_SECONDS = 10.0
#: So many of a kind are named.
_NAMED = 10


class BackingDirectory:
    """Examines one backing directory, once: a list of names, without the attributes of files."""

    def __init__(self, volume: Volume, may: Statements, mountpoint: Path, mountpoints: list[Path]) -> None:
        """Examine *volume*, which *may* do what its keystore says.

        :param mountpoints: of all tdefs mounts, among them *mountpoint*, where this one is served.
        """
        self._volume = volume
        # whether a policy encrypts a file is known before the file is opened
        self._believed = Believed(replace(may, policy_digest="", policy=""))
        self._mountpoint = mountpoint
        self._mountpoints = mountpoints
        self._files: list[str] = []
        #: Path and target; those that lead out of all mounts; and those that the daemon refuses.
        self._links: list[tuple[str, str]] = []
        self._outside: list[tuple[str, str]] = []
        self._planted: list[str] = []
        self._special: list[str] = []
        self._unseen: list[str] = []

    def examine(self, policy: Policy | None) -> Iterator[Finding]:
        """Yield findings about files in the clear, and links that lead out of all volumes.

        :param policy: what should be encrypted; ``None`` if that is not known.
        """
        yield from self._rights()
        self._list()
        if self._unseen:
            yield advice(
                f"the backing directory cannot be read: {_some(self._unseen)}: links and plain files are not "
                "examined there",
                "run tdefs doctor as root, or as the user who mounted",
            )
        if self._outside:
            yield risk(
                "links lead out of all tdefs mounts, to where everything is in the clear: "
                f"{_shown(self._outside)}",
                "make what they lead to a volume of its own, and mount that there, or move it onto the mount; "
                "remove links that you do not know",
            )
        if self._planted:
            yield risk(
                "links lie in the backing directory that tdefs did not make there, and that it refuses: "
                f"{_some(self._planted)}",
                "remove them, and see who can write to the backing directory; the daemon's log says more",
            )
        if self._special:
            yield risk(
                "devices, sockets or FIFOs lie in the backing directory, where tdefs makes none, and it refuses "
                f"them: {_some(self._special)}",
                "remove them, and see who can write to the backing directory",
            )
        if self._links:
            yield note(
                f"symbolic links: {_shown(self._links, all_of_them=True)}", "see that you know each of them"
            )
        if policy is not None and self._believed.statements.plain_files:
            yield from self._plain_files(policy)

    def _rights(self) -> Iterator[Finding]:
        for what, mend in weaknesses(self._volume, _server_of(self._mountpoint)):
            yield risk(f"{what}: a user who can write there can replace and plant files", mend)

    def _list(self) -> None:
        pending = [""]
        while pending:
            directory = pending.pop()
            try:
                with _entries(self._volume, directory) as entries:
                    for entry in entries:
                        path = f"{directory}/{entry.name}" if directory else entry.name
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(path)
                        elif entry.is_file(follow_symlinks=False):
                            self._files.append(path)
                        elif entry.is_symlink():
                            self._look_at_link(path)
                        else:
                            self._special.append(path)
            except FileNotFoundError:
                continue  # a mounted volume lives on
            except OSError as error:
                self._unseen.append(f"{directory or '.'}: {error.strerror}")

    def _look_at_link(self, path: str) -> None:
        """Ask the daemon where a link leads to, and follow it as PostgreSQL would."""
        place = self._mountpoint / path
        try:
            target = os.readlink(place)  # noqa: PTH115 - what it says, which need not be a path as pathlib writes it
        except OSError as error:
            # a mounted volume changes meanwhile; but if it is still there, and the daemon refuses it, it was
            # planted
            if (self._volume.data / path).is_symlink():
                self._planted.append(f"{path} ({error.strerror})")
            return
        self._links.append((path, target))
        real = Path(os.path.realpath(place))
        if not any(real == mount or mount in real.parents for mount in self._mountpoints):
            self._outside.append((path, os.fspath(real)))

    def _plain_files(self, policy: Policy) -> Iterator[Finding]:
        plain: list[str] = []
        damaged: list[str] = []
        of_relations: list[str] = []
        others: list[str] = []
        for path in self._files:
            role = classify(path)
            if policy.decide(role, path).encrypted:
                (of_relations if role.relation else others).append(path)
        wanted = others + of_relations
        opened = 0
        until = time.monotonic() + _MOST_SECONDS
        for path in wanted[:_MOST_OPENED]:
            if time.monotonic() > until:
                break
            opened += 1
            state = self._state(path)
            if state == PLAIN:
                plain.append(path)
            elif state == DAMAGED:
                damaged.append(path)
        if plain:
            yield risk(
                f"{_count(plain)} in the clear that the policy encrypts: {_some(plain)}",
                "have them written anew (docs/POLICY.md says how); where no policy has ever left them in the "
                "clear, somebody has put them there",
            )
        if damaged:
            yield risk(
                f"{_count(damaged)} damaged, and cannot be opened: {_some(damaged)}",
                "tdefs verify says what it is",
            )
        if opened < len(wanted):
            yield advice(
                f"{len(wanted) - opened} files were not examined as to whether they are encrypted",
                "tdefs ls lists all of them",
            )
        yield advice(
            "the volume may hold plain files, since a policy has left some in the clear: a user who can write to "
            "the backing directory can put plain files in the place of encrypted ones",
            "let nobody else write there; a new volume without such a policy refuses plain files",
        )

    def _state(self, path: str) -> str:
        """Return the state of a file, "" if it is encrypted by its header, or is gone."""
        try:
            with open_without_links(self._volume, path) as fd:
                head = first_bytes(fd)
                if resembles_header(head, self._volume.volume_id):
                    return ""
                size = os.fstat(fd).st_size
                doubts = doubts_of(path, fd, size, self._believed)
                return describe_content(self._volume, path, head, size, doubts, self._believed).state
        except OSError:
            return ""


@contextmanager
def _entries(volume: Volume, directory: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    """List a directory of the tree, reached through no symbolic link, during a ``with`` block."""
    if directory.count("/") >= MOST_LEVELS:
        raise OSError(ELOOP, "it is nested too deeply")
    fd = open_directory(volume, [part for part in directory.split("/") if part], os.O_RDONLY)
    try:
        with os.scandir(fd) as entries:
            yield entries
    finally:
        os.close(fd)


def _server_of(mountpoint: Path) -> int | None:
    """Return the user who serves a mount, from the kernel's table; ``None`` if it is not there."""
    for mount in reversed(list(all_mounts())):
        if mount.mountpoint == mountpoint:
            return next((int(one[8:]) for one in mount.options if one.startswith("user_id=")), None)
    return None


def _count(paths: list[str]) -> str:
    return "1 file is" if len(paths) == 1 else f"{len(paths)} files are"


def _shown(links: list[tuple[str, str]], *, all_of_them: bool = False) -> str:
    shown = sorted(f"{path} -> {target}" for path, target in links)
    return ", ".join(shown) if all_of_them else _some(shown)


def _some(items: list[str]) -> str:
    more = f", and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(sorted(items)[:_NAMED]) + more

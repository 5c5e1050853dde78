"""What every file system under test can do."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.account import Account
from tests.support.mounts import detach, is_mounted
from tests.support.processes import is_alive, wait_until

#: Seconds after which a command hangs.
LIMIT = 120


class Unavailable(Exception):
    """The system does not work on this machine, and why."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to set up and mount a system."""

    name: str
    init: tuple[str, ...] = ()
    mount: tuple[str, ...] = ()
    raise_limits: bool = False
    """Give the mount the kernel's read-ahead and dirty limits that tdefs gives its own."""
    wal_sync_method: str = "open_datasync"
    """PostgreSQL's, of the server on it."""

    def __str__(self) -> str:
        limits = ["read_ahead_kb, max_ratio as tdefs"] if self.raise_limits else []
        words = [*self.init, *self.mount, *limits, f"wal_sync_method = {self.wal_sync_method}"]
        return f"{self.name} ({', '.join(words)})"


@dataclass(slots=True)
class System(ABC):
    """A file system with files of its own below ``root``, all on the same disk."""

    root: Path
    account: Account
    variant: Variant
    daemons: list[int] = field(default_factory=list)
    """The processes that serve the mount."""

    @property
    @abstractmethod
    def storage(self) -> Path:
        """The directory that PostgreSQL's data directories are made in."""

    @property
    def below(self) -> Path | None:
        """The directory with the files that hold the ciphertext; nothing if the kernel shows none."""
        return None

    @abstractmethod
    def prepare(self) -> None:
        """Make the empty file system.

        :raises Unavailable: this machine lacks something.
        """

    def mount(self) -> None:
        """Make :attr:`storage` usable; nothing to do for what the kernel serves itself."""
        return

    def unmount(self) -> None:
        """Return when everything is on the disk and the daemon has ended."""
        return

    def discard(self) -> None:
        """Take everything away that is not below ``root``, whatever state it is in."""
        if is_mounted(self.storage):
            detach(self.storage)

    # --- for those that are mounted

    def run(self, *command: str | Path, text: str = "") -> str:
        """Run a command of the system as root, in a session of its own: Ctrl-C is not for its daemon."""
        words = [str(word) for word in command]
        with (self.root / "commands.log").open("a+") as log:
            began = log.tell()
            # A file instead of a pipe, which a daemon would keep open.
            try:
                done = subprocess.run(
                    words,
                    input=text,
                    text=True,
                    stdout=log,
                    stderr=log,
                    timeout=LIMIT,
                    check=False,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise Unavailable(f"{words[0]} is not installed") from error
            log.seek(began)
            output = log.read()
        if done.returncode != 0:
            raise Unavailable(f"{' '.join(words[:3])} …: exit code {done.returncode}: {output.strip()[-500:]}")
        return output

    def give_to_server(self) -> None:
        """Let the server's user make directories in the storage."""
        self.account.own(self.storage)
        self.storage.chmod(0o700)

    def wait_for_daemons(self) -> None:
        """Return when the daemons have ended after an unmount."""
        if not wait_until(lambda: not any(map(is_alive, self.daemons)), LIMIT):
            raise TimeoutError(f"the daemon of {self.storage} has not ended {LIMIT} s after its unmount")
        self.daemons = []

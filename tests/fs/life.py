"""A volume in use, with everything kept that can be seen of its commands: output, arguments, environment."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tdefs.errors import Exit
from tdefs.keys.protectors.passphrase import PassphraseProtector
from tdefs.mounts.known import is_dead
from tests.support.key_bytes import KeyBytes
from tests.support.processes import POLL_SECONDS, wait_until
from tests.support.volume import Volume

#: Seconds after which a command hangs.
LIMIT = 60


class Life:
    """A volume, the commands on it, and all that was seen of them."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.keys = KeyBytes()
        #: What people hold; here alone may secrets lie.
        self.held = volume.root / "held"
        self.temporary = volume.root / "tmp"
        self.printed = volume.root / "printed"
        #: What /proc showed of each process, by its number.
        self.processes: dict[int, bytes] = {}
        for directory in (self.held, self.temporary, self.printed):
            directory.mkdir(mode=0o700)
        self.config = volume.root / "tdefs.yaml"
        self.config.write_text(
            f"version: 1\nlog_level: debug\nvolumes:\n  {volume.backing}: {{log_file: {volume.log}}}\n"
        )
        self.passphrase = self.new_secret("passphrase")
        self._environment = {**os.environ, "TMPDIR": str(self.temporary), "SUDO_UID": "0"}

    def new_secret(self, name: str) -> Path:
        path = self.held / name
        path.touch(0o600)
        path.write_text(secrets.token_urlsafe(24))
        self.keys.add_text(name, path.read_text())
        return path

    @property
    def protector(self) -> PassphraseProtector:
        return PassphraseProtector(self.passphrase.read_bytes)

    def learn_keys(self) -> None:
        """The keys as they are now are among those that must not be found."""
        self.keys.add_keystore(self.volume.keystore, self.protector)

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start a command; its output goes to a file."""
        with (self.printed / f"{len(list(self.printed.iterdir()))}-{words[0]}").open("wb") as output:
            output.write(" ".join(map(str, words)).encode() + b"\n")
            output.flush()
            return subprocess.Popen(
                [*self.volume.program, *map(str, words)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, *words: str | Path, code: int = Exit.OK) -> str:
        """Run a command to its end, and look at it and its children all the time; return what it printed."""
        process = self.start(*words)
        deadline = time.monotonic() + LIMIT
        while process.poll() is None:
            assert time.monotonic() < deadline
            self.look_at(process.pid)
            time.sleep(POLL_SECONDS)
        assert process.pid in self.processes
        said = max(self.printed.iterdir(), key=lambda path: int(path.name.partition("-")[0]))
        text = said.read_text()
        assert process.returncode == code, text
        return text

    def on(self, *words: str | Path, code: int = Exit.OK, secret: Sequence[str | Path] = ()) -> str:
        """Run a command on the volume that needs a secret: by default the passphrase."""
        unlock = secret or ("--passphrase-file", self.passphrase)
        return self.run(*words, "--volume", self.volume.backing, *unlock, code=code)

    def mount(self) -> None:
        self.run(*self._mount())
        (self.daemon,) = self.volume.daemons

    def mount_in_foreground(self) -> subprocess.Popen[bytes]:
        process = self.start(*self._mount(), "-f")
        self.daemon = process.pid
        # a dead mount of a daemon that failed before may be there until this one takes its place
        assert wait_until(lambda: self.volume.is_mounted and not is_dead(self.volume.mountpoint), LIMIT)
        return process

    def _mount(self) -> list[str | Path]:
        place: list[str | Path] = [self.volume.backing, self.volume.mountpoint, "--config", self.config]
        return ["mount", *place, "--passphrase-file", self.passphrase]

    def look_at(self, pid: int) -> None:
        """Keep what everybody, or its own user, can see of a process and its children."""
        try:
            shown = b"".join(Path(f"/proc/{pid}", name).read_bytes() for name in ("cmdline", "environ"))
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:  # it has ended
            return
        # a child shows what its parent has, until it begins its own program
        self.processes[pid] = self.processes.get(pid, b"") + shown
        for child in children:
            self.look_at(int(child))

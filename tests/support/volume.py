"""A tdefs volume of a test, driven through the command line as a DBA would."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.account import Account
from tests.support.mounts import detach, is_mounted
from tests.support.processes import arguments, is_alive, processes_in, send, wait_until

TDEFS = Path(sys.executable).parent / "tdefs"
#: Seconds after which a command hangs.
LIMIT = 60


class Volume:
    """A backing directory, its keystore and its mount point, side by side in a directory of their own.

    It is unlocked by a key command, which costs no time, unlike a passphrase.
    """

    def __init__(self, root: Path) -> None:
        """Make the directory ``root`` with an empty backing directory and mount point."""
        self.root = root
        self.backing = root / "backing"
        self.mountpoint = root / "mnt"
        self.keystore = root / "keystore"
        self.key_file = root / "key"
        self.log = root / "tdefs.log"
        #: How tdefs is called.
        self.program: list[str] = [str(TDEFS)]
        for directory in (root, self.backing, self.mountpoint):
            directory.mkdir(mode=0o755)
        self.key_file.touch(0o600)
        self.key_file.write_text(secrets.token_hex(32))
        self.log.touch(0o600)

    @property
    def data(self) -> Path:
        """Where the files lie that the mount shows."""
        return self.backing / "data"

    @property
    def unlock(self) -> list[str]:
        """The arguments that unlock the keystore."""
        return ["--key-command", f"cat {shlex.quote(str(self.key_file))}"]

    @property
    def reporting(self) -> list[str]:
        """The arguments with which a mount serves files that differ from the manifest, and only reports them."""
        config = self.root / "reporting.yaml"
        config.write_text(f"version: 1\nvolumes:\n  {self.backing}:\n    tampering: report\n")
        return ["--config", str(config)]

    def tdefs(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of tdefs; the log gets it too."""
        command = [*self.program, *map(str, words)]
        # Files instead of pipes: a daemon may keep them open, and the reader of a pipe would wait for its end.
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, timeout=LIMIT, check=False
            ).returncode
            output.seek(0)
            errors.seek(0)
            done = subprocess.CompletedProcess(command, code, output.read(), errors.read())
        said = f"$ {shlex.join(command)}\n{done.stdout}{done.stderr}exit code {code}\n"
        with self.log.open("a") as log:
            log.write(said)
        assert not check or code == 0, said
        return done

    def init(self, *arguments: str | Path, policy: str | None = None) -> None:
        """Create the volume.

        :param policy: the text of a policy file
        """
        words = ["init", self.backing, *self.unlock, "--keystore", self.keystore, *arguments]
        if policy is not None:
            (self.root / "policy.yaml").write_text(policy)
            words += ["--policy", self.root / "policy.yaml"]
        self.tdefs(*words)
        self.data.chmod(0o755)  # other users are served, too

    def accept(self, *arguments: str | Path, policy: str | None = None) -> None:
        """Accept a policy.

        :param policy: the text of a policy file
        """
        words = ["policy", "accept", "--volume", self.backing, "--yes", *self.unlock, *arguments]
        if policy is not None:
            (self.root / "policy.yaml").write_text(policy)
            words += ["--policy", self.root / "policy.yaml"]
        self.tdefs(*words)

    def mount(self, *arguments: str | Path, owner: Account | None = None) -> None:
        """Mount it.

        :param owner: the user that the root of the file system shall belong to
        """
        self.tdefs("mount", self.backing, self.mountpoint, *self.unlock, "--log-file", self.log, *arguments)
        assert self.is_mounted, f"tdefs mount has succeeded, but nothing is mounted\n{self.log_tail()}"
        if owner is not None:
            owner.own(self.mountpoint)
            self.mountpoint.chmod(0o700)

    def umount(self, *, disk_failed: bool = False) -> None:
        """Unmount it; return when the daemon has ended.

        :param disk_failed: whether it may say that not everything is known to be on the disk
        """
        daemons = self.daemons
        # a namespace that another test is making has a copy of every mount for a moment
        assert wait_until(lambda: self._goes(disk_failed=disk_failed), 60)
        assert not self.is_mounted, f"tdefs umount has succeeded, but it is still mounted\n{self.log_tail()}"
        assert wait_until(lambda: not any(map(is_alive, daemons)), 30), (
            f"the daemon is still there after tdefs umount\n{self.log_tail()}"
        )

    def _goes(self, *, disk_failed: bool) -> bool:
        said = self.tdefs("umount", self.mountpoint, check=False)
        gone = said.returncode == 0 or (disk_failed and "the disk below failed" in said.stderr)
        assert gone or "mounted elsewhere" in said.stderr, said.stderr
        return gone

    def kill(self) -> None:
        """End the daemon as a crash would: at once, leaving a dead mount."""
        daemons = self.daemons
        assert daemons, f"no daemon serves {self.mountpoint}"
        for pid in daemons:
            send(pid, signal.SIGKILL)
        assert wait_until(lambda: not any(map(is_alive, daemons)), 10)

    @property
    def is_mounted(self) -> bool:
        """Whether it is in the kernel's list, served or not."""
        return is_mounted(self.mountpoint)

    @property
    def daemons(self) -> list[int]:
        """The processes that serve the mount: one, or none."""
        return [
            pid
            for pid in processes_in(self.backing)
            if "mount" in arguments(pid) and str(self.backing) in arguments(pid)
        ]

    def status(self) -> Any:
        """What ``tdefs status --json`` says."""
        return json.loads(self.tdefs("status", self.mountpoint, "--json").stdout)

    def tampering(self) -> dict[str, str]:
        """By path, what the status says of files that are not as the last unmount left them."""
        return {one["path"]: one["what"] for one in self.status()["tampering"]["differences"]}

    def cat(self, relpath: str) -> bytes:
        """The decrypted content of one file, read without a mount."""
        command = [str(TDEFS), "cat", relpath, "--volume", str(self.backing), *self.unlock]
        done = subprocess.run(command, capture_output=True, timeout=LIMIT, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr.decode()}"
        return done.stdout

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def complaints(self) -> list[str]:
        """The lines of the daemon's log from warnings upwards, and tracebacks."""
        text = self.log.read_text(errors="replace")
        return [line for line in text.splitlines() if re.search(r" (WARNING|ERROR|CRITICAL) |^Traceback", line)]

    def discard(self) -> str:
        """Unmount whatever state it is in; return what went wrong, or nothing."""
        if not self.is_mounted:
            return ""
        done = self.tdefs("umount", self.mountpoint, check=False)
        if "mounted elsewhere" in done.stderr:  # by a namespace that another test is making
            done = self.tdefs("umount", self.mountpoint, check=False)
        if self.is_mounted:
            detach(self.mountpoint)
        return "" if done.returncode == 0 else done.stderr


def relative_files(directory: Path) -> list[str]:
    """The paths of all regular files below a directory, without tdefs's own."""
    found = []
    for parent, directories, files in os.walk(directory):
        if Path(parent) == directory and ".tdefs" in directories:
            directories.remove(".tdefs")
        paths = (Path(parent, name) for name in files)
        found += [str(path.relative_to(directory)) for path in paths if path.is_file() and not path.is_symlink()]
    return sorted(found)

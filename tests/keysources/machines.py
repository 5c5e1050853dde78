"""Machines of their own on one host: another /etc/machine-id, another /var/lib, another TPM or none."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path

from tests.support.mounts import LET_GO_OF_OTHERS
from tests.support.processes import wait_until

#: Seconds after which a command hangs.
LIMIT = 60

# In a mount namespace of its own: no other process sees the two mounts, which end with the last process in it.
_ENTER = (
    LET_GO_OF_OTHERS
    + 'shift; mount --bind "$1" /etc/machine-id && mount --bind "$2" /var/lib && shift 2 && exec "$@"'
)


class Machine:
    """A machine below ``root``. Its TPM, if it has one, is swtpm's, and is to be closed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.id_file = root / "machine-id"
        self.lib = root / "lib"
        self.host_keys = self.lib / "tdefs" / "host-keys"
        self._tpm: subprocess.Popen[bytes] | None = None

    @classmethod
    def new(cls, root: Path, *, tpm: bool) -> Machine:
        """A machine that nobody has used before, running."""
        machine = cls(root)
        for directory in (root, machine.lib, root / "tpm"):
            directory.mkdir()
        machine.id_file.write_text(f"{secrets.token_hex(16)}\n")
        if tpm:
            machine.start_tpm()
        return machine

    def copy(self, root: Path) -> Machine:
        """A copy of its disk, running on hardware without a TPM."""
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("tpm*"))
        (root / "tpm").mkdir()
        return Machine(root)

    def reborn(self, root: Path) -> Machine:
        """The same machine, TPM and all, such that what happens to it does not happen to this one."""
        machine = self.copy(root)
        if self._tpm is not None:
            shutil.copytree(self.root / "tpm", root / "tpm", dirs_exist_ok=True)
            machine.start_tpm()
        return machine

    def start_tpm(self) -> None:
        socket, control = self._socket, Path(f"{self._socket}.ctrl")
        self._tpm = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.root / 'tpm'}"),
                *("--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={control}"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            stdin=subprocess.DEVNULL,
        )
        assert wait_until(lambda: socket.exists() and control.exists(), LIMIT)

    def stop_tpm(self) -> None:
        """Takes the TPM out, or its power away."""
        if self._tpm is not None:
            self._tpm.kill()
            self._tpm.wait()
            self._tpm = None
            self._socket.unlink()
            Path(f"{self._socket}.ctrl").unlink()

    def enter(self, *words: str | Path) -> list[str]:
        """The command, to be run on this machine."""
        return [
            *("unshare", "--mount", "env", *self._environment()),
            *("sh", "-c", _ENTER, "sh", str(self.root.parent), str(self.id_file), str(self.lib)),
            *map(str, words),
        ]

    def run(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command on this machine, with no terminal to ask on."""
        done = subprocess.run(
            self.enter(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
            start_new_session=True,
        )
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}exit code {done.returncode}"
        return done

    def tpm_tool(self, *words: str) -> None:
        """Runs one of the tpm2-tools, and takes away what it leaves loaded."""
        self.run(*words)
        self.run("tpm2_flushcontext", "-t")

    def close(self) -> None:
        self.stop_tpm()

    @property
    def config(self) -> Path:
        """The configuration of tdefs, which says where the TPM is: tdefs takes no variable for that."""
        said = [
            f"{name}: '{value}'" for name, _, value in (one.partition("=") for one in self._environment()) if value
        ]
        path = self.root / "tdefs.yaml"
        path.write_text("\n".join(["version: 1", *(f"environment: {{{one}}}" for one in said), ""]))
        return path

    @property
    def _socket(self) -> Path:
        return self.root / "tpm.sock"

    def _environment(self) -> list[str]:
        if self._tpm is None and not (self.root / "tpm" / "tpm2-00.permall").exists():
            return ["-u", "TPM2TOOLS_TCTI"]
        return [f"TPM2TOOLS_TCTI=swtpm:path={self._socket}"]

"""``mount -t fuse.tdefs`` and lines in /etc/fstab, by the real mount(8), in a mount namespace of their own."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.children import needs_root
from tests.support.mounts import LET_GO_OF_OTHERS
from tests.support.processes import wait_until
from tests.support.terminal import Terminal
from tests.support.volume import TDEFS, Volume

pytestmark = needs_root

HELPER = TDEFS.with_name("mount.fuse.tdefs")
#: mount(8), "Exit status".
WRONG_USE, INTERRUPTED, FAILED = 1, 8, 32
#: What others write into fstab: for mount(8), systemd, and for the mount itself.
FOR_OTHERS = "defaults,_netdev,nofail,noauto,user,x-systemd.automount,x-systemd.requires=a.target,comment=x,atime"


class Host:
    """A namespace where /usr/sbin has the helper, linked as the documentation tells, and an fstab of its own."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.fstab = volume.root / "fstab"
        self.passphrase = volume.root / "pass phrase, and more"
        self.passphrase.write_text("correct horse\n")
        self.passphrase.chmod(0o600)
        unlock = ("--passphrase-file", self.passphrase, "--scrypt-cost", "14")
        volume.tdefs("init", volume.backing, *unlock, "--keystore", volume.keystore)
        programs = volume.root / "sbin"
        programs.mkdir()
        for path in Path("/usr/sbin").iterdir():
            (programs / path.name).symlink_to(volume.root / "real" / path.name)
        (programs / "mount.fuse.tdefs").unlink(missing_ok=True)
        (programs / "mount.fuse.tdefs").symlink_to(HELPER)
        (volume.root / "real").mkdir()
        real, link = shlex.quote(str(volume.root / "real")), shlex.quote(str(programs))
        script = f"""{LET_GO_OF_OTHERS}
            set -e; mount --bind /usr/sbin {real}; mount --bind {link} /usr/sbin
            touch {real}.ready; exec sleep 3000"""
        self._holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", script, "sh", volume.root], cwd="/")
        assert wait_until((volume.root / "real.ready").exists, 20)

    def words(self, *words: str | Path) -> list[str]:
        return ["nsenter", "-t", str(self._holder.pid), "-m", *map(str, words)]

    def run(self, *words: str | Path, code: int = 0) -> str:
        """Runs a command without a terminal on its input, and one that it could open."""
        log = self.volume.root / "said"
        with log.open("w") as output:
            done = subprocess.run(
                self.words(*words), stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=60, check=False
            )
        assert done.returncode == code, log.read_text()
        return log.read_text()

    def line(self, options: str) -> None:
        """Writes the fstab."""
        point = str(self.volume.mountpoint).replace(" ", r"\040")
        self.fstab.write_text(f"{self.volume.backing} {point} fuse.tdefs {options} 0 0\n")

    @property
    def secret(self) -> str:
        return f'passphrase-file="{self.passphrase}"'

    def options(self) -> set[str]:
        """Those that hold for the mount; none if there is none."""
        words = self.words("findmnt", "-n", "-o", "VFS-OPTIONS", "--mountpoint", self.volume.mountpoint)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return set(done.stdout.strip().split(",")) - {""}

    def close(self) -> None:
        subprocess.run(self.words(TDEFS, "umount", self.volume.mountpoint), capture_output=True, check=False)
        self._holder.kill()
        self._holder.wait()


@pytest.fixture
def host(volume: Volume) -> Iterator[Host]:
    for path in (volume.backing, volume.keystore):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    host = Host(volume)
    yield host
    host.close()


def test_mount_and_umount_by_a_line_in_fstab(host: Host) -> None:
    volume = host.volume
    host.line(f"{FOR_OTHERS},noexec,noatime,{host.secret.replace(' ', chr(92) + '040')},log-file={volume.log}")
    # by mount point, by source, and all at once, twice
    for words in ([volume.mountpoint], [volume.backing]):
        host.run("mount", "--fstab", host.fstab, *words)
        assert {"rw", "noexec", "noatime", "nosuid", "nodev"} <= host.options()
        host.run("sh", "-c", f"echo content >{shlex.quote(str(volume.mountpoint))}/file")
        host.run("umount", volume.mountpoint)
        assert wait_until(lambda: not volume.daemons, 20)
    host.fstab.write_text(host.fstab.read_text().replace("noauto,", ""))
    for _ in range(2):
        host.run("mount", "--fstab", host.fstab, "-a")
        assert len(volume.daemons) == 1
    assert "content" in host.run("cat", volume.mountpoint / "file")
    assert "mounted" in volume.log.read_text()
    # the kernel's part can be changed while it is mounted
    host.run("mount", "--fstab", host.fstab, "-o", "remount,ro", volume.mountpoint)
    assert "ro" in host.options()
    host.run(TDEFS, "umount", volume.mountpoint)


def test_mount_with_the_type_and_options_on_the_command_line(host: Host) -> None:
    volume = host.volume
    (volume.root / "policy.yaml").write_text("version: 1\n")
    config = volume.root / "tdefs.yaml"
    config.write_text(f"version: 1\nvolumes:\n  {volume.backing}:\n    passphrase_file: '{host.passphrase}'\n")
    given = f"config={config},keystore={volume.keystore},policy={volume.root}/policy.yaml,watchdog=600"
    host.run("mount", "-t", "fuse.tdefs", volume.backing, volume.mountpoint, "-o", f"ro,{given}")
    assert {"ro", "relatime"} <= host.options()
    status = host.run(TDEFS, "status", volume.mountpoint, "--json")
    assert '"read_only": true' in status
    assert '"watchdog": 600' in status
    host.run(TDEFS, "umount", volume.mountpoint)
    # what mount(8) may add: -n, -s, -v, -f
    said = host.run("mount", "-f", "-v", "-n", "-t", "fuse.tdefs", volume.backing, volume.mountpoint, "-o", given)
    assert host.options() == set(), said
    host.run("mount", "-s", "-t", "fuse.tdefs", volume.backing, volume.mountpoint, "-o", f"{given},strange=1")
    assert "rw" in host.options()


def test_failures_are_told_in_terms_of_mount_and_nothing_waits_for_an_answer(host: Host) -> None:
    volume = host.volume
    mount = ("mount", "-t", "fuse.tdefs", volume.backing, volume.mountpoint)
    said = host.run(*mount, code=FAILED)
    assert "there is no terminal to ask for the passphrase" in said
    assert "HINT" in said
    assert 'unknown option "strange"' in host.run(*mount, "-o", f"strange=1,{host.secret}", code=WRONG_USE)
    wrong = volume.root / "wrong"
    wrong.write_text("battery staple\n")
    assert "tdefs: wrong passphrase" in host.run(*mount, "-o", f"passphrase-file={wrong}", code=FAILED)
    assert "is not a tdefs volume" in host.run(
        "mount", "-t", "fuse.tdefs", volume.root / "sbin", volume.mountpoint, "-o", host.secret, code=FAILED
    )
    assert host.options() == set()
    # a terminal that a person could use is not asked on when the input is none, as at boot
    with Terminal(host.words("sh", "-c", f"{shlex.join(map(str, mount))} </dev/null")) as terminal:
        terminal.expect("there is no terminal")
        code, _ = terminal.end()
        assert code == FAILED
    # a person is asked
    with Terminal(host.words(*mount)) as terminal:
        terminal.expect("Passphrase: ")
        terminal.press("correct horse\n")
        code, _ = terminal.end()
        assert code == 0
    assert "rw" in host.options()
    assert os.listdir(volume.mountpoint) == []  # it is mounted in the namespace alone


def test_a_person_can_interrupt_the_question_for_the_passphrase(host: Host) -> None:
    with Terminal(host.words(HELPER, host.volume.backing, host.volume.mountpoint)) as terminal:
        terminal.expect("Passphrase: ")
        terminal.press("\x03")
        terminal.expect("interrupted")
        code, _ = terminal.end()
    assert code == INTERRUPTED
    assert "Traceback" not in terminal.shown


def test_an_interrupt_reaches_a_mount_without_a_terminal(volume: Volume) -> None:
    began = volume.root / "began"
    command = f"key-command=touch {shlex.quote(str(began))}; sleep 60"
    asked = subprocess.Popen(
        [HELPER, volume.backing, volume.mountpoint, "-o", command],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert wait_until(began.exists, 20)
    asked.send_signal(signal.SIGINT)
    _, said = asked.communicate(timeout=20)
    assert (asked.returncode, said) == (INTERRUPTED, "tdefs: interrupted\n")


def test_a_failed_mount_is_told_where_the_caller_ignores_the_ends_of_its_children(volume: Volume) -> None:
    done = subprocess.run(
        [HELPER, volume.root, volume.mountpoint],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        check=False,
    )
    assert done.returncode == FAILED, done.stderr

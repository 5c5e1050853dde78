"""README's commands for a cluster of one's own, on Debian's 15/main: encrypted as a whole, or as it was before."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdefs.volume.description import ROOTS_LOGS, log_name
from tests.support.children import needs_root
from tests.support.mounts import LET_GO_OF_OTHERS
from tests.support.processes import wait_until
from tests.support.terminal import Terminal
from tests.support.volume import TDEFS
from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slow, needs_root]

REPOSITORY = Path(__file__).parents[2]
#: Where Debian has them, and where they are on the mount.
PLAIN = Path("/var/lib/postgresql/15")
CLUSTERS = Path("/srv/postgresql/15")
CANARY = "nobody may find this on the disk"
PASSPHRASE = "correct horse battery staple"
#: A namespace's own directories; nothing of the machine's is seen or changed there.
OWN = ("/var/lib/postgresql", "/srv", "/var/log/postgresql", "/run/postgresql", "/etc")


def readme_commands() -> str:
    """What README tells to type for the cluster 15/main, word by word."""
    text = (REPOSITORY / "README.md").read_text()
    found = re.search(r"^Then, as root, with Debian's cluster 15/main.*?\n\n((?:    .*\n)+)", text, re.MULTILINE)
    assert found
    return re.sub(r"^    ", "", found[1], flags=re.MULTILINE)


class Debian:
    """A machine with one cluster, 15/main, in a mount namespace that lasts as long as this."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for path in OWN:
            own = self.own(path)
            own.parent.mkdir(parents=True, exist_ok=True)
            if path == "/etc":
                subprocess.run(["cp", "-a", path, own], check=True)
            else:
                own.mkdir()
                status = Path(path).stat()
                os.chown(own, status.st_uid, status.st_gid)
                own.chmod(status.st_mode & 0o7777)
        subprocess.run(["rm", "-rf", self.own("/etc") / "tdefs", self.own("/etc") / "postgresql/15"], check=True)
        (root / "bin").mkdir()
        self.use_tdefs(cheap=True)
        binds = "; ".join(f"mount --bind {shlex.quote(str(self.own(path)))} {path}" for path in OWN)
        script = f"{LET_GO_OF_OTHERS}\nset -e; {binds}; touch {shlex.quote(str(root))}/ready; exec sleep 3000"
        self._holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", script, "sh", root], cwd="/")
        assert wait_until((root / "ready").exists, 20)
        self.make_cluster()

    def make_cluster(self) -> None:
        self.run("pg_createcluster 15 main --start -o listen_addresses='' -- --wal-segsize=1")
        self.sql(f"CREATE TABLE t AS SELECT '{CANARY}' AS text, n FROM generate_series(1, 500) AS n")
        self.sql("CHECKPOINT")

    def use_tdefs(self, *, cheap: bool) -> None:
        """Choose what the command ``tdefs`` is.

        :param cheap: whether the passphrase of a new volume is one that is derived from within milliseconds
        """
        program = self.root / "bin" / "tdefs"
        program.unlink(missing_ok=True)
        if cheap:
            tdefs = shlex.quote(str(TDEFS))
            program.write_text(
                f'#!/bin/sh\n[ "$1" != init ] || exec {tdefs} "$@" --scrypt-cost 14\nexec {tdefs} "$@"\n'
            )
            program.chmod(0o755)
        else:
            program.symlink_to(TDEFS)

    def own(self, path: str) -> Path:
        """Where, seen from outside, a directory of the namespace lies."""
        return self.root / "own" / path.lstrip("/")

    def enter(self, script: str) -> list[str]:
        """The command that runs a script of an interactive shell's lines on this machine."""
        path = f"PATH={self.root}/bin:{os.environ['PATH']}"
        place = f"--wd={REPOSITORY}"
        return [
            "nsenter",
            "-t",
            str(self._holder.pid),
            "-m",
            place,
            "env",
            "-u",
            "PGHOST",
            path,
            "bash",
            "-c",
            script,
        ]

    def run(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs it without a terminal."""
        log = self.root / "said"
        with log.open("w") as output:  # not a pipe, which a server would keep open
            done = subprocess.run(
                self.enter(script),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=120,
                check=False,
            )
        said = log.read_text()
        assert not check or done.returncode == 0, f"{script}\n{said}"
        return subprocess.CompletedProcess(done.args, done.returncode, said, "")

    def sql(self, command: str) -> str:
        words = shlex.join(["runuser", "-u", "postgres", "--", "psql", "-XAtq", "-c", command])
        return self.run(words).stdout.strip()

    def is_encrypted(self) -> bool:
        return (
            self.run(f"findmnt --mountpoint {CLUSTERS} -n -o FSTYPE", check=False).stdout.strip() == "fuse.tdefs"
        )

    def in_the_clear(self) -> list[str]:
        """The directories of /var/lib/postgresql, and others of the machine, with a file that has the canary."""
        own = self.root / "own"
        found = subprocess.run(["grep", "-rlaF", CANARY, own], capture_output=True, text=True, check=False).stdout
        return sorted({"/".join(Path(line).relative_to(own).parts[:4]) for line in found.splitlines()})

    def fingerprint(self) -> dict[str, str]:
        """Every file of the stopped cluster, as it lies on the disk."""
        directory = self.own(str(PLAIN))
        return {
            str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else ""
            for path in directory.rglob("*")
        }

    def reset(self) -> None:
        """Takes away what a test has left beside the running cluster; and that, too, if it is encrypted."""
        if self.is_encrypted():
            self.stop()
            self.run(f"rm -rf {PLAIN} /etc/postgresql/15")
            self.make_cluster()
        self.run("rm -rf /srv/* /etc/tdefs")
        self.use_tdefs(cheap=True)

    def stop(self) -> None:
        self.run("for name in main other; do pg_ctlcluster 15 $name stop -m immediate; done", check=False)
        self.run(f"tdefs umount {CLUSTERS}", check=False)

    def close(self) -> None:
        self.stop()
        self._holder.kill()
        self._holder.wait()
        # of a path that is the machine's own only in there
        (ROOTS_LOGS / log_name(Path("/srv/tdefs/main"))).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def machine(workspace: Workspace) -> Iterator[Debian]:
    machine = Debian(workspace.directory("debian"))
    yield machine
    machine.close()


@pytest.fixture
def debian(machine: Debian) -> Debian:
    """The machine with its cluster running, in the clear, and nothing of tdefs's."""
    machine.reset()
    return machine


def follow_readme(debian: Debian, *entries: str) -> tuple[int, str]:
    """A person types what README says, and these as the passphrase whenever one is asked for."""
    with Terminal(debian.enter(readme_commands())) as terminal:
        for entry in entries:
            terminal.expect("(?i)passphrase[^\n]*: ")
            terminal.press(f"{entry}\n")
        code, echoes = terminal.end()
        assert echoes
        return code, terminal.shown


def check_untouched(debian: Debian, before: dict[str, str] | None = None) -> None:
    """Checks that nothing was copied in the clear, and that the old cluster is where it was, and runs."""
    assert debian.in_the_clear() == [str(PLAIN).lstrip("/")]
    assert not debian.is_encrypted()
    assert debian.run(f"ls {PLAIN.parent}").stdout.split() == ["15"]
    assert debian.run("ls /srv").stdout.split() in ([], ["tdefs"])
    assert debian.run("pg_conftool -s 15 main show data_directory").stdout.strip() == f"{PLAIN}/main"
    assert debian.run("ls /etc/postgresql/15/main/*.before-tdefs", check=False).returncode != 0
    if before is None:
        debian.run("pg_ctlcluster 15 main status")
    else:
        assert debian.fingerprint() == before
        debian.run("pg_ctlcluster 15 main start")
    assert debian.sql("SELECT count(*), min(text) FROM t") == f"500|{CANARY}"


@pytest.mark.parametrize(
    "entries", [["", ""], [PASSPHRASE, "another one"], [PASSPHRASE, PASSPHRASE, "another one"]],
    ids=["empty", "the entries differ", "wrong at the mount"],
)  # fmt: skip
def test_a_passphrase_that_is_refused_leaves_the_cluster_as_it_was(debian: Debian, entries: list[str]) -> None:
    code, shown = follow_readme(debian, *entries)
    assert code != 0, shown
    check_untouched(debian)


def test_a_mount_that_fails_leaves_the_cluster_as_it_was_and_the_command_can_be_said_again(debian: Debian) -> None:
    debian.run("pg_ctlcluster 15 main stop")
    before = debian.fingerprint()
    debian.run("mount --bind /dev/null /dev/fuse")
    code, shown = follow_readme(debian, *[PASSPHRASE] * 3)
    assert code != 0, shown
    check_untouched(debian, before)
    debian.run("umount /dev/fuse")

    # wrong at the second mount, when all is copied and the cluster stopped
    code, shown = follow_readme(debian, PASSPHRASE, "another one")
    assert code != 0, shown
    assert "as they were, in the clear" in shown
    check_untouched(debian)

    # killed when all is copied, and nothing is mounted
    with Terminal(debian.enter(f"exec {readme_commands()}")) as terminal:
        terminal.expect("Passphrase: ")
        terminal.press(f"{PASSPHRASE}\n")
        terminal.expect("copied")
        terminal.expect("Passphrase: ")
        os.killpg(terminal.job, signal.SIGKILL)
    assert debian.run("pg_ctlcluster 15 main status", check=False).returncode != 0
    code, shown = follow_readme(debian, *[PASSPHRASE] * 2)
    assert code == 0, shown
    assert debian.is_encrypted()
    assert debian.sql("SELECT count(*), min(text) FROM t") == f"500|{CANARY}"


def test_what_a_cluster_has_written_on_the_mount_is_never_put_back_to_what_was_before(debian: Debian) -> None:
    """Killed when a cluster runs there already: what clients were told is committed stays."""
    with Terminal(debian.enter(f"exec {readme_commands()}")) as terminal:
        for _ in range(4):
            terminal.expect("(?i)passphrase[^\n]*: ")
            terminal.press(f"{PASSPHRASE}\n")
        terminal.expect("compared")
        assert wait_until(lambda: debian.run("pg_isready", check=False).returncode == 0, 30)
        os.killpg(terminal.job, signal.SIGKILL)
    debian.sql("UPDATE t SET text = 'committed on the mount'")
    debian.run("pg_ctlcluster 15 main stop")
    said = debian.run(readme_commands()).stdout
    assert "already" in said
    assert debian.is_encrypted()
    assert debian.sql("SELECT count(*), min(text) FROM t") == "500|committed on the mount"


def test_the_readmes_commands_encrypt_debians_cluster_which_its_tools_then_rename_and_drop(debian: Debian) -> None:
    debian.use_tdefs(cheap=False)
    code, shown = follow_readme(debian, *[PASSPHRASE] * 4)
    assert code == 0, shown
    assert PASSPHRASE not in shown
    assert debian.is_encrypted()
    assert debian.sql("SELECT count(*), min(text) FROM t") == f"500|{CANARY}"
    assert debian.sql("SHOW data_directory") == f"{CLUSTERS}/main"
    # what lies on the disk in the clear is the old cluster alone, which it says how to wipe
    assert debian.in_the_clear() == [str(PLAIN).lstrip("/")]
    row = debian.run("pg_lsclusters -h").stdout.split()
    assert row[:2] + row[3:6] == ["15", "main", "online", "postgres", f"{CLUSTERS}/main"]
    wipe = re.search(r"^ +(runuser [^\r\n]* shred [^\r\n]*)", shown, re.MULTILINE)
    assert wipe
    debian.run(wipe[1].replace("shred -u", "rm"))  # quicker
    assert debian.in_the_clear() == []

    assert "already" in debian.run(readme_commands()).stdout
    debian.run("pg_renamecluster 15 main other")
    assert debian.sql("SHOW data_directory") == f"{CLUSTERS}/other"
    assert debian.sql("SELECT count(*) FROM t") == "500"
    debian.run("pg_ctlcluster 15 other stop; pg_dropcluster 15 other")
    assert debian.run(f"ls -A {CLUSTERS}").stdout == ""
    debian.run(f"pg_createcluster 15 main -d {CLUSTERS}/main -o listen_addresses=''")
    assert debian.is_encrypted()


def test_the_clusters_user_leads_nothing_of_what_root_does_elsewhere(debian: Debian) -> None:
    """Who owns the old files, the settings and then the mount may put links there while root is at work."""
    victim = debian.root / "victim"
    victim.write_text("root's own\n")
    victim.chmod(0o600)
    debian.run("touch /srv/got-in && chown postgres: /srv/got-in")
    as_postgres = "/usr/sbin/runuser -u postgres --"
    for command in ("cp", "rm"):
        # what the user tries whenever root is about to copy or to remove something
        wrapper = debian.root / "bin" / command
        wrapper.write_text(
            f"#!/bin/sh\n{as_postgres} sh -c 'test -d {CLUSTERS}/main && mkdir {CLUSTERS}/exchanged"
            f" && echo {command} >>/srv/got-in' 2>/dev/null\n"
            f'exec /bin/{command} "$@"\n'
        )
        wrapper.chmod(0o755)
    copy = "/etc/postgresql/15/main/postgresql.conf.before-tdefs"
    debian.run(f"{as_postgres} ln -s {victim} {copy}")
    debian.run(f"mkdir -p /etc/tdefs && (umask 77 && echo {'17' * 32} >/etc/tdefs/key)")
    try:
        said = debian.run("scripts/encrypt-cluster.sh 15 main -- --key-command 'cat /etc/tdefs/key'").stdout
    finally:
        for command in ("cp", "rm"):
            (debian.root / "bin" / command).unlink()
    assert debian.is_encrypted(), said
    status = victim.stat()
    assert (victim.read_text(), status.st_uid, status.st_mode & 0o7777) == ("root's own\n", 0, 0o600)
    # when it is the user's, everything has been copied and compared
    assert "cp" not in debian.run("cat /srv/got-in").stdout
    assert debian.run(f"stat -c %U {CLUSTERS}").stdout.strip() == "postgres"
    # the old files are wiped by who owns them: what leads out of them is not followed with root's rights
    wipe = re.search(r"^ +(runuser [^\r\n]* shred [^\r\n]*)", said, re.MULTILINE)
    assert wipe
    assert "-u postgres " in wipe[1]

"""The tests, and tdefs, lean on nothing that differs from one caller's surroundings to another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import is_alive, send, wait_until
from tests.support.signals import deaf
from tests.support.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]
SIGNALS = "SIGINT SIGQUIT SIGHUP SIGTERM SIGUSR1 SIGALRM SIGCHLD SIGTSTP SIGTTOU"
_SETTLE = f"""
import json, os, resource, signal, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from tests.support.surroundings import settle
settle()
umask = os.umask(0)
print(json.dumps({{
    "ignored": [int(n) for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN],
    "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    "interrupts": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "umask": umask,
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "environment": dict(os.environ),
}}))
"""


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_tests_set_what_they_need_of_their_surroundings(how: str) -> None:
    strange = {
        "PATH": "/usr/bin",
        "LC_ALL": "tr_TR.UTF-8",
        "LANG": "tr_TR.UTF-8",
        "TZ": "Pacific/Apia",
        "PGHOST": "/nowhere",
        "PGOPTIONS": "-c fsync=off",
        "TDEFS_LOG": "no",
        "TDEFS_TEST_WORK": "/var/tmp/w",
        "TMPDIR": "/var/tmp/a place",
        "SUDO_UID": "7",
        "VAULT_ADDR": "x",
        "PYTHONPATH": "/nowhere",
        "http_proxy": "http://192.0.2.1:3128",
        "TDEFS_CRASH_SEED": "1",
    }
    command = deaf(SIGNALS, [sys.executable, "-c", _SETTLE], how=how)
    shell = 'umask 077; ulimit -S -n 256; exec "$@"'
    done = subprocess.run(["sh", "-c", shell, "sh", *command], env=strange, capture_output=True, check=True)
    found = json.loads(done.stdout)
    # Python's own: writing to a closed pipe, and beyond the largest file, is an error to it
    assert set(found["ignored"]) <= {13, 25, 32, 33}
    assert found["blocked"] == []
    assert found["interrupts"]
    assert found["umask"] == 0o022
    assert found["files"] > 256
    environment = found["environment"]
    gone = {"LANG", "PGHOST", "PGOPTIONS", "TDEFS_LOG", "SUDO_UID", "VAULT_ADDR", "PYTHONPATH"}
    assert gone.isdisjoint(environment)
    assert (
        environment.items()
        >= {
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "TMPDIR": "/tmp",
            "TDEFS_TEST_WORK": "/var/tmp/w",
            "TDEFS_CRASH_SEED": "1",
            "http_proxy": "http://192.0.2.1:3128",
        }.items()
    )
    assert "127.0.0.1" in environment["no_proxy"]
    assert {"/usr/bin", "/usr/sbin", "/sbin"} <= set(environment["PATH"].split(":"))
    assert environment["HOME"]
    assert environment["USER"]


def test_this_run_has_them() -> None:
    ignored = int(Path("/proc/self/status").read_text().split("SigIgn:")[1].split()[0], 16)
    assert not ignored >> 1 & 1, "SIGHUP is ignored"  # the bit of a signal is its number less one
    assert (os.environ["LC_ALL"], os.environ["TZ"]) == ("C.UTF-8", "UTC")
    assert not [name for name in os.environ if name.startswith("PG")]


def in_shell(script: str, command: list[str]) -> list[str]:
    return ["sh", "-c", f'{script}; exec "$@"', "sh", *command]


@pytest.mark.parametrize(
    "surroundings",
    [
        pytest.param(
            in_shell("umask 0777", deaf(SIGNALS, [])), id="signals are ignored, and the umask forbids everything"
        ),
        pytest.param(
            in_shell("umask 0", deaf(SIGNALS, [], how="blocked")),
            id="signals are blocked, and the umask forbids nothing",
        ),
        pytest.param(["env", "-i"], id="no environment"),
        pytest.param(
            [
                "env",
                "LC_ALL=tr_TR.UTF-8",
                "LANG=tr_TR.UTF-8",
                "TZ=Pacific/Apia",
                "all_proxy=x",
                "TMPDIR=/no where",
            ],
            id="Turkish, a time zone that skipped a day, a proxy, no place for files",
        ),
        pytest.param(
            in_shell("ulimit -S -n 64; ulimit -c 0; export LC_ALL=no_SUCH.Thing TZ=no/such", ["nice", "nohup"]),
            id="few open files, a low priority, nohup, no such language or time zone",
        ),
    ],
)
def test_a_volume_lives_its_whole_life_in_any_surroundings(surroundings: list[str], scratch: Workspace) -> None:
    volume = scratch.volume()
    volume.program = [*surroundings, *volume.program]
    volume.init()
    volume.mount()
    content = os.urandom(100_000)
    (volume.mountpoint / "çöğüşı İ.txt").write_bytes(content)
    assert volume.status()["requests"]["create"] == 1
    volume.umount()
    volume.mount()
    assert (volume.mountpoint / "çöğüşı İ.txt").read_bytes() == content
    (daemon,) = volume.daemons
    # what a caller blocks or ignores does not keep the daemon from ending when it is told to
    send(daemon, signal.SIGTERM)
    assert wait_until(lambda: not is_alive(daemon), 30)
    assert volume.complaints() == []
    assert volume.tdefs("verify", volume.backing, *volume.unlock, check=False).returncode == 0

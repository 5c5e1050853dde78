"""What is in memory is kept out of swap before there is a secret in it, in every process that gets one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.keysources.soft_token import compiled_module
from tests.support.children import needs_root
from tests.support.volume import LIMIT, TDEFS, Volume

pytestmark = needs_root


def locked_kilobytes(pid: int | str) -> int:
    return kilobytes(Path(f"/proc/{pid}/status").read_text())


def kilobytes(status: str) -> int:
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["VmLck"].split()[0])


@pytest.fixture(autouse=True, scope="module")
def host_that_grants_it() -> None:
    words = [sys.executable, "-c", "from tdefs.host import lock_memory; print(lock_memory())"]
    if subprocess.run(words, check=True, capture_output=True, text=True).stdout == "False\n":
        pytest.skip("this host grants no locked memory, not even to root")


COMMANDS = {
    "mount": ["mount", "BACKING", "MOUNTPOINT"],
    "mount --foreground": ["mount", "--foreground", "BACKING", "MOUNTPOINT"],
    "key verify": ["key", "verify", "--volume", "BACKING"],
    "key rotate": ["key", "rotate", "dk_1", "--volume", "BACKING"],
    "verify": ["verify", "BACKING"],
    "cat": ["cat", "file", "--volume", "BACKING"],
    "protector remove": ["protector", "remove", "pr_1", "--volume", "BACKING"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_memory_is_locked_before_a_command_asks_for_a_secret(volume: Volume, name: str) -> None:
    places = {"BACKING": str(volume.backing), "MOUNTPOINT": str(volume.mountpoint)}
    words = [places.get(word, word) for word in COMMANDS[name]]
    said = volume.root / "status"
    # wrong at the end: what the command does with the right one is the affair of other tests
    command = f"cat /proc/$PPID/status >'{said}'; false"
    done = volume.tdefs(*words, "--key-command", command, check=False)
    assert said.exists(), done.stderr
    assert kilobytes(said.read_text()) > 1024


def test_memory_is_locked_before_init_makes_keys(volume: Volume) -> None:
    said = volume.root / "status"
    words = ["init", volume.root / "new", "--keystore", volume.root / "new keystore"]
    command = f"cat /proc/$PPID/status >'{said}'; cat '{volume.key_file}'"
    volume.tdefs(*map(str, words), "--key-command", command)
    assert kilobytes(said.read_text()) > 1024


def test_memory_of_the_daemon_is_locked_though_a_fork_undoes_it(volume: Volume) -> None:
    volume.mount()
    (daemon,) = volume.daemons
    assert locked_kilobytes(daemon) > 1024
    volume.umount()


def test_memory_of_the_process_with_a_tokens_module_is_locked(volume: Volume, tmp_path: Path) -> None:
    """It has the PIN, and gets the key from the token."""
    said = tmp_path / "status"
    body = f"""
        static char text[65536];
        FILE *from = fopen("/proc/self/status", "r"), *to = fopen("{said}", "w");
        fwrite(text, 1, fread(text, 1, sizeof text, from), to);
        fclose(to);
    """
    module = compiled_module(tmp_path, "looking", body)
    pin = tmp_path / "pin"
    pin.touch(0o600)
    pin.write_text("1234\n")
    config = tmp_path / "tdefs.yaml"
    config.write_text(
        "version: 1\nkey_sources:\n  hsm:\n    kind: pkcs11\n    token_label: none\n    key_label: none\n"
        f"    module: {module}\n    pin_file: {pin}\n    patience_seconds: 0\n"
    )
    subprocess.run(
        [TDEFS, "key-source", "test", "hsm", "--config", config],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    assert kilobytes(said.read_text()) > 1024

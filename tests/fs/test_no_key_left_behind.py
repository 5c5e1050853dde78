"""After a whole life of a volume, errors and crashes included, no key is anywhere but in memory.

Searched are: all that commands print; logs; arguments and environment of every process while it runs; the backing
directory with ``.tdefs``, the keystore's directory and the one for temporary files; the system's own logs.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.fs import breaking_tdefs
from tests.fs.life import LIMIT, Life
from tests.support.children import in_child, needs_root
from tests.support.mounts import detach
from tests.support.processes import is_alive, wait_until
from tests.support.workspace import Workspace

_CODE = re.compile(r"(?:[0-9A-Z]{6}-){6}[0-9A-Z]{6}")


@pytest.fixture
def life(scratch: Workspace) -> Life:
    volume = scratch.volume("life")
    volume.program = [sys.executable, breaking_tdefs.__file__]
    return Life(volume)


def recovery_code(text: str) -> str:
    (code,) = _CODE.findall(text)
    return str(code)


def live(life: Life) -> list[Path]:
    """Everything that happens to a volume; returns the outputs in which a recovery code was printed."""
    volume, started = life.volume, len(life.processes)
    cheap = ("--scrypt-cost", "14")
    secret = ("--passphrase-file", life.passphrase, *cheap)
    life.run("init", volume.backing, "--keystore", volume.keystore, *secret)
    life.learn_keys()
    life.mount()
    directory = volume.mountpoint / "base" / "5"
    directory.mkdir(parents=True)
    for number in range(5):
        (directory / str(16384 + number)).write_bytes(os.urandom(20000))

    for words in (("key", "rotate", "dk_1"), ("key", "rotate-master")):
        life.on(*words)
        life.learn_keys()
        (directory / f"after-{words[1]}").write_bytes(b"content")
    changed = life.new_secret("changed passphrase")
    life.on("protector", "change", "pr_1", "--new-passphrase-file", changed, *cheap)
    life.passphrase = changed
    life.on("protector", "add", "--recovery-code", "--label", "safe")
    (printed,) = (path for path in life.printed.iterdir() if _CODE.search(path.read_text()))
    code = recovery_code(printed.read_text())
    life.keys.add_text("recovery code", code)
    life.keys.add_text("recovery code without dashes", code.replace("-", ""))
    life.learn_keys()

    fail_to_unlock(life, code)
    life.keys.add_files(volume.backing, volume.keystore, life.protector)
    look_at_everything(life)
    with pytest.raises(OSError, match="Input/output"):
        (volume.mountpoint / "broken-key").write_bytes(b"x")
    life.look_at(life.daemon)
    assert "ValueError: a file id has 16 bytes, not 15" in volume.log.read_text()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        (volume.mountpoint / "broken-mount").stat()
    assert wait_until(lambda: not is_alive(life.daemon), LIMIT)
    assert "RuntimeError: KeyRing(" in volume.log.read_text()
    assert len(life.processes) - started > 12
    return [printed]


def fail_to_unlock(life: Life, code: str) -> None:
    """Secrets that are wrong, and right ones that come in a wrong way: a message could quote them."""
    key = secrets.token_bytes(32)
    life.keys.add_key("key of a command", key)
    files = {
        "wrong": life.new_secret("wrong passphrase").read_text(),
        "mistyped": code[:-1] + ("0" if code[-1] != "0" else "2"),
        "no digits": key.hex()[:-2] + "zz",
        "right": key.hex(),
    }
    for name, text in files.items():
        (life.held / name).write_text(text)

    def command(name: str, more: str = "") -> tuple[str, str]:
        return "--key-command", f"cat '{life.held / name}'{more}"

    life.on("key", "verify", secret=("--passphrase-file", life.held / "wrong"), code=Exit.WRONG_SECRET)
    mistyped = ("--recovery-code-file", life.held / "mistyped")
    life.on("key", "verify", secret=mistyped, code=Exit.RECOVERY_CODE_MISTYPED)
    words = ("protector", "add", "--new-key-command")
    for name, more in (("no digits", ""), ("right", "; exit 3"), ("right", " >&2")):
        life.on(*words, command(name, more)[1], code=Exit.KEY_COMMAND_FAILED)
    life.on(*words, command("right")[1])
    life.learn_keys()
    life.on("protector", "test", secret=command("right"))


def look_at_everything(life: Life) -> None:
    """All commands that show something of keys, files or the volume."""
    backing = life.volume.backing
    life.on("key", "verify")
    life.on("key", "history")
    life.run("status", life.volume.mountpoint, "--json")
    life.run(
        "cat",
        "base/5/16384",
        "--volume",
        backing,
        "--passphrase-file",
        life.held / "wrong",
        code=Exit.WRONG_SECRET,
    )


def system_logs(since: float) -> bytes:
    """What the journal and the files in /var/log have got since then."""
    done = subprocess.run(
        ["journalctl", "--no-pager", "--quiet", "--output=export", f"--since=@{int(since)}"],
        capture_output=True,
        check=False,
    )
    files = [path for path in Path("/var/log").rglob("*") if path.is_file() and path.stat().st_mtime >= since]
    return b"\n".join([done.stdout, *(path.read_bytes() for path in files)])


@needs_root
def test_no_key_is_found_after_a_whole_life(life: Life) -> None:
    began = time.time()
    volume = life.volume
    printed = live(life)

    # a mount in the foreground that dies of a signal which would dump core
    process = life.mount_in_foreground()
    life.look_at(process.pid)
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
    assert (volume.mountpoint / "after-rotate").parent.is_dir()
    with pytest.raises(PermissionError):
        in_child(lambda: Path(f"/proc/{process.pid}/mem").open("rb").close(), uid=65534)
    process.send_signal(signal.SIGABRT)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -signal.SIGABRT
    assert os.WTERMSIG(status) == signal.SIGABRT
    assert not os.WCOREDUMP(status)
    detach(volume.mountpoint)

    for path in printed:
        text = path.read_text()
        assert len(_CODE.findall(text)) == 1
        path.write_text(_CODE.sub("", text))
    assert len(life.keys.names) > 20, life.keys.names
    assert life.keys.found_below(volume.root, life.held) == {}
    assert life.keys.found_in(b"\n".join(life.processes.values())) == set()
    assert life.keys.found_in(system_logs(began)) == set()
    print(
        f"searched for {len(life.keys.names)} keys and secrets in {len(life.processes)} processes, "
        f"{len(list(life.printed.iterdir()))} outputs, the log, the history, .tdefs, the system's logs: none"
    )


@pytest.mark.parametrize(
    "shown",
    [
        bytes,
        lambda key: key[4:20],
        lambda key: key.hex().encode(),
        lambda key: key.hex().upper()[9:50].encode(),
        lambda key: base64.b64encode(key),
        lambda key: base64.b64encode(b"x" + key),
        lambda key: base64.urlsafe_b64encode(b"xy" + key).lower(),
        lambda key: repr(key).encode(),
        lambda key: str(list(key)).encode(),
    ],
    ids=["raw", "half", "hex", "HEX", "base64", "base64+1", "base64+2", "repr", "list"],
)
def test_search_finds_a_key_that_is_there(life: Life, shown: object) -> None:
    assert callable(shown)
    key = secrets.token_bytes(32)
    life.keys.add_key("planted", key)
    life.keys.add_key("another", secrets.token_bytes(32))
    log = life.volume.root / "some.log"
    log.write_bytes(b"2026-01-01 DEBUG tdefs: before " + shown(key) + b" after\n")
    assert life.keys.found_below(life.volume.root, life.held) == {str(log): {"planted"}}
    log.write_bytes(b"nothing")
    assert life.keys.found_below(life.volume.root, life.held) == {}

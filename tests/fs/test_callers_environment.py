"""Nothing that a caller's environment holds changes what tdefs loads, what it runs, or where it writes.

Covers tdefs/cli/launcher.c.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fs.hostile import Surroundings
from tests.support.children import needs_root
from tests.support.volume import LIMIT, TDEFS, Volume
from tests.support.workspace import Workspace

PASSED_ON = {
    *("TERM", "LANG", "LANGUAGE", "COLUMNS", "LINES", "TZ", "PATH"),
    *("NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "INVOCATION_ID", "JOURNAL_STREAM", "SUDO_UID"),
}
SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Each of these, alone, left a mark on a tdefs that was a script of Python, or kept it from starting.
HARMFUL = (
    *("LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "LD_DEBUG_OUTPUT", "OPENSSL_CONF", "PATH"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONPYCACHEPREFIX", "PYTHONWARNINGS", "PYTHONVERBOSE"),
)


@pytest.fixture
def surroundings(scratch: Workspace) -> Surroundings:
    return Surroundings(scratch.directory("hostile"))


def run(surroundings: Surroundings, *words: str | Path, names: tuple[str, ...] = ()) -> str:
    """Runs a command where everything is planted; it must succeed, and say nothing that it would not say else."""
    done = subprocess.run(
        [str(word) for word in words],
        env={**surroundings.environment(*names), **({"LD_DEBUG": "all"} if "LD_DEBUG_OUTPUT" in names else {})},
        cwd=surroundings.modules,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{words}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("name", HARMFUL)
def test_no_variable_of_the_caller_gets_anything_loaded_run_or_written(
    volume: Volume, surroundings: Surroundings, name: str
) -> None:
    said = run(surroundings, TDEFS, "key", "list", "--volume", volume.backing, "--json", names=(name,))
    assert json.loads(said)
    run(surroundings, TDEFS, "key", "verify", "--volume", volume.backing, *volume.unlock, names=(name,))
    assert surroundings.found_marks() == []


def loaded_files(pid: int) -> set[str]:
    """The files that are mapped into a process."""
    lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}


@needs_root
@pytest.mark.parametrize("by_mount_8", [False, True], ids=["tdefs mount", "mount -t fuse.tdefs"])
def test_a_daemon_of_root_has_nothing_of_the_callers_environment(
    volume: Volume, surroundings: Surroundings, by_mount_8: bool
) -> None:
    if by_mount_8:
        helper = TDEFS.with_name("mount.fuse.tdefs")
        options = ",".join([f'key-command="cat {volume.key_file}"', f"log-file={volume.log}"])
        run(surroundings, helper, volume.backing, volume.mountpoint, "-o", options)
    else:
        words: list[str | Path] = [*volume.unlock, "--log-file", volume.log]
        run(surroundings, TDEFS, "mount", volume.backing, volume.mountpoint, *words)
    (daemon,) = volume.daemons
    assert Path(f"/proc/{daemon}/comm").read_text() == "tdefs\n", "which is what ps and the kernel's log show"
    (volume.mountpoint / "file").write_bytes(b"content" * 5000)
    environment = dict(
        variable.decode(errors="replace").split("=", 1)
        for variable in Path(f"/proc/{daemon}/environ").read_bytes().split(b"\0")
        if variable
    )
    assert {name for name in environment if not name.startswith("LC_")} <= PASSED_ON
    assert environment["PATH"] == SAFE_PATH
    assert not [value for value in environment.values() if str(surroundings.root) in value]
    assert not [path for path in loaded_files(daemon) if str(surroundings.root) in path]
    volume.umount()
    assert surroundings.found_marks() == []


def test_what_systemd_sudo_and_a_terminal_say_is_passed_on_if_it_names_no_file_elsewhere(volume: Volume) -> None:
    given = {
        "TERM": "xterm-256color",
        "LANG": "de_DE.UTF-8",
        "LC_TIME": "C.UTF-8",
        "TZ": "Europe/Berlin",
        "INVOCATION_ID": "0123456789abcdef",
        "JOURNAL_STREAM": "9:1234",
        "SUDO_UID": "0",
        "CREDENTIALS_DIRECTORY": "/run/credentials/tdefs@a\\x2db.service",
    }
    assert given.items() <= environment_of_key_command(volume, given).items()
    of_harmful_values = {"TERM": "/x", "LANG": "../x", "LC_TIME": "/x", "TZ": "../x", "JOURNAL_STREAM": "$(x)"}
    of_no_meaning = {"INVOCATION_ID": "a b", "SUDO_UID": "1\n", "LC_": "C", "LC_x": "C", "LANGX": "C"}
    refused = of_harmful_values | of_no_meaning
    assert not refused.keys() & environment_of_key_command(volume, refused).keys()


def environment_of_key_command(volume: Volume, given: dict[str, str]) -> dict[str, str]:
    """What the key command gets where tdefs is called with a given environment."""
    said = volume.root / "environment"
    command = f"env -0 >'{said}'; cat '{volume.key_file}'"
    words: list[str | Path] = [TDEFS, "key", "verify", "--volume", volume.backing, "--key-command", command]
    subprocess.run(words, env=given, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=True)
    return dict(variable.split("=", 1) for variable in said.read_text().split("\0") if variable)


def test_a_key_command_has_a_safe_path_the_home_of_its_user_and_nothing_of_the_caller(
    volume: Volume, surroundings: Surroundings
) -> None:
    user = pwd.getpwuid(os.geteuid())
    found = environment_of_key_command(volume, {**surroundings.variables, "NOTIFY_SOCKET": "/nonexistent"})
    # which Python and the shell add
    assert found.pop("LC_CTYPE", "C.UTF-8") == "C.UTF-8"
    found.pop("PWD", None)
    assert found == {
        "PATH": SAFE_PATH,
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": "/bin/sh",
    }


def test_variables_for_key_commands_stand_in_the_configuration(volume: Volume) -> None:
    config = volume.root / "tdefs.yaml"
    config.write_text(f"version: 1\nenvironment: {{KEY_FILE: '{volume.key_file}'}}\n")
    words: list[str | Path] = ["key", "verify", "--volume", volume.backing, "--key-command", 'cat "$KEY_FILE"']
    volume.tdefs(*words, "--config", config)
    assert volume.tdefs(*words, check=False).returncode != 0
    config.write_text("version: 1\nenvironment: {AWS_SECRET_ACCESS_KEY: abcdefgh}\n")
    refused = volume.tdefs(*words, "--config", config, check=False).stderr
    assert "must not stand in the configuration" in refused
    assert "abcdefgh" not in refused


def test_the_commands_work_in_a_directory_with_spaces_and_through_links(scratch: Workspace) -> None:
    place = scratch.directory("links")
    home = place / "of tdefs" / "bin"
    home.mkdir(parents=True)
    shutil.copy(TDEFS, home)
    (home / "python3").write_text(f"#!/bin/sh\nexec '{TDEFS.with_name('python3')}' \"$@\"\n")
    (home / "python3").chmod(0o755)
    (place / "sbin").mkdir()
    (place / "sbin" / "other name").symlink_to("../of tdefs/bin/tdefs")
    link = place / "link"
    link.symlink_to(place / "sbin" / "other name")
    said = subprocess.run([link, "--version"], cwd="/", env={}, capture_output=True, text=True, check=False)
    assert said.stdout.startswith("tdefs "), said.stderr
    (home / "python3").unlink()
    gone = subprocess.run([link, "--version"], cwd="/", env={}, capture_output=True, text=True, check=False)
    assert gone.returncode == 50
    assert "HINT" in gone.stderr

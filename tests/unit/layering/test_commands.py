"""The commands: each is found, and loads only what it needs."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pkgutil import walk_packages

import pytest

import tdefs.cli
from tdefs.cli.main import COMMANDS, build_parser

#: The modules that are commands.
MODULES = {
    module.name.removeprefix("tdefs.cli.")
    for module in walk_packages(tdefs.cli.__path__, "tdefs.cli.")
    if hasattr(import_module(module.name), "register")
}


def test_every_command_is_in_the_help() -> None:
    assert set(COMMANDS.values()) == MODULES
    listed = [line.split()[0] for line in build_parser().format_help().splitlines() if line.startswith("    ")]
    assert set(COMMANDS) <= set(listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser(command).parse_args([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: tdefs {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "umount", "key", "protector"])
def test_who_asks_the_daemon_does_not_load_what_it_runs_on(command: str) -> None:
    code = f"import sys; from tdefs.cli.main import build_parser; build_parser({command!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert {"trio", "pyfuse3", "tabulate"}.isdisjoint(done.stdout.split())

"""A new passphrase is expensive to guess unless a person says otherwise. The option --scrypt-cost."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.keystore.file import load_keystore
from tests.support.volume import TDEFS


def tdefs(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TDEFS, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("cost", [14, 17])
def test_a_lower_cost_is_stored_with_a_warning(tmp_path: Path, cost: int) -> None:
    secret = written(tmp_path / "secret", "correct horse\n")
    keystore = tmp_path / "keystore"
    chosen = ("--passphrase-file", secret, "--scrypt-cost", str(cost), "--keystore", keystore)
    made = tdefs("init", tmp_path / "volume", *chosen)
    assert made.returncode == Exit.OK
    assert made.stderr.count(f"a passphrase of cost {cost} is {1 << 20 - cost} times easier to guess") == 1
    place = ("--volume", tmp_path / "volume", "--passphrase-file", secret)
    added = tdefs("protector", "add", *place, "--new-passphrase-file", secret, "--scrypt-cost", str(cost))
    assert (added.returncode, added.stderr.count("easier to guess")) == (Exit.OK, 1)
    costs = [(entry.params["n"], entry.params["r"], entry.params["p"]) for entry in entries(keystore)]
    assert costs == [(1 << cost, 8, 1)] * 2
    assert not tdefs("key", "verify", *place).stderr


def test_without_a_choice_it_takes_a_gibibyte_and_no_warning(tmp_path: Path) -> None:
    secret = written(tmp_path / "secret", "correct horse\n")
    keystore = tmp_path / "keystore"
    made = tdefs("init", tmp_path / "volume", "--passphrase-file", secret, "--keystore", keystore)
    assert (made.returncode, made.stderr) == (Exit.OK, "")
    assert [entry.params["n"] for entry in entries(keystore)] == [1 << 20]


@pytest.mark.parametrize("cost", ["13", "22", "-1", "1e1", "٣", ""])
def test_a_cost_that_is_none_is_a_mistake_in_the_command_line(tmp_path: Path, cost: str) -> None:
    made = tdefs("init", tmp_path / "volume", f"--scrypt-cost={cost}")
    assert made.returncode == Exit.USAGE
    assert "the cost is a number from 14 to 21" in made.stderr


@pytest.mark.parametrize(("text", "code"), [("elevenbytes", 29), ("elevenbytes\n", 29), ("zwölfbytes\n", 29)])
def test_a_new_passphrase_of_fewer_than_12_bytes_is_refused(tmp_path: Path, text: str, code: int) -> None:
    secret = written(tmp_path / "secret", text)
    made = tdefs("init", tmp_path / "volume", "--passphrase-file", secret, "--scrypt-cost", "14")
    assert made.returncode == code == Exit.PASSPHRASE_TOO_SHORT
    assert "at least 12 bytes" in made.stderr
    assert "HINT:" in made.stderr
    assert not (tmp_path / "volume").exists()


def test_a_new_passphrase_of_12_bytes_is_taken(tmp_path: Path) -> None:
    secret = written(tmp_path / "secret", "zwölf bytes\n")
    made = tdefs("init", tmp_path / "volume", "--passphrase-file", secret, "--scrypt-cost", "14")
    assert made.returncode == Exit.OK


def entries(keystore: Path) -> tuple[ProtectorEntry, ...]:
    return load_keystore(keystore).document.protectors

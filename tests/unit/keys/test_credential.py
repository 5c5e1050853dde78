"""Passphrases that systemd hands to a unit, and files that others can read.

Covers tdefs/keys/private_files.py. The variable and the directory are set as systemd.exec(5) says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.parsing import build
from tdefs.cli.common.secret_options import SecretOptions, add_secret
from tdefs.cli.common.terminal import warn
from tdefs.errors import Exit, TdefsError
from tdefs.keys.private_files import credential_path, read_passphrase_credential, read_passphrase_file


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The directory of a unit's credentials."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    return tmp_path


def refusal(name: str) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        read_passphrase_credential(name)
    assert caught.value.exit_code is Exit.NO_SECRET
    return caught.value


def test_a_credential_is_read_less_one_newline_and_without_a_warning(
    unit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (unit / "pg.main-1").write_bytes(b"correct horse\n\n")
    # systemd grants the unit's user by an ACL, which shows in the mode of the group
    (unit / "pg.main-1").chmod(0o440)
    assert read_passphrase_credential("pg.main-1") == b"correct horse\n"
    assert capsys.readouterr().err == ""


def test_outside_of_a_unit_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    error = refusal("pg")
    assert "this process was given none" in error.message
    assert "LoadCredential=pg:FILE" in error.hint


def test_a_credential_that_the_unit_does_not_load_is_named(unit: Path) -> None:
    error = refusal("pg")
    assert error.message == 'the unit has no credential "pg"'
    assert str(unit / "pg") in error.detail


@pytest.mark.parametrize("name", ["", ".", "..", "../shadow", "/etc/shadow", "a:b", "a b", "é", "x" * 256])
def test_a_name_cannot_lead_elsewhere(unit: Path, name: str) -> None:
    assert "is not the name of a credential" in refusal(name).message


def test_the_option_excludes_the_others_and_counts_as_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_secret(parser, recovery=True)
    for words, given in (
        (["--passphrase-credential", "pg"], True),
        (["--auto-open"], True),
        (["--ask-passphrase"], True),
        ([], False),
    ):
        assert build(SecretOptions, vars(parser.parse_args(words)), Invocation()).is_given is given
    with pytest.raises(SystemExit):
        parser.parse_args(["--passphrase-credential", "pg", "--auto-open"])
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_passphrase_file_that_others_can_read_gets_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: int, warns: bool
) -> None:
    path = tmp_path / "a passphrase"
    path.write_text("correct horse\n")
    path.chmod(mode)
    assert read_passphrase_file(path, warn) == b"correct horse"
    said = capsys.readouterr().err
    assert ("can be read by other users" in said) == warns
    assert (f"chmod 600 '{path}'" in said) == warns
    assert "correct" not in said


def test_the_path_is_that_of_the_unit(unit: Path) -> None:
    (unit / "pg").touch()
    assert credential_path("pg") == unit / "pg"

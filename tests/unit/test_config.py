"""What the configuration file may say. Covers tdefs/config.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdefs import config
from tdefs.config import Config, VolumeConfig, load_config, parse_config
from tdefs.errors import Exit, TdefsError

CONF = Path(__file__).parents[2] / "conf"


def refusal(text: str) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        parse_config(text.encode(), Path("t.yaml"))
    assert caught.value.exit_code is Exit.CONFIG_INVALID
    return caught.value


def test_the_sample_configuration_is_valid() -> None:
    volume = load_config(CONF / "tdefs.yaml").for_backing(Path("/srv/tdefs/main"))
    assert volume.mountpoint == Path("/srv/postgresql/15")
    assert volume.passphrase_file == Path("/etc/tdefs/main.passphrase")
    assert volume.key_command is None
    assert volume.watchdog == 60
    assert volume.tampering == "refuse"


def test_no_configuration_file_is_an_empty_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none.yaml")
    assert load_config() == Config()
    assert load_config().for_backing(Path("/srv/x")) == VolumeConfig()


def test_the_default_file_is_read_if_it_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "tdefs.yaml"
    path.write_text("version: 1\nlog_level: debug\n")
    monkeypatch.setattr(config, "DEFAULT_PATH", path)
    assert load_config() == Config("debug", source=path)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(TdefsError, match="could not read configuration file") as caught:
        load_config(tmp_path / "none.yaml")
    assert caught.value.exit_code is Exit.CONFIG_INVALID


def test_a_file_that_everyone_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tdefs.yaml"
    path.write_text("version: 1\n")
    path.chmod(0o666)
    with pytest.raises(TdefsError, match="others could change"):
        load_config(path)


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("A-B: c", "the name of a variable is of letters"),
        ("'': c", "the name of a variable is of letters"),
        ("AWS_SECRET_ACCESS_KEY: hunter2", "AWS_SECRET_ACCESS_KEY holds a secret"),
        ("AWS_SESSION_TOKEN: hunter2", "AWS_SESSION_TOKEN holds a secret"),
        ("DB_PASSWORD: hunter2", "DB_PASSWORD holds a secret"),
        ("token_pin: hunter2", "token_pin holds a secret"),
        ('A: "hunter2\\0"', "characters that no variable can hold"),
        ('A: "hunter2\\ud800"', "characters that no variable can hold"),
        ("A: [b]", "must be a single value"),
    ],
)
def test_a_wrong_variable_is_refused_and_its_value_not_shown(variable: str, said: str) -> None:
    error = refusal(f"version: 1\nenvironment:\n  {variable}\n")
    assert said in error.message
    assert "hunter2" not in error.render()


def test_variables_reach_libraries_and_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "tdefs.yaml"
    names = {
        "AWS_SHARED_CREDENTIALS_FILE": "/a",
        "TDEFS_PIV_PIN_FILE": "/b",
        "PINENTRY": "c",
        "AWS_PROFILE": "d=e f",
    }
    path.write_text("version: 1\nenvironment:\n" + "".join(f"  {name}: {names[name]}\n" for name in names))
    for name in names:
        monkeypatch.setenv(name, "the caller's")
    load_config(path)
    assert names.items() <= os.environ.items()


def test_a_volume_is_found_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    text = f"version: 1\nvolumes:\n  {tmp_path}/link:\n    key_command: fetch --key 'a b'\n"
    found = parse_config(text.encode(), Path("t.yaml")).for_backing(tmp_path / "real")
    assert found.key_command == "fetch --key 'a b'"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "t.yaml:1: the file is empty"),
        ("volumes: {}", 't.yaml:1: the field "version" is missing'),
        ("version: 1\nlog_level: loud", "t.yaml:2: log_level must be one of debug, info, warning, error"),
        ("version: 1\nlog_level: [info]", "t.yaml:2: log_level must be a single value"),
        ("version: 1\nvolume: {}", 't.yaml:2: unknown field "volume" in the configuration'),
        ("version: 1\nvolumes: []", "t.yaml:2: volumes must be backing directories"),
        ("version: 1\nvolumes:\n  srv: {}", 't.yaml:3: the backing directory "srv" is not an absolute path'),
        ("version: 1\nvolumes:\n  /a: {}\n  /a: {}", 't.yaml:4: duplicate field "/a", first on line 3'),
        ("version: 1\nvolumes:\n  /a:\n    policy: p", "t.yaml:4: policy must be an absolute path"),
        (
            "version: 1\nvolumes:\n  /a:\n    host_key_directory: keys",
            "t.yaml:4: host_key_directory must be an absolute path",
        ),
        (
            "version: 1\nvolumes:\n  /a:\n    watchdog: 1m",
            "t.yaml:4: watchdog must be a whole number of seconds from 0 (none) to 86400",
        ),
        ("version: 1\nvolumes:\n  /a:\n    watchdog: 86401", "t.yaml:4: watchdog must be a whole number"),
        ("version: 1\nvolumes:\n  /a:\n    watchdog:", "t.yaml:4: watchdog must be a single value"),
        ("version: 1\nvolumes:\n  /a:\n    tampering: ignore", "t.yaml:4: tampering must be refuse or report"),
        (
            "version: 1\nvolumes:\n  /a:\n    passphrase_credential: c\n    key_source: s",
            't.yaml:5: the volume "/a" has both passphrase_credential and key_source',
        ),
        ("version: 1\nvolumes:\n  /a:\n    policy:", "t.yaml:4: policy must be a single value"),
        ("version: 1\nvolumes:\n  /a:\n    options: [ro, 'a,b']", "t.yaml:4: an item of options must be"),
        ("version: 1\nvolumes:\n  /a:\n    options: ro", "t.yaml:4: options must be a list"),
        (
            "version: 1\nvolumes:\n  /a:\n    passphrase_file: /p\n    key_command: c",
            't.yaml:5: the volume "/a" has both passphrase_file and key_command',
        ),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_line(text: str, expected: str) -> None:
    assert refusal(text).message.startswith(expected)


@pytest.mark.parametrize(
    "fields",
    [
        "passphrase: hunter2",
        "passphrase_file: hunter2",
        "key_command: [hunter2]",
        "options: hunter2",
        "key: hunter2",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated_in_the_error(fields: str) -> None:
    for text in (f"version: 1\nvolumes:\n  /a:\n    {fields}", "version: 1\nvolumes:\n  /a: hunter2"):
        assert "hunter2" not in refusal(text).render()


@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_are_a_configuration_or_a_refusal(data: bytes) -> None:
    try:
        parse_config(data, Path("t.yaml"))
    except TdefsError as error:
        assert error.exit_code is Exit.CONFIG_INVALID

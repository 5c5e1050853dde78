"""What the configuration says of a key source: read field by field, wrong fields told by file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tdefs.cli.common.terminal import TerminalDialogue
from tdefs.config import parse_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.sources.base import kinds, make_key_source
from tdefs.keys.sources.settings import SettingsReader

TEXT = """version: 1
key_sources:
  kms1:
    kind: kmip
    servers: [a:1, b:2]
    ca: /etc/ca.pem
    timeout_seconds: 7
    mode: fast
    relative: ca.pem
volumes:
  /srv/a:
    key_source: kms1
"""


def reader(text: str = TEXT) -> SettingsReader:
    return SettingsReader(parse_config(text.encode(), Path("t.yaml")).key_source("kms1"))


def refusal(call: Callable[[], object]) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        call()
    assert caught.value.exit_code is Exit.CONFIG_INVALID
    return caught.value


def test_the_configuration_names_the_key_source_of_a_volume() -> None:
    config = parse_config(TEXT.encode(), Path("t.yaml"))
    assert config.for_backing(Path("/srv/a")).key_source == "kms1"
    settings = config.key_source("kms1")
    assert (settings.name, settings.kind, settings.source, settings.line) == ("kms1", "kmip", "t.yaml", 4)


def test_fields_are_read() -> None:
    read = reader()
    assert read.texts("servers") == ("a:1", "b:2")
    assert read.texts("mode") == ("fast",)
    assert read.texts("none", ["x"]) == ("x",)
    assert read.path("ca") == Path("/etc/ca.pem")
    assert read.optional_path("none") is None
    assert read.number("timeout_seconds", 5, 1, 10) == 7
    assert read.number("retries", 5, 1, 10) == 5
    assert read.choice("mode", ("fast", "slow")) == "fast"
    assert read.text("relative") == "ca.pem"
    read.finish()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda read: read.text("servers"), 't.yaml:5: key source "kms1": servers must be a single value'),
        (lambda read: read.text("token_file"), 't.yaml:4: key source "kms1": the field "token_file" is missing'),
        (lambda read: read.texts("token_file"), 't.yaml:4: key source "kms1": the field "token_file" is missing'),
        (lambda read: read.path("relative"), 't.yaml:9: key source "kms1": relative must be an absolute path'),
        (lambda read: read.choice("mode", ("a", "b")), 't.yaml:8: key source "kms1": mode must be one of a, b'),
        (
            lambda read: read.number("timeout_seconds", 1, 1, 6),
            't.yaml:7: key source "kms1": timeout_seconds must be a number from 1 to 6',
        ),
        (
            lambda read: read.number("mode", 1, 1, 6),
            't.yaml:8: key source "kms1": mode must be a number from 1 to 6',
        ),
    ],
)
def test_wrong_fields_are_told_by_line(call: Callable[[SettingsReader], object], message: str) -> None:
    assert refusal(lambda: call(reader())).message == message


def test_unknown_fields_are_refused_with_what_was_meant() -> None:
    read = reader()
    read.text("timeout_second", "")
    error = refusal(read.finish)
    assert error.message == 't.yaml:5: key source "kms1": unknown field "servers"'
    read = reader(TEXT.replace("    servers: [a:1, b:2]\n    ca: /etc/ca.pem\n", ""))
    read.text("timeout_secnds", "")
    assert refusal(read.finish).hint == 'perhaps you meant "timeout_secnds"'


def test_an_unknown_kind_is_refused_with_those_there_are() -> None:
    settings = parse_config(TEXT.replace("kmip", "telepathy").encode(), Path("t.yaml")).key_source("kms1")
    error = refusal(lambda: make_key_source(settings, TerminalDialogue()))
    assert error.message == 't.yaml:4: key source "kms1": there is no kind of key source "telepathy"'
    assert error.hint == f"kinds: {', '.join(kinds())}"


def test_a_name_that_is_not_described_is_refused_with_those_that_are() -> None:
    error = refusal(lambda: parse_config(TEXT.encode(), Path("t.yaml")).key_source("kms2"))
    assert "kms2" in error.message
    assert "kms1" in error.detail


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("    kind: kmip\n", "", 4),
        ("kind: kmip", "kind: [kmip]", 4),
        ("kind: kmip", "kind: {}", 4),
        ("  kms1:", "  'kms 1':", 3),
        ("mode: fast", "token: hunter2", 8),
        ("mode: fast", "pin: 123456", 8),
        ("mode: fast", "mode: {a: hunter2}", 8),
        ("servers: [a:1, b:2]", "servers: [[hunter2]]", 5),
        ("    key_source: kms1", "    key_source: kms1\n    key_command: hunter2", 12),
    ],
)
def test_malformed_descriptions_are_told_by_line_and_show_no_value(old: str, new: str, line: int) -> None:
    assert old in TEXT
    error = refusal(lambda: parse_config(TEXT.replace(old, new).encode(), Path("t.yaml")))
    assert error.message.startswith(f"t.yaml:{line}: ")
    assert "hunter2" not in error.render()

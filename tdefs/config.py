"""The optional configuration file: for each backing directory, what options of ``tdefs mount`` would say.

It never holds a secret, only where one comes from.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.keys.sources.settings import Settings
from tdefs.private import read_regular
from tdefs.text import shortened
from tdefs.trust import check_trusted
from tdefs.yamlfile import (
    Mapping,
    Node,
    Problems,
    Scalar,
    Sequence,
    check_version,
    items,
    known_fields,
    parse_yaml,
    read_limited,
    shape,
    unreadable_part,
)

DEFAULT_PATH = Path("/etc/tdefs/tdefs.yaml")

#: A day, in seconds.
LONGEST_WATCHDOG = 86400

REFUSE, REPORT = TAMPERING = ("refuse", "report")
LOG_LEVELS = ("debug", "info", "warning", "error")

_FIELDS = ("version", "log_level", "environment", "key_sources", "volumes")
#: Where the secret of a volume comes from: at most one of these.
_SECRET_FIELDS = ("passphrase_file", "passphrase_credential", "key_command", "key_source")
_TEXT_FIELDS = ("passphrase_credential", "key_command", "key_source")
_PATH_FIELDS = ("mountpoint", "passphrase_file", "keystore", "policy", "log_file", "host_key_directory")
_VOLUME_FIELDS = (
    *("mountpoint", *_SECRET_FIELDS, "keystore", "policy", "options", "log_file"),
    *("host_key_directory", "watchdog", "tampering"),
)
#: In no configuration is any of these the name of a field.
_SECRETS = ("passphrase", "password", "secret", "key", "token", "pin")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
#: A variable of such a name holds a secret, unless it names a file that does.
_SECRET_VARIABLE = re.compile(
    r"(?<![A-Z])(SECRET|PASS|PASSWORD|PASSPHRASE|TOKEN|PIN|PWD)(?![A-Z])(?!.*_FILE$)", re.IGNORECASE
)
_SOURCE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_OPTION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/=-]*")


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """What the configuration says of one volume; None and () where it says nothing."""

    mountpoint: Path | None = None
    passphrase_file: Path | None = None
    passphrase_credential: str | None = None
    key_command: str | None = None
    key_source: str | None = None
    keystore: Path | None = None
    policy: Path | None = None
    options: tuple[str, ...] = ()
    log_file: Path | None = None
    host_key_directory: Path | None = None
    watchdog: int = 0
    """Seconds; 0: none."""
    tampering: str = REFUSE
    """What to do about a file that is not as the last unmount left it: one of TAMPERING."""


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration; ``volumes`` by backing directory as written, ``source`` None if there is no file."""

    log_level: str = "info"
    volumes: AbstractMapping[Path, VolumeConfig] = field(default_factory=dict)
    key_sources: AbstractMapping[str, Settings] = field(default_factory=dict)
    environment: AbstractMapping[str, str] = field(default_factory=dict)
    """Variables for the libraries of key sources, and for key commands: the caller's never get so far."""
    source: Path | None = None

    def for_backing(self, backing: Path) -> VolumeConfig:
        """Return what the configuration says of the volume in ``backing``. Their paths may differ by links."""
        wanted = backing.resolve()
        return next((volume for path, volume in self.volumes.items() if path.resolve() == wanted), VolumeConfig())

    def key_source(self, name: str) -> Settings:
        """Return what the configuration says of the key source ``name``.

        :raises TdefsError: CONFIG_INVALID if there is no such key source.
        """
        found = self.key_sources.get(name)
        if found is None:
            known = ", ".join(self.key_sources) or "none"
            raise TdefsError(
                Exit.CONFIG_INVALID,
                f'there is no key source "{shortened(name)}" in the configuration',
                detail=f'"{self.source or DEFAULT_PATH}" describes: {known}',
                hint="describe it there under key_sources, or name another file with --config",
            )
        return found


def load_config(path: Path | None = None) -> Config:
    """Return the configuration in ``path``, or else in :data:`DEFAULT_PATH`, if that exists.

    A user who may not read the latter has no configuration, and gets one warning. The process gets the variables
    that the configuration names.

    :raises TdefsError: CONFIG_INVALID; CONFIG_EXPOSED if other users could change it.
    """
    if path is None:
        try:
            read_regular(DEFAULT_PATH, 0)
        except (FileNotFoundError, NotADirectoryError):
            return Config()
        except PermissionError:
            _say_unreadable(DEFAULT_PATH)
            return Config()
        except OSError:
            pass  # reported below, as for any file
        path = DEFAULT_PATH
    check_trusted(path, "configuration file")
    data = read_limited(path, Exit.CONFIG_INVALID, "configuration file")
    config = parse_config(data, path)
    # libraries look there themselves, and so do the programs that this one starts
    os.environ.update(config.environment)
    return config


@cache
def _say_unreadable(path: Path) -> None:
    place = unreadable_part(path)
    print(
        f'tdefs: warning: this user may not read "{place}": no configuration is used\n'
        f'HINT:  let this user read "{path}" if it is meant for this user; options of the command say the same',
        file=sys.stderr,
    )


def parse_config(data: bytes, source: Path) -> Config:
    """Return the configuration in ``data``; ``source`` is the file's name for messages.

    The messages quote no values of a volume's fields: someone may have written a passphrase where the name of
    its file belongs.

    :raises TdefsError: CONFIG_INVALID, with a line ``SOURCE:LINE: message`` for each error.
    """
    problems = Problems(str(source), Exit.CONFIG_INVALID)
    root = parse_yaml(data, problems)
    fields = known_fields(root, _FIELDS, "the configuration", problems)
    check_version(fields, root.line, problems)
    log_level = "info"
    if "log_level" in fields:
        log_level = _text(fields["log_level"], "log_level", problems)
        if log_level and log_level not in LOG_LEVELS:
            problems.add(fields["log_level"].line, f"log_level must be one of {', '.join(LOG_LEVELS)}")
    environment = _environment(fields["environment"], problems) if "environment" in fields else {}
    key_sources = _key_sources(fields["key_sources"], problems) if "key_sources" in fields else {}
    volumes = _volumes(fields["volumes"], problems) if "volumes" in fields else {}
    problems.raise_if_any()
    return Config(log_level, volumes, key_sources, environment, source)


def _environment(node: Node, problems: Problems) -> dict[str, str]:
    if not isinstance(node, Mapping):
        problems.add(node.line, "environment must be names of variables, each with its value")
        return {}
    found = {}
    for name, (key, value) in node.fields.items():
        if not _VARIABLE_NAME.fullmatch(name):
            problems.add(key.line, "the name of a variable is of letters, digits and _, such as AWS_REGION")
        elif _SECRET_VARIABLE.search(name):
            problems.add(
                key.line,
                f"{name} holds a secret, which must not stand in the configuration",
                hint="Name a file that has it, such as by AWS_SHARED_CREDENTIALS_FILE.",
            )
        elif not _is_writable(text := _text(value, name, problems)):
            problems.add(value.line, f"{name} has characters that no variable can hold")
        else:
            found[name] = text
    return found


def _key_sources(node: Node, problems: Problems) -> dict[str, Settings]:
    if not isinstance(node, Mapping):
        problems.add(node.line, "key_sources must be names of key sources, each with its fields")
        return {}
    found = {}
    for name, (key, value) in node.fields.items():
        if not _SOURCE_NAME.fullmatch(name):
            problems.add(key.line, "the name of a key source is of letters, digits, - and _, such as kms1")
        elif isinstance(value, Mapping):
            found[name] = _key_source(name, value, problems)
        else:
            problems.add(value.line, f'the key source "{name}" must be fields with values, not {shape(value)}')
    return found


def _key_source(name: str, node: Mapping, problems: Problems) -> Settings:
    """Return the fields as they are written; the kind of the key source gives them their meaning."""
    what = f'the key source "{name}"'
    _refuse_secrets(node, problems)
    values: dict[str, str | tuple[str, ...]] = {}
    lines = {}
    for field_name, (key, value) in node.fields.items():
        if isinstance(value, Sequence):
            values[field_name] = tuple(_text(item, f"an item of {field_name}", problems) for item in value.items)
        else:
            values[field_name] = _text(value, shortened(field_name), problems)
        lines[field_name] = key.line
    kind = values.pop("kind", "")
    if not isinstance(kind, str) or not kind:
        problems.add(lines.get("kind", node.line), f"{what} needs a kind, which is a single value")
        kind = ""
    return Settings(name, kind, values, lines, problems.source, node.line)


def _refuse_secrets(node: Mapping, problems: Problems) -> None:
    for name in _SECRETS:
        if name in node.fields:
            problems.add(
                node.fields[name][0].line,
                "the secret itself must not stand in the configuration",
                hint="Name a file or a command that has it, and change the secret that stood here.",
            )


def _volumes(node: Node, problems: Problems) -> dict[Path, VolumeConfig]:
    if not isinstance(node, Mapping):
        problems.add(node.line, "volumes must be backing directories, each with its fields")
        return {}
    volumes = {}
    for name, (key, value) in node.fields.items():
        if not _is_absolute_path(name):
            problems.add(key.line, f'the backing directory "{shortened(name)}" is not an absolute path')
            continue
        volumes[Path(name)] = _volume(value, f'the volume "{shortened(name)}"', problems)
    return volumes


def _volume(node: Node, what: str, problems: Problems) -> VolumeConfig:
    fields = known_fields(node, _VOLUME_FIELDS, what, problems)
    if isinstance(node, Mapping):
        _refuse_secrets(node, problems)
    given = [name for name in _SECRET_FIELDS if name in fields]
    if len(given) > 1:
        problems.add(fields[given[1]].line, f"{what} has both {given[0]} and {given[1]}; one unlocks it")
    paths = {name: _path(fields[name], name, problems) for name in _PATH_FIELDS if name in fields}
    texts = {name: _text(fields[name], name, problems) for name in _TEXT_FIELDS if name in fields}
    return VolumeConfig(
        mountpoint=paths.get("mountpoint"),
        passphrase_file=paths.get("passphrase_file"),
        passphrase_credential=texts.get("passphrase_credential"),
        key_command=texts.get("key_command"),
        key_source=texts.get("key_source"),
        keystore=paths.get("keystore"),
        policy=paths.get("policy"),
        options=_options(fields["options"], problems) if "options" in fields else (),
        log_file=paths.get("log_file"),
        host_key_directory=paths.get("host_key_directory"),
        watchdog=_watchdog(fields["watchdog"], problems) if "watchdog" in fields else 0,
        tampering=_tampering(fields["tampering"], problems) if "tampering" in fields else REFUSE,
    )


def _watchdog(node: Node, problems: Problems) -> int:
    text = _text(node, "watchdog", problems)
    if text.isdecimal() and int(text) <= LONGEST_WATCHDOG:
        return int(text)
    if text:
        problems.add(node.line, f"watchdog must be a whole number of seconds from 0 (none) to {LONGEST_WATCHDOG}")
    return 0


def _tampering(node: Node, problems: Problems) -> str:
    text = _text(node, "tampering", problems)
    if text in TAMPERING:
        return text
    if text:
        problems.add(node.line, f"tampering must be {' or '.join(TAMPERING)}")
    return REFUSE


def _options(node: Node, problems: Problems) -> tuple[str, ...]:
    options = []
    for item in items(node, "options", problems):
        if isinstance(item, Scalar) and _OPTION.fullmatch(item.text):
            options.append(item.text)
        else:
            problems.add(item.line, "an item of options must be one mount option, such as allow_other")
    return tuple(options)


def _path(node: Node, what: str, problems: Problems) -> Path | None:
    text = _text(node, what, problems)
    if not text:
        return None
    if not _is_absolute_path(text):
        # The daemon does not keep the directory it was started in.
        problems.add(node.line, f"{what} must be an absolute path")
        return None
    return Path(text)


def _is_absolute_path(text: str) -> bool:
    """Return whether a system call would take it: YAML's escapes can write what no path can hold."""
    return text.startswith("/") and _is_writable(text)


def _is_writable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _text(node: Node, what: str, problems: Problems) -> str:
    """Return the field's text; if it has none, record that and return ""."""
    if isinstance(node, Scalar) and not node.is_null and node.text:
        return node.text
    problems.add(node.line, f"{what} must be a single value")
    return ""

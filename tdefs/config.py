"""The optional configuration file: for each backing directory, what ``tdefs mount`` would be told by options.

It never holds a secret, only where one comes from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass, field
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.yamlfile import (
    Mapping,
    Node,
    Problems,
    Scalar,
    check_version,
    items,
    known_fields,
    parse_yaml,
    printable,
    read_limited,
)

DEFAULT_PATH = Path("/etc/tdefs/tdefs.yaml")

LOG_LEVELS = ("debug", "info", "warning", "error")

_FIELDS = ("version", "log_level", "volumes")
_VOLUME_FIELDS = ("mountpoint", "passphrase_file", "key_command", "keystore", "policy", "options", "log_file")
_OPTION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/=-]*")


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """What the configuration says of one volume; None and () where it says nothing."""

    mountpoint: Path | None = None
    passphrase_file: Path | None = None
    key_command: str | None = None
    keystore: Path | None = None
    policy: Path | None = None
    options: tuple[str, ...] = ()
    log_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration; ``volumes`` by backing directory as written, ``source`` None if there is no file."""

    log_level: str = "info"
    volumes: AbstractMapping[Path, VolumeConfig] = field(default_factory=dict)
    source: Path | None = None

    def for_backing(self, backing: Path) -> VolumeConfig:
        """Return what is said of the volume in ``backing``, by whatever path either of them names it."""
        wanted = backing.resolve()
        return next((volume for path, volume in self.volumes.items() if path.resolve() == wanted), VolumeConfig())


def load_config(path: Path | None = None) -> Config:
    """Return the configuration in ``path``, or else in :data:`DEFAULT_PATH`, if that exists.

    Raises :class:`TdefsError` with ``Exit.CONFIG_INVALID``.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return Config()
        path = DEFAULT_PATH
    data = read_limited(path, Exit.CONFIG_INVALID, "configuration file")
    if path.stat().st_mode & 0o002:
        raise TdefsError(
            Exit.CONFIG_INVALID,
            f'configuration file "{path}" is writable by everyone',
            detail="Its key_command is run with the rights of whoever mounts.",
            hint=f'Run: chmod o-w "{path}"',
        )
    return parse_config(data, path)


def parse_config(data: bytes, source: Path) -> Config:
    """Return the configuration in ``data``; ``source`` is the file's name for messages.

    Raises :class:`TdefsError` with ``Exit.CONFIG_INVALID`` and a line ``SOURCE:LINE: message`` for each error.
    The messages quote no values of a volume's fields: someone may have written a passphrase where the name of
    its file belongs.
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
    volumes = _volumes(fields["volumes"], problems) if "volumes" in fields else {}
    problems.raise_if_any()
    return Config(log_level, volumes, source)


def _volumes(node: Node, problems: Problems) -> dict[Path, VolumeConfig]:
    if not isinstance(node, Mapping):
        problems.add(node.line, "volumes must be backing directories, each with its fields")
        return {}
    volumes = {}
    for name, (key, value) in node.fields.items():
        if not _is_absolute_path(name):
            problems.add(key.line, f'the backing directory "{printable(name)}" is not an absolute path')
            continue
        volumes[Path(name)] = _volume(value, f'the volume "{printable(name)}"', problems)
    return volumes


def _volume(node: Node, what: str, problems: Problems) -> VolumeConfig:
    fields = known_fields(node, _VOLUME_FIELDS, what, problems)
    if isinstance(node, Mapping):
        for name in ("passphrase", "password", "secret", "key"):
            if name in node.fields:
                problems.add(
                    node.fields[name][0].line,
                    "the secret itself must not stand in the configuration",
                    hint="Name a passphrase_file or a key_command, and change the secret that stood here.",
                )
    if "passphrase_file" in fields and "key_command" in fields:
        problems.add(
            fields["key_command"].line, f"{what} has both passphrase_file and key_command; one unlocks it"
        )
    paths = {
        name: _path(fields[name], name, problems) for name in fields if name not in ("key_command", "options")
    }
    command = _text(fields["key_command"], "key_command", problems) if "key_command" in fields else None
    return VolumeConfig(
        mountpoint=paths.get("mountpoint"),
        passphrase_file=paths.get("passphrase_file"),
        key_command=command,
        keystore=paths.get("keystore"),
        policy=paths.get("policy"),
        options=_options(fields["options"], problems) if "options" in fields else (),
        log_file=paths.get("log_file"),
    )


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
    """Tell whether a system call would take it: YAML's escapes can write what no path can hold."""
    return text.startswith("/") and "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _text(node: Node, what: str, problems: Problems) -> str:
    """Return the field's text, "" after recording that there is none."""
    if isinstance(node, Scalar) and not node.is_null and node.text:
        return node.text
    problems.add(node.line, f"{what} must be a single value")
    return ""

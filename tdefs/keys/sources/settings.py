"""What the configuration says about one key source, and reading it field by field."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from tdefs.errors import Exit, TdefsError
from tdefs.text import shortened

Value = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """A key source in the configuration: its fields as written, with the lines on which they stand.

    ``source`` is the file and ``line`` where the key source begins.
    """

    name: str
    kind: str
    values: Mapping[str, Value]
    lines: Mapping[str, int]
    source: str
    line: int

    def error(self, message: str, *, field: str = "", hint: str = "") -> TdefsError:
        """Return the error for a ``field``, or for the whole; ``message`` must not quote a value."""
        line = self.lines.get(field, self.line)
        text = f'{self.source}:{line}: key source "{self.name}": {message}'
        return TdefsError(Exit.CONFIG_INVALID, text, hint=hint)


class SettingsReader:
    """Reads the fields of one key source. Each method raises TdefsError(CONFIG_INVALID) for a wrong field.

    No message quotes a value: somebody may have written a secret where the name of its file belongs.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._known: list[str] = []

    @property
    def name(self) -> str:
        """What the configuration calls the key source."""
        return self.settings.name

    def text(self, field: str, default: str | None = None) -> str:
        """Return a single value; without ``default`` it must be there."""
        found = self._value(field)
        if found is None:
            if default is None:
                raise self.wrong(field, f'the field "{field}" is missing')
            return default
        if not isinstance(found, str):
            raise self.wrong(field, f"{field} must be a single value")
        return found

    def texts(self, field: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return a list of at least one value; one alone need not be written as a list."""
        found = self._value(field)
        if found is None:
            if default is None:
                raise self.wrong(field, f'the field "{field}" is missing')
            return tuple(default)
        values = (found,) if isinstance(found, str) else found
        if not values:
            raise self.wrong(field, f"{field} must not be empty")
        return values

    def path(self, field: str) -> Path:
        """Return an absolute path, which must be given."""
        return self._path(field, self.text(field))

    def optional_path(self, field: str) -> Path | None:
        """Return an absolute path, or None where none is given."""
        text = self.text(field, "")
        return self._path(field, text) if text else None

    def choice(self, field: str, choices: Sequence[str], default: str | None = None) -> str:
        """Return one of ``choices``."""
        chosen = self.text(field, default)
        if chosen not in choices:
            raise self.wrong(field, f"{field} must be one of {', '.join(choices)}")
        return chosen

    def number(self, field: str, default: int, least: int, most: int) -> int:
        """Return a decimal number from ``least`` to ``most``."""
        text = self.text(field, str(default))
        if not (text.isascii() and text.isdecimal()) or len(text) > 9 or not least <= int(text) <= most:
            raise self.wrong(field, f"{field} must be a number from {least} to {most}")
        return int(text)

    def wrong(self, field: str, message: str, *, hint: str = "") -> TdefsError:
        """Return the error for a field whose value the kind does not take; ``message`` must not quote it."""
        return self.settings.error(message, field=field, hint=hint)

    def finish(self) -> None:
        """Raise TdefsError for a field that the kind has not read."""
        for field in self.settings.values:
            if field not in self._known:
                nearest = difflib.get_close_matches(field[:64], self._known, n=1)
                hint = f'perhaps you meant "{nearest[0]}"' if nearest else f"fields: {', '.join(self._known)}"
                raise self.wrong(field, f'unknown field "{shortened(field)}"', hint=hint)

    def _value(self, field: str) -> Value | None:
        self._known.append(field)
        return self.settings.values.get(field)

    def _path(self, field: str, text: str) -> Path:
        if not text.startswith("/") or "\0" in text:
            raise self.wrong(field, f"{field} must be an absolute path")
        return Path(text)


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is this host; nothing is looked up. A secret may pass without TLS only there.

    :param host: an address or a name, without brackets or port.
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_safe(url: str) -> bool:
    """Return whether nobody on the way can read what is sent to ``url``: HTTPS, or HTTP on this host."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host or parts.username is not None or parts.password is not None:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))

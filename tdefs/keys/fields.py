"""Strict readers of the JSON values in a keystore: each returns a checked value or raises MalformedError."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

MAX_HEX_BYTES = 16384

_Item = TypeVar("_Item")

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)
_HEX = re.compile(r"(?:[0-9a-f]{2})*", re.ASCII)


class MalformedError(Exception):
    """A value is not what the format demands. The text names the place, and repeats nothing of the value."""


def read_json(text: bytes) -> Any:
    """Return the value of the JSON ``text``; objects with a doubled member, NaN and Infinity are refused."""
    try:
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=_object_without_doubles, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError):
        # Raised outside of the handler: the error of the decoder holds a copy of the whole text.
        pass
    raise MalformedError("not valid JSON")


def _object_without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedError("an object has a member twice")
    return members


def _refuse_constant(_text: str) -> NoReturn:
    raise MalformedError("not valid JSON")


def read_object(value: Any, where: str, members: Collection[str]) -> dict[str, Any]:
    """Return an object that has exactly these ``members``."""
    if not isinstance(value, dict):
        raise MalformedError(f"{where}: expected an object")
    if value.keys() != set(members):
        raise MalformedError(f"{where}: expected exactly the members {', '.join(members) or '(none)'}")
    return value


def read_list(value: Any, where: str, read_item: Callable[[Any, str], _Item]) -> tuple[_Item, ...]:
    """Return the items of a list that is not empty, each read by ``read_item``."""
    if not isinstance(value, list) or not value:
        raise MalformedError(f"{where}: expected a list with at least one item")
    return tuple(read_item(item, f"{where}[{index}]") for index, item in enumerate(value))


def read_text(value: Any, where: str, pattern: re.Pattern[str]) -> str:
    """Return a string that ``pattern`` matches as a whole."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise MalformedError(f"{where}: expected a text like {pattern.pattern}")
    return value


def read_choice(value: Any, where: str, choices: Collection[str]) -> str:
    """Return a string that is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise MalformedError(f"{where}: expected one of {', '.join(sorted(choices))}")
    return value


def read_bool(value: Any, where: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise MalformedError(f"{where}: expected true or false")
    return value


def read_int(value: Any, where: str, low: int, high: int) -> int:
    """Return an integer from ``low`` to ``high``, both included; true and 1.0 are not integers."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise MalformedError(f"{where}: expected an integer from {low} to {high}")
    return value


def read_hex(value: Any, where: str, size: int | None = None) -> bytes:
    """Return the bytes of a lower-case hexadecimal string: ``size`` bytes, or from 1 to 16384."""
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise MalformedError(f"{where}: expected lower-case hexadecimal digits")
    decoded = bytes.fromhex(value)
    if size is not None and len(decoded) != size:
        raise MalformedError(f"{where}: expected {size} bytes in hexadecimal")
    if not 1 <= len(decoded) <= MAX_HEX_BYTES:
        raise MalformedError(f"{where}: expected 1 to {MAX_HEX_BYTES} bytes in hexadecimal")
    return decoded


def read_time(value: Any, where: str) -> datetime:
    """Return a time in UTC with whole seconds, written like 2026-01-31T23:59:59Z."""
    if isinstance(value, str) and _TIME.fullmatch(value):
        try:
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise MalformedError(f"{where}: expected a time like 2026-01-31T23:59:59Z")


def read_optional(value: Any, where: str, read: Callable[[Any, str], _Item]) -> _Item | None:
    """Return None for null, and otherwise what ``read`` returns for the value."""
    return None if value is None else read(value, where)


def show_time(time: datetime) -> str:
    """Return ``time`` (in UTC, whole seconds) in the form that :func:`read_time` reads."""
    return time.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"

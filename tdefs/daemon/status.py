"""The status of a daemon: one value, made in one place, for all code that shows it or acts on it.

The control socket and the virtual file pass it on as JSON. Commands read it back with
:meth:`DaemonStatus.from_json`, so no other module knows its form in JSON. This module
imports nothing of the daemon itself.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import NoneType, UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

from tdefs.fuse.measured import MOST_BUCKETS, Latency
from tdefs.manifest.found import Tampering

# Greater ones are no counts, and no point in time that has a date.
_MOST = 1 << 63
_MOST_SECONDS = float(1 << 37)


class MalformedStatusError(ValueError):
    """The JSON value is not the status of a daemon."""


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """One round of a data key that the daemon has."""

    name: str
    round: int
    algorithm: str
    state: str


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The state of one mount, as its daemon knows it. Paths are text, as JSON has them."""

    pid: int
    mountpoint: str
    backing: str
    volume_id: str
    """In hexadecimal."""
    keystore: str
    keystore_revision: int
    policy: str | None
    """The file of the policy; ``None`` where everything is encrypted without one."""
    policy_digest: str
    log_file: str | None
    started: float
    """Seconds since 1970."""
    memory_locked: bool
    watchdog: int | None
    """Seconds of patience, while a watchdog runs."""
    read_only: bool
    reserve_spared: bool
    """Whether programs cannot take the blocks that the disk keeps for root."""
    page_cipher: str
    known_inodes: int
    open_handles: int
    tampering: Tampering | None = None
    """``None`` where nothing is bound."""
    data_keys: tuple[KeyStatus, ...] = ()
    destroyed_rounds: tuple[tuple[str, int], ...] = ()
    requests: Mapping[str, int] = field(default_factory=dict)
    """By operation, how many requests came."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """By operation, how many failed with an error of the disk or of tdefs."""
    bytes: Mapping[str, int] = field(default_factory=dict)
    """How many bytes were read and written."""
    latency: Mapping[str, Latency] = field(default_factory=dict)
    """By operation, how long the requests took that have ended."""

    def to_json(self) -> dict[str, Any]:
        """Return the status as types of JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Return the status that :meth:`to_json` wrote; unknown members are ignored.

        :raises MalformedStatusError: *value* is not a status.
        """
        try:
            found = _read(cls, value)
        except RecursionError:
            raise MalformedStatusError("nested too deeply") from None
        assert isinstance(found, cls)  # noqa: S101 - which _read returns for a class
        if any(len(one.buckets) > MOST_BUCKETS for one in found.latency.values()):
            raise MalformedStatusError("a histogram has too many buckets")
        return found


@cache
def _members(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    """Return for each member of a dataclass its name, its type, and whether it must be there."""
    hints = get_type_hints(kind)
    return tuple(
        (
            one.name,
            hints[one.name],
            one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING,
        )
        for one in dataclasses.fields(kind)
    )


def _read(kind: Any, value: object) -> Any:
    """Return *value*, which came from JSON, as a value of the type *kind*.

    :raises MalformedStatusError: it has another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None and NoneType in inner else _read(inner[0], value)
    made: Any = kind  # which is_dataclass() would narrow to what cannot be called
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        found = {name: _read(member, value[name]) for name, member, _ in _members(made) if name in value}
        if any(must and name not in found for name, _, must in _members(made)):
            raise MalformedStatusError(f"a member of {made.__name__} is missing")
        return made(**found)
    if origin is Mapping and isinstance(value, Mapping):
        return {_read(str, name): _read(inner[1], one) for name, one in value.items()}
    if origin is not None and isinstance(value, list | tuple):
        kinds = inner if len(inner) > 1 and inner[-1] is not ... else (inner[0],) * len(value)
        if len(kinds) == len(value):
            return tuple(map(_read, kinds, value))
    if _is_simple(kind, value):
        return kind(value)
    raise MalformedStatusError("a member of the status is of another type")


def _is_simple(kind: Any, value: object) -> bool:
    """Return whether *value* is a text, a number or a truth value, as *kind* says, and can be used as one."""
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        return isinstance(value, str) and _may_be_a_path(value)
    if type(value) is int:
        return abs(value) < _MOST if kind is int else kind is float and 0 <= value < _MOST_SECONDS
    return kind is float and isinstance(value, float) and 0 <= value < _MOST_SECONDS


def _may_be_a_path(text: str) -> bool:
    """Return whether a path of this system can be *text*."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False

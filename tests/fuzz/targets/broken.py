"""A parser that breaks its promise behind three branches, which the fuzzer must find to be believed."""

from __future__ import annotations

import json

from tests.fuzz.contract import Target


def _read_session(data: bytes) -> str:
    """As an earlier version of tdefs read its session record."""
    try:
        found = json.loads(data)
        int(found["pid"])
    except (ValueError, KeyError, TypeError):
        return "refused"
    return "accepted"


BROKEN = Target("broken", _read_session, lambda: [b'{"pid": 1}'], 40, (b"Infinity", b"NaN", b"1e999", b"[["))

"""tdefs with faults that no test can bring about from outside: errors of the program itself, with keys at hand.

Run as ``tdefs`` is. The key of a file named ``broken-key`` cannot be derived; to look up ``broken-mount`` ends the
mount. TDEFS_BREAK_AT names what else fails: "manifest", its taking at the end, or the label of a system call.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from tdefs.cli.main import run
from tdefs.data import forms
from tdefs.data.calls import SystemCalls
from tdefs.fuse.operations import FuseOperations
from tdefs.keys.hierarchy import DataKey, derive_file_key
from tdefs.manifest import bound

_lookup = FuseOperations.lookup
_asked = b""


def _derived(data_key: DataKey, file_id: bytes, purpose: bytes, size: int) -> bytes:
    return derive_file_key(data_key, file_id[:-1] if _asked == b"broken-key" else file_id, purpose, size)


async def _looked_up(self: FuseOperations, parent: Any, name: Any, context: Any) -> Any:
    global _asked
    _asked = name
    if name == b"broken-mount":
        ring = self._files.forms.ring
        # not a FUSEError, and not in the hands of @reply: pyfuse3 ends
        raise RuntimeError(f"{ring!r} {list(ring)!r}")
    return await _lookup(self, parent, name, context)


def _break(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("cannot, since the test says so")


def _break_call(name: str, at: str) -> None:
    call = getattr(SystemCalls, name)

    def called(self: SystemCalls, label: str, *arguments: Any) -> Any:
        return _break() if label == at else call(self, label, *arguments)

    setattr(SystemCalls, name, called)


if __name__ == "__main__":
    at = os.environ.get("TDEFS_BREAK_AT", "")
    if at == "manifest":
        bound.take = _break  # type: ignore[attr-defined]
    elif at:
        _break_call("pwrite", at)
        _break_call("fdatasync", at)
    forms.derive_file_key = _derived  # type: ignore[attr-defined]
    FuseOperations.lookup = _looked_up  # type: ignore[method-assign,assignment]
    run()

"""tdefs with faults that no test can bring about from outside: errors of the program itself, with keys at hand.

Run as ``tdefs`` is. The key of a file named ``broken-key`` cannot be derived; to look up ``broken-mount`` ends the
mount.
"""

from __future__ import annotations

from typing import Any

from tdefs.cli.main import run
from tdefs.fs import sealing
from tdefs.fs.operations import FuseOperations
from tdefs.keys.hierarchy import DataKey, derive_file_key

_lookup = FuseOperations.lookup
_asked = b""


def _derived(data_key: DataKey, file_id: bytes) -> bytes:
    return derive_file_key(data_key, file_id[:-1] if _asked == b"broken-key" else file_id)


async def _looked_up(self: FuseOperations, parent: Any, name: Any, context: Any) -> Any:
    global _asked
    _asked = name
    if name == b"broken-mount":
        ring = self._opener._sealer.ring
        # not a FUSEError, and not in the hands of @reply: pyfuse3 ends
        raise RuntimeError(f"{ring!r} {list(ring)!r}")
    return await _lookup(self, parent, name, context)


if __name__ == "__main__":
    sealing.derive_file_key = _derived  # type: ignore[attr-defined]
    FuseOperations.lookup = _looked_up  # type: ignore[method-assign,assignment]
    run()

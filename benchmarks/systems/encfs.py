"""encfs, in C++: AES in blocks of its own size."""

from __future__ import annotations

import re

from benchmarks.systems.base import Unavailable, Variant
from benchmarks.systems.fuse import FuseSystem

_PLAIN_NAMES, _BLOCK_4096 = "plain names", "blocks of 4096 bytes"
# tdefs does not encrypt names either
_INIT = (_PLAIN_NAMES, _BLOCK_4096)
_MOUNT = ("-o", "big_writes,max_write=131072,kernel_cache,attr_timeout=3600,entry_timeout=3600")
VARIANTS = (
    Variant("tuned", _INIT, _MOUNT, raise_limits=True, wal_sync_method="fdatasync"),
    Variant("tuned as tdefs", _INIT, _MOUNT, raise_limits=True),
    Variant("default", wal_sync_method="fdatasync"),
)
_PASSWORD = "bench\n"  # noqa: S105


class Encfs(FuseSystem):
    """As Debian packages it, with its standard configuration."""

    @property
    def program(self) -> str:
        return "encfs"

    def initialize(self) -> None:
        # A volume is made by mounting it; without a terminal only the ready-made configurations can be chosen,
        # so what a variant changes is edited before the first file is written.
        self.run("encfs", "-S", "--standard", "--public", self.backing, self.storage, text=_PASSWORD)
        self.run("umount", self.storage)
        if self.variant.init:
            self._edit_configuration()

    def start_daemon(self) -> None:
        self.run("encfs", "-S", "--public", self.backing, self.storage, *self.variant.mount, text=_PASSWORD)

    def _edit_configuration(self) -> None:
        path = self.backing / ".encfs6.xml"
        text = path.read_text()
        edits = {
            r"<nameAlg(.*?)<name>nameio/block</name>\s*<major>4</major>": (
                r"<nameAlg\1<name>nameio/null</name><major>1</major>"
            ),
            r"<chainedNameIV>1<": "<chainedNameIV>0<",
            r"<blockSize>1024<": "<blockSize>4096<",
        }
        for pattern, replacement in edits.items():
            text, count = re.subn(pattern, replacement, text, flags=re.DOTALL)
            if count != 1:
                raise Unavailable(f"encfs has written another configuration than expected: no {pattern}")
        path.write_text(text)

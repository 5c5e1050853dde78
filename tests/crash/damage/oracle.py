"""What must come of a damaged file, by docs/FORMAT.md alone: independent of the code that reads it.

It knows each file as it was, stored and in the clear, and judges what is stored now.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEADER, RECORD, PAGE, SECTOR, BLOCK = 8192, 512, 8192, 512, 16
_MAGIC = b"\x89TDEFS\r\n"
_RELATION = re.compile(
    r"(?:.*/)?(?:global|(?:base|PG_[0-9]+_[0-9]+)/[0-9]+)/([1-9][0-9]*)(?:_(fsm|vm|init))?(?:\.([1-9][0-9]*))?"
)


ANOTHER_FILES = "another file's header"
SHARED_ID = "a file id that another file has, too"


@dataclass(frozen=True)
class Original:
    """A file before the damage."""

    path: str
    stored: bytes
    plain: bytes

    @property
    def is_encrypted(self) -> bool:
        return self.stored.startswith(_MAGIC)

    @property
    def identity(self) -> bytes:
        """Both identities that the header binds it to."""
        return self.stored[96:160]


@dataclass(frozen=True)
class Verdict:
    """What must come of it: an error, or exactly this content, or a content of this length with parts garbled.

    ``garbled`` are the blocks, by number, that may differ from ``content``; all others are as they were.
    """

    error: bool
    content: bytes = b""
    garbled: frozenset[int] = frozenset()
    reason: str = ""


class Oracle:
    """Judges the files of one volume."""

    def __init__(self, volume_id: bytes, plain_files: bool, originals: dict[str, Original]) -> None:
        self._volume_id = volume_id
        self._plain_files = plain_files
        self._originals = originals
        self._by_record = {one.stored[:RECORD]: one for one in originals.values() if one.is_encrypted}

    def judge(self, path: str, stored: bytes, *, encrypted_place: bool) -> Verdict:
        """Tell what opening *path* must give, where *stored* lies now.

        :param encrypted_place: whether the policy encrypts what is created there
        """
        if not stored:
            return Verdict(False, reason="empty")
        if not any(stored[:HEADER]):
            return self._zeros(stored, encrypted_place=encrypted_place)
        if not self._resembles_header(stored):
            if self._plain_files:
                return Verdict(False, stored, reason="a plain file")
            return Verdict(True, reason="no header")
        origin = self._by_record.get(stored[:RECORD])
        if len(stored) < HEADER or origin is None:
            return Verdict(True, reason="a damaged header")
        if not self._may_lie(origin, path):
            return Verdict(True, reason=ANOTHER_FILES)
        return self._sealed(origin, stored)

    def shown_id(self, stored: bytes) -> bytes | None:
        """The file id that a stored file shows; ``None`` if it shows none that is genuine."""
        genuine = len(stored) >= HEADER and stored[:RECORD] in self._by_record
        return stored[32:48] if genuine else None

    def may_lie(self, stored: bytes, path: str) -> bool:
        """Whether a stored file with a genuine header may be opened as *path*."""
        return self._may_lie(self._by_record[stored[:RECORD]], path)

    def _zeros(self, stored: bytes, *, encrypted_place: bool) -> Verdict:
        if not self._plain_files:
            return Verdict(True, reason="a wiped header")
        # in a volume with plain files, zeros and nothing else may be a plain file's
        if not encrypted_place or not any(stored):
            return Verdict(False, stored, reason="a plain file of zeros")
        return Verdict(True, reason="a wiped header")

    def _resembles_header(self, stored: bytes) -> bool:
        if len(stored) < 8:
            return len(stored) >= 4 and _MAGIC.startswith(stored)
        return stored[:8] == _MAGIC or stored[1:6] == _MAGIC[1:6] or (stored[16:32] == self._volume_id)

    def _may_lie(self, origin: Original, path: str) -> bool:
        """Whether the header's identity is that of the path: the same file's, or that of one of its class."""
        if origin.identity[0] == 3:  # any place
            return True
        here = self._originals.get(path)
        # what is encrypted beside plain files is bound to its name, or to a relation's numbers
        return here is not None and here.is_encrypted and here.identity == origin.identity

    def _sealed(self, origin: Original, stored: bytes) -> Verdict:
        data = len(stored) - HEADER
        if data % BLOCK and data < BLOCK:
            return Verdict(True, reason="cut inside the first block")
        length = data if data % BLOCK == 0 else data - BLOCK
        content = origin.plain[:length].ljust(length, b"\0")
        garbled = _garbled(origin, stored, length)
        if length > len(origin.plain):
            garbled.add(len(origin.plain) // BLOCK)  # what fills the last block
        return Verdict(False, content, frozenset(garbled), "intact header")


def _garbled(origin: Original, stored: bytes, length: int) -> set[int]:
    """The blocks whose stored bytes have changed, and those that the rule for zeros makes depend on them."""
    blocks_end = -(-length // BLOCK) * BLOCK
    old, new = origin.stored[HEADER:], stored[HEADER : HEADER + blocks_end]
    kept = -(-len(origin.plain) // BLOCK) * BLOCK
    changed: set[int] = set()
    for start in range(0, len(new), SECTOR):
        before = old[start : min(start + SECTOR, kept)]
        after = new[start : start + SECTOR]
        if before[: len(after)] == after and len(before) >= len(after):
            # only cut: what was a hole stays one, and a hole begins no earlier than it did
            continue
        touched = {at for at in range(0, len(after), BLOCK) if before[at : at + BLOCK] != after[at : at + BLOCK]}
        first_hole = min(_end_of_blocks(before), _end_of_blocks(after))
        touched |= set(range(first_hole, len(after), BLOCK))
        changed |= {(start + at) // BLOCK for at in touched}
    return changed


def _end_of_blocks(sector: bytes) -> int:
    """Where the hole at the end of a sector begins."""
    return -(-len(sector.rstrip(b"\0")) // BLOCK) * BLOCK


def is_relation(path: str) -> bool:
    """Whether the path is that of a relation file."""
    return _RELATION.fullmatch(path) is not None


def fork_of(path: str) -> tuple[str, int]:
    """The path of a relation's main fork, and the number of the segment."""
    match = _RELATION.fullmatch(path)
    assert match is not None
    return f"{path.rpartition('/')[0]}/{match[1]}", int(match[3] or 0)

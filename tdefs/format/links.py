"""The text of a symbolic link: its target, encrypted and authenticated, and bound to the place of the link.

The text of a symbolic link in the backing directory is ASCII: the prefix ``tdefs:2:``, where the number is the
format version, and the following bytes in URL-safe base64 (RFC 4648, section 5) without padding. All integers are
little-endian.

    offset size  field
         0   32  data key name (ASCII, zero padded)
        32    4  data key round
        36    8  data key fingerprint
        44   16  link id (random)
        60    n  ciphertext, n = 32 + length of the target
      60+n   16  tag

The cipher is AES-256-GCM. Each link id has a key of its own, which encrypts once, so the nonce is twelve zero
bytes. Associated data: prefix, volume id (16 bytes), bytes 0..59. The plaintext is two places of 16 bytes and the
target. A place is the first 16 bytes of the SHA-256 of the link's path relative to the mount's root. The second
place is zero, except while a rename is under way: then the link may lie at both.

A link is never changed, only replaced. So whenever a rename stops, each text is whole.
"""

from __future__ import annotations

import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tdefs.format.errors import DamagedLink, ForeignLink, MisplacedLink

PREFIX = b"tdefs:2:"
LINK_ID_BYTES = 16
PLACE_BYTES = 16
#: As much as a symbolic link holds on ext4; on some file systems it is less.
MAX_STORED_BYTES = 4095

_HEAD = struct.Struct("<32sI8s16s")
_TAG_BYTES = 16
_NONCE = bytes(12)
_NO_PLACE = bytes(PLACE_BYTES)
_OVERHEAD = _HEAD.size + 2 * PLACE_BYTES + _TAG_BYTES
_BASE64 = re.compile(rb"[A-Za-z0-9_-]*")
_KEY_NAME = re.compile(rb"[a-z][a-z0-9_]{0,30}")

SEVERAL_NAMES = "the symbolic link has several names, and tdefs gives each one"
#: The longest target that a link can have, in bytes.
MAX_TARGET_BYTES = (MAX_STORED_BYTES - len(PREFIX)) * 3 // 4 - _OVERHEAD


class LinkHead(NamedTuple):
    """The part of a link in the clear: name, round and fingerprint (8 bytes) of its data key, and the link id."""

    key_name: str
    key_round: int
    key_fingerprint: bytes
    link_id: bytes


@dataclass(frozen=True, slots=True)
class EncryptedLink:
    """A stored text, parsed but not decrypted."""

    head: LinkHead
    encrypted: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """A link that was decrypted: the places where it may lie, one or two, and where it leads to."""

    head: LinkHead
    places: tuple[bytes, ...]
    target: bytes

    def check_lies_at(self, path: bytes) -> None:
        """Check that the link may lie at *path*, relative to the mount's root.

        :raises MisplacedLink: it belongs elsewhere.
        """
        if place_of_link(path) not in self.places:
            raise MisplacedLink("the symbolic link was made for another place of this volume")


def place_of_link(path: bytes) -> bytes:
    """Return what binds a link to *path*, relative to the mount's root."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(path)
    return digest.finalize()[:PLACE_BYTES]


def target_length(stored_size: int) -> int | None:
    """Return the length of the target of a link whose stored text has *stored_size* bytes.

    ``None``: no link of tdefs has that size.
    """
    count = stored_size - len(PREFIX)
    length = count * 3 // 4 - _OVERHEAD
    return length if count % 4 != 1 and length > 0 else None


def encode_link(link: Link, volume_id: bytes, key: bytes) -> bytes:
    """Return the text to store for *link*.

    :param key: 32 bytes, of this link id alone.
    :raises ValueError: the target is empty or longer than :data:`MAX_TARGET_BYTES`.
    """
    if not 0 < len(link.target) <= MAX_TARGET_BYTES:
        raise ValueError(f"the target of a link has 1 to {MAX_TARGET_BYTES} bytes, not {len(link.target)}")
    head = link.head
    packed = _HEAD.pack(head.key_name.encode("ascii"), head.key_round, head.key_fingerprint, head.link_id)
    first, second = (*link.places, _NO_PLACE)[:2]
    encrypted = AESGCM(key).encrypt(_NONCE, first + second + link.target, PREFIX + volume_id + packed)
    return PREFIX + urlsafe_b64encode(packed + encrypted).rstrip(b"=")


def decode_link(text: bytes) -> EncryptedLink:
    """Return the parts of the stored *text* of a link; nothing of it is authenticated yet.

    :raises ForeignLink: tdefs did not make the link.
    :raises DamagedLink: tdefs may have made it, and it was changed.
    """
    if not text.startswith(PREFIX):
        raise ForeignLink("the symbolic link was not made by tdefs")
    coded = text.removeprefix(PREFIX)
    if target_length(len(text)) is None or not _BASE64.fullmatch(coded):
        raise DamagedLink("the text of the symbolic link is not in the form that tdefs writes")
    data = urlsafe_b64decode(coded + b"=" * (-len(coded) % 4))
    name, key_round, fingerprint, link_id = _HEAD.unpack(data[: _HEAD.size])
    key_name = name.rstrip(b"\0")
    if not _KEY_NAME.fullmatch(key_name) or urlsafe_b64encode(data).rstrip(b"=") != coded:
        raise DamagedLink("the text of the symbolic link is not in the form that tdefs writes")
    return EncryptedLink(LinkHead(key_name.decode("ascii"), key_round, fingerprint, link_id), data[_HEAD.size :])


def open_link(link: EncryptedLink, volume_id: bytes, key: bytes) -> Link:
    """Decrypt *link* with the *key* of its link id.

    :raises ForeignLink: it was not made with the key, or not for this volume.
    """
    head = link.head
    packed = _HEAD.pack(head.key_name.encode("ascii"), head.key_round, head.key_fingerprint, head.link_id)
    try:
        plain = AESGCM(key).decrypt(_NONCE, link.encrypted, PREFIX + volume_id + packed)
    except InvalidTag:
        raise ForeignLink("the symbolic link was altered, or made for another volume") from None
    slots = plain[:PLACE_BYTES], plain[PLACE_BYTES : 2 * PLACE_BYTES]
    return Link(head, tuple(place for place in slots if place != _NO_PLACE), plain[2 * PLACE_BYTES :])

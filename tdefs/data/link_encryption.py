"""Encrypting the targets of symbolic links with data keys: between the text on the disk and a target in memory."""

from __future__ import annotations

import os
from collections.abc import Callable

from tdefs.errors import DataKeyDestroyedError, DataKeyRevokedError, TdefsError
from tdefs.format.errors import DestroyedKey, RevokedKey, UnknownDataKey, WrongKey
from tdefs.format.links import LINK_ID_BYTES, Link, LinkHead, decode_link, encode_link, open_link, place_of_link
from tdefs.keys.hierarchy import DataKey, KeyRing, derive_link_key, key_fingerprint


class LinkCipher:
    """Knows the keys in use, never directories."""

    def __init__(self, ring: Callable[[], KeyRing]) -> None:
        """:param ring: asked for the keys each time, since they may change."""
        self._ring = ring

    def encrypt(
        self, target: bytes, paths: tuple[bytes, ...], key_name: str | None, old: Link | None = None
    ) -> bytes:
        """Return the text of a link to *target* that may lie at *paths*, one or two, relative to the mount's root.

        :param key_name: the data key, whose newest round is taken; ``None``: the default one.
        :param old: the link that the new one replaces. Its key is taken if *key_name* may not be used.
        :raises RevokedKey: no round may be used for a new link.
        """
        key = self._key_for_new(key_name, old)
        head = LinkHead(key.name, key.round, key_fingerprint(key), os.urandom(LINK_ID_BYTES))
        places = tuple(dict.fromkeys(map(place_of_link, paths)))
        return encode_link(Link(head, places, target), self._ring().volume_id, derive_link_key(key, head.link_id))

    def decrypt(self, text: bytes) -> Link:
        """Return what the stored *text* of a link says; the caller checks whether it lies where it may.

        :raises FormatError: it cannot be presented.
        """
        encrypted = decode_link(text)
        head = encrypted.head
        try:
            key = self._ring().get(head.key_name, head.key_round)
        except DataKeyDestroyedError as error:
            raise DestroyedKey(error.message) from None
        except TdefsError as error:
            raise UnknownDataKey(error.message) from None
        if key_fingerprint(key) != head.key_fingerprint:
            raise WrongKey(f"the symbolic link was made with another key called {head.key_name!r}")
        return open_link(encrypted, self._ring().volume_id, derive_link_key(key, head.link_id))

    def decrypt_at(self, text: bytes, path: bytes) -> Link:
        """Return what the stored *text* of the link at *path*, relative to the mount's root, says.

        :raises FormatError: it cannot be presented, or belongs elsewhere.
        """
        link = self.decrypt(text)
        link.check_lies_at(path)
        return link

    def _key_for_new(self, key_name: str | None, old: Link | None) -> DataKey:
        ring = self._ring()
        try:
            return ring.current(key_name or ring.default_name)
        except TdefsError as error:
            if old is not None:
                return ring.get(old.head.key_name, old.head.key_round)
            if isinstance(error, DataKeyRevokedError):
                raise RevokedKey(error.message) from None
            raise

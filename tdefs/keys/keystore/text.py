"""The keystore document as text.

The text is a JSON object, indented for a person to read, and then one last line::

    sha256:<64 lower-case hexadecimal digits>

over all bytes before that line. The checksum does not stop an attacker. It distinguishes damage (a flipped bit,
a truncation, something appended) from a wrong secret before any secret is asked for. What stops an attacker is
``mac``, over :func:`signed_bytes`, which only the master key can make (see wrapped_keys.py).
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256, Hash

from tdefs.errors import Exit, TdefsError
from tdefs.keys import fields
from tdefs.keys.fields import MalformedError
from tdefs.keys.keystore.entries import VERSION, Document, damaged
from tdefs.keys.keystore.reading import FORMAT, MEMBERS, read_document

MAX_BYTES = 1 << 20

_CHECKSUM_BYTES = len("sha256:") + 64 + 1


def signed_bytes(document: Document) -> bytes:
    """Return what the MAC is over: the JSON without ``mac``, members sorted, no white space, ASCII."""
    body = _plain(document)
    del body["mac"]
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def serialise(document: Document) -> bytes:
    """Return the content of the keystore file with this document, with its checksum line.

    :raises TdefsError: KEYSTORE_FULL.
    """
    body = json.dumps(_plain(document), indent=2, ensure_ascii=True).encode("ascii") + b"\n"
    data = body + _checksum_line(body)
    if len(data) > MAX_BYTES:
        raise TdefsError(
            Exit.KEYSTORE_FULL,
            f"the keystore would have {len(data)} bytes, and the most is {MAX_BYTES}",
            detail="every round of a data key stays in it, also one that is destroyed",
            hint="remove protectors that nobody needs, and rotate data keys less often",
        )
    return data


def parse(data: bytes) -> Document:
    """Return the document in a keystore file with this content.

    :raises TdefsError: KEYSTORE_DAMAGED for every sequence of bytes that is no keystore file.
    """
    body, checksum_line = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if len(data) > MAX_BYTES:
        raise damaged(f"it has more than {MAX_BYTES} bytes, and tdefs writes none that large")
    if checksum_line != _checksum_line(body):
        raise damaged("its content does not match its checksum")
    try:
        return read_document(fields.read_json(body))
    except MalformedError as error:
        raise damaged(str(error)) from None


def _checksum_line(body: bytes) -> bytes:
    digest = Hash(SHA256())
    digest.update(body)
    return f"sha256:{digest.finalize().hex()}\n".encode("ascii")


def _plain(value: Any) -> Any:
    """Return a document or a part of it as JSON's own types."""
    members = MEMBERS.get(type(value))
    if members is not None:
        found = {name: _plain(getattr(value, name)) for name in members}
        return {"format": FORMAT, "version": VERSION} | found if isinstance(value, Document) else found
    match value:
        case dict():
            return {name: _plain(member) for name, member in value.items()}
        case tuple():
            return [_plain(item) for item in value]
        case bytes():
            return value.hex()
        case datetime():
            return fields.show_time(value)
    return value

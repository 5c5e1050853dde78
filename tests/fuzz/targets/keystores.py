"""Targets: the keystore, as text and as a document that somebody with the master key has changed."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import MasterKey
from tdefs.keys.keystore.entries import Document, Place, ProtectorEntry
from tdefs.keys.keystore.text import parse, serialise
from tdefs.keys.keystore.wrapped_keys import new_document, open_keys, open_master_key
from tdefs.keys.protectors.base import NotMineError, Protector, WrongSecretError
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.protectors.passphrase import PassphraseProtector, ScryptCost
from tests.fuzz.contract import Target, expect, refusal
from tests.fuzz.mending import edited, keystore_mac, replacing, with_checksum_line

_LONG_HEX = re.compile(rb"[0-9a-f]{40,}")
_CHECKSUM_LINE_BYTES = 72


_protector = PassphraseProtector(lambda: b"correct horse", cost=ScryptCost(n=16, r=1, p=1))
_GENUINE = new_document(bytes(range(16)), _protector, ("dk_1", "dk_2"), Place("/srv/tdefs/main", 64769, 131))
_MASTER_SECRET = open_master_key(_GENUINE, _GENUINE.protectors[0], _protector).secret
_GENUINE_OBJECT = json.loads(serialise(_GENUINE)[:-_CHECKSUM_LINE_BYTES])


def _text(data: bytes) -> str:
    """A keystore file as it is, or with a right checksum; what is accepted stays the same when it is written."""
    text = with_checksum_line(data[1:]) if data[:1] == b"\1" else data[1:]
    try:
        document = parse(text)
    except TdefsError as error:
        return _refusal(text, error)
    expect(parse(serialise(document)) == document, "a keystore changes when it is written")
    return "accepted"


def _refusal(text: bytes, error: TdefsError, *codes: Exit) -> str:
    """What is wrapped, and salts, are nobody's to see: no long run of digits of the input is repeated."""
    shown = error.render().encode()
    expect(not any(run in shown for run in _LONG_HEX.findall(text)), "the message repeats what the keystore holds")
    return refusal(error, Exit.KEYSTORE_DAMAGED, *codes)


def _fields(data: bytes) -> str:
    """A genuine keystore with members changed; whoever changed them may have had the master key, too."""
    text = with_checksum_line(json.dumps(edited(_GENUINE_OBJECT, data)).encode())
    try:
        document = parse(text)
    except TdefsError as error:
        return _refusal(text, error)
    for entry in document.protectors:
        _open_protector(text, document, entry)
    masters = {entry.name: MasterKey(entry.name, _MASTER_SECRET) for entry in document.master_keys}
    outcome = "unlocked"
    signed = replace(document, mac=keystore_mac(document, _MASTER_SECRET))
    for one in (signed, document):
        try:
            open_keys(one, masters)
            expect(one is signed or document == _GENUINE, "an altered keystore is believed")
        except TdefsError as error:
            outcome = _refusal(text, error)
    return outcome


def _unread() -> bytes:
    raise TdefsError(Exit.NO_SECRET, "the fuzzer has no passphrase")


def _open_protector(text: bytes, document: Document, entry: ProtectorEntry) -> None:
    """Parameters that would take hours, or all memory, are refused before the passphrase is asked for."""
    protectors: tuple[Protector, ...] = (PassphraseProtector(_unread),)
    if entry.kind == CommandProtector.kind and entry.params:
        protectors += (CommandProtector("exit 1"),)
    for protector in protectors:
        try:
            open_master_key(document, entry, protector)
        except (NotMineError, WrongSecretError):
            continue
        except TdefsError as error:
            _refusal(text, error, Exit.NO_SECRET)
            if error.exit_code == Exit.NO_SECRET:
                n, r, p = (int(entry.params[name]) for name in ("n", "r", "p"))
                expect(128 * r * (n + p) <= 4 << 30 and n * r * p <= 1 << 25, "scrypt would take the host down")


def _text_seeds() -> list[bytes]:
    whole = serialise(_GENUINE)
    body = whole[:-_CHECKSUM_LINE_BYTES]
    return [b"\0" + whole, b"\1" + body, b"\1" + json.dumps(_GENUINE_OBJECT).encode(), b"\1[" * 50, b"\1{}"]


def _field_seeds() -> list[bytes]:
    # every place once, every action once, and every odd value for what a protector reads
    edits = [bytes([place, action, place // 4]) for place in range(0, 256, 8) for action in range(4)]
    return [
        b"",
        *edits,
        *(edit for name in ("params", "n", "r", "p", "path") for edit in replacing(_GENUINE_OBJECT, name)),
    ]


_WORDS = (
    *tuple(
        f'"{word}"'.encode()
        for word in (
            *(
                "format",
                "version",
                "volume_id",
                "created",
                "master_keys",
                "protectors",
                "data_keys",
                "mac",
                "name",
            ),
            *(
                "current",
                "id",
                "kind",
                "master_key",
                "params",
                "wrapped",
                "default",
                "rounds",
                "round",
                "algorithm",
            ),
            *("volumes", "registered", "path", "device", "inode"),
            *("state", "wrapped_by", "kdf", "scrypt", "n", "r", "p", "salt", "aes-256-xts", "active", "\\ud800"),
        )
    ),
    b"null",
    b"true",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"9" * 60,
    b"[[[[[[[[",
)

TARGETS = (
    Target("keystore_text", _text, _text_seeds, 4096, _WORDS),
    Target("keystore_fields", _fields, _field_seeds, 48),
)

"""Which policy a mounted volume may use now: the keystore's history proves it to a daemon without a secret.

The keystore says what a volume may do, under a MAC of the master key, which a daemon does not keep. If a policy is
accepted while the volume is mounted, it is also written to the keystore's history, under a key that the daemon
has.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tdefs.errors import Exit, TdefsError, from_os_error
from tdefs.keys.keystore.entries import Document, Statements
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.keystore.history import read_history
from tdefs.keys.keystore.history_checking import check_history
from tdefs.text import printable
from tdefs.volume.description import Volume
from tdefs.volume.registry import recognised

_EVENT = "policy accept"
_NOTHING = "none"


def statements_now(
    volume: Volume, keystore: Path, history_key: bytes, before: Statements, *, since: int, newest: int
) -> Statements:
    """Return what *volume* may do now.

    :param before: what it might do when it was mounted.
    :param since: the keystore's revision at that moment.
    :param newest: the newest known revision: a keystore with an older one was put back.
    :raises TdefsError: the keystore cannot be read, or it or its history is not as tdefs wrote it.
    """
    document = load_keystore(keystore).document
    if document.revision < newest:
        raise TdefsError(
            Exit.KEYSTORE_DAMAGED,
            f'the keystore "{keystore}" is older than the one that this mount knows',
            detail=f"it has revision {document.revision}, and revision {newest} is known",
            hint="put the newest copy of the keystore back",
        )
    try:
        found = check_history(read_history(keystore), history_key, document.history, document.revision)
        entry = recognised(document, volume)
    except OSError as error:
        raise from_os_error(error) from None
    if found.findings:
        raise TdefsError(
            Exit.HISTORY_BROKEN,
            f'the history of the keystore "{keystore}" is not as it was written',
            detail=printable(found.findings[0]),
            hint="see 'tdefs key history'; unmount and mount again to use another policy",
        )
    if entry is None:
        return before
    statements = before
    for record in found.by_key:
        what = record["what"]
        if record["event"] != _EVENT or what.get("volume") != entry.id:
            continue
        match what.get("revision"), what.get("digest"):
            case int(revision), str(digest) if since < revision <= document.revision:
                digest = "" if digest == _NOTHING else digest
                statements = replace(
                    before,
                    plain_files=before.plain_files or what.get("plain_files") != "no",
                    policy_digest=digest,
                    policy=_place(document, entry.id, digest),
                )
    return statements


def _place(document: Document, id: str, digest: str) -> str:
    """Return where the policy of that digest lies. This needs no proof, since the digest is checked."""
    known = next(entry.statements for entry in document.volumes if entry.id == id)
    return known.policy if digest and known.policy_digest == digest else ""

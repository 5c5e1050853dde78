"""Whether the keystore of a mounted volume knows it, and can see the others that use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tdefs.daemon.status import DaemonStatus
from tdefs.doctor.findings import Finding, risk
from tdefs.errors import TdefsError
from tdefs.keys.keystore.file import load_keystore
from tdefs.volume.description import Volume
from tdefs.volume.registry import Unseen, look, recognised


def examine_registration(volume: Volume, status: DaemonStatus | None) -> Iterator[Finding]:
    """Yield what is wrong between *volume* and its keystore; nothing if this user may not read the keystore.

    :param status: the status of the daemon, if it answers.
    """
    try:
        keystore = load_keystore(Path(status.keystore) if status is not None else volume.keystore)
        document = keystore.document
        known = recognised(document, volume)
    except (TdefsError, OSError):
        return
    if known is None:
        yield risk(
            f'the keystore "{keystore.path}" does not know volume "{volume.backing}" at this place, so a key that'
            " it needs may be destroyed by way of another volume",
            "say with 'tdefs volume moved', 'copied' or 'add' what it is: see docs/KEYS.md",
        )
    for entry in document.volumes:
        if entry is not known and isinstance(look(document, entry), Unseen):
            yield risk(
                f'volume {entry.id}, which uses the keystore, is not at "{entry.path}"',
                "mount its disk; if it was moved or no longer exists: 'tdefs volume moved' or 'forget'",
            )

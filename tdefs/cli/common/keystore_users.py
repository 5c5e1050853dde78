"""Which volumes use a keystore: those that it knows, and those mounted with it; and which cannot be seen."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tdefs.cli.common.invocation import Invocation
from tdefs.control import ask_status
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.changes import find_volume
from tdefs.keys.keystore.entries import Document
from tdefs.keys.keystore.file import load_keystore
from tdefs.mounts.known import mounts_of
from tdefs.text import printable
from tdefs.volume.description import PRIVATE_DIRECTORY, Volume, read_volume
from tdefs.volume.registry import Unseen, look, place_of, recognised


@dataclass(frozen=True, slots=True)
class KeystoreUsers:
    """The volumes that use a keystore; of those that can be seen, the one that the command names is the first."""

    seen: Sequence[Volume]
    unseen: Sequence[Unseen]


def users_of(document: Document, keystore: Path, volume: Volume) -> KeystoreUsers:
    """Return the volumes that use *keystore*, which has the *document*: *volume* first, known to it or not.

    :raises OSError: *volume* cannot be examined.
    """
    seen, unseen = [volume], []
    known = recognised(document, volume)
    for entry in document.volumes:
        if entry is known:
            continue
        found = look(document, entry)
        if isinstance(found, Unseen):
            unseen.append(found)
        else:
            seen.append(found)
    return KeystoreUsers([*seen, *_mounted_with(keystore, document.volume_id, seen)], unseen)


def _mounted_with(keystore: Path, volume_id: bytes, known: Sequence[Volume]) -> list[Volume]:
    """Return the volumes that are mounted on this host with *keystore*, apart from those that are *known*.

    Every user can mount something that looks like a tdefs volume. So only mounts of users that can read the
    keystore are examined, and only if the volumes belong to such users.
    """
    found = []
    places = set(map(_directory, known))
    users = {0, os.geteuid(), keystore.stat().st_uid}
    for backing in dict.fromkeys(mount.backing for mount in mounts_of(users)):
        with suppress(TdefsError, OSError):
            if (backing / PRIVATE_DIRECTORY).stat().st_uid not in users:
                continue
            volume = read_volume(backing)
            if volume.volume_id != volume_id or _directory(volume) in places:
                continue
            if uses(volume, keystore):
                places.add(_directory(volume))
                found.append(volume)
    return found


def _directory(volume: Volume) -> tuple[int, int]:
    place = place_of(volume)
    return place.device, place.inode


def uses(volume: Volume, keystore: Path) -> bool:
    """Return whether *volume* may use *keystore*: its daemon says so, or it is not known to use another one."""
    status = ask_status(volume)
    try:
        if status is not None:
            return is_same_file(Path(status.keystore), keystore)
        if is_same_file(volume.keystore, keystore):
            return True
        other = load_keystore(volume.keystore)
        return other.volume_id != volume.volume_id or recognised(other.document, volume) is None
    except (TdefsError, OSError):
        return True


def is_same_file(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same file.

    :raises OSError: one of them cannot be examined.
    """
    return os.path.samestat(one.stat(), other.stat())


def add_unseen(parser: argparse.ArgumentParser) -> None:
    """Add the option that allows a change although a volume that uses the keystore cannot be seen."""
    parser.add_argument(
        "--unseen-volume",
        metavar="ID",
        action="append",
        default=[],
        help="change the keys although this volume cannot be seen (repeatable)",
    )


def meant_unseen(named: Sequence[str], document: Document, users: KeystoreUsers) -> list[str]:
    """Return the ids of those volumes that cannot be seen.

    :param named: the ids that the command line names; each of them must be there.

    :raises TdefsError: VOLUME_UNSEEN for one that it does not name; VOLUME_UNKNOWN.
    """
    for id in named:
        find_volume(document, id)
    refused = [one for one in users.unseen if one.entry.id not in named]
    if refused:
        ids = [one.entry.id for one in refused]
        many = len(refused) > 1
        raise TdefsError(
            Exit.VOLUME_UNSEEN,
            f"{'volumes' if many else 'volume'} {', '.join(ids)}, which {'use' if many else 'uses'} the keystore,"
            " cannot be seen, so the effect of this change on it is not known",
            detail="\n".join(shown_unseen(one) for one in refused),
            hint="make it visible (is its disk mounted?); if it was moved, say so there with 'tdefs volume moved';"
            f" if it does not exist any more, 'tdefs volume forget {ids[0]}'; if you want the change all the same,"
            " add " + " ".join(f"--unseen-volume {id}" for id in ids),
        )
    return [one.entry.id for one in users.unseen]


def shown_unseen(one: Unseen) -> str:
    """Return a line for people on a volume that cannot be seen."""
    return f'{one.entry.id} at "{printable(one.entry.path)}": {one.reason}'


def not_registered(document: Document, keystore: Path, volume: Volume) -> TdefsError:
    """Return the error for a *volume* that *keystore*, which has the *document*, does not know at its place."""
    backing = volume.backing
    there, details = [], []
    for entry in document.volumes:
        found = look(document, entry)
        if isinstance(found, Unseen):
            details.append(shown_unseen(found))
        elif uses(found, keystore):
            there.append(found)
            details.append(f'{entry.id} is at "{printable(entry.path)}"')
        else:
            details.append(f'{entry.id} is at "{printable(entry.path)}", and uses another keystore')
    hint = (
        f'if it is a second volume: "tdefs volume copied {backing} --keystore FILE" gives it a keystore of its'
        f' own, "tdefs volume add {backing}" has both share this one'
    )
    if there:
        hint += f'; to change the keys of the other one, name that: --volume "{there[0].backing}"'
    if len(there) < len(document.volumes) or not document.volumes:
        hint = f'if it was moved or restored here, and the old one is gone: "tdefs volume moved {backing}"; {hint}'
    return TdefsError(
        Exit.VOLUME_NOT_REGISTERED,
        f'the keystore "{keystore}" does not know volume "{backing}" at this place: it is a copy, or was moved or'
        " restored",
        detail="\n".join(details) or "it knows no volume yet",
        hint=hint,
    )


def warn_unless_registered(invocation: Invocation, document: Document, keystore: Path, volume: Volume) -> None:
    """Warn on stderr, once in a command, that *keystore* does not know *volume*, if that is so."""
    if invocation.registration_reported:
        return
    invocation.registration_reported = True
    try:
        if recognised(document, volume) is not None:
            return
    except OSError:
        return  # what reads the volume next reports this
    error = not_registered(document, keystore, volume)
    print(
        f"tdefs: warning: {error.message}\n"
        f"DETAIL:  {error.detail}\n"
        f"It can be read and mounted; its keys cannot be changed until this is settled.\n"
        f"HINT:  {error.hint}",
        file=sys.stderr,
    )

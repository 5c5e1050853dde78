"""``tdefs key history``: who unlocked and changed the keystore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_json, print_line, print_table
from tdefs.cli.common.place import VolumeChoice
from tdefs.cli.common.unlocking import KeystoreAccess, open_recorded, read_keystore, unlocking_secret
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.history import history_path, read_history
from tdefs.keys.keystore.history_checking import check_history
from tdefs.keys.keystore.key_changes import find_data_key
from tdefs.keys.keystore.wrapped_keys import open_history_key
from tdefs.text import printable


@dataclass(frozen=True, slots=True)
class HistoryOptions:
    """Of ``tdefs key history``."""

    key: str | None
    unchecked: bool
    json: bool
    volume: VolumeChoice
    access: KeystoreAccess


def run_history(invocation: Invocation, options: HistoryOptions) -> int:
    """Print the history, checked by its MACs unless ``--unchecked`` is given.

    :raises TdefsError: HISTORY_BROKEN, after it was printed; DATA_KEY_UNKNOWN if neither the history nor the
        keystore knows the named key.
    """
    volume = options.volume.find()
    keystore = read_keystore(options.access, volume)
    document, key = keystore.document, None
    if not options.unchecked:
        unlocked = open_recorded(keystore, unlocking_secret(options.access, volume, keystore), invocation.command)
        key = open_history_key(document.volume_id, document.history, unlocked.master)
    found = check_history(read_history(keystore.path), key, document.history, document.revision)
    records = [record for record in found.records if options.key is None or _concerns(record, options.key)]
    if options.key is not None and not records:
        find_data_key(document, options.key)
    if options.json:
        print_json(
            {
                "checked": key is not None,
                "records": records,
                "findings": found.findings,
                "notes": found.notes,
            }
        )
    else:
        rows = [_row(record) for record in records]
        print_table(("n", "time", "event", "who", "what"), rows, numbers=("n",))
        print_line()
        for note in found.notes:
            print_line(f"note: {printable(note)}")
        print_line("not checked" if key is None else f"checked: {len(found.findings)} findings")
    if found.findings:
        raise TdefsError(
            Exit.HISTORY_BROKEN,
            f'the history "{history_path(keystore.path)}" is not as it was written',
            detail="; ".join(found.findings),
            hint="compare it with a copy; a keystore copied without its history lacks the records of before, too",
        )
    return Exit.OK


def _concerns(record: dict[str, Any], key: str) -> bool:
    """Return whether a record names the data key: as the changed key, or as one of the first keys."""
    what = record["what"]
    return key == what.get("key") or key in str(what.get("keys", "")).split()


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    who, what = record["who"], record["what"]
    user = f"{who.get('user')}@{who.get('host')}"
    if "sudo_user" in who:
        user = f"{who['sudo_user']} as {user}"
    shown_details = " ".join(f"{name}={value}" for name, value in what.items())
    return str(record["n"]), str(record["time"]), str(record["event"]), user, shown_details

"""Removing what a protector has made outside of a keystore that was not saved, or telling of what stays behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from functools import partial

from tdefs.errors import TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.protectors.base import Made, Protector


def remove_unsaved(
    protector: Protector, entries: Iterable[ProtectorEntry], saved: Collection[bytes] | None
) -> None:
    """Undo what ``protector`` did outside of the keystore for ``entries``, which were to be saved; raises nothing.

    ``saved`` is what is wrapped in the keystore as it is now, whose entries need what was made for them; None if
    that is not known.
    """
    for entry in entries:
        made = protector.made(entry)
        if made is None:
            continue
        if saved is None:
            _tell(made, "the keystore cannot be read, and may need it")
        elif entry.wrapped not in saved:
            remove_made(made, partial(protector.forget, entry))


def remove_made(made: Made, remove: Callable[[], object]) -> None:
    """Remove what was made in vain by ``remove``; say on stderr what is left behind, and why."""
    if made.kept:
        _tell(made, made.kept)
        return
    try:
        remove()
    except TdefsError as error:
        _tell(made, error.message)
    except OSError as error:
        _tell(made, error.strerror or str(error))


def _tell(made: Made, reason: str) -> None:
    print(
        f"tdefs: warning: {made.what}, which this command has made, is left behind\n"
        f"DETAIL:  {reason}\n"
        f"HINT:  to remove it: {made.removal}",
        file=sys.stderr,
        flush=True,
    )

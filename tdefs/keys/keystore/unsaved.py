"""Removing what a protector has made outside of a keystore that was not saved, or telling of what stays behind."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from functools import partial

from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.protectors.base import Protector


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
            made.warn_left("the keystore cannot be read, and may need it", warn_on_stderr)
        elif entry.wrapped not in saved:
            made.remove(partial(protector.forget, entry), warn_on_stderr)


def warn_on_stderr(message: str, *, detail: str = "", hint: str = "") -> None:
    print(f"tdefs: warning: {message}\nDETAIL:  {detail}\nHINT:  {hint}", file=sys.stderr, flush=True)

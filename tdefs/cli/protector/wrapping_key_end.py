"""``tdefs protector remove --destroy-wrapping-key``: the end of the key on the server that a protector had."""

from __future__ import annotations

import argparse
from pathlib import Path

from tdefs.cli.common.unlocking import source_finder
from tdefs.cli.key_source.wrapping_keys import wrapping_keys
from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.sources.base import KeySource


def source_with_key_of(args: argparse.Namespace, backing: Path, entry: ProtectorEntry) -> tuple[KeySource, str]:
    """Return the key source on whose server the wrapping key of ``entry`` is, and the key's identifier.

    It is the one of --key-source, else the one of the volume in ``backing``, else the only one of the kind.
    Raises TdefsError(USAGE) if none is meant, or there is no key that was made for ``entry`` alone.
    """
    config = load_config(args.config)
    of_kind = [one.name for one in config.key_sources.values() if one.kind == entry.kind]
    preferred = (args.key_source, config.for_backing(backing).key_source)
    named = [name for name in preferred if name in of_kind]
    candidates = named[:1] or of_kind
    if len(candidates) != 1:
        raise TdefsError(
            Exit.USAGE,
            f"which key source has the wrapping key of protector {entry.id} ({entry.kind})?",
            detail=f"the configuration describes {len(of_kind)} of this kind",
            hint="unlock with it by --key-source, or leave out --destroy-wrapping-key",
        )
    uid = wrapping_keys(args, candidates[0]).made_for(entry)
    if uid is None:
        raise TdefsError(
            Exit.USAGE,
            f"the wrapping key of protector {entry.id} was not made for it alone",
            detail="the configuration names the key, so others may need it",
            hint="leave out --destroy-wrapping-key; 'tdefs key-source destroy' destroys any key",
        )
    return source_finder(args)(candidates[0]), uid


def destroy_wrapping_key(source: KeySource, uid: str, entry: ProtectorEntry) -> None:
    """Destroy the wrapping key of ``entry``, which is removed already. Raises what KeySource.forget raises."""
    try:
        source.forget(entry)
    except TdefsError as error:
        raise TdefsError(
            error.exit_code,
            f"protector {entry.id} is removed, but its wrapping key {uid} is not destroyed: {error.message}",
            detail=error.detail,
            hint="once the server can be used: 'tdefs key-source revoke', then 'tdefs key-source destroy'",
        ) from None

"""``tdefs protector remove --destroy-wrapping-key``: the end of the key on the server that a protector had."""

from __future__ import annotations

from tdefs.cli.common.unlocking import KeystoreAccess
from tdefs.cli.key_source.wrapping_keys import wrapping_keys
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.sources.base import KeySource
from tdefs.volume.description import Volume


def source_with_key_of(access: KeystoreAccess, volume: Volume, entry: ProtectorEntry) -> tuple[KeySource, str]:
    """Return the key source on whose server the wrapping key of ``entry`` is, and the key's identifier.

    It is the one of --key-source, else the one that the configuration names for the volume, else the only one of
    the kind.

    :raises TdefsError: USAGE if there is no such key source, or if the key was not made only for ``entry``.
    """
    config = access.invocation.config
    of_kind = [one.name for one in config.key_sources.values() if one.kind == entry.kind]
    preferred = (access.secret.key_source, access.settings(volume).key_source)
    named = [name for name in preferred if name in of_kind]
    candidates = named[:1] or of_kind
    if len(candidates) != 1:
        raise TdefsError(
            Exit.USAGE,
            f"which key source has the wrapping key of protector {entry.id} ({entry.kind})?",
            detail=f"the configuration describes {len(of_kind)} of this kind",
            hint="unlock with it by --key-source, or leave out --destroy-wrapping-key",
        )
    uid = wrapping_keys(access.invocation, candidates[0]).made_for(entry)
    if uid is None:
        raise TdefsError(
            Exit.USAGE,
            f"the wrapping key of protector {entry.id} was not made for it alone",
            detail="the configuration names the key, so others may need it",
            hint="leave out --destroy-wrapping-key; 'tdefs key-source destroy' destroys any key",
        )
    return access.invocation.key_source(candidates[0]), uid


def destroy_wrapping_key(source: KeySource, uid: str, entry: ProtectorEntry) -> None:
    """Destroy the wrapping key of ``entry``, which is removed already.

    :raises TdefsError: as KeySource.forget does.
    """
    try:
        source.forget(entry)
    except TdefsError as error:
        raise TdefsError(
            error.exit_code,
            f"protector {entry.id} is removed, but its wrapping key {uid} is not destroyed: {error.message}",
            detail=error.detail,
            hint="once the server can be used: 'tdefs key-source revoke', then 'tdefs key-source destroy'",
        ) from None

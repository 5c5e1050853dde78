"""Accepting differences from the manifest: of an unmounted volume, and through the daemon of a mounted one."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tdefs.keys.wrapping import fits_mac, make_mac
from tdefs.manifest.bound import Bound
from tdefs.manifest.journal import prepare_journal
from tdefs.manifest.record import Flag, Manifest
from tdefs.manifest.state import State, write_manifest
from tdefs.manifest.taking import take
from tdefs.private import UntrustedError, reason_of
from tdefs.volume.known import note_counter

REQUEST = "accept"
_PURPOSE = b"tdefs v1 accept differences"


def accept(state: State, paths: Collection[bytes], *, older_copy: bool, left_clean: bool = True) -> None:
    """Write a manifest in which *paths* are as they are now; the caller holds the volume's lock.

    :param older_copy: whether it is accepted, too, that the volume is an older copy, or lost its manifest.
    :param left_clean: whether the last session is known to have ended cleanly.
    :raises OSError: nothing has changed; or only the counter is missing in the keystore's history.
    """
    binding = state.binding
    if binding.key is None:
        return
    if older_copy:
        state.older_than, state.lost = 0, ""
    if state.manifest is None and not left_clean:
        # files that a crash left half done must not be bound
        counter = state.newest + 1
        id, older, flags = binding.volume.volume_id, state.older_than, Flag.INCOMPLETE
        manifest = Manifest(id, counter, {}, older, flags, binding.entry or "")
        if state.lost:
            manifest.flags |= Flag.FOLLOWS_LOST
    else:
        manifest = take(state, accepted=paths, unclean=state.manifest is not None and not state.is_complete)
    prepare_journal(binding.volume)
    write_manifest(binding.volume, manifest, binding.key)
    if binding.entry is not None and binding.history_key is not None:
        note_counter(binding.keystore, binding.history_key, binding.entry, manifest.counter)


def request(state: State, paths: Sequence[bytes], *, older_copy: bool) -> dict[str, Any]:
    """Return the request to the daemon. It has a MAC, since only a user with the keys may accept."""
    assert state.binding.key is not None  # noqa: S101 - there are differences, so there is a manifest
    counter = state.manifest.counter if state.manifest is not None else 0
    content = _content(state.binding.volume.volume_id, counter, paths, older_copy=older_copy)
    return {
        "paths": [os.fsdecode(path) for path in paths],
        "older_copy": older_copy,
        "mac": make_mac(state.binding.key, content).hex(),
    }


def answer(bound: Bound, state: State | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the daemon's answer to a :func:`request`."""
    if state is None or state.binding.key is None:
        return {"refused": "there is no manifest"}
    counter = state.manifest.counter if state.manifest is not None else 0
    try:
        paths = [os.fsencode(path) for path in asked["paths"]]
        older_copy = bool(asked["older_copy"])
        mac = bytes.fromhex(asked["mac"])
    except (KeyError, TypeError, ValueError):
        paths, older_copy, mac = [], False, b""
    content = _content(state.binding.volume.volume_id, counter, paths, older_copy=older_copy)
    if not fits_mac(mac, state.binding.key, content):
        return {"refused": "the request was not made with the volume's keys"}
    try:
        accepted = bound.accept(paths, older_copy=older_copy)
    except (OSError, UntrustedError) as error:
        return {"refused": f"it could not be written down: {reason_of(error)}"}
    return {"accepted": accepted}


def _content(volume_id: bytes, counter: int, paths: Sequence[bytes], *, older_copy: bool) -> bytes:
    """Return the bytes that the MAC of a request authenticates."""
    return _PURPOSE + volume_id + counter.to_bytes(8, "little") + bytes([older_copy]) + b"\0".join(paths)

"""Checking an unlocked keystore: whether each protector and each round leads to its key."""

from __future__ import annotations

from collections.abc import Iterator

from tdefs.errors import TdefsError
from tdefs.keys.hierarchy import MasterKey
from tdefs.keys.keystore.entries import Document, damaged
from tdefs.keys.keystore.wrapped_keys import (
    check_mac,
    kept_protector_key,
    master_key_by_protector_key,
    open_history_key,
    unwrap_round,
)


def check_protector(document: Document, id: str, master: MasterKey) -> None:
    """Check that protector *id* leads to *master*, as far as that can be checked without its secret.

    :raises TdefsError: KEYSTORE_DAMAGED.
    """
    entry = next(entry for entry in document.protectors if entry.id == id)
    key = kept_protector_key(document.volume_id, entry, master)
    if master_key_by_protector_key(document.volume_id, entry, key) != master:
        raise damaged(f"protector {id} leads to another master key")


def check_round(document: Document, name: str, number: int, master: MasterKey) -> bool:
    """Check that a round can be unwrapped; return whether it is there: a destroyed one is not.

    :raises TdefsError: KEYSTORE_DAMAGED.
    """
    key = next(entry for entry in document.data_keys if entry.name == name)
    entry = next(one for one in key.rounds if one.round == number)
    if entry.wrapped is None:
        return False
    unwrap_round(document.volume_id, name, entry, {master.name: master})
    return True


def faults(document: Document, master: MasterKey) -> Iterator[str]:
    """Yield what is wrong with a document whose current master key is *master*."""
    try:
        check_mac(document, master)
        for protector in document.protectors:
            check_protector(document, protector.id, master)
        for key in document.data_keys:
            for one in key.rounds:
                check_round(document, key.name, one.round, master)
        open_history_key(document.volume_id, document.history, master)
    except TdefsError as error:
        yield error.detail or error.message

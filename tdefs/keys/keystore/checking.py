"""Checking a keystore: what unlocking it may cost, and whether each protector and each round leads to its key.

Nothing in a keystore is authenticated before the master key is open. Somebody who can write to the file can put
any number of entries in it, of any cost, and each of them would be tried. So number and cost are limited for the
keystore as a whole, and checked before the first entry is tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import MasterKey
from tdefs.keys.keystore.entries import Document, damaged
from tdefs.keys.keystore.wrapped_keys import (
    check_mac,
    kept_protector_key,
    master_key_by_protector_key,
    open_history_key,
    unwrap_round,
)
from tdefs.keys.protectors.passphrase import MAX_TOTAL_WORK, PassphraseProtector, scrypt_work

#: Each entry costs a derivation, or the answer of a key server or a TPM.
MAX_OF_ONE_KIND = 16


def check_costs(document: Document) -> None:
    """Raise TdefsError(KEYSTORE_DAMAGED) if unlocking could cost more than for any keystore that tdefs writes."""
    for kind, count in Counter(entry.kind for entry in document.protectors).items():
        if count > MAX_OF_ONE_KIND:
            raise damaged(f"it has {count} protectors of kind {kind}, and the most is {MAX_OF_ONE_KIND}")
    if _total_work(document) > MAX_TOTAL_WORK:
        raise damaged("its passphrases together cost more than tdefs allows")


def refuse_one_more(document: Document, kind: str) -> None:
    """Raise TdefsError(KEYSTORE_FULL) unless ``document`` has room for one more protector of this kind."""
    if sum(entry.kind == kind for entry in document.protectors) >= MAX_OF_ONE_KIND:
        raise TdefsError(
            Exit.KEYSTORE_FULL,
            f"the keystore has {MAX_OF_ONE_KIND} protectors of kind {kind}, and that is the most",
            detail="each one may be tried when the keystore is unlocked",
            hint="'tdefs protector list' shows them; remove one that nobody needs",
        )


def refuse_cost(document: Document) -> None:
    """Raise TdefsError(KEYSTORE_FULL) for a document to be written whose passphrases cost too much together."""
    if _total_work(document) > MAX_TOTAL_WORK:
        raise TdefsError(
            Exit.KEYSTORE_FULL,
            "the passphrases of the keystore would cost too much together",
            detail="each one is tried to unlock the keystore; all may cost as much as 16 of the default cost",
            hint="choose a smaller --scrypt-cost, or remove a passphrase that nobody needs",
        )


def _total_work(document: Document) -> int:
    return sum(scrypt_work(entry) for entry in document.protectors if entry.kind == PassphraseProtector.kind)


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

"""From version 1 or 2 of the keystore to version 3, which happens before the first change."""

from __future__ import annotations

from dataclasses import replace

from tdefs.errors import Exit, TdefsError
from tdefs.keys.document import VERSION
from tdefs.keys.keystore import Unlocked
from tdefs.keys.protectors.base import Protector
from tdefs.keys.seal import new_history_anchor, new_protector_entry, open_keys, sign, wrap_round


def upgraded(unlocked: Unlocked, protector: Protector) -> Unlocked:
    """Return the keystore in version 3; ``protector`` has unlocked it. Version 3 is returned as it is.

    The data keys stay what they are; no volume is known, so that a copy of one cannot pass for it. From version 1,
    the protector gets a protector key, for which its secret is needed, so a keystore of version 1 with several
    protectors is refused; no tdefs ever wrote one.

    Raises what the protector raises; TdefsError(KEYSTORE_DAMAGED) for several protectors.
    """
    old, master = unlocked.document, unlocked.master
    if old.version == VERSION:
        return unlocked
    if old.version > 1:
        return replace(unlocked, document=sign(replace(old, version=VERSION), master))
    if len(old.protectors) != 1 or len(old.master_keys) != 1:
        raise TdefsError(
            Exit.KEYSTORE_DAMAGED,
            "the keystore has format version 1 and several protectors or master keys, and cannot be changed",
            detail="tdefs has never written such a keystore",
        )
    entry = old.protectors[0]
    renewed = new_protector_entry(old.volume_id, protector, entry.id, "", master)
    keys = {(key.name, key.round): key for key in unlocked.ring}
    document = sign(
        replace(
            old,
            version=VERSION,
            revision=1,
            protectors=(replace(renewed, created=entry.created),),
            data_keys=tuple(
                replace(
                    data_key,
                    rounds=tuple(
                        wrap_round(old.volume_id, one, keys[data_key.name, one.round], master)
                        for one in data_key.rounds
                    ),
                )
                for data_key in old.data_keys
            ),
            history=new_history_anchor(old.volume_id, master),
        ),
        master,
    )
    return replace(unlocked, document=document, ring=open_keys(document, {master.name: master}))

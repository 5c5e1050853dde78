"""Keystores for the tests, with a cost of scrypt that keeps thousands of runs short."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.keystore.file import create_keystore
from tdefs.keys.protectors.passphrase import PassphraseProtector, ScryptCost

VOLUME_ID = bytes(range(16))
OTHER_VOLUME_ID = bytes(range(16, 32))
PASSPHRASE = b"correct horse battery staple"
WRONG_PASSPHRASE = b"incorrect zebra accumulator"
KEY_HEX = "0123456789abcdef" * 4
CHEAP = ScryptCost(n=16, r=1, p=1)
#: Opens by PASSPHRASE and by the key KEY_HEX of a command; dk_1 has a destroyed, a revoked and an active round. It
#: knows two volumes, the first of which has a policy that leaves files in the clear.
GOLDEN = Path(__file__).parent / "golden" / "keystore-v4.json"


def passphrase(text: bytes = PASSPHRASE) -> PassphraseProtector:
    return PassphraseProtector(lambda: text, cost=CHEAP)


def new_keystore(path: Path) -> KeyRing:
    return create_keystore(path, VOLUME_ID, passphrase())


def private_copy(source: Path, target: Path) -> Path:
    """Return a copy that others cannot read: the working tree cannot carry mode 0600."""
    target.write_bytes(source.read_bytes())
    target.chmod(0o600)
    return target


def everything_shown(error: BaseException) -> str:
    """Return all that a log or a terminal could show of an error, its causes and contexts included."""
    chain = list(_chain(error))
    texts = [repr(one) + str(one) + repr(vars(one)) + repr(one.args) for one in chain]
    return "".join(texts) + "".join(traceback.format_exception(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

"""The base of protectors: how the secret that a protector obtains wraps, for each kind as docs/FORMAT.md says."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

import tdefs
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.protectors.base import Made, NotMineError, Obtained, Parameters, Protector, WrongSecretError
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.protectors.recovery import RecoveryCodeProtector
from tdefs.keys.protectors.this_host import ThisHostProtector
from tdefs.keys.sources.aws_kms.source import AwsKms
from tdefs.keys.sources.kmip.source import KmipSource
from tdefs.keys.sources.pkcs11.source import Pkcs11
from tdefs.keys.sources.vault.kv import VaultKV
from tdefs.keys.sources.vault.transit import VaultTransit
from tdefs.keys.wrapping import WrapContext, unwrap_secret

FORMAT = Path(tdefs.__file__).parents[1] / "docs" / "FORMAT.md"
CONTEXT = WrapContext(bytes(16), "protector key by drawer", "pr_1", 0, "pr_1")
PROTECTOR_KEY = bytes(range(32))
SOURCES: list[type[Protector]] = [AwsKms, KmipSource, Pkcs11, VaultKV, VaultTransit]


class Drawer(Protector):
    """Keeps each secret in a drawer with a number."""

    kind = "drawer"
    words = "the drawer"
    purpose = b"tdefs v1 drawer wrapping key"
    members = ("drawer", "colour")

    def __init__(self) -> None:
        super().__init__()
        self.drawers: list[bytes] = []

    def obtain(self, context: WrapContext) -> Obtained:
        del context
        self.drawers.append(bytes([len(self.drawers)]) * 32)
        number = len(self.drawers)
        made = Made(f"drawer {number}", f"empty {number}")
        return Obtained(self.drawers[-1], {"drawer": number, "colour": "red"}, made)

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        del context
        params.text("colour", re.compile("red|blue"))
        return self.drawers[params.integer("drawer", 1, 99) - 1]

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        return WrongSecretError(f"not the drawer of {params.entry_id}")


def entry_of(protector: Protector) -> ProtectorEntry:
    wrapped = protector.wrap(PROTECTOR_KEY, CONTEXT)
    return ProtectorEntry("pr_1", protector.kind, datetime.now(UTC), "mk_1", wrapped.params, wrapped.wrapped)


def test_the_secret_wraps_by_hkdf_and_the_context() -> None:
    drawer = Drawer()
    entry = entry_of(drawer)
    info = Drawer.purpose + CONTEXT.to_bytes()
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(drawer.drawers[0])
    assert unwrap_secret(key, entry.wrapped, CONTEXT) == PROTECTOR_KEY
    assert drawer.unwrap(entry, CONTEXT) == PROTECTOR_KEY


def test_another_secret_is_wrong_and_another_kind_is_not_mine() -> None:
    drawer = Drawer()
    entry = entry_of(drawer)
    drawer.drawers[0] = bytes(range(32))
    with pytest.raises(WrongSecretError, match="not the drawer of pr_1"):
        drawer.unwrap(entry, CONTEXT)
    with pytest.raises(NotMineError):
        drawer.unwrap(replace(entry, kind="safe"), CONTEXT)


def test_what_was_made_is_known_of_each_entry_that_this_object_wrapped() -> None:
    drawer = Drawer()
    first, second = entry_of(drawer), entry_of(drawer)
    assert drawer.made(first) == Made("drawer 1", "empty 1")
    assert drawer.made(second) == Made("drawer 2", "empty 2")
    assert Drawer().made(first) is None


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"drawer": 1},
        {"drawer": 0, "colour": "red"},
        {"drawer": "1", "colour": "red"},
        {"drawer": 1, "colour": "hunter2"},
        {"drawer": 1, "colour": "red", "more": 1},
    ],
    ids=str,
)
def test_parameters_that_the_kind_never_writes_are_damage_and_not_repeated(params: dict[str, str | int]) -> None:
    drawer = Drawer()
    with pytest.raises(TdefsError) as caught:
        drawer.unwrap(replace(entry_of(drawer), params=params), CONTEXT)
    assert caught.value.exit_code is Exit.KEYSTORE_DAMAGED
    assert "protector pr_1" in caught.value.detail
    assert "hunter2" not in caught.value.render()


@pytest.mark.parametrize("kind", SOURCES, ids=lambda kind: kind.kind)
def test_each_key_source_has_the_purpose_and_the_parameters_that_the_format_documents(
    kind: type[Protector],
) -> None:
    rows = [line for line in FORMAT.read_text().splitlines() if f"`{kind.purpose.decode()}`" in line]
    assert len(rows) == 1
    assert f"`{kind.kind}`" in rows[0]
    assert [name for name in kind.members if f"`{name}`" not in rows[0]] == []


@pytest.mark.parametrize("kind", [CommandProtector, RecoveryCodeProtector, ThisHostProtector])
def test_other_protectors_have_the_purpose_that_the_format_documents(kind: type[Protector]) -> None:
    assert kind.purpose.decode() in FORMAT.read_text()

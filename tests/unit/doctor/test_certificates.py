"""The doctor tells of certificates that expire, before the next unlock fails."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
from cryptography import x509

from tdefs.cli import doctor
from tdefs.doctor.certificates import examine_certificates
from tdefs.doctor.findings import Finding, Level
from tdefs.errors import Exit
from tdefs.keys.dialogue import Dialogue
from tdefs.keys.protectors.base import Obtained, Parameters, WrongSecretError
from tdefs.keys.sources.base import Certificate, KeySource
from tdefs.keys.sources.settings import SettingsReader
from tdefs.keys.wrapping import WrapContext
from tests.keysources.certificates import Authority
from tests.support.offline_volumes import Command


class Source(KeySource):
    """A key source that has certificates, and no more."""

    kind = "kmip"

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._paths = paths

    @classmethod
    def from_settings(cls, read: SettingsReader, dialogue: Dialogue) -> Self:
        raise NotImplementedError

    def obtain(self, context: WrapContext) -> Obtained:
        raise NotImplementedError

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        raise NotImplementedError

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        raise NotImplementedError

    def certificates(self) -> Sequence[Certificate]:
        return [Certificate(path, "client certificate") for path in self._paths]


def examine(*paths: Path) -> list[Finding]:
    return list(examine_certificates("kms1", Source(paths), datetime.now(UTC)))


def made(directory: Path, valid: timedelta) -> Path:
    return Authority(directory).sign("client", client=True, valid=valid).certificate


def last_day(path: Path) -> str:
    """The date until which a certificate is good; midnight may lie between its making and now."""
    return f"{x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc:%Y-%m-%d}"


def test_a_certificate_that_is_good_for_long_is_not_told(tmp_path: Path) -> None:
    assert examine(made(tmp_path, timedelta(days=31))) == []
    assert examine() == []


def test_one_that_expires_soon_is_advice_with_its_date(tmp_path: Path) -> None:
    path = made(tmp_path, timedelta(days=29, hours=1))
    [finding] = examine(path)
    assert finding.level is Level.ADVICE
    assert finding.what == f'key source "kms1": client certificate {path} expires on {last_day(path)}, in 29 days'
    assert "replace the file" in finding.hint


def test_one_that_is_expired_is_a_risk(tmp_path: Path) -> None:
    path = made(tmp_path, timedelta(days=-2))
    [finding] = examine(path)
    assert finding.level is Level.RISK
    assert f"expired on {last_day(path)}" in finding.what


def test_of_all_authorities_that_a_system_trusts_none_is_told(tmp_path: Path) -> None:
    expired = made(tmp_path, timedelta(days=-2)).read_bytes()
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(expired * 20)
    assert len(examine(bundle)) == 20
    bundle.write_bytes(expired * 21)
    assert examine(bundle) == []


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_one_that_cannot_be_read_is_a_risk(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "client.pem"
    if content is not None:
        path.write_bytes(content)
    [finding] = examine(path)
    assert finding.level is Level.RISK
    assert f"{path} cannot be read" in finding.what


def test_of_a_chain_the_certificate_that_expires_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good = authority.sign("good", client=True).certificate
    old = authority.sign("old", client=True, valid=timedelta(days=-1)).certificate
    chain = tmp_path / "chain.pem"
    chain.write_bytes(good.read_bytes() + old.read_bytes())
    [finding] = examine(chain)
    assert f"{chain}: CN=old expired" in finding.what


def test_without_a_mount_the_doctor_tells_of_key_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tdefs.yaml"
    expired = made(tmp_path, timedelta(days=-1))
    lines = (
        "kind: kmip",
        "servers: [localhost]",
        f"ca: {expired}",
        f"certificate: {expired}",
        "private_key: /key",
    )
    config.write_text("version: 1\nkey_sources:\n  kms1:\n" + "".join(f"    {line}\n" for line in lines))
    assert Command(capsys).run(doctor, "--config", config)[0] == Exit.DOCTOR_FOUND_RISKS
    config.write_text("version: 1\n")
    assert Command(capsys).run(doctor, "--config", config) == (0, "nothing weakens the key sources\n")

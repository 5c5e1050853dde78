"""Key source aws-kms against a stand-in for the service. Covers tdefs/keys/sources/aws_kms."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tdefs.cli import cat, init
from tdefs.cli.common.terminal import TerminalDialogue
from tdefs.cli.key import command as key
from tdefs.cli.key_source import command as key_source
from tdefs.cli.protector import command as protector
from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.keystore.wrapped_keys import now
from tdefs.keys.protectors.base import WrongSecretError
from tdefs.keys.sources.aws_kms.source import AwsKms
from tdefs.keys.sources.base import make_key_source
from tdefs.keys.sources.settings import is_safe
from tdefs.keys.wrapping import WrapContext
from tests.keysources.aws_stand_in import (
    CREDENTIALS,
    ENVIRONMENT,
    REGION,
    SESSION_TOKEN,
    KmsStandIn,
    make_certificate,
)
from tests.support.offline_volumes import Command
from tests.support.volume import Volume
from tests.support.workspace import Workspace

CONTEXT = WrapContext(bytes(range(16)), "protector key by aws-kms", "pr_1", 0, "pr_1")
SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def server() -> Iterator[KmsStandIn]:
    server = KmsStandIn()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def kms(server: KmsStandIn, monkeypatch: pytest.MonkeyPatch) -> KmsStandIn:
    """The stand-in, and an environment in which it is asked with credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    server.answers.clear()
    server.requests.clear()
    server.delay_seconds = 0
    return server


@pytest.fixture(scope="module")
def key_id(server: KmsStandIn) -> str:
    """The ARN of a key."""
    return server.admin().create_key()["KeyMetadata"]["Arn"]


class Site:
    """A configuration with key sources, a volume to be made, and the commands run on it."""

    def __init__(self, root: Path, command: Command, kms: KmsStandIn) -> None:
        self.config = root / "tdefs.yaml"
        self.backing = root / "backing"
        self.keystore = root / "keystore"
        self._command = command
        self._url = kms.url

    def describe(self, key_id: str, *lines: str, name: str = "kms", url: str | None = None) -> None:
        """Adds a key source to the configuration."""
        if not self.config.exists():
            self.config.write_text("version: 1\nlog_level: debug\nkey_sources:\n")
        region = [] if any(line.startswith("region:") for line in lines) else [f"region: {REGION}"]
        patience = [] if any(line.startswith("patience_") for line in lines) else ["patience_seconds: 0"]
        address = [] if url == "" else [f"endpoint_url: {url or self._url}"]
        fields = ["kind: aws-kms", f"key_id: {key_id}", *address, *region, *patience, *lines]
        with self.config.open("a") as file:
            file.write(f"  {name}:\n" + "".join(f"    {field}\n" for field in fields if not field.endswith(": -")))

    def source(self, name: str = "kms") -> AwsKms:
        found = make_key_source(load_config(self.config).key_source(name), TerminalDialogue())
        assert isinstance(found, AwsKms)
        return found

    def init(self, name: str = "kms") -> None:
        words = ("--key-source", name, "--config", self.config, "--keystore", self.keystore)
        self._command.run(init, self.backing, *words)

    def run(self, module: Any, action: str, *words: str, name: str = "kms") -> str:
        place = ("--volume", self.backing, "--config", self.config, "--key-source", name)
        return self._command.run(module, action, *words, *place)[1]

    def test(self, name: str = "kms") -> str:
        return self._command.run(key_source, "test", name, "--config", self.config)[1]

    def refused(self, name: str = "kms") -> TdefsError:
        with pytest.raises(TdefsError) as caught:
            self.test(name)
        assert SESSION_TOKEN not in caught.value.render()
        return caught.value

    @property
    def errors(self) -> str:
        return self._command.errors

    def tested(self) -> list[str]:
        """What ``protector test`` says of each protector, in order."""
        lines = self.run(protector, "test").splitlines()
        return [line.split("  ")[-1].strip() for line in lines if line.startswith("pr_")]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def site(tmp_path: Path, command: Command, kms: KmsStandIn) -> Site:
    return Site(tmp_path, command, kms)


def entry_of(source: AwsKms, **changes: str) -> ProtectorEntry:
    """A protector of CONTEXT that wraps SECRET, with some parameters changed."""
    made = source.wrap(SECRET, CONTEXT)
    return ProtectorEntry("pr_1", "aws-kms", now(), "mk_1", {**made.params, **changes}, made.wrapped, "")


def test_life_of_a_keystore_with_protectors_of_aws_kms(site: Site, key_id: str, kms: KmsStandIn) -> None:
    other = kms.admin().create_key()["KeyMetadata"]["KeyId"]
    kms.admin().create_alias(AliasName="alias/tdefs", TargetKeyId=other)
    site.describe(key_id)
    site.describe("alias/tdefs", "encryption_context: [department=payroll]", name="other")
    assert site.test() == 'key source "kms" (aws-kms) wraps and unwraps\n'
    site.init()
    assert "pr_2 (aws-kms)" in site.run(protector, "add", "--new-key-source", "other", "--label", "b")
    assert site.tested() == ["opens", "of another kind"]
    site.run(protector, "change", "pr_1", "--new-key-source", "kms")
    site.run(key, "rotate-master")
    site.run(key, "rotate", "dk_1")
    assert 'opens mk_2 by key source "other"' in site.run(key, "verify")
    assert "opens" in site.run(protector, "test", "--id", "pr_2", name="other")
    site.run(protector, "remove", "pr_1", name="other")
    with pytest.raises(TdefsError) as caught:
        site.run(key, "verify")
    assert caught.value.exit_code == Exit.WRONG_SECRET
    site.run(key, "verify", name="other")


def test_the_ciphertext_is_bound_to_volume_and_protector(site: Site, key_id: str, kms: KmsStandIn) -> None:
    site.describe(key_id, "encryption_context: [department=payroll, stage=a b]")
    site.init()
    asked, request = kms.requests[0]
    assert asked == "Encrypt"
    assert request["EncryptionContext"] == {
        "tdefs-volume": load_keystore(site.keystore).volume_id.hex(),
        "tdefs-purpose": "protector key by aws-kms",
        "tdefs-protector": "pr_1",
        "department": "payroll",
        "stage": "a b",
    }
    assert {name for name, _ in kms.requests} == {"Encrypt", "Decrypt"}
    assert all(one["EncryptionContext"] == request["EncryptionContext"] for _, one in kms.requests)
    entry = entry_of(site.source())
    elsewhere = WrapContext(bytes(16), CONTEXT.purpose, "pr_1", 0, "pr_1")
    with pytest.raises(WrongSecretError) as caught:
        site.source().unwrap(entry, elsewhere)
    assert caught.value.detail == "it answered InvalidCiphertextException"
    site.config.write_text(site.config.read_text().replace("payroll", "sales"))
    with pytest.raises(TdefsError) as refused:
        site.run(key, "verify")
    assert refused.value.exit_code == Exit.WRONG_SECRET


def test_the_key_that_encrypted_is_the_one_that_is_asked_to_decrypt(
    site: Site, key_id: str, kms: KmsStandIn
) -> None:
    kms.admin().create_alias(AliasName="alias/moving", TargetKeyId=key_id)
    site.describe("alias/moving")
    site.describe(key_id.rpartition("/")[2], name="by_id")
    another = kms.admin().create_key()["KeyMetadata"]["Arn"]
    site.describe(another, name="another")
    entry = entry_of(site.source())
    kms.admin().update_alias(AliasName="alias/moving", TargetKeyId=another)
    assert site.source().unwrap(entry, CONTEXT) == SECRET
    assert kms.requests[-1][1]["KeyId"] == key_id
    assert site.source("by_id").unwrap(entry, CONTEXT) == SECRET
    site.init()
    kms.requests.clear()
    with pytest.raises(TdefsError) as caught:
        site.run(key, "verify", name="by_id")
    assert caught.value.exit_code == Exit.WRONG_SECRET
    assert kms.requests == [], "another key was asked"


def test_a_replica_in_another_region_opens_what_the_first_key_made(site: Site, kms: KmsStandIn) -> None:
    made = kms.admin().create_key(MultiRegion=True)["KeyMetadata"]
    site.describe(made["KeyId"])
    site.describe(made["KeyId"], "region: eu-west-1", name="replica")
    entry = entry_of(site.source())
    replica = made["Arn"].replace(REGION, "eu-west-1")
    # moto cannot decrypt with such a key: it takes their ids to have 36 characters
    kms.answers.append((200, {"KeyId": replica, "Plaintext": kms.requests[0][1]["Plaintext"]}))
    assert site.source("replica").unwrap(entry, CONTEXT) == SECRET
    assert kms.requests[-1][1]["KeyId"] == replica


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("AccessDeniedException", Exit.KEY_SERVER_REFUSED),
        ("UnrecognizedClientException", Exit.KEY_SERVER_REFUSED),
        ("ExpiredTokenException", Exit.KEY_SERVER_REFUSED),
        ("InvalidSignatureException", Exit.KEY_SERVER_REFUSED),
        ("ValidationException", Exit.KEY_SERVER_REFUSED),
        ("NotFoundException", Exit.WRAPPING_KEY_UNUSABLE),
        ("DisabledException", Exit.WRAPPING_KEY_UNUSABLE),
        ("KMSInvalidStateException", Exit.WRAPPING_KEY_UNUSABLE),
        ("InvalidKeyUsageException", Exit.WRAPPING_KEY_UNUSABLE),
        ("InvalidCiphertextException", Exit.WRONG_SECRET),
        ("IncorrectKeyException", Exit.WRONG_SECRET),
        ("ThrottlingException", Exit.KEY_SERVER_UNREACHABLE),
        ("KMSInternalException", Exit.KEY_SERVER_UNREACHABLE),
        ("DependencyTimeoutException", Exit.KEY_SERVER_UNREACHABLE),
    ],
)
def test_errors_of_the_service_have_their_own_exit_codes(
    site: Site, key_id: str, kms: KmsStandIn, code: str, expected: Exit
) -> None:
    site.describe(key_id)
    kms.refuse(
        code, f"the request had the header {SESSION_TOKEN}" if "Denied" not in code else "user u: no\x1b[2J"
    )
    error = site.refused()
    assert error.exit_code == expected
    assert code in error.detail
    assert "\x1b" not in error.render()
    assert ("user u: no" in error.detail) == (code == "AccessDeniedException")
    assert len(kms.requests) == 1


def test_only_who_has_the_right_encrypts_and_decrypts(
    site: Site, key_id: str, kms: KmsStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.describe(key_id)
    entry = entry_of(site.source())
    may_decrypt = kms.user("kms:Decrypt")
    kms.check_identities(True)
    try:
        assert site.refused().exit_code == Exit.KEY_SERVER_REFUSED
        monkeypatch.delenv("AWS_SESSION_TOKEN")
        for name, value in may_decrypt.items():
            monkeypatch.setenv(name, value)
        assert site.source().unwrap(entry, CONTEXT) == SECRET
        error = site.refused()
        # moto tells of rights in XML, unlike the service, so that the error has the HTTP status alone
        assert (error.exit_code, error.detail) == (Exit.KEY_SERVER_REFUSED, "it answered 403")
        assert kms.requests[-1][0] == "Encrypt"
    finally:
        kms.check_identities(False)


def test_a_key_that_is_not_there_is_told_by_its_name(site: Site, kms: KmsStandIn) -> None:
    site.describe("alias/nobody")
    error = site.refused()
    assert (error.exit_code, error.message) == (
        Exit.WRAPPING_KEY_UNUSABLE,
        f"the key alias/nobody of AWS KMS in {REGION} is not there",
    )


def test_what_passes_is_asked_again(site: Site, key_id: str, kms: KmsStandIn) -> None:
    site.describe(key_id, "patience_seconds: 5")
    kms.refuse("ThrottlingException")
    kms.answers.append((503, {}))
    site.test()
    assert [name for name, _ in kms.requests] == ["Encrypt"] * 3 + ["Decrypt"]
    assert "cannot answer now: it answered ThrottlingException; trying again" in site.errors


def test_a_server_that_is_slow_or_away_is_unreachable(site: Site, key_id: str, kms: KmsStandIn) -> None:
    site.describe(key_id, "timeout_seconds: 1")
    kms.delay_seconds = 1.3
    error = site.refused()
    assert (error.exit_code, error.detail) == (Exit.KEY_SERVER_UNREACHABLE, "boto3 says ReadTimeoutError")
    site.describe(key_id, name="away", url="http://127.0.0.1:1")
    error = site.refused("away")
    assert (error.exit_code, error.detail) == (
        Exit.KEY_SERVER_UNREACHABLE,
        "boto3 says EndpointConnectionError",
    )


def test_only_a_server_with_a_trusted_certificate_is_asked(site: Site, key_id: str, tmp_path: Path) -> None:
    right = make_certificate(tmp_path, "right", "127.0.0.1")
    other = make_certificate(tmp_path, "other", "127.0.0.2")
    for name, files in {"right": right, "other": other}.items():
        secure = KmsStandIn(files)
        try:
            site.describe(key_id, f"ca: {files[0]}", name=f"{name}_with_ca", url=secure.url)
            site.describe(key_id, name=f"{name}_without", url=secure.url)
            if name == "right":
                site.test("right_with_ca")
                assert [one.path for one in site.source("right_with_ca").certificates()] == [files[0]]
                secure.requests.clear()
            else:
                assert site.refused("other_with_ca").exit_code == Exit.KEY_SERVER_UNTRUSTED
            error = site.refused(f"{name}_without")
            assert error.exit_code == Exit.KEY_SERVER_UNTRUSTED
            assert secure.requests == []
        finally:
            secure.stop()
    site.describe(key_id, f"ca: {tmp_path}/none", name="no_ca", url="https://127.0.0.1:1")
    assert site.refused("no_ca").exit_code == Exit.KEY_SOURCE_UNAVAILABLE


def test_an_endpoint_that_others_can_read_is_refused_wherever_it_is_named(
    site: Site, key_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(
        map(is_safe, ("http://kms.example", "ftp://127.0.0.1", "https://u:p@h", "127.0.0.1", "http://["))
    )
    assert all(map(is_safe, ("https://kms.example", "http://127.1.2.3:8", "http://[::1]:8", "http://localhost")))
    site.describe(key_id, url="")
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://192.0.2.1")
    error = site.refused()
    assert error.exit_code == Exit.KEY_SERVER_UNTRUSTED
    assert "neither HTTPS nor on this host" in error.message


def test_what_is_sent_in_the_clear_goes_by_no_proxy(
    site: Site, key_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    site.describe(key_id)
    assert "wraps and unwraps" in site.test()


def test_missing_credentials_region_and_profile_are_told(
    site: Site, key_id: str, kms: KmsStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.describe(key_id)
    site.describe(key_id, "profile: nobody", name="profile")
    site.describe(key_id, "region: -", name="region")
    assert site.refused("profile").exit_code == Exit.KEY_SOURCE_UNAVAILABLE
    assert site.refused("region").message == "no region is said for AWS KMS"
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    error = site.refused()
    assert (error.exit_code, error.detail) == (Exit.KEY_SERVER_REFUSED, "boto3 says NoCredentialsError")
    assert kms.requests == []


@pytest.mark.parametrize(
    "answer", [{}, {"KeyId": "{arn}", "Plaintext": "AAAA"}, {"KeyId": "other", "Plaintext": "A" * 43 + "="}]
)
def test_answers_that_are_not_of_the_service_are_refused(
    site: Site, key_id: str, kms: KmsStandIn, answer: dict[str, str]
) -> None:
    site.describe(key_id)
    entry = entry_of(site.source())
    body = {name: value.replace("{arn}", key_id) for name, value in answer.items()}
    for ask in (lambda: site.source().unwrap(entry, CONTEXT), lambda: site.source().wrap(SECRET, CONTEXT)):
        kms.answers.append((200, body))
        with pytest.raises(TdefsError) as caught:
            ask()
        assert caught.value.exit_code == Exit.KEY_SERVER_UNTRUSTED


@pytest.mark.parametrize(
    "changes", [{"key_arn": "arn:aws:s3:::b"}, {"ciphertext": "AAAAA"}, {"ciphertext": ""}, {"more": "x"}]
)
def test_parameters_that_are_never_written_are_damage(site: Site, key_id: str, changes: dict[str, str]) -> None:
    site.describe(key_id)
    with pytest.raises(TdefsError) as caught:
        site.source().unwrap(entry_of(site.source(), **changes), CONTEXT)
    assert caught.value.exit_code == Exit.KEYSTORE_DAMAGED


@pytest.mark.parametrize(
    ("key_name", "line", "message"),
    [
        ("not a key", "profile: x", "key_id must be"),
        ("alias/a", "endpoint: x", 'unknown field "endpoint"'),
        ("alias/a", "encryption_context: [hunter2]", "encryption_context must be"),
        ("alias/a", "encryption_context: [a=b, a=hunter2]", "encryption_context must be"),
        ("alias/a", "encryption_context: [tdefs-volume=hunter2]", "encryption_context must be"),
        ("alias/a", "timeout_seconds: 0", "timeout_seconds must be"),
    ],
)
def test_wrong_fields_are_told(site: Site, key_name: str, line: str, message: str) -> None:
    site.describe(key_name, line)
    error = site.refused()
    assert error.exit_code == Exit.CONFIG_INVALID
    assert f'key source "kms": {message}' in error.message
    assert "hunter2" not in error.render()
    site.describe("alias/a", name="insecure", url="http://192.0.2.1")
    assert "endpoint_url must begin with https://" in site.refused("insecure").message


def test_no_log_shows_a_wrapping_key_or_credentials(
    site: Site, key_id: str, kms: KmsStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    site.describe(key_id)
    with caplog.at_level(logging.DEBUG):
        site.test()
        kms.refuse("InvalidSignatureException", SESSION_TOKEN)
        site.refused()
    wrapping_keys = [request["Plaintext"] for name, request in kms.requests if name == "Encrypt"]
    assert len(wrapping_keys) == 2
    hidden = [*wrapping_keys, *CREDENTIALS.values()]
    hidden.remove("testing")
    assert not [one for one in hidden if one in caplog.text]
    assert [record for record in caplog.records if record.name.split(".")[0] in ("boto3", "botocore")] == []


def test_an_outage_harms_no_mount_but_only_the_next(
    scratch: Workspace, kms: KmsStandIn, key_id: str, tmp_path: Path
) -> None:
    server = KmsStandIn()  # of its own, as it is stopped; moto's keys belong to the process
    try:
        site = Site(tmp_path, None, server)  # type: ignore[arg-type] # everything runs as processes here
        site.describe(key_id, "patience_seconds: 1")
        _leave_credentials(site.config, tmp_path / "credentials")
        volume = scratch.volume("aws")
        unlock = ("--key-source", "kms", "--config", site.config)
        volume.tdefs("init", volume.backing, "--keystore", volume.keystore, *unlock)
        _mount(volume, *unlock)
        (volume.mountpoint / "a").write_bytes(b"before" * 2000)
        server.stop()
        (volume.mountpoint / "b").write_bytes(b"during" * 2000)
        assert (volume.mountpoint / "a").read_bytes() == b"before" * 2000
        volume.umount()
        done = volume.tdefs("mount", volume.backing, volume.mountpoint, *unlock, check=False)
        assert done.returncode == Exit.KEY_SERVER_UNREACHABLE
        assert "does not answer: boto3 says EndpointConnectionError; trying again for up to 1 s" in done.stderr
        assert not volume.is_mounted
        wrapping_key = server.requests[0][1]["Plaintext"]
        for file in (volume.log, volume.keystore, Path(f"{volume.keystore}.history")):
            text = file.read_text()
            assert not [one for one in (wrapping_key, *list(CREDENTIALS.values())[1:]) if one in text], file
    finally:
        server.stop()


def _leave_credentials(config: Path, file: Path) -> None:
    """Has tdefs, which takes no variables from its caller, find the credentials by its configuration."""
    file.touch(0o600)
    file.write_text("[default]\n" + "".join(f"{name.lower()} = {value}\n" for name, value in CREDENTIALS.items()))
    with config.open("a") as text:
        text.write(f"environment: {{AWS_SHARED_CREDENTIALS_FILE: '{file}', AWS_EC2_METADATA_DISABLED: 'true'}}\n")


def _mount(volume: Volume, *unlock: str | Path) -> None:
    volume.tdefs("mount", volume.backing, volume.mountpoint, *unlock, "--log-file", volume.log)
    assert volume.is_mounted


def test_offline_commands_take_the_key_source_of_the_configuration(
    site: Site, key_id: str, command: Command
) -> None:
    site.describe(key_id)
    site.init()
    with site.config.open("a") as file:
        file.write(f"volumes:\n  {site.backing}:\n    key_source: kms\n")
    with pytest.raises(TdefsError) as caught:
        command.run(cat, "none", "--volume", site.backing, "--config", site.config)
    assert caught.value.exit_code == Exit.FILE_NOT_FOUND
    assert (
        json.loads(command.run(key_source, "list", "--json", "--config", site.config)[1])[0]["kind"] == "aws-kms"
    )

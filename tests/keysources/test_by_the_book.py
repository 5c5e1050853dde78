"""Somebody who has docs/FORMAT.md alone reads a keystore of every kind of protector. Covers docs/FORMAT.md."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest

from tdefs.cli.common.terminal import TerminalDialogue, warn
from tdefs.config import parse_config
from tdefs.keys.keystore.changes import label_protector
from tdefs.keys.keystore.entries import Place
from tdefs.keys.keystore.file import create_keystore, load_keystore
from tdefs.keys.keystore.text import serialise
from tdefs.keys.private_files import read_passphrase_file
from tdefs.keys.protectors.base import Protector
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.protectors.passphrase import PassphraseProtector, ScryptCost
from tdefs.keys.protectors.recovery import RecoveryCodeProtector, new_code, show_code
from tdefs.keys.sources.base import make_key_source
from tests.keysources.aws_stand_in import ENVIRONMENT, REGION, KmsStandIn
from tests.keysources.kmip_scene import KmipScene
from tests.keysources.soft_token import LABEL, MODULE, PIN, SoftToken
from tests.unit.golden import keystore_by_the_book as book

VOLUME_ID = bytes(range(16))
#: Everything that JSON has more than one way to write.
PLACE = Place('/srv/a "quoted" \\ place\t\x7f/\N{LATIN SMALL LETTER U WITH DIAERESIS}\N{KEY}\udcff', 1 << 40, 2)
LABEL_OF_A_PERSON = 'in the "safe"/\N{KEY} \N{EURO SIGN}\\'

# What a token does for somebody who has its PIN; in a process of its own, as a module is for ever.
_TOKEN = """
import os, sys, pkcs11
from pkcs11.mechanisms import GCMParams
module, label, pin, key_label, mechanism, data, aad = sys.argv[1:]
data, aad = bytes.fromhex(data), bytes.fromhex(aad)
token = pkcs11.lib(module).get_token(token_label=label)
with token.open(user_pin=pin) as session:
    if mechanism == "aes-gcm":
        key = session.get_key(pkcs11.ObjectClass.SECRET_KEY, label=key_label)
        parameters = GCMParams(data[:12], aad)
        print(key.decrypt(data[12:], mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=parameters).hex())
    else:
        key = session.get_key(pkcs11.ObjectClass.PRIVATE_KEY, label=key_label)
        oaep = (pkcs11.Mechanism.SHA_1, pkcs11.MGF.SHA1, None)
        print(key.decrypt(data, mechanism=pkcs11.Mechanism.RSA_PKCS_OAEP, mechanism_param=oaep).hex())
"""


def read_by_the_book(path: Path, protector: Protector, fetch: book.Fetch) -> None:
    """Make a keystore by tdefs, with odd texts in it, and read it by the book."""
    create_keystore(path, VOLUME_ID, protector, data_key_names=("dk_1", "dk_2"), place=PLACE)
    unlocked = label_protector(load_keystore(path).open(protector), "pr_1", LABEL_OF_A_PERSON)
    path.write_bytes(serialise(unlocked.document))
    ring = load_keystore(path).unlock(protector)
    expected = {(key.name, key.round): key.secret for key in ring}
    assert len(expected) == 2
    assert book.data_keys(path.read_bytes(), protector.kind, fetch) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"correct horse battery",
        b"correct horse battery\n",
        b"two newlines at its end\n\n",
        b" blanks around it, and a carriage return \r\n",
        "\ufeffpässe  composed".encode(),
        "pa\u0308sse decomposed\n".encode(),
        b"\xff\xfe no UTF-8 at all",
    ],
)
def test_passphrase(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(content)
    file.chmod(0o600)
    protector = PassphraseProtector(partial(read_passphrase_file, file, warn), cost=ScryptCost(n=1 << 14))
    read_by_the_book(tmp_path / "keystore", protector, book.scrypt(book.passphrase_of_a_file(content)))


def test_key_command(tmp_path: Path) -> None:
    key = "0123456789abcdefABCDEF" + "00" * 21
    read_by_the_book(
        tmp_path / "keystore", CommandProtector(f"echo {key}"), lambda _params, _context: bytes.fromhex(key)
    )


def test_recovery_code(tmp_path: Path) -> None:
    code = show_code(new_code())
    secret = book.bytes_of_a_recovery_code(code)
    read_by_the_book(tmp_path / "keystore", RecoveryCodeProtector(code.encode), lambda _params, _context: secret)


def described(fields: dict[str, str], name: str = "source") -> Protector:
    lines = "".join(f"    {field}: {value}\n" for field, value in fields.items())
    config = parse_config(f"version: 1\nkey_sources:\n  {name}:\n{lines}".encode(), Path("t.yaml"))
    return make_key_source(config.key_source(name), TerminalDialogue())


@pytest.mark.parametrize(("mechanism", "key_label"), [("aes-gcm", "kek"), ("rsa-oaep", "card")])
def test_pkcs11(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str, key_label: str) -> None:
    token = SoftToken(tmp_path / "softhsm")
    token.add()
    token.tool("--keypairgen", "--key-type", "rsa:2048", "--label", "card")
    token.tool("--keygen", "--key-type", "aes:32", "--label", "kek", "--sensitive", "--usage-decrypt")
    monkeypatch.setenv("SOFTHSM2_CONF", token.environment["SOFTHSM2_CONF"])
    pin = tmp_path / "pin"
    pin.write_text(PIN)
    pin.chmod(0o600)
    fields = {"kind": "pkcs11", "module": str(MODULE), "token_label": LABEL, "key_label": key_label}
    source = described(fields | {"pin_file": str(pin), "mechanism": mechanism})

    def fetch(params: dict[str, Any], context: bytes) -> bytes:
        data = base64.b64decode(params["ciphertext"], validate=True).hex()
        words = [str(MODULE), LABEL, PIN, params["key_label"], params["mechanism"], data, context.hex()]
        done = subprocess.run([sys.executable, "-c", _TOKEN, *words], capture_output=True, text=True, check=True)
        return bytes.fromhex(done.stdout)

    read_by_the_book(tmp_path / "keystore", source, fetch)


def test_kmip(tmp_path: Path) -> None:
    scene = KmipScene(tmp_path)
    scene.server()
    try:
        source = scene.cluster_source()

        def fetch(params: dict[str, Any], _context: bytes) -> bytes:
            assert params["created"] == 1
            (key,) = scene.database.secrets()
            return key

        read_by_the_book(tmp_path / "keystore", source, fetch)
    finally:
        scene.stop_since()


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[KmsStandIn]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    server = KmsStandIn()
    try:
        yield server
    finally:
        server.stop()


def test_aws_kms(tmp_path: Path, kms: KmsStandIn) -> None:
    arn = kms.admin().create_key()["KeyMetadata"]["Arn"]
    fields = {"kind": "aws-kms", "key_id": arn, "endpoint_url": kms.url, "region": REGION}
    source = described(fields | {"encryption_context": "[environment=test]"})

    def fetch(params: dict[str, Any], _context: bytes) -> bytes:
        client: Any = boto3.Session(aws_access_key_id="admin", aws_secret_access_key="admin").client(
            "kms", region_name=REGION, endpoint_url=kms.url
        )
        answer = client.decrypt(
            KeyId=params["key_arn"],
            CiphertextBlob=base64.b64decode(params["ciphertext"], validate=True),
            EncryptionContext={
                "tdefs-volume": VOLUME_ID.hex(),
                "tdefs-purpose": "protector key by aws-kms",
                "tdefs-protector": "pr_1",
                "environment": "test",
            },
        )
        secret: bytes = answer["Plaintext"]
        return secret

    read_by_the_book(tmp_path / "keystore", source, fetch)

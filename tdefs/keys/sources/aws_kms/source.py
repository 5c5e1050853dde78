"""The key source ``aws-kms``: the service encrypts and decrypts a secret for each protector."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tdefs.keys.dialogue import Dialogue
from tdefs.keys.failures import UntrustedServerError
from tdefs.keys.protectors.base import WRAPPING_KEY_BYTES, NotMineError, Obtained, Parameters, WrongSecretError
from tdefs.keys.sources.asking import Patient, TimeLimits
from tdefs.keys.sources.aws_kms.endpoint import Endpoint
from tdefs.keys.sources.base import Certificate, KeySource
from tdefs.keys.sources.settings import SettingsReader, is_safe
from tdefs.keys.wrapping import WrapContext

if TYPE_CHECKING:
    from types_boto3_kms import KMSClient

# A key's id, its ARN, an alias, or the alias's ARN, in any partition (aws, aws-cn, aws-us-gov).
_ID = r"[A-Za-z0-9-]{1,128}"
_KEY_ID = re.compile(rf"(arn:[a-z0-9-]+:kms:[a-z0-9-]+:[0-9]+:)?(key/)?{_ID}|(arn:\S+:)?alias/[\w/-]+", re.ASCII)
_KEY_ARN = re.compile(rf"arn:[a-z0-9-]+:kms:(?P<region>[a-z0-9-]+):[0-9]+:key/(?P<id>{_ID})", re.ASCII)
_PRINTABLE = re.compile(r"[!-~]{1,2048}", re.ASCII)
# The service accepts 6144 bytes.
_CIPHERTEXT = re.compile(r"[A-Za-z0-9+/]{4,4092}={0,2}", re.ASCII)
_PAIR = re.compile(r"(?!tdefs-|aws:)([\w./:-]{1,128})=([ -~]{1,256})", re.ASCII)


class AwsKms(KeySource):
    """A key of AWS KMS that encrypts and decrypts; it stays there."""

    kind = "aws-kms"
    purpose = b"tdefs v1 aws-kms wrapping key"
    members = ("key_arn", "key_id", "ciphertext")

    def __init__(
        self, key_id: str, endpoint: Endpoint, patient: Patient[KMSClient], more: Mapping[str, str]
    ) -> None:
        """``key_id`` is an id, an alias or an ARN of either; ``more`` is added to the encryption context."""
        super().__init__()
        self._key_id = key_id
        self._endpoint = endpoint
        self._patient = patient
        self._more_context = dict(more)

    @classmethod
    def from_settings(cls, read: SettingsReader, dialogue: Dialogue) -> Self:
        key_id = read.text("key_id")
        if not _KEY_ID.fullmatch(key_id):
            raise read.wrong("key_id", "key_id must be the id of a key, an alias/NAME, or an ARN of either")
        url = read.text("endpoint_url", "")
        if url and not is_safe(url):
            raise read.wrong(
                "endpoint_url",
                "endpoint_url must begin with https://, and have no user in it",
                hint="http:// is allowed on this host only, as 127.0.0.1, ::1 or localhost",
            )
        limits = TimeLimits.read(read)
        endpoint = Endpoint(
            region=read.text("region", ""),
            profile=read.text("profile", ""),
            url=url,
            ca=read.optional_path("ca"),
            timeout_seconds=limits.timeout_seconds,
        )
        more_context = _read_pairs(read)
        read.finish()
        return cls(key_id, endpoint, Patient(endpoint, limits, dialogue.note), more_context)

    def certificates(self) -> Sequence[Certificate]:
        ca: Path | None = self._endpoint.ca
        return (Certificate(ca, "the authority that AWS KMS's endpoint must be certified by"),) if ca else ()

    def obtain(self, context: WrapContext) -> Obtained:
        """See Protector. The secret is random, and the service encrypts it."""
        secret = os.urandom(WRAPPING_KEY_BYTES)

        def encrypt(client: KMSClient) -> tuple[str, bytes]:
            answer = client.encrypt(
                KeyId=self._key_id, Plaintext=secret, EncryptionContext=self._encryption_context(context)
            )
            return answer.get("KeyId", ""), answer.get("CiphertextBlob", b"")

        arn, blob = self._patient.ask(encrypt, self._key_id)
        ciphertext = base64.b64encode(blob).decode("ascii")
        if not _KEY_ARN.fullmatch(arn) or not _CIPHERTEXT.fullmatch(ciphertext):
            raise _strange("Encrypt")
        return Obtained(secret, {"key_arn": arn, "key_id": self._key_id, "ciphertext": ciphertext})

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        """See Protector. Decrypt is given the key that Encrypt used, and refuses other ciphertexts."""
        made_by, key_id = params.text("key_arn", _KEY_ARN), params.text("key_id", _PRINTABLE)
        blob = params.base64("ciphertext", _CIPHERTEXT)
        arn = _in_region(made_by, self._endpoint.region_in_use)
        if not self._is_mine(arn, key_id):
            raise NotMineError

        def decrypt(client: KMSClient) -> tuple[str, bytes]:
            answer = client.decrypt(
                KeyId=arn, CiphertextBlob=blob, EncryptionContext=self._encryption_context(context)
            )
            return answer.get("KeyId", ""), answer.get("Plaintext", b"")

        used, secret = self._patient.ask(decrypt, arn)
        if used != arn or len(secret) != WRAPPING_KEY_BYTES:
            raise _strange("Decrypt")
        return secret

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        arn = _in_region(params.text("key_arn", _KEY_ARN), self._endpoint.region_in_use)
        return WrongSecretError(
            f"the key {arn} of AWS KMS does not open protector {params.entry_id}",
            detail="what the service decrypted does not fit what the keystore holds",
        )

    def _encryption_context(self, context: WrapContext) -> dict[str, str]:
        """Return what the service binds the ciphertext to. It logs it at each use, and rights can depend on it."""
        return {
            "tdefs-volume": context.volume_id.hex(),
            "tdefs-purpose": context.purpose,
            "tdefs-protector": context.key_name,
            **self._more_context,
        }

    def _is_mine(self, arn: str, key_id: str) -> bool:
        """Return whether the configured key can be the one of an entry.

        Only the service knows which key an alias points to, and that may have changed: then the ARN in the entry
        counts.

        :param key_id: what was configured when the entry was made.
        """
        found = _KEY_ARN.fullmatch(arn)
        if found is None or found["region"] != self._endpoint.region_in_use:
            return False
        if "alias/" in self._key_id:
            return "alias/" not in key_id or _alias(key_id) == _alias(self._key_id)
        return self._key_id in (arn, found["id"], f"key/{found['id']}")


SOURCE = AwsKms


def _in_region(arn: str, region: str) -> str:
    """Return the ARN of the replica in ``region`` of a key that several regions have; else ``arn``."""
    found = _KEY_ARN.fullmatch(arn)
    if found is None or not found["id"].startswith("mrk-"):
        return arn
    return arn[: found.start("region")] + region + arn[found.end("region") :]


def _alias(key_id: str) -> str:
    return key_id[key_id.index("alias/") :]


def _read_pairs(read: SettingsReader) -> dict[str, str]:
    pairs = {}
    for text in read.texts("encryption_context", ()):
        found = _PAIR.fullmatch(text)
        if not found or found[1] in pairs:
            raise read.wrong(
                "encryption_context",
                "encryption_context must be a list of name=value, each name once, none like tdefs-… or aws:…",
            )
        pairs[found[1]] = found[2]
    return pairs


def _strange(request: str) -> UntrustedServerError:
    return UntrustedServerError(
        f"what answered the request {request} is not AWS KMS",
        "it names another key, or what it returned is not of the right length",
    )

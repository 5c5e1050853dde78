"""The key source ``aws-kms``: Encrypt makes, and Decrypt opens, the wrapping key of a protector."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tdefs.keys import fields
from tdefs.keys.attempts import PATIENCE_SECONDS
from tdefs.keys.kdf import hkdf_sha256
from tdefs.keys.key_source import Certificate, KeySource
from tdefs.keys.keystore.entries import ProtectorEntry, damaged
from tdefs.keys.protectors.base import NotMineError, WrappedProtectorKey, WrongSecretError
from tdefs.keys.settings import SettingsReader
from tdefs.keys.sources.aws_kms.answers import untrusted
from tdefs.keys.sources.aws_kms.endpoint import Endpoint, is_safe
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret

if TYPE_CHECKING:
    from types_boto3_kms import KMSClient

_PURPOSE = b"tdefs v1 aws-kms wrapping key"
_WRAPPING_KEY_BYTES = 32
_TIMEOUT_SECONDS = 10
# A key's id, its ARN, an alias, or the alias's ARN, in any partition (aws, aws-cn, aws-us-gov).
_ID = r"[A-Za-z0-9-]{1,128}"
_KEY_ID = re.compile(rf"(arn:[a-z0-9-]+:kms:[a-z0-9-]+:[0-9]+:)?(key/)?{_ID}|(arn:\S+:)?alias/[\w/-]+", re.ASCII)
_KEY_ARN = re.compile(rf"arn:[a-z0-9-]+:kms:(?P<region>[a-z0-9-]+):[0-9]+:key/(?P<id>{_ID})", re.ASCII)
_PRINTABLE = re.compile(r"[!-~]{1,2048}", re.ASCII)
# 6144 bytes is what the service accepts.
_CIPHERTEXT = re.compile(r"[A-Za-z0-9+/]{4,4092}={0,2}", re.ASCII)
_PAIR = re.compile(r"(?!tdefs-|aws:)([\w./:-]{1,128})=([ -~]{1,256})", re.ASCII)


class AwsKms(KeySource):
    """A key of AWS KMS that encrypts and decrypts; it stays there."""

    kind = "aws-kms"

    def __init__(self, key_id: str, endpoint: Endpoint, more_context: Mapping[str, str]) -> None:
        """``key_id`` is an id, an alias or an ARN of either; ``more_context`` joins the encryption context."""
        self._key_id = key_id
        self._endpoint = endpoint
        self._more_context = dict(more_context)

    @classmethod
    def from_settings(cls, read: SettingsReader) -> Self:
        """See KeySource."""
        key_id = read.text("key_id")
        if not _KEY_ID.fullmatch(key_id):
            raise read.wrong("key_id", "key_id must be the id of a key, an alias/NAME, or an ARN of either")
        url = read.text("endpoint_url", "")
        if url and not is_safe(url):
            raise read.wrong(
                "endpoint_url",
                "endpoint_url must begin with https://, and have no user in it",
                hint="http:// is taken on this host only, as 127.0.0.1, ::1 or localhost",
            )
        endpoint = Endpoint(
            region=read.text("region", ""),
            profile=read.text("profile", ""),
            url=url,
            ca=read.optional_path("ca"),
            timeout_seconds=read.number("timeout_seconds", _TIMEOUT_SECONDS, 1, 600),
            patience_seconds=read.number("patience_seconds", PATIENCE_SECONDS, 0, 3600),
        )
        more_context = _read_pairs(read)
        read.finish()
        return cls(key_id, endpoint, more_context)

    def certificates(self) -> Sequence[Certificate]:
        """See KeySource."""
        ca: Path | None = self._endpoint.ca
        return (Certificate(ca, "the authority that AWS KMS's endpoint must be certified by"),) if ca else ()

    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """See Protector."""
        wrapping_key = os.urandom(_WRAPPING_KEY_BYTES)

        def encrypt(client: KMSClient) -> tuple[str, bytes]:
            answer = client.encrypt(
                KeyId=self._key_id,
                Plaintext=wrapping_key,
                EncryptionContext=self._encryption_context(context),
            )
            return answer.get("KeyId", ""), answer.get("CiphertextBlob", b"")

        arn, blob = self._endpoint.ask(encrypt, self._key_id)
        ciphertext = base64.b64encode(blob).decode("ascii")
        if not _KEY_ARN.fullmatch(arn) or not _CIPHERTEXT.fullmatch(ciphertext):
            raise _strange("Encrypt")
        return WrappedProtectorKey(
            params={"key_arn": arn, "key_id": self._key_id, "ciphertext": ciphertext},
            wrapped=wrap_secret(_derived(wrapping_key, context), protector_key, context),
        )

    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """See KeySource. The key that Encrypt used is named to Decrypt: what another made is refused there."""
        if entry.kind != self.kind:
            raise NotMineError
        made_by, key_id, blob = _read_params(entry)
        arn = _in_region(made_by, self._endpoint.region_in_use)
        if not self._is_mine(arn, key_id):
            raise NotMineError

        def decrypt(client: KMSClient) -> tuple[str, bytes]:
            answer = client.decrypt(
                KeyId=arn, CiphertextBlob=blob, EncryptionContext=self._encryption_context(context)
            )
            return answer.get("KeyId", ""), answer.get("Plaintext", b"")

        used, wrapping_key = self._endpoint.ask(decrypt, arn)
        if used != arn or len(wrapping_key) != _WRAPPING_KEY_BYTES:
            raise _strange("Decrypt")
        try:
            return unwrap_secret(_derived(wrapping_key, context), entry.wrapped, context)
        except UnwrapFailedError:
            raise WrongSecretError(
                f"the key {arn} of AWS KMS does not open protector {entry.id}",
                detail="what the service decrypted does not fit what the keystore holds",
            ) from None

    def _encryption_context(self, context: WrapContext) -> dict[str, str]:
        """Return what the service binds the ciphertext to, logs with each use, and can be given rights by."""
        return {
            "tdefs-volume": context.volume_id.hex(),
            "tdefs-purpose": context.purpose,
            "tdefs-protector": context.key_name,
            **self._more_context,
        }

    def _is_mine(self, arn: str, key_id: str) -> bool:
        """Tell whether the configured key can be the one of an entry: ``key_id`` was configured when it was made.

        Which key an alias points to only the service knows, and it may have changed since: the entry's decides.
        """
        found = _KEY_ARN.fullmatch(arn)
        if found is None or found["region"] != self._endpoint.region_in_use:
            return False
        if "alias/" in self._key_id:
            return "alias/" not in key_id or _alias(key_id) == _alias(self._key_id)
        return self._key_id in (arn, found["id"], f"key/{found['id']}")


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


def _read_params(entry: ProtectorEntry) -> tuple[str, str, bytes]:
    """Return the key's ARN, what the configuration called it, and the ciphertext. TdefsError(KEYSTORE_DAMAGED)."""
    where = f"protector {entry.id}"
    try:
        members = fields.read_object(dict(entry.params), where, ("key_arn", "key_id", "ciphertext"))
        arn = fields.read_text(members["key_arn"], f"{where}: key_arn", _KEY_ARN)
        key_id = fields.read_text(members["key_id"], f"{where}: key_id", _PRINTABLE)
        text = fields.read_text(members["ciphertext"], f"{where}: ciphertext", _CIPHERTEXT)
        return arn, key_id, base64.b64decode(text, validate=True)
    except (fields.MalformedError, ValueError) as error:
        reason = str(error) if isinstance(error, fields.MalformedError) else f"{where}: expected base64"
        raise damaged(reason) from None


def _derived(wrapping_key: bytes, context: WrapContext) -> bytes:
    return hkdf_sha256(wrapping_key, _PURPOSE + context.to_bytes(), _WRAPPING_KEY_BYTES)


def _strange(request: str) -> Exception:
    return untrusted(
        f"what answered the request {request} is not AWS KMS",
        detail="it names another key, or what it returned is not of the right length",
    )

"""The KMIP operations that a wrapping key needs, each a request and its reply on one connection."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from kmip.core import attributes, enums, misc, objects, primitives, secrets
from kmip.core.factories.attributes import AttributeFactory
from kmip.core.messages import contents, messages, payloads
from kmip.core.utils import BytearrayStream

from tdefs.errors import TdefsError
from tdefs.keys.failures import RefusedError, UnusableError
from tdefs.keys.protectors.base import WRAPPING_KEY_BYTES
from tdefs.keys.sources.base import ServerKey
from tdefs.keys.sources.kmip.connection import Connection, not_understood
from tdefs.text import masked, shortened

#: This much of the text that a server answers is shown.
_MAX_SAID_CHARACTERS = 200
#: The use that a key is made for. Its bytes are fetched and used here, so the server sees no other use. Other
#: storage encryption asks for the same, so servers know it.
_USAGE = [enums.CryptographicUsageMask.ENCRYPT, enums.CryptographicUsageMask.DECRYPT]
_SHOWN = [enums.AttributeType.NAME, enums.AttributeType.STATE, enums.AttributeType.INITIAL_DATE]
_GONE = (
    enums.ResultReason.ITEM_NOT_FOUND,
    enums.ResultReason.OBJECT_NOT_FOUND,
    enums.ResultReason.OBJECT_DESTROYED,
    enums.ResultReason.OBJECT_ARCHIVED,
    enums.ResultReason.KEY_VALUE_NOT_PRESENT,
    enums.ResultReason.WRONG_KEY_LIFECYCLE_STATE,
)
#: The server does not give the key in the clear.
_KEPT = (enums.ResultReason.SENSITIVE, enums.ResultReason.NOT_EXTRACTABLE)


class Client:
    """Asks one server.

    Each method raises what the connection raises, RefusedError, UntrustedServerError for a reply that cannot be
    understood, and UnusableError for a key that is not there.
    """

    def __init__(self, connection: Connection, kmip_version: str) -> None:
        self._connection = connection
        self._version = enums.KMIPVersion[f"KMIP_{kmip_version.replace('.', '_')}"]

    def create(self, name: str) -> str:
        """Have the server make an AES-256 key; return its unique identifier."""
        reply = self._ask(
            enums.Operation.CREATE,
            payloads.CreateRequestPayload(
                object_type=enums.ObjectType.SYMMETRIC_KEY, template_attribute=_template(name)
            ),
            f"create the key {shortened(name)}",
        )
        return self._text(reply.unique_identifier)

    def register(self, name: str, secret: bytes) -> str:
        """Give the server an AES-256 key to keep; return its unique identifier."""
        block = objects.KeyBlock(
            key_format_type=misc.KeyFormatType(enums.KeyFormatType.RAW),
            key_value=objects.KeyValue(objects.KeyMaterial(secret)),
            cryptographic_algorithm=attributes.CryptographicAlgorithm(enums.CryptographicAlgorithm.AES),
            cryptographic_length=attributes.CryptographicLength(len(secret) * 8),
        )
        reply = self._ask(
            enums.Operation.REGISTER,
            payloads.RegisterRequestPayload(
                object_type=enums.ObjectType.SYMMETRIC_KEY,
                template_attribute=_template(name),
                managed_object=secrets.SymmetricKey(block),
            ),
            f"register the key {shortened(name)}",
        )
        return self._text(reply.unique_identifier)

    def locate(self, name: str | None = None) -> list[str]:
        """Return the unique identifiers of the symmetric keys; with ``name``, of the keys of that name."""
        wanted = [_attribute(enums.AttributeType.OBJECT_TYPE, enums.ObjectType.SYMMETRIC_KEY)]
        if name is not None:
            wanted.append(_attribute(enums.AttributeType.NAME, name))
        reply = self._ask(enums.Operation.LOCATE, payloads.LocateRequestPayload(attributes=wanted), "locate keys")
        return [self._text(uid) for uid in reply.unique_identifiers]

    def describe(self, uid: str) -> ServerKey:
        """Return what the server says about a key."""
        reply = self._ask(
            enums.Operation.GET_ATTRIBUTES,
            payloads.GetAttributesRequestPayload(uid, [attribute.value for attribute in _SHOWN]),
            f"describe the key {shortened(uid)}",
        )
        found = {one.attribute_name.value: one.attribute_value for one in reversed(reply.attributes)}
        name = found.get(enums.AttributeType.NAME.value)
        state = found.get(enums.AttributeType.STATE.value)
        if state is None:
            raise not_understood(self._connection.server)
        created = found.get(enums.AttributeType.INITIAL_DATE.value)
        return ServerKey(
            uid,
            self._text(name.name_value.value) if name is not None else None,
            state.value.name.lower().replace("_", "-"),
            datetime.fromtimestamp(created.value, UTC) if created is not None else None,
        )

    def get(self, uid: str) -> bytes:
        """Return the 32 bytes of a key.

        :raises UnusableError: it is not an AES-256 key.
        """
        payload = payloads.GetRequestPayload(uid, key_format_type=enums.KeyFormatType.RAW)
        reply = self._ask(enums.Operation.GET, payload, f"get the key {shortened(uid)}")
        secret: Any = None
        if isinstance(reply.secret, secrets.SymmetricKey) and reply.secret.key_block.key_wrapping_data is None:
            secret = reply.secret.key_block.key_value.key_material.value
        if not isinstance(secret, bytes) or len(secret) != WRAPPING_KEY_BYTES:
            raise UnusableError(
                f"the key {shortened(uid)} is not a symmetric key of {WRAPPING_KEY_BYTES * 8} bits"
            )
        return secret

    def activate(self, uid: str) -> None:
        """Make a key active."""
        payload = payloads.ActivateRequestPayload(attributes.UniqueIdentifier(uid))
        self._ask(enums.Operation.ACTIVATE, payload, f"activate the key {shortened(uid)}")

    def revoke(self, uid: str, reason: str) -> None:
        """Deactivate a key, or mark it as compromised if the ``reason`` is a compromise."""
        code = enums.RevocationReasonCode[reason.upper().replace("-", "_")]
        compromised = None
        if code in (enums.RevocationReasonCode.KEY_COMPROMISE, enums.RevocationReasonCode.CA_COMPROMISE):
            # KMIP demands a date for these two reasons; now is the best that is known
            now = int(datetime.now(UTC).timestamp())
            compromised = primitives.DateTime(now, enums.Tags.COMPROMISE_OCCURRENCE_DATE)
        payload = payloads.RevokeRequestPayload(
            attributes.UniqueIdentifier(uid), objects.RevocationReason(code), compromised
        )
        self._ask(enums.Operation.REVOKE, payload, f"revoke the key {shortened(uid)}")

    def destroy(self, uid: str) -> None:
        """Have the server forget a key."""
        payload = payloads.DestroyRequestPayload(attributes.UniqueIdentifier(uid))
        self._ask(enums.Operation.DESTROY, payload, f"destroy the key {shortened(uid)}")

    def _ask(self, operation: enums.Operation, payload: Any, what: str) -> Any:
        """Return the payload of the reply; ``what`` says what is asked, for messages."""
        item = self._understood(self._connection.exchange(self._request(operation, payload)))
        if item.result_status.value is not enums.ResultStatus.SUCCESS:
            raise self._refusal(item, what)
        if item.operation is None or item.operation.value is not operation or item.response_payload is None:
            raise not_understood(self._connection.server)
        return item.response_payload

    def _request(self, operation: enums.Operation, payload: Any) -> bytes:
        major, minor = self._version.name.split("_")[1:]
        message = messages.RequestMessage(
            request_header=messages.RequestHeader(
                protocol_version=contents.ProtocolVersion(int(major), int(minor)),
                batch_count=contents.BatchCount(1),
            ),
            batch_items=[
                messages.RequestBatchItem(
                    operation=primitives.Enumeration(enums.Operation, operation, tag=enums.Tags.OPERATION),
                    request_payload=payload,
                )
            ],
        )
        stream = BytearrayStream()
        message.write(stream, self._version)
        return bytes(stream.buffer)

    def _understood(self, reply: bytes) -> Any:
        """Return the one batch item of a reply."""
        message = messages.ResponseMessage()
        items: list[Any] = []
        try:
            message.read(BytearrayStream(reply), self._version)
            items = message.batch_items
        except Exception:  # noqa: S110 - PyKMIP raises many kinds; the text may hold parts of the reply
            pass
        if len(items) != 1:
            raise not_understood(self._connection.server)
        return items[0]

    def _refusal(self, item: Any, what: str) -> TdefsError:
        reason = item.result_reason.value if item.result_reason is not None else enums.ResultReason.GENERAL_FAILURE
        said = item.result_message.value if item.result_message is not None else ""
        words = reason.name.lower().replace("_", " ")
        detail = f"it says: {words}{': ' + masked(said[:_MAX_SAID_CHARACTERS], mask=' ') if said else ''}"
        server = f"the key server {self._connection.server}"
        if reason in _GONE:
            return UnusableError(
                f"{server} has no such key: cannot {what}",
                detail,
                "it is destroyed, or not shown to this client; 'tdefs key-source keys' lists the keys that are",
            )
        if reason in _KEPT:
            return UnusableError(
                f"{server} does not give the key away: cannot {what}",
                detail,
                "tdefs wraps with the key itself: it must be extractable, and not sensitive",
            )
        return RefusedError(
            f"{server} refuses to {what}",
            detail,
            "does it know the client certificate, and what this client may do? see docs/KMS.md",
        )

    def _text(self, value: Any) -> str:
        """Return a name or identifier that the server gave, if it is one that a keystore can hold."""
        if not isinstance(value, str) or not value or not value.isprintable() or len(value) > 1024:
            raise not_understood(self._connection.server)
        return value


def _template(name: str) -> objects.TemplateAttribute:
    return objects.TemplateAttribute(
        attributes=[
            _attribute(enums.AttributeType.CRYPTOGRAPHIC_ALGORITHM, enums.CryptographicAlgorithm.AES),
            _attribute(enums.AttributeType.CRYPTOGRAPHIC_LENGTH, WRAPPING_KEY_BYTES * 8),
            _attribute(enums.AttributeType.CRYPTOGRAPHIC_USAGE_MASK, _USAGE),
            _attribute(enums.AttributeType.NAME, name),
        ]
    )


def _attribute(kind: enums.AttributeType, value: Any) -> objects.Attribute:
    return AttributeFactory().create_attribute(kind, value)

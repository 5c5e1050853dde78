"""The requests to the process that has the token's module, and its answers, as JSON through pipes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tdefs.errors import DistinguishedError, Exit, NoSecretError, TdefsError
from tdefs.keys.failures import SourceError
from tdefs.keys.protectors.base import WrongSecretError

_DISTINGUISHED: list[type[DistinguishedError]] = [NoSecretError, WrongSecretError, *SourceError.__subclasses__()]
#: The classes of errors that the program distinguishes, by name.
_CLASSES = {one.__name__: one for one in _DISTINGUISHED}

AES_GCM = "aes-gcm"
RSA_OAEP = "rsa-oaep"

LOOK = "look"
ENCRYPT = "encrypt"
PUBLIC_KEY = "public-key"
DECRYPT = "decrypt"
#: The first step of each operation but ``look``, in messages.
LOGIN = "log in"


@dataclass(frozen=True)
class Request:
    """One operation on a token.

    The PIN is in ``pin`` if a person typed it, and else in the file ``pin_file``; ``look`` needs none. ``data``
    (and ``aad`` of AES-GCM) are hexadecimal.
    """

    operation: str
    module: str
    token_label: str
    serial: str
    key_label: str
    mechanism: str
    create: bool = False
    pin: str = ""
    pin_file: str = ""
    data: str = ""
    aad: str = ""

    def dump(self) -> bytes:
        """Return the JSON of the request."""
        return json.dumps(asdict(self)).encode("ascii")

    def __repr__(self) -> str:
        return f"Request({self.operation!r})"


def dump_error(error: TdefsError) -> dict[str, Any]:
    """Return an error in a form that the other side can raise again."""
    return {
        "class": type(error).__name__,
        "exit_code": error.exit_code,
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
    }


def load_error(said: Mapping[str, Any]) -> TdefsError:
    """Return the error that :func:`dump_error` was given."""
    message, detail, hint = said["message"], said["detail"], said["hint"]
    kind = _CLASSES.get(said["class"])
    if kind is None:
        return TdefsError(Exit(said["exit_code"]), message, detail=detail, hint=hint)
    return kind(message, detail=detail, hint=hint)

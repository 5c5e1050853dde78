"""What boto3 raises, told as tdefs tells of key sources.

The text of an exception is passed on only where AWS says who may not do what: that of a wrong signature repeats
the request's headers, among them the session token.
"""

from __future__ import annotations

import re

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError

from tdefs.errors import Exit, TdefsError
from tdefs.keys.attempts import UnreachableError
from tdefs.keys.protectors.base import WrongSecretError
from tdefs.text import masked

_MAX_TEXT = 500
#: What this kind asks; other requests are those for credentials.
_REQUESTS = {"Encrypt", "Decrypt"}
_CODE = re.compile(r"[A-Za-z0-9.:_-]{1,64}", re.ASCII)

# https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html, API_Encrypt.html, API_Decrypt.html;
# some services and proxies leave out "Exception" at the end, which is therefore not compared.
_NOT_PERMITTED = {"AccessDenied", "NotAuthorized"}
_BAD_CREDENTIALS = {
    "UnrecognizedClient",
    "InvalidClientTokenId",
    "ExpiredToken",
    "InvalidSignature",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "MissingAuthenticationToken",
    "RequestExpired",
    "OptInRequired",
}
_UNUSABLE = {
    "NotFound": "is not there",
    "Disabled": "is disabled",
    "KMSInvalidState": "is not in a state to be used, such as pending deletion",
    "InvalidKeyUsage": "is not one that encrypts and decrypts",
    "InvalidArn": "has an invalid ARN",
}
_NOT_THIS_CIPHERTEXT = {"InvalidCiphertext", "IncorrectKey"}
_COMES_BACK = {
    "Throttling",
    "Throttled",
    "RequestLimitExceeded",
    "TooManyRequests",
    "KMSInternal",
    "InternalFailure",
    "InternalError",
    "DependencyTimeout",
    "KeyUnavailable",
    "ServiceUnavailable",
}
# What the chain of credentials raises before anything is asked of KMS.
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
_NOBODY = (boto.HTTPClientError, boto.ConnectionError)


def of_service(error: ClientError, where: str, key: str) -> TdefsError:
    """Return what to raise for an error that the service answered; ``where`` and ``key`` name whom was asked."""
    told = error.response.get("Error", {})
    code = _printable_code(told.get("Code"))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    name = code.removesuffix("Exception")
    detail = f"it answered {code}"
    if error.operation_name not in _REQUESTS:
        return _refused(
            f"the credentials for {where} cannot be had",
            f"AWS answered {code} to {_printable_code(error.operation_name)}",
            "see the role and what it is assumed from",
        )
    if name in _NOT_THIS_CIPHERTEXT:
        return WrongSecretError(
            f"the key {key} of {where} did not encrypt this protector, or not in this encryption context",
            detail=detail,
            hint="the context holds the volume's id, and encryption_context as it was when the protector was made",
        )
    if name in _NOT_PERMITTED:
        return _refused(
            f"{where} does not permit this with the key {key}",
            f"{detail}: {masked(str(told.get('Message'))[:_MAX_TEXT])}",
            "see the key's policy and the rights of the identity: kms:Encrypt, kms:Decrypt",
        )
    if name in _BAD_CREDENTIALS:
        hint = "see the profile, AWS_ variables or role; expired ones must be renewed; check this host's clock"
        return _refused(f"{where} does not accept the credentials", detail, hint)
    if name in _UNUSABLE:
        return TdefsError(
            Exit.WRAPPING_KEY_UNUSABLE,
            f"the key {key} of {where} {_UNUSABLE[name]}",
            detail=detail,
            hint="enable it or cancel its deletion, or unlock with another protector",
        )
    if name in _COMES_BACK or status == 429 or status >= 500:
        return UnreachableError(f"{where} cannot answer now", detail=detail)
    return _refused(f"{where} refused the request", detail, "")


def of_library(error: BotoCoreError, where: str) -> TdefsError:
    """Return what to raise for an error of boto3 itself: nobody answered, or nothing could be asked."""
    name = type(error).__name__
    if isinstance(error, boto.SSLError):
        return untrusted(
            f"the server certificate of {where} is not trusted",
            detail="it is not signed by a trusted authority, is expired, or is for another host",
            hint="name the authority's certificate with ca; never switch the check off",
        )
    if isinstance(error, _NO_CREDENTIALS):
        return _refused(
            f"there are no usable credentials for {where}",
            f"boto3 says {name}",
            "give the host a role, or set profile, AWS_PROFILE or ~/.aws of the user who runs tdefs",
        )
    if isinstance(error, _NOBODY):
        return UnreachableError(f"{where} does not answer", detail=f"boto3 says {name}")
    return unavailable(f"{where} cannot be asked", f"boto3 says {name}")


def untrusted(message: str, *, detail: str = "", hint: str = "") -> TdefsError:
    """Return the error for an answer that is not from whom was meant."""
    return TdefsError(Exit.KEY_SERVER_UNTRUSTED, message, detail=detail, hint=hint)


def unavailable(message: str, detail: str = "", hint: str = "") -> TdefsError:
    """Return the error for what is lacking on this host."""
    return TdefsError(Exit.KEY_SOURCE_UNAVAILABLE, message, detail=detail, hint=hint)


def _refused(message: str, detail: str, hint: str) -> TdefsError:
    return TdefsError(Exit.KEY_SERVER_REFUSED, message, detail=detail, hint=hint)


def _printable_code(code: object) -> str:
    return code if isinstance(code, str) and _CODE.fullmatch(code) else "an error without a code"

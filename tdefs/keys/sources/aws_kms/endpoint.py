"""Asking AWS KMS: the endpoint, the credentials, what is never logged, and what a failure means to the user.

The text of an exception is shown only if AWS says in it who may not do what. That of a wrong signature repeats the
headers of the request, and the session token is among them.
"""

from __future__ import annotations

import logging
import re
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConfigParseError, NoRegionError, ProfileNotFound

from tdefs.errors import TdefsError
from tdefs.keys.failures import (
    RefusedError,
    UnavailableError,
    UnreachableError,
    UntrustedServerError,
    UnusableError,
)
from tdefs.keys.protectors.base import WrongSecretError
from tdefs.keys.sources.asking import Service
from tdefs.keys.sources.settings import is_safe
from tdefs.text import masked

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_kms import KMSClient

Result = TypeVar("Result")

# At DEBUG they log whole requests and answers, with wrapping keys, credentials and session tokens in them.
for _library in ("boto3", "botocore", "urllib3"):
    logging.getLogger(_library).setLevel(logging.WARNING)

_MAX_TEXT = 500
#: The requests of this kind of key source; other requests are those for credentials.
_REQUESTS = {"Encrypt", "Decrypt"}
_CODE = re.compile(r"[A-Za-z0-9.:_-]{1,64}", re.ASCII)
# https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html, API_Encrypt.html, API_Decrypt.html;
# some services and proxies leave out "Exception" at the end, so it is not compared.
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
# The exceptions of the chain of credentials, before KMS is asked.
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
_NO_ANSWER = (boto.HTTPClientError, boto.ConnectionError)


@dataclass(frozen=True)
class Endpoint(Service["KMSClient"]):
    """AWS KMS in a region. boto3 finds what is "" or None: in AWS_ variables, ~/.aws, or the host's role."""

    region: str
    profile: str
    url: str
    ca: Path | None
    timeout_seconds: int

    @property
    def title(self) -> str:
        return f"AWS KMS in {self.region_in_use}"

    @cached_property
    def region_in_use(self) -> str:
        """The region that is asked.

        :raises UnavailableError: it is not said anywhere.
        """
        region = self.region or self._session.region_name
        if not region:
            raise UnavailableError(
                "no region is said for AWS KMS", hint="set region, AWS_REGION, or region of the profile in ~/.aws"
            )
        return region

    def once(self, call: Callable[[KMSClient], Result], purpose: str, until: float) -> Result:
        """See Service.

        :param purpose: the key that is asked for, for messages.
        :raises WrongSecretError: the key did not encrypt the ciphertext.
        """
        try:
            with closing(self._client()) as client:
                return call(client)
        except ClientError as error:
            failure: TdefsError = of_service(error, self.title, purpose)
        except BotoCoreError as error:
            failure = of_library(error, self.title)
        # Outside of the handlers: the exceptions of boto3 contain requests and answers.
        raise failure

    @cached_property
    def _session(self) -> boto3.Session:
        try:
            return boto3.Session(profile_name=self.profile or None)
        except (ProfileNotFound, ConfigParseError) as error:
            raise UnavailableError(
                "the AWS profile cannot be read" if self.profile else "the AWS configuration cannot be read",
                f"boto3 says {type(error).__name__}",
                "see ~/.aws/config and ~/.aws/credentials of the user who runs tdefs, and AWS_PROFILE",
            ) from None

    def _client(self) -> KMSClient:
        if self.ca is not None and not self.ca.is_file():
            raise UnavailableError(f'there is no certificate file "{self.ca}"', hint="see ca in the key source")
        client = self._made_client()
        # AWS_ENDPOINT_URL and ~/.aws/config can name another place than the configuration of tdefs.
        url = client.meta.endpoint_url
        if not is_safe(url):
            raise UntrustedServerError(
                "the endpoint of AWS KMS is neither HTTPS nor on this host",
                hint="see AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_KMS, and endpoint_url in ~/.aws/config",
            )
        # By a proxy that the environment names, HTTP would leave this host.
        return client if url.startswith("https:") else self._made_client(Config(proxies={}))

    def _made_client(self, more: Config | None = None) -> KMSClient:
        config = Config(
            connect_timeout=self.timeout_seconds,
            read_timeout=self.timeout_seconds,
            retries={"total_max_attempts": 1, "mode": "standard"},  # Patient tries again, and says why
        )
        try:
            return self._session.client(
                "kms",
                region_name=self.region_in_use,
                endpoint_url=self.url or None,
                verify=str(self.ca) if self.ca else None,
                config=config.merge(more or Config()),
            )
        except (NoRegionError, ValueError) as error:
            raise UnavailableError("AWS KMS cannot be asked", f"boto3 says {type(error).__name__}") from None


def of_service(error: ClientError, where: str, key: str) -> TdefsError:
    """Return the error for an answer of the service; ``where`` and ``key`` name the service and the key."""
    answer = error.response.get("Error", {})
    code = _printable_code(answer.get("Code"))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    name = code.removesuffix("Exception")
    detail = f"it answered {code}"
    if error.operation_name not in _REQUESTS:
        return RefusedError(
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
        return RefusedError(
            f"{where} does not permit this with the key {key}",
            f"{detail}: {masked(str(answer.get('Message'))[:_MAX_TEXT])}",
            "see the key's policy and the rights of the identity: kms:Encrypt, kms:Decrypt",
        )
    if name in _BAD_CREDENTIALS:
        hint = "see the profile, AWS_ variables or role; expired ones must be renewed; check this host's clock"
        return RefusedError(f"{where} does not accept the credentials", detail, hint)
    if name in _UNUSABLE:
        return UnusableError(
            f"the key {key} of {where} {_UNUSABLE[name]}",
            detail,
            "enable it or cancel its deletion, or unlock with another protector",
        )
    if name in _COMES_BACK or status == 429 or status >= 500:
        return UnreachableError(f"{where} cannot answer now", detail=detail)
    return RefusedError(f"{where} refused the request", detail)


def of_library(error: BotoCoreError, where: str) -> TdefsError:
    """Return the error for one of boto3 itself: there was no answer, or nothing could be asked."""
    name = type(error).__name__
    if isinstance(error, boto.SSLError):
        return UntrustedServerError(
            f"the server certificate of {where} is not trusted",
            detail="it is not signed by a trusted authority, is expired, or is for another host",
            hint="name the authority's certificate with ca; never switch the check off",
        )
    if isinstance(error, _NO_CREDENTIALS):
        return RefusedError(
            f"there are no usable credentials for {where}",
            f"boto3 says {name}",
            "give the host a role, or set profile, AWS_PROFILE or ~/.aws of the user who runs tdefs",
        )
    if isinstance(error, _NO_ANSWER):
        return UnreachableError(f"{where} does not answer", detail=f"boto3 says {name}")
    return UnavailableError(f"{where} cannot be asked", f"boto3 says {name}")


def _printable_code(code: object) -> str:
    return code if isinstance(code, str) and _CODE.fullmatch(code) else "an error without a code"

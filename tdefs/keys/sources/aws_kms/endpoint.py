"""The connection to AWS KMS: the endpoint, the credentials, and what is never logged."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConfigParseError, NoRegionError, ProfileNotFound

from tdefs.errors import TdefsError
from tdefs.keys.failures import UnavailableError, UntrustedServerError
from tdefs.keys.sources.asking import Service
from tdefs.keys.sources.aws_kms import answers
from tdefs.keys.sources.settings import is_safe

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_kms import KMSClient

Result = TypeVar("Result")

# At DEBUG they log whole requests and answers, with wrapping keys, credentials and session tokens in them.
for _library in ("boto3", "botocore", "urllib3"):
    logging.getLogger(_library).setLevel(logging.WARNING)


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
        """See Service."""
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
        del until
        try:
            with closing(self._client()) as client:
                return call(client)
        except ClientError as error:
            failure: TdefsError = answers.of_service(error, self.title, purpose)
        except BotoCoreError as error:
            failure = answers.of_library(error, self.title)
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

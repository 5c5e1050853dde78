"""The connection to AWS KMS: where it goes, with whose credentials, and what of it is never logged."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConfigParseError, NoRegionError, ProfileNotFound

from tdefs.errors import TdefsError
from tdefs.keys.attempts import attempt
from tdefs.keys.loopback import is_loopback
from tdefs.keys.sources.aws_kms import answers

if TYPE_CHECKING:
    from collections.abc import Callable

    from types_boto3_kms import KMSClient

Result = TypeVar("Result")

# At DEBUG they log requests and answers whole: wrapping keys in the clear, credentials, session tokens.
for _library in ("boto3", "botocore", "urllib3"):
    logging.getLogger(_library).setLevel(logging.WARNING)


def is_safe(url: str) -> bool:
    """Tell whether nobody between can read what is sent to ``url``: HTTPS, or HTTP on this host."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host or parts.username is not None or parts.password is not None:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


@dataclass(frozen=True)
class Endpoint:
    """AWS KMS in a region; what is "" or None is left to boto3: AWS_ variables, ~/.aws, the host's role."""

    region: str
    profile: str
    url: str
    ca: Path | None
    timeout_seconds: int
    patience_seconds: int

    @cached_property
    def region_in_use(self) -> str:
        """The region that is asked. Raises TdefsError(KEY_SOURCE_UNAVAILABLE) if none is said anywhere."""
        region = self.region or self._session.region_name
        if not region:
            raise answers.unavailable(
                "no region is said for AWS KMS", hint="set region, AWS_REGION, or region of the profile in ~/.aws"
            )
        return region

    def ask(self, request: Callable[[KMSClient], Result], key: str) -> Result:
        """Return what ``request`` returns, given a client; ``key`` is the key it is about, for messages.

        Raises TdefsError as :class:`tdefs.keys.key_source.KeySource` says, and WrongSecretError.
        """
        where = f"AWS KMS in {self.region_in_use}"

        def once() -> Result:
            try:
                with closing(self._client()) as client:
                    return request(client)
            except ClientError as error:
                told: TdefsError = answers.of_service(error, where, key)
            except BotoCoreError as error:
                told = answers.of_library(error, where)
            # Outside of the handlers: the exceptions of boto3 hold requests and answers.
            raise told

        return attempt(once, where, patience_seconds=self.patience_seconds)

    @cached_property
    def _session(self) -> boto3.Session:
        try:
            return boto3.Session(profile_name=self.profile or None)
        except (ProfileNotFound, ConfigParseError) as error:
            raise answers.unavailable(
                "the AWS profile cannot be read" if self.profile else "the AWS configuration cannot be read",
                f"boto3 says {type(error).__name__}",
                "see ~/.aws/config and ~/.aws/credentials of the user who runs tdefs, and AWS_PROFILE",
            ) from None

    def _client(self) -> KMSClient:
        if self.ca is not None and not self.ca.is_file():
            raise answers.unavailable(f'there is no certificate file "{self.ca}"', hint="see ca in the key source")
        client = self._made_client()
        # AWS_ENDPOINT_URL and ~/.aws/config can name another place than the configuration of tdefs.
        url = client.meta.endpoint_url
        if not is_safe(url):
            raise answers.untrusted(
                "the endpoint of AWS KMS is neither HTTPS nor on this host",
                hint="see AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_KMS, and endpoint_url in ~/.aws/config",
            )
        # HTTP would leave this host all the same, by the proxy that the environment names.
        return client if url.startswith("https:") else self._made_client(Config(proxies={}))

    def _made_client(self, more: Config | None = None) -> KMSClient:
        config = Config(
            connect_timeout=self.timeout_seconds,
            read_timeout=self.timeout_seconds,
            retries={"total_max_attempts": 1, "mode": "standard"},  # attempt() tries again, and tells why
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
            raise answers.unavailable("AWS KMS cannot be asked", f"boto3 says {type(error).__name__}") from None

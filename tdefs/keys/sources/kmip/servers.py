"""Several KMIP servers that know the same keys: the first that answers is asked."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

from tdefs.errors import TdefsError
from tdefs.keys.dialogue import Warn
from tdefs.keys.failures import UnreachableError, UntrustedServerError
from tdefs.keys.sources.asking import Service
from tdefs.keys.sources.kmip.client import Client
from tdefs.keys.sources.kmip.connection import Connection
from tdefs.keys.sources.kmip.fields import KmipSettings, Server

#: The least time that a server has to answer, when hardly any patience is left.
_LEAST_SECONDS = 1.0

Result = TypeVar("Result")


class Servers(Service[Client]):
    """The servers of a key source, in the order in which they are asked."""

    def __init__(self, settings: KmipSettings, warn: Warn) -> None:
        self._settings = settings
        self._warn = warn
        self._order = list(settings.servers)
        self._warned: set[str] = set()

    @property
    def title(self) -> str:
        """See Service."""
        return f"the key server{'s' if len(self._order) > 1 else ''} {', '.join(map(str, self._order))}"

    def once(self, call: Callable[[Client], Result], purpose: str, until: float) -> Result:
        """See Service. Each server is asked once; one that has answered is asked first from then on.

        :raises UnreachableError: another attempt may succeed. If no server is trusted, none will.
        """
        del purpose
        failures: list[UnreachableError | UntrustedServerError] = []
        for server in list(self._order):
            left = max(_LEAST_SECONDS, until - time.monotonic())
            seconds = min(self._settings.limits.timeout_seconds, left)
            try:
                with Connection(server, self._tls, seconds) as connection:
                    result = call(Client(connection, self._settings.kmip_version))
            except (UnreachableError, UntrustedServerError) as error:
                failures.append(error)
                continue
            self._warn_of(failures, server)
            self._order = self._order[len(failures) :] + self._order[: len(failures)]
            return result
        if len(failures) > 1 and any(isinstance(one, UnreachableError) for one in failures):
            raise UnreachableError(
                "no key server can be used", "; ".join(f"{one}: {one.detail}" for one in failures)
            )
        raise failures[0]

    def _warn_of(self, failures: Sequence[TdefsError], answered: Server) -> None:
        """Warn once of each server that does not answer although another does: somebody should look at it."""
        for failure in failures:
            if failure.message not in self._warned:
                self._warned.add(failure.message)
                self._warn(f"{failure.message}: {failure.detail}; {answered} answers")

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        versions = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
        return self._settings.tls.context(versions[self._settings.tls_minimum])

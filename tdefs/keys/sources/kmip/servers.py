"""Several KMIP servers that know the same keys: the first that answers is asked."""

from __future__ import annotations

import math
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

from tdefs.errors import TdefsError
from tdefs.keys.attempts import UnreachableError, attempt
from tdefs.keys.sources.kmip.client import Client
from tdefs.keys.sources.kmip.connection import Connection, UntrustedError, tls_context
from tdefs.keys.sources.kmip.fields import KmipSettings, Server

#: What a server gets to answer when hardly any patience is left.
_LEAST_SECONDS = 1.0

Result = TypeVar("Result")


class Servers:
    """The servers of a key source, in the order in which they are asked."""

    def __init__(self, settings: KmipSettings) -> None:
        self._settings = settings
        self._order = list(settings.servers)
        self._told: set[str] = set()

    def ask(self, ask: Callable[[Client], Result]) -> Result:
        """Return what ``ask`` returns of the first server that answers.

        Without patience each server is asked once, and has all of its time.
        """
        until = time.monotonic() + (self._settings.patience_seconds or math.inf)
        return attempt(
            lambda: self._ask_in_order(ask, until),
            f"the key server{'s' if len(self._order) > 1 else ''} {', '.join(map(str, self._order))}",
            patience_seconds=self._settings.patience_seconds,
        )

    def _ask_in_order(self, ask: Callable[[Client], Result], until: float) -> Result:
        """Ask each server once. One that has answered is asked first from then on.

        Raises UnreachableError if another round may do better: one that is not trusted stays so.
        """
        failures: list[UnreachableError | UntrustedError] = []
        for server in list(self._order):
            left = max(_LEAST_SECONDS, until - time.monotonic())
            try:
                with Connection(server, self._tls, min(self._settings.timeout_seconds, left)) as connection:
                    result = ask(Client(connection, self._settings.kmip_version))
            except (UnreachableError, UntrustedError) as error:
                failures.append(error)
                continue
            self._tell(failures, server)
            self._order = self._order[len(failures) :] + self._order[: len(failures)]
            return result
        if len(failures) > 1 and any(isinstance(one, UnreachableError) for one in failures):
            raise UnreachableError(
                "no key server can be used", detail="; ".join(f"{one}: {one.detail}" for one in failures)
            )
        raise failures[0]

    def _tell(self, failures: Sequence[TdefsError], answered: Server) -> None:
        """Say once of each server that it does not answer, though another does: somebody should look."""
        for failure in failures:
            if failure.message not in self._told:
                self._told.add(failure.message)
                reason = f"{failure.message}: {failure.detail}"
                print(f"tdefs: warning: {reason}; {answered} answers", file=sys.stderr, flush=True)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return tls_context(self._settings)

"""Key sources: protectors whose secret a service or a device keeps, and which the configuration describes.

A kind of source is one module (or package) in :mod:`tdefs.keys.sources`, of the kind's name with ``_`` for ``-``,
with a class ``SOURCE``. Adding a kind touches that module, its tests and, for its library, an extra in
``pyproject.toml`` of the kind's name.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tdefs.errors import Exit, TdefsError
from tdefs.keys import sources
from tdefs.keys.protectors.base import Protector
from tdefs.keys.settings import Settings, SettingsReader


@dataclass(frozen=True)
class Certificate:
    """A certificate file that a source uses; ``role`` says in words for what."""

    path: Path
    role: str


class KeySource(Protector):
    """A protector that asks a service or a device.

    ``wrap`` and ``unwrap`` are not given a secret but ask for the wrapping, or for the wrapping key, with what
    the configuration says. Beside what Protector allows they raise TdefsError:

    - KEY_SERVER_UNREACHABLE: nobody answered, for as long as :func:`tdefs.keys.attempts.attempt` tries;
    - KEY_SERVER_UNTRUSTED: who answered is not who was meant (certificate, host name, TLS);
    - KEY_SERVER_REFUSED: it does not accept who asks, or what is asked;
    - WRAPPING_KEY_UNUSABLE: the wrapping key is not there, or is disabled, revoked or destroyed.

    ``unwrap`` raises NotMineError also for an entry of the same kind that another service or key made, where
    the entry's parameters tell.
    """

    words = "the key source"

    @property
    def needs_person(self) -> bool:
        """Whether somebody must type something for it."""
        return False

    @classmethod
    @abstractmethod
    def from_settings(cls, read: SettingsReader) -> Self:
        """Make one from what the configuration says of it; nothing is asked yet.

        Call ``read.finish()`` when all fields are read. Raises TdefsError(CONFIG_INVALID).
        """

    def certificates(self) -> Sequence[Certificate]:
        """Return the certificate files that it uses, whose expiry ``tdefs doctor`` watches."""
        return ()


def kinds() -> list[str]:
    """Return the kinds of key sources there are."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(sources.__path__))


def make_key_source(settings: Settings) -> KeySource:
    """Return the key source that ``settings`` describe.

    Raises TdefsError: CONFIG_INVALID for an unknown kind or wrong fields, KEY_SOURCE_UNAVAILABLE if the kind's
    library is not installed.
    """
    if settings.kind not in kinds():
        message = f"there is no kind of key source {settings.kind[:64]!a}"
        raise settings.error(message, field="kind", hint=f"kinds: {', '.join(kinds())}")
    try:
        module = importlib.import_module(f"{sources.__name__}.{settings.kind.replace('-', '_')}")
    except ModuleNotFoundError as error:
        raise TdefsError(
            Exit.KEY_SOURCE_UNAVAILABLE,
            f'key source "{settings.name}" needs the Python package {error.name}, which is not installed',
            hint=f"pip install 'tdefs[{settings.kind}]' in the environment of tdefs",
        ) from None
    source: type[KeySource] = module.SOURCE
    return source.from_settings(SettingsReader(settings))

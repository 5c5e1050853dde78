"""The kinds of key sources, and making the one that the configuration describes.

A kind is a module or a package with a class ``SOURCE``. A new kind needs that module, a line here, its tests and,
for its library, an extra in ``pyproject.toml`` of the kind's name. The module is imported when it is used, since
the library may not be installed.
"""

from __future__ import annotations

import importlib

from tdefs.keys.dialogue import Dialogue
from tdefs.keys.failures import UnavailableError
from tdefs.keys.sources.base import KeySource
from tdefs.keys.sources.settings import Settings, SettingsReader
from tdefs.text import shortened

_MODULES = {
    "aws-kms": "aws_kms",
    "kmip": "kmip",
    "pkcs11": "pkcs11",
    "vault-kv": "vault.kv",
    "vault-transit": "vault.transit",
}


def kinds() -> list[str]:
    """Return the kinds of key sources, sorted."""
    return sorted(_MODULES)


def make_key_source(settings: Settings, dialogue: Dialogue) -> KeySource:
    """Return the key source that ``settings`` describe. It warns and asks for a PIN by ``dialogue``.

    :raises TdefsError: CONFIG_INVALID for an unknown kind or wrong fields.
    :raises UnavailableError: the library of the kind is not installed.
    """
    if settings.kind not in _MODULES:
        message = f'there is no kind of key source "{shortened(settings.kind)}"'
        raise settings.error(message, field="kind", hint=f"kinds: {', '.join(kinds())}")
    try:
        module = importlib.import_module(f"tdefs.keys.sources.{_MODULES[settings.kind]}")
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f'key source "{settings.name}" needs the Python package {error.name}, which is not installed',
            hint=f"pip install 'tdefs[{settings.kind}]' in the environment of tdefs",
        ) from None
    source: type[KeySource] = module.SOURCE
    return source.from_settings(SettingsReader(settings), dialogue)

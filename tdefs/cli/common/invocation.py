"""One run of a command: its name, its configuration, its changes and its warnings so far."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from tdefs.cli.common.terminal import TerminalDialogue
from tdefs.config import Config, load_config
from tdefs.keys.sources.base import KeySource, make_key_source


class Invocation:
    """The values that the parts of one command share. It is made once, before the command line is parsed."""

    def __init__(self, command: str = "", config_file: Path | None = None) -> None:
        #: The words that name the command, such as ``key rotate``. The keystore's history has them.
        self.command = command
        #: The file that ``--config`` names.
        self.config_file = config_file
        #: Whether the command has changed something.
        self.changed = False
        #: Whether the user was warned that the keystore does not know the volume.
        self.registration_reported = False
        #: Whether the user has been warned of a cheap passphrase.
        self.cost_reported = False
        self._key_sources: dict[str, KeySource] = {}

    @cached_property
    def config(self) -> Config:
        """The configuration.

        :raises TdefsError: CONFIG_INVALID, CONFIG_EXPOSED.
        """
        return load_config(self.config_file)

    def key_source(self, name: str) -> KeySource:
        """Return the key source *name* of the configuration.

        There is one object for each of them. So it asks for its PIN once, and gives each warning once.

        :raises TdefsError: the configuration does not describe it, or it cannot be used.
        """
        if name not in self._key_sources:
            self._key_sources[name] = make_key_source(self.config.key_source(name), TerminalDialogue())
        return self._key_sources[name]

"""``tdefs key-source``: the key sources that the configuration describes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_json, print_line, print_table
from tdefs.cli.common.parsing import Subcommands, subcommands, takes
from tdefs.cli.common.unlocking import add_config
from tdefs.cli.key_source.wrapping_keys import register_key_commands
from tdefs.errors import Exit
from tdefs.keys.hierarchy import VOLUME_ID_BYTES
from tdefs.keys.keystore.file import FIRST_DATA_KEY, Keystore
from tdefs.keys.keystore.wrapped_keys import new_document
from tdefs.keys.sources.settings import Settings


def register(subparsers: Subcommands) -> None:
    """Add the command ``key-source`` with its subcommands."""
    parser = subparsers.add_parser(
        "key-source",
        help="test key servers and tokens, and manage the keys on them",
    )
    commands = subcommands(parser)

    listing = commands.add_parser("list", help="list the key sources, without asking them")
    add_config(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    takes(listing, _ListOptions, _list)

    test = commands.add_parser("test", help="let a key source wrap and unwrap a key that nobody uses")
    test.add_argument("name", metavar="NAME", help="a key source of the configuration")
    add_config(test)
    takes(test, _TestOptions, _test)

    register_key_commands(commands)


@dataclass(frozen=True, slots=True)
class _ListOptions:
    json: bool


@dataclass(frozen=True, slots=True)
class _TestOptions:
    name: str


def _list(invocation: Invocation, options: _ListOptions) -> int:
    sources = invocation.config.key_sources.values()
    if options.json:
        print_json([_as_object(source) for source in sources])
    else:
        print_table(
            ("name", "kind", "described"),
            [(source.name, source.kind, f"{source.source}:{source.line}") for source in sources],
        )
    return Exit.OK


def _as_object(source: Settings) -> dict[str, Any]:
    """Return the JSON object of a key source; its keys are part of the interface."""
    return {"name": source.name, "kind": source.kind, "file": source.source, "line": source.line}


def _test(invocation: Invocation, options: _TestOptions) -> int:
    source = invocation.key_source(options.name)
    document = new_document(os.urandom(VOLUME_ID_BYTES), source, [FIRST_DATA_KEY])
    try:
        Keystore(Path(os.devnull), document).open(source)
    finally:
        source.forget(document.protectors[0])
    print_line(f'key source "{options.name}" ({source.kind}) wraps and unwraps')
    return Exit.OK

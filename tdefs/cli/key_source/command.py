"""``tdefs key-source``: the key sources that the configuration describes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from tdefs.cli.common.output import print_json, print_line, print_table
from tdefs.cli.common.unlocking import add_config, source_finder
from tdefs.cli.key_source.wrapping_keys import register_key_commands
from tdefs.config import load_config
from tdefs.errors import Exit
from tdefs.keys.hierarchy import VOLUME_ID_BYTES
from tdefs.keys.keystore.file import FIRST_DATA_KEY, Keystore
from tdefs.keys.keystore.wrapped_keys import new_document
from tdefs.keys.sources.settings import Settings


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``key-source`` with its sub-commands."""
    parser = subparsers.add_parser(
        "key-source",
        help="key servers, tokens and the like that the configuration describes: list, test; and their keys",
    )
    commands = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="list the key sources; asks none of them")
    add_config(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)

    test = commands.add_parser("test", help="have a key source wrap and unwrap a key that nobody uses")
    test.add_argument("name", metavar="NAME", help="what the configuration calls it")
    add_config(test)
    test.set_defaults(run=_test)

    register_key_commands(commands)


def _list(args: argparse.Namespace) -> int:
    sources = load_config(args.config).key_sources.values()
    if args.json:
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


def _test(args: argparse.Namespace) -> int:
    source = source_finder(args)(args.name)
    document = new_document(os.urandom(VOLUME_ID_BYTES), source, [FIRST_DATA_KEY])
    try:
        Keystore(Path(os.devnull), document).open(source)
    finally:
        source.forget(document.protectors[0])
    print_line(f'key source "{args.name}" ({source.kind}) wraps and unwraps')
    return Exit.OK

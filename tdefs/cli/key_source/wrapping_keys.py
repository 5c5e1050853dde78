"""``tdefs key-source``: the wrapping keys that a key source keeps on its server."""

from __future__ import annotations

import argparse
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdefs.cli.common.output import print_json, print_line, print_table
from tdefs.cli.common.secret_arguments import descriptor_number
from tdefs.cli.common.unlocking import add_config, source_finder
from tdefs.errors import Exit, TdefsError
from tdefs.keys.fields import show_time
from tdefs.keys.private_files import read_file
from tdefs.keys.protectors.obtaining import WRAPPING_KEY_BYTES
from tdefs.keys.secret_files import read_passphrase_descriptor
from tdefs.keys.sources.base import REVOCATION_REASONS, ServerKey, WrappingKeys

_HEX_KEY = re.compile(rb"[0-9A-Fa-f]{%d}\s*" % (2 * WRAPPING_KEY_BYTES))
_NAME = re.compile(r"[ -~]{1,128}", re.ASCII)


def register_key_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-commands of ``key-source`` for the keys on a server."""
    keys = _command(commands, "keys", _keys, "list the keys on the server of a key source")
    keys.add_argument("--json", action="store_true", help="print JSON")

    create = _command(commands, "create", _create, "have the server make a wrapping key; activate it then")
    _add_name(create)

    register = _command(
        commands, "register", _register, "give the server a key of yours to keep; activate it then"
    )
    _add_name(register)
    key = register.add_mutually_exclusive_group(required=True)
    key.add_argument(
        "--key-file",
        metavar="FILE",
        type=Path,
        help="read the key, 32 bytes or 64 hexadecimal characters, from FILE",
    )
    key.add_argument(
        "--key-fd",
        metavar="N",
        type=descriptor_number,
        help="read the key, 64 hexadecimal characters, from the open file descriptor N to its end",
    )

    _add_uid(_command(commands, "activate", _activate, "let a key on the server be used"))

    revoke = _command(commands, "revoke", _revoke, "let a key on the server be used no more")
    _add_uid(revoke)
    revoke.add_argument(
        "--reason", choices=REVOCATION_REASONS, default="unspecified", help="what the server notes"
    )

    _add_uid(_command(commands, "destroy", _destroy, "have the server forget a key, for ever; revoke it first"))


def wrapping_keys(args: argparse.Namespace, name: str) -> WrappingKeys:
    """Return the keys of the key source ``name``. Raises TdefsError: USAGE if its kind has none on a server."""
    source = source_finder(args)(name)
    if not isinstance(source, WrappingKeys):
        raise TdefsError(
            Exit.USAGE,
            f'tdefs does not manage keys for the key source "{name}"',
            detail=f"its kind is {source.kind}",
            hint="create, revoke and destroy its key with the means of the service",
        )
    return source


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help)
    parser.add_argument("source", metavar="SOURCE", help="what the configuration calls the key source")
    add_config(parser)
    parser.set_defaults(run=run)
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", type=_key_name, help="what the server calls it; default: tdefs- and a random text"
    )


def _add_uid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uid", metavar="UID", help="the key's unique identifier, as 'keys' shows it")


def _key_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("a name has 1 to 128 printable ASCII characters")
    return text


def _keys(args: argparse.Namespace) -> int:
    keys = wrapping_keys(args, args.source).list_keys()
    if args.json:
        print_json([_as_object(key) for key in keys])
    else:
        print_table(
            ("uid", "name", "state", "created"),
            [(key.uid, key.name, key.state, show_time(key.created) if key.created else None) for key in keys],
        )
    return Exit.OK


def _as_object(key: ServerKey) -> dict[str, Any]:
    """Return the JSON object of a key; its keys are part of the interface."""
    created = show_time(key.created) if key.created else None
    return {"uid": key.uid, "name": key.name, "state": key.state, "created": created}


def _create(args: argparse.Namespace) -> int:
    uid = wrapping_keys(args, args.source).create_key(args.name or _new_name())
    args.changed = True
    print_line(f"key {uid} is created; it is used once it is active")
    return Exit.OK


def _register(args: argparse.Namespace) -> int:
    keys = wrapping_keys(args, args.source)
    uid = keys.register_key(args.name or _new_name(), _read_key(args))
    args.changed = True
    print_line(f"key {uid} is registered; it is used once it is active")
    return Exit.OK


def _new_name() -> str:
    return f"tdefs-{secrets.token_hex(8)}"


def _read_key(args: argparse.Namespace) -> bytes:
    if args.key_fd is not None:
        text = read_passphrase_descriptor(args.key_fd, "key")
    else:
        text = read_file(args.key_file, "key", secret=True)
        if len(text) == WRAPPING_KEY_BYTES:
            return text
    if _HEX_KEY.fullmatch(text):
        return bytes.fromhex(text.decode("ascii"))
    raise TdefsError(
        Exit.NO_SECRET,
        "what was given as the key is none",
        detail=f"a key is {2 * WRAPPING_KEY_BYTES} hexadecimal digits, or a file of {WRAPPING_KEY_BYTES} bytes",
        hint="'openssl rand -hex 32' makes one",
    )


def _activate(args: argparse.Namespace) -> int:
    wrapping_keys(args, args.source).activate_key(args.uid)
    args.changed = True
    print_line(f"key {args.uid} is active")
    return Exit.OK


def _revoke(args: argparse.Namespace) -> int:
    wrapping_keys(args, args.source).revoke_key(args.uid, args.reason)
    args.changed = True
    print_line(f"key {args.uid} is revoked: no protector that needs it unlocks any more")
    return Exit.OK


def _destroy(args: argparse.Namespace) -> int:
    wrapping_keys(args, args.source).destroy_key(args.uid)
    args.changed = True
    print_line(f"key {args.uid} is destroyed")
    return Exit.OK

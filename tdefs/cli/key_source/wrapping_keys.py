"""``tdefs key-source``: the wrapping keys that a key source keeps on its server."""

from __future__ import annotations

import argparse
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_json, print_line, print_table
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.secret_options import descriptor_number
from tdefs.cli.common.unlocking import add_config
from tdefs.errors import Exit, NoSecretError, TdefsError
from tdefs.keys.fields import show_time
from tdefs.keys.private_files import read_file, read_passphrase_descriptor
from tdefs.keys.protectors.base import WRAPPING_KEY_BYTES
from tdefs.keys.sources.base import REVOCATION_REASONS, ServerKey, WrappingKeys

_HEX_KEY = re.compile(rb"[0-9A-Fa-f]{%d}\s*" % (2 * WRAPPING_KEY_BYTES))
_NAME = re.compile(r"[ -~]{1,128}", re.ASCII)


def register_key_commands(commands: Subcommands) -> None:
    """Add the subcommands of ``key-source`` for the keys on a server."""
    keys = _command(commands, "keys", "list the keys on the server of a key source")
    keys.add_argument("--json", action="store_true", help="print JSON")
    takes(keys, _KeysOptions, _keys)

    create = _command(commands, "create", "have the server make a wrapping key; activate it afterwards")
    _add_name(create)
    takes(create, _CreateOptions, _create)

    register = _command(commands, "register", "give the server your own key to keep; activate it afterwards")
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

    takes(register, _RegisterOptions, _register)

    activate = _command(commands, "activate", "allow the use of a key on the server")
    _add_uid(activate)
    takes(activate, _UidOptions, _activate)

    revoke = _command(commands, "revoke", "end the use of a key on the server")
    _add_uid(revoke)
    revoke.add_argument(
        "--reason",
        metavar="REASON",
        choices=REVOCATION_REASONS,
        default="unspecified",
        help=f"the reason that the server notes: {', '.join(REVOCATION_REASONS)}; default: unspecified",
    )

    takes(revoke, _RevokeOptions, _revoke)

    destroy = _command(commands, "destroy", "have the server delete a key for ever; revoke it first")
    _add_uid(destroy)
    takes(destroy, _UidOptions, _destroy)


@dataclass(frozen=True, slots=True)
class _KeysOptions:
    source: str
    json: bool


@dataclass(frozen=True, slots=True)
class _CreateOptions:
    source: str
    name: str | None


@dataclass(frozen=True, slots=True)
class _RegisterOptions:
    source: str
    name: str | None
    key_file: Path | None
    key_fd: int | None


@dataclass(frozen=True, slots=True)
class _UidOptions:
    source: str
    uid: str


@dataclass(frozen=True, slots=True)
class _RevokeOptions:
    source: str
    uid: str
    reason: str


def wrapping_keys(invocation: Invocation, name: str) -> WrappingKeys:
    """Return the keys of the key source ``name``.

    :raises TdefsError: USAGE if its kind has no keys on a server.
    """
    source = invocation.key_source(name)
    if not isinstance(source, WrappingKeys):
        raise TdefsError(
            Exit.USAGE,
            f'tdefs does not manage keys for the key source "{name}"',
            detail=f"its kind is {source.kind}",
            hint="create, revoke and destroy its key with the means of the service",
        )
    return source


def _command(commands: Subcommands, name: str, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help)
    parser.add_argument("source", metavar="SOURCE", help="a key source of the configuration")
    add_config(parser)
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", type=_key_name, help="its name on the server; default: tdefs- and a random text")


def _add_uid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uid", metavar="UID", help="the key's unique identifier, as 'keys' shows it")


def _key_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("a name has 1 to 128 printable ASCII characters")
    return text


def _keys(invocation: Invocation, options: _KeysOptions) -> int:
    keys = wrapping_keys(invocation, options.source).list_keys()
    if options.json:
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


def _create(invocation: Invocation, options: _CreateOptions) -> int:
    uid = wrapping_keys(invocation, options.source).create_key(options.name or _new_name())
    invocation.changed = True
    print_line(f"key {uid} is created; it is used once it is active")
    return Exit.OK


def _register(invocation: Invocation, options: _RegisterOptions) -> int:
    keys = wrapping_keys(invocation, options.source)
    uid = keys.register_key(options.name or _new_name(), _read_key(options))
    invocation.changed = True
    print_line(f"key {uid} is registered; it is used once it is active")
    return Exit.OK


def _new_name() -> str:
    return f"tdefs-{secrets.token_hex(8)}"


def _read_key(options: _RegisterOptions) -> bytes:
    if options.key_fd is not None:
        text = read_passphrase_descriptor(options.key_fd, "key")
    else:
        assert options.key_file is not None  # noqa: S101 - argparse demands one of the two
        text = read_file(options.key_file, "key", secret=True)
        if len(text) == WRAPPING_KEY_BYTES:
            return text
    if _HEX_KEY.fullmatch(text):
        return bytes.fromhex(text.decode("ascii"))
    raise NoSecretError(
        "the given key has the wrong form",
        detail=f"a key is {2 * WRAPPING_KEY_BYTES} hexadecimal digits, or a file of {WRAPPING_KEY_BYTES} bytes",
        hint="'openssl rand -hex 32' makes one",
    )


def _activate(invocation: Invocation, options: _UidOptions) -> int:
    wrapping_keys(invocation, options.source).activate_key(options.uid)
    invocation.changed = True
    print_line(f"key {options.uid} is active")
    return Exit.OK


def _revoke(invocation: Invocation, options: _RevokeOptions) -> int:
    wrapping_keys(invocation, options.source).revoke_key(options.uid, options.reason)
    invocation.changed = True
    print_line(f"key {options.uid} is revoked: no protector that needs it unlocks any more")
    return Exit.OK


def _destroy(invocation: Invocation, options: _UidOptions) -> int:
    wrapping_keys(invocation, options.source).destroy_key(options.uid)
    invocation.changed = True
    print_line(f"key {options.uid} is destroyed")
    return Exit.OK

"""The ``tdefs`` command: parsing, hardening, and turning what goes wrong into a message and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from tdefs import __version__
from tdefs.cli.standard import open_standard_descriptors
from tdefs.errors import Exit, TdefsError, from_os_error
from tdefs.host import harden_process

#: Each is a module of this package, with _ for -.
_COMMANDS = (
    *("init", "mount", "umount", "status", "doctor", "ls", "cat", "verify", "policy"),
    *("key", "protector", "key-source", "auto-open", "volume"),
)


def build_parser(only: str = "") -> argparse.ArgumentParser:
    """Return the parser of the whole command line, or of one command, which takes a third of the time."""
    parser = argparse.ArgumentParser(
        prog="tdefs",
        description="Encrypts a PostgreSQL data directory: an unmodified PostgreSQL runs on the mount, "
        "the disk holds only ciphertext.",
        epilog="Each kind of failure has its own exit code: see docs/EXIT-CODES.md.",
    )
    parser.add_argument("--version", action="version", version=f"tdefs {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (only,) if only in _COMMANDS else _COMMANDS:
        import_module(f"tdefs.cli.{command.replace('-', '_')}").register(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    args = build_parser(given[0] if given else "").parse_args(given)
    try:
        harden_process()
        code: int = args.run(args)
        sys.stdout.flush()
    except TdefsError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # who read our output (head, grep -q) has seen enough; keep the interpreter from saying so at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except OSError as error:
        print(from_os_error(error).render(), file=sys.stderr)
        return Exit.OS_ERROR
    except MemoryError:
        print("tdefs: out of memory\nHINT:  free memory, or raise the limit (ulimit -v)", file=sys.stderr)
        return Exit.OS_ERROR
    except KeyboardInterrupt:
        print("tdefs: interrupted", file=sys.stderr)
        return 130
    return code


def run() -> None:
    """Entry point of the installed script."""
    open_standard_descriptors()
    sys.exit(main())

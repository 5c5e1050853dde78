"""The ``tdefs`` command: parsing, hardening, and turning what goes wrong into a message and an exit code."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from tdefs import __version__
from tdefs.cli.common.standard import open_standard_descriptors
from tdefs.cli.common.streams import end_output, steady_streams
from tdefs.errors import Exit, TdefsError, from_os_error
from tdefs.host import expect_signals, harden_process, lock_memory, refuse_tracer

#: The commands, and the module of each within this package.
COMMANDS = {
    "init": "init",
    "mount": "mount",
    "umount": "umount",
    "status": "status",
    "doctor": "doctor",
    "ls": "ls",
    "cat": "cat",
    "verify": "verify",
    "policy": "policy.command",
    "key": "key.command",
    "protector": "protector.command",
    "key-source": "key_source.command",
    "auto-open": "auto_open",
    "volume": "volume.command",
    "accept": "accept",
}


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
    for command in (only,) if only in COMMANDS else COMMANDS:
        import_module(f"tdefs.cli.{COMMANDS[command]}").register(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    args = argparse.Namespace(changed=False)
    try:
        build_parser(given[0] if given else "").parse_args(given, args)
        harden_process()
        refuse_tracer()
        lock_memory()
        code: int = args.run(args)
    except SystemExit as ended:  # --help, --version, or a wrong command line
        code = int(ended.code or 0)
    except TdefsError as error:
        print(error.render(), file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        print(from_os_error(error).render(), file=sys.stderr)
        code = Exit.OS_ERROR
    except MemoryError:
        print("tdefs: out of memory\nHINT:  free memory, or raise the limit (ulimit -v)", file=sys.stderr)
        code = Exit.OS_ERROR
    except KeyboardInterrupt:
        print("tdefs: interrupted", file=sys.stderr)
        code = 130
    return end_output(code, changed=args.changed)


def run() -> None:
    """Entry point of the installed script."""
    open_standard_descriptors()
    steady_streams()
    expect_signals()
    sys.exit(main())

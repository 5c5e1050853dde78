"""The ``tdefs`` command: parsing, hardening, and turning errors into messages and exit codes."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from tdefs import __version__
from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.parsing import METAVAR, PROGRAM, Parser
from tdefs.cli.common.standard import open_standard_descriptors
from tdefs.cli.common.streams import end_output, steady_streams
from tdefs.errors import Exit, TdefsError, from_os_error
from tdefs.host import expect_signals, harden_process, lock_memory, refuse_tracer

#: The commands as ``tdefs --help`` groups them, and the module of each within this package.
GROUPS = {
    "setting up": {"init": "init", "policy": "policy.command"},
    "using a volume": {"mount": "mount", "umount": "umount", "status": "status", "ls": "ls", "cat": "cat"},
    "keys": {
        "key": "key.command",
        "protector": "protector.command",
        "auto-open": "auto_open",
        "key-source": "key_source.command",
    },
    "checking": {"doctor": "doctor", "verify": "verify"},
    "after a restore, a copy or a move": {"volume": "volume.command", "accept": "accept"},
}
COMMANDS = {command: module for group in GROUPS.values() for command, module in group.items()}


class _Program(Parser):
    """The parser of all commands; its help groups them."""

    def format_help(self) -> str:
        """Return the help: one line for each command, below the name of its group."""
        (commands,) = (one for one in self._actions if isinstance(one, argparse._SubParsersAction))
        lines = {line.dest: line for line in commands._get_subactions()}
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, group in GROUPS.items():
            formatter.start_section(title)
            formatter.add_arguments([lines[command] for command in group if command in lines])
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments([action for action in self._actions if action is not commands])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def build_parser(only: str = "") -> Parser:
    """Return the parser of the whole command line, or only of one command, which is three times as fast."""
    parser = _Program(
        prog=PROGRAM,
        description="Encrypts a PostgreSQL data directory. An unmodified PostgreSQL runs on the mount; the disk "
        "holds only ciphertext.",
        epilog="'tdefs COMMAND --help' explains a command. Each kind of failure has its own exit code: see "
        "docs/EXIT-CODES.md.",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(metavar=METAVAR, required=True, parser_class=Parser)
    for command in (only,) if only in COMMANDS else COMMANDS:
        import_module(f"tdefs.cli.{COMMANDS[command]}").register(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    invocation = Invocation()
    args = argparse.Namespace(invocation=invocation)
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
    return end_output(code, changed=invocation.changed)


def run() -> None:
    """Entry point of the installed script."""
    open_standard_descriptors()
    steady_streams()
    expect_signals()
    sys.exit(main())

"""``mount.fuse.tdefs``: the helper that mount(8) runs for ``mount -t fuse.tdefs`` and for a line in /etc/fstab.

mount(8), "External helpers": ``mount.fuse.tdefs SOURCE DIRECTORY [-sfnv] [-N namespace] [-o options] [-t type]``.
It asks for a secret only at a terminal: at boot nobody would answer.
"""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from tdefs.cli.common.standard import open_standard_descriptors
from tdefs.errors import Exit
from tdefs.host import expect_signals

#: mount(8), "Exit status".
_OK = 0
_WRONG_USE = 1
_INTERRUPTED = 8
_FAILED = 32
#: The exit code of a command that was ended by Ctrl-C.
_INTERRUPTED_SHELL = 130

#: What libfuse and the kernel know; the rest of mount(8)'s own is for mount(8), systemd, or holds anyway.
_FOR_FUSE = frozenset(
    {
        *("ro", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "dirsync"),
        *("noatime", "nodiratime", "max_read"),
    }
)
_FOR_OTHERS = frozenset(
    {
        *(
            "defaults",
            "auto",
            "noauto",
            "nofail",
            "_netdev",
            "rw",
            "async",
            "loop",
            "comment",
            "subtype",
            "fsname",
        ),
        *("user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup", "uhelper", "helper"),
        *("iversion", "noiversion", "mand", "nomand", "silent", "loud", "quota", "noquota", "nosymfollow"),
        *("atime", "diratime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime"),
        *("allow_other", "default_permissions"),
    }
)
#: Each is an option of ``tdefs mount`` that takes a value.
_WITH_VALUE = (
    *("keystore", "policy", "config", "log-file", "watchdog"),
    *("passphrase-file", "passphrase-credential", "key-command", "key-source", "recovery-code-file"),
)
_WITHOUT_VALUE = ("auto-open", "no-policy")

# as libmount splits: a comma between double quotes is part of a value, and here one after a backslash, too
_OPTION = re.compile(r'(?:[^,"\\]|\\.|"[^"]*"|["\\])+')


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"mount.fuse.tdefs: {message}", file=sys.stderr)
        raise SystemExit(_WRONG_USE)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments that mount(8) gives to its helpers."""
    parser = _Parser(
        prog="mount.fuse.tdefs",
        description="Run by mount(8) for the type fuse.tdefs. Options beside those of FUSE are those of 'tdefs "
        "mount', as NAME=VALUE: " + ", ".join((*_WITH_VALUE, *_WITHOUT_VALUE)),
    )
    parser.add_argument("backing", metavar="BACKING")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("-o", dest="options", metavar="OPTIONS", action="append", default=[])
    parser.add_argument("-t", dest="type", metavar="TYPE", help="ignored")
    parser.add_argument("-N", dest="namespace", metavar="NAMESPACE", help="ignored: mount(8) enters it")
    parser.add_argument("-n", dest="no_mtab", action="store_true", help="ignored: there is no mtab")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="ignore unknown options")
    parser.add_argument("-f", dest="fake", action="store_true", help="do everything but mount")
    parser.add_argument("-v", dest="verbose", action="store_true", help="say what is run")
    return parser


def split(given: Iterable[str]) -> list[str]:
    """Split ``-o a,b="c,d" -o e`` into single options."""
    return [option for text in given for option in _OPTION.findall(text)]


def words_for_mount(backing: str, mountpoint: str, options: Iterable[str], *, sloppy: bool = False) -> list[str]:
    """Return the command line of ``tdefs mount`` for a source, a mount point, and single options of mount(8).

    :raises ValueError: an option is unknown, and *sloppy* is not set.
    """
    words = ["mount"]
    for option in options:
        name, equals, value = option.partition("=")
        if equals and name.replace("_", "-") in _WITH_VALUE:
            words.append(f"--{name.replace('_', '-')}={_unquoted(value)}")
        elif not equals and name.replace("_", "-") in _WITHOUT_VALUE:
            words.append(f"--{name.replace('_', '-')}")
        elif name in _FOR_FUSE:
            words += ["-o", option]
        elif name not in _FOR_OTHERS and not name.lower().startswith("x-") and not sloppy:
            raise ValueError(f'unknown option "{name}"')
    return [*words, "--", backing, mountpoint]


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value.replace("\\,", ",")


def run() -> None:
    """Entry point of the installed script."""
    open_standard_descriptors()
    expect_signals()
    args = build_parser().parse_args()
    options = split(args.options)
    try:
        words = words_for_mount(args.backing, args.mountpoint, options, sloppy=args.sloppy)
    except ValueError as error:
        if "remount" not in options:
            print(f"mount.fuse.tdefs: {error}", file=sys.stderr)
            sys.exit(_WRONG_USE)
        # the kernel changes what it can of a mount that is there; the daemon has no part in it
        sys.exit(subprocess.run(["mount", "-i", "-o", ",".join(options), args.mountpoint], check=False).returncode)
    if args.verbose:
        print(f"mount.fuse.tdefs: tdefs {shlex.join(words)}", flush=True)
    sys.exit(_OK if args.fake else _in_terms_of_mount(_run_tdefs(words)))


def _run_tdefs(words: list[str]) -> int:
    """Run ``tdefs``; without a person at the terminal it has none: at boot a prompt would wait for ever.

    It decides what becomes of an interrupt. A terminal sends that to both; a session of its own gets none.
    """
    tdefs = Path(sysconfig.get_path("scripts")) / "tdefs"
    own_session = not sys.stdin.isatty()
    process = subprocess.Popen([tdefs, *words], start_new_session=own_session)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            if own_session:
                process.send_signal(signal.SIGINT)


def _in_terms_of_mount(code: int) -> int:
    """Return the exit code of mount(8) for one of tdefs's."""
    if code in (_INTERRUPTED_SHELL, -signal.SIGINT):
        return _INTERRUPTED
    if code == Exit.OK:
        return _OK
    return _WRONG_USE if code == Exit.USAGE else _FAILED


if __name__ == "__main__":
    run()

"""What tests need of their surroundings, set in one place: CI runners, nohup and people's profiles differ in it.

A test of one of these sets it for the programs that it starts.
"""

from __future__ import annotations

import os
import pwd
import re
import resource
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

#: Variables that are meant for the tests.
_KEPT = re.compile(r"TDEFS_(TEST_WORK|TEST_WHOLE|CRASH_\w+|PGBENCH_SECONDS)|PYTEST_\w+|PATH")
#: Variables with which people change what PostgreSQL, Python, key services and libraries do.
_MISLEADING = re.compile(
    r"(LC|PG|TDEFS|PYTHON|SUDO|VAULT|BAO|AWS|TPM2TOOLS|TSS2|SOFTHSM2|GIT)_?\w*|LANG|LANGUAGE|TZ|POSIXLY_CORRECT"
    r"|CREDENTIALS_DIRECTORY|NOTIFY_SOCKET|LISTEN_\w+|SSLKEYLOGFILE|OPENSSL_CONF|BASH_ENV|ENV|CDPATH|TAPE"
)
_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
#: Of a directory for files: sockets below it have at most 107 bytes, and key commands are shell text.
_SIMPLE_PATH = re.compile(r"/[\w./+-]{1,50}")
_OPEN_FILES = 4096


def settle() -> None:
    """Set all of it for this process, and so for what it starts. To be called on the main thread."""
    _hear_signals()
    os.umask(0o022)
    _say_plainly()
    _lift_limits()


def _hear_signals() -> None:
    # Python itself ignores these two, and children get them back.
    own = {signal.SIGPIPE, signal.SIGXFSZ}
    for number in signal.valid_signals() - own:
        if signal.getsignal(number) is signal.SIG_IGN:
            handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            with suppress(OSError):  # SIGKILL and SIGSTOP
                signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _say_plainly() -> None:
    for name in list(os.environ):
        if _MISLEADING.fullmatch(name) and not _KEPT.fullmatch(name):
            del os.environ[name]
    user = pwd.getpwuid(os.geteuid())
    os.environ |= {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
    time.tzset()
    os.environ.setdefault("HOME", user.pw_dir)
    os.environ.setdefault("USER", user.pw_name)
    # a proxy is for what is not on this machine
    os.environ |= {"no_proxy": "localhost,127.0.0.1,::1", "NO_PROXY": "localhost,127.0.0.1,::1"}
    found = os.environ.get("PATH", "").split(":")
    os.environ["PATH"] = ":".join([*filter(None, found), *(one for one in _DIRECTORIES if one not in found)])
    place = os.environ.get("TMPDIR", "/tmp")
    if not _SIMPLE_PATH.fullmatch(place) or not Path(place).is_dir():
        os.environ["TMPDIR"] = "/tmp"
        tempfile.tempdir = None


def _lift_limits() -> None:
    """Soft limits go up to the hard ones; of open files to a usual number, since some tests use up all."""
    for limit in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_DATA):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (hard, hard))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

"""Where the daemon logs to: a file, the system's log, or standard error in the foreground."""

from __future__ import annotations

import logging
import sys
from logging.handlers import SysLogHandler
from pathlib import Path

from tdefs.cli.common.log_file import LogFile

SYSTEM_LOG = Path("/dev/log")
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _SystemLog(SysLogHandler):
    """The system's log; while there is none, lines are dropped."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: the user was warned at the mount, and needs no traceback for each line."""


def log_handler(log_file: Path | None, *, foreground: bool) -> logging.Handler:
    """Return the handler for the daemon's log; without a file that is the system's log, if there is one."""
    if foreground:
        return logging.StreamHandler(sys.stderr)
    if log_file is not None:
        return LogFile(log_file)
    handler = _SystemLog(str(SYSTEM_LOG), facility=SysLogHandler.LOG_DAEMON)
    handler.ident = "tdefs: "
    return handler


def log_to(handler: logging.Handler, level: str) -> None:
    """Let this process log only to *handler*, from *level* on."""
    handler.setFormatter(logging.Formatter(_LOG_FORMAT))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)

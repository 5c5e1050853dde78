"""The OS user that PostgreSQL runs as: it refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Account:
    """A user, and how to run a command as this user from here."""

    name: str
    uid: int
    gid: int

    @classmethod
    def of_server(cls) -> Account:
        """The user ``postgres`` if the tests run as root, otherwise the user that runs them."""
        user = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        return cls(user.pw_name, user.pw_uid, user.pw_gid)

    @property
    def is_caller(self) -> bool:
        return self.uid == os.geteuid()

    def command(self, *arguments: str | Path) -> list[str]:
        """The command, to be run as this user."""
        words = [str(argument) for argument in arguments]
        if self.is_caller:
            return words
        # setpriv, unlike runuser, replaces itself: a signal to the process reaches the command.
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", *words]

    def environment(self) -> dict[str, str]:
        """An environment with nothing of the caller's: no PGHOST, no locale."""
        return {"PATH": "/usr/bin:/bin", "HOME": "/", "LC_ALL": "C", "TZ": "UTC"}

    def own(self, path: Path) -> None:
        """Give a file or a directory to this user."""
        if not self.is_caller:
            shutil.chown(path, self.uid, self.gid)

"""The users of this host: their names, and the user that this process acts for."""

from __future__ import annotations

import os
import pwd
import socket


def user_name(uid: int) -> str:
    """Return the name of a user, or the number of a user without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def acting_user() -> dict[str, str]:
    """Return ``user`` and ``host`` of this process, and ``sudo_user``, the user who called sudo(8).

    ``sudo_user`` is there only if this process is root's: an ordinary user could set sudo's variables.
    """
    found = {"user": user_name(os.geteuid()), "host": socket.gethostname()}
    caller = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isascii() and caller.isdecimal() and len(caller) < 11:
        found["sudo_user"] = user_name(int(caller))
    return found

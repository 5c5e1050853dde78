"""Who runs this process, for the record: user, the user behind sudo, host."""

from __future__ import annotations

import os
import pwd
import socket


def user_name(uid: int) -> str:
    """Return the name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def who() -> dict[str, str]:
    """Return user and host, and the user who called sudo(8), if one did and this process is root's.

    Of sudo's environment nothing is believed that an ordinary user could have set.
    """
    found = {"user": user_name(os.geteuid()), "host": socket.gethostname()}
    behind = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and behind.isascii() and behind.isdecimal() and len(behind) < 11:
        found["sudo_user"] = user_name(int(behind))
    return found

"""Which other users could get the keys in the daemon's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from tdefs.doctor.findings import Finding, advice
from tdefs.users import user_name

# Yama's; a kernel without it has none, and lets processes of one user trace each other.
_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")


def examine_keepers(daemon: int, clusters: Iterable[Path]) -> Iterator[Finding]:
    """Yield what lets other users get the keys.

    :param daemon: the number of its process.
    :param clusters: those on the mount.
    """
    user = _user_of(daemon)
    if user in (None, 0) or all(_owner_of(pgdata) != user for pgdata in clusters):
        return
    name = user_name(user)
    yield advice(
        f"the daemon runs as {name}, as PostgreSQL does: an attacker in the server can get the keys, at the "
        "latest when the volume is mounted again",
        "let the daemon run as root, or as a user of its own: see docs/OPERATING.md",
    )
    if _is_tracing_free():
        yield advice(
            f"the kernel lets any process of {name} attach itself to tdefs in the instant when that starts",
            "sysctl kernel.yama.ptrace_scope=1, and a file in /etc/sysctl.d that says so at each boot",
        )


def _is_tracing_free() -> bool:
    with suppress(OSError):
        return _SCOPE.read_text(encoding="ascii").strip() == "0"
    return True


def _user_of(pid: int) -> int | None:
    """Return the effective user of a process: the owner of its directory in /proc is root where it is hardened."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[2])
    return None


def _owner_of(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_uid
    return None

"""Work that takes much memory for a moment: refused, with a reason, if there is not enough.

Python raises MemoryError if the kernel refuses address space (ulimit -v). A host or a container with too little
memory refuses nothing: it kills some process later, perhaps the database. So the free memory is checked before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tdefs.errors import Exit, TdefsError

_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def with_memory(compute: Callable[[], bytes], needed: int, purpose: str, hint: str) -> bytes:
    """Return what ``compute`` returns.

    If this process cannot get the memory, a child process tries. This process may lock all its memory
    (mlockall(2), MCL_FUTURE) and not be allowed to lock that much; the memory of a child is not locked. The
    secrets in it could be in swap for that moment.

    :param needed: the bytes that ``compute`` takes for a moment.
    :param purpose: what it does, such as "to derive a key", for the message.
    :raises TdefsError: OS_ERROR if there is not that much memory; what ``compute`` raises.
    """
    available = available_bytes()
    if available < needed:
        raise _lacking(
            purpose, needed, f"and {available >> 20} MiB are available on this host or in this container", hint
        )
    try:
        return compute()
    except MemoryError:
        pass
    result = _in_child(compute)
    if result is None:
        raise _lacking(purpose, needed, "and the limit of this process does not allow that", hint)
    return result


def available_bytes(meminfo: Path = _MEMINFO, own_cgroups: Path = _OWN_CGROUPS, cgroups: Path = _CGROUPS) -> int:
    """Return the bytes that this process can get before the kernel kills a process for lack of memory."""
    host = _numbers(meminfo, 1024)
    swap = host.get("SwapFree:", 0)
    found = [host.get("MemAvailable:", 1 << 62) + swap]
    for directory in _memory_cgroups(own_cgroups, cgroups):
        stat = _numbers(directory / "memory.stat")
        # the kernel drops pages of files when it needs memory
        files = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        files += stat.get("total_active_file", stat.get("active_file", 0))
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(directory / limit_name), _number(directory / used_name)
            if limit is not None and used is not None:
                swap_limit = _number(directory / "memory.swap.max")
                swap_here = swap if swap_limit is None else min(swap, swap_limit)
                found.append(max(0, limit - max(0, used - files)) + swap_here)
    return min(found)


def _memory_cgroups(own: Path, root: Path) -> Iterator[Path]:
    """Yield the directories of the control groups that limit this process's memory (cgroups(7))."""
    for line in _read(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            tops = [root, root / "unified"]
        elif "memory" in controllers.split(","):
            tops = [root / "memory"]
        else:
            continue
        # in a container the names of the groups may be those of the host, which cannot be seen there
        inner = Path(path.lstrip("/"))
        for top in tops:
            for directory in (inner, *inner.parents):
                yield top / directory


def _numbers(path: Path, unit: int = 1) -> dict[str, int]:
    words = (line.split() for line in _read(path).splitlines())
    return {one[0]: int(one[1]) * unit for one in words if len(one) > 1 and one[1].isdecimal()}


def _number(path: Path) -> int | None:
    """Return the number in a file; None if there is no number, such as "max"."""
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _in_child(compute: Callable[[], bytes]) -> bytes | None:
    """Return what ``compute`` returns in a child, or None if that fails there."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # no exception leaves this block, since the child must not clean up for the parent
        try:
            os.write(writer, compute())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        with open(reader, "rb") as pipe:  # noqa: PTH123
            return pipe.read() or None
    finally:
        os.waitpid(child, 0)


def _lacking(purpose: str, needed: int, why: str, hint: str) -> TdefsError:
    return TdefsError(
        Exit.OS_ERROR,
        f"not enough memory {purpose}",
        detail=f"it takes {needed >> 20} MiB for a moment, {why}",
        hint=hint,
    )

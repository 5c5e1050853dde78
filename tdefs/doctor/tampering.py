"""Files that are not as the last unmount left them, as the daemon of a mount knows."""

from __future__ import annotations

from collections.abc import Iterator

from tdefs.daemon.status import DaemonStatus
from tdefs.doctor.findings import Finding, risk
from tdefs.manifest.state import OLDER_HINT

_NAMED = 10


def examine_tampering(status: DaemonStatus | None) -> Iterator[Finding]:
    """Yield what the daemon found; nothing if it does not answer.

    :param status: the status of the daemon.
    """
    found = status.tampering if status is not None else None
    if found is None:
        return
    if found.lost:
        yield risk(
            f"the manifest of the volume's files {found.lost}: what changed while it was not mounted is not known",
            OLDER_HINT,
        )
    if found.older_than:
        yield risk(
            f"the volume is an older copy: the keystore knows of a newer one, with manifest {found.older_than}",
            OLDER_HINT,
        )
    count = found.count
    if count:
        named = [f"{one.path}: {one.what}" for one in found.differences[:_NAMED]]
        more = f", and {count - len(named)} more" if count > len(named) else ""
        yield risk(
            f"{count} file{' is' if count == 1 else 's are'} not as the last unmount left "
            f"{'it' if count == 1 else 'them'}: {', '.join(named)}{more}",
            "restore what is wrong from a backup, or accept it with 'tdefs accept'",
        )

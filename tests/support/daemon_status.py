"""What a daemon answers to ``status``, for tests that have none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tdefs.daemon.status import DaemonStatus


def daemon_status(**changes: Any) -> DaemonStatus:
    """Return the status of a mount of which nothing bad is known, but for what *changes* name."""
    return replace(
        DaemonStatus(
            pid=4321,
            mountpoint="/mnt/tdefs-test",
            backing="/srv/tdefs-test",
            volume_id="00" * 16,
            keystore="/etc/tdefs/keystore",
            keystore_revision=7,
            policy=None,
            policy_digest="ab" * 32,
            log_file="/var/log/tdefs",
            started=1700000000.5,
            memory_locked=True,
            watchdog=60,
            read_only=False,
            reserve_spared=True,
            page_cipher="compiled",
            known_inodes=7,
            open_handles=3,
        ),
        **changes,
    )

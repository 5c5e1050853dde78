"""The answers of a daemon at its control socket: each request is a method of one object."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from tdefs.control import as_refusal
from tdefs.daemon.policy_reload import PolicyReload
from tdefs.daemon.served import ServedMount
from tdefs.daemon.status import DaemonStatus, KeyStatus
from tdefs.errors import TdefsError
from tdefs.format.suite1.pages import PythonPageCipher, page_cipher
from tdefs.keys.keystore.entries import ACTIVE, REVOKED
from tdefs.keys.ring_message import RingRefusedError, decrypt_ring
from tdefs.manifest import accepting

log = logging.getLogger(__name__)


def status_of(served: ServedMount) -> DaemonStatus:
    """Return the status of a mount as it is now; it is made nowhere else."""
    request, ring = served.request, served.forms.ring
    measured = dict(sorted(served.operations.measured.items()))
    return DaemonStatus(
        pid=os.getpid(),
        mountpoint=os.fspath(request.mountpoint),
        backing=os.fspath(request.volume.backing),
        volume_id=request.volume.volume_id.hex(),
        keystore=os.fspath(request.keystore),
        keystore_revision=ring.revision,
        policy=os.fspath(served.policy.file) if served.policy.file else None,
        policy_digest=served.policy.policy.digest(),
        log_file=os.fspath(request.log_file) if request.log_file else None,
        started=served.started,
        memory_locked=request.memory_locked,
        watchdog=served.watched.patience if served.watched is not None else None,
        read_only=request.read_only,
        reserve_spared=served.reserve_spared,
        page_cipher="Python" if page_cipher is PythonPageCipher else "compiled",
        known_inodes=len(served.inodes),
        open_handles=served.operations.open_handles,
        tampering=served.bound.status(),
        data_keys=tuple(
            KeyStatus(key.name, key.round, key.algorithm, REVOKED if ring.is_revoked(key) else ACTIVE)
            for key in ring
        ),
        destroyed_rounds=tuple(sorted(ring.destroyed)),
        requests={name: one.count for name, one in measured.items()},
        failures=dict(sorted(served.complaints.counts.items())),
        bytes={name: one.bytes for name, one in measured.items() if one.bytes},
        latency={name: one.latency() for name, one in measured.items()},
    )


class Answers:
    """The answers for one mount."""

    def __init__(self, served: ServedMount, policy: PolicyReload) -> None:
        self._served = served
        self._policy = policy

    async def status(self, _asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the status of the daemon."""
        return status_of(self._served).to_json()

    async def keys(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Use new keys; nothing else runs meanwhile."""
        try:
            ring = decrypt_ring(asked, self._served.forms.ring)
        except RingRefusedError as error:
            log.warning("new keys were refused: %s", error)
            return {"refused": str(error)}
        self._served.opener.use_ring(ring)
        log.info("new keys: revision %d of the keystore", ring.revision)
        return {"keystore_revision": ring.revision}

    async def policy(self, _asked: Mapping[str, Any]) -> dict[str, Any]:
        """Read the policy again, and use it."""
        try:
            changed = await self._policy.run()
        except TdefsError as error:
            log.warning("the policy was not reloaded, and the old one goes on: %s", error.message)
            return {"refused": as_refusal(error)}
        return {"changed": changed, "policy_digest": self._served.policy.policy.digest()}

    async def accept(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Accept differences from the manifest."""
        return accepting.answer(self._served.bound, self._served.request.state, asked)

"""One mount while it is served: its parts and its state."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace

from tdefs.daemon.request import MountRequest
from tdefs.daemon.watched import Watched
from tdefs.data.calls import SystemCalls
from tdefs.data.complaints import Complaints
from tdefs.data.forms import FileForms
from tdefs.data.staging import DIRECTORY as STAGING_DIRECTORY
from tdefs.data.staging import Staging
from tdefs.fuse.operations import FuseOperations
from tdefs.keys.hierarchy import KeyRing
from tdefs.manifest.bound import Bound
from tdefs.policy.in_use import PolicyInUse
from tdefs.tree.files import Files
from tdefs.tree.inodes import InodeTable
from tdefs.tree.opening import Opener
from tdefs.tree.tree import Tree
from tdefs.volume.backing import open_data
from tdefs.volume.policy_choice import PolicyChoice
from tdefs.volume.session_record import Ending


@dataclass(slots=True)
class ServedMount:
    """The parts of one mount. The session makes it, and hands it to all that serve it or report on it."""

    request: MountRequest
    calls: SystemCalls
    root_fd: int
    forms: FileForms
    inodes: InodeTable
    bound: Bound
    complaints: Complaints
    """What went wrong, and whether something is left behind."""
    opener: Opener
    operations: FuseOperations
    staging: Staging | None
    """Where a rename makes new links; None for a volume that is only read."""
    policy: PolicyChoice
    """The policy in use, which can be exchanged."""
    first_revision: int
    """The keystore's revision when it was unlocked."""
    watched: Watched | None = None
    """The daemon's end of the watchdog, once it serves."""
    device: str = ""
    """``MAJOR:MINOR``, once it is mounted; "" for a mount that was taken away already."""
    reserve_spared: bool = False
    """Whether programs cannot take the blocks that the disk keeps for root."""
    started: float = field(default_factory=time.time)
    """Seconds since 1970."""
    served: bool = False
    """Whether it could be used, and the caller has learned of it."""
    ended: bool = False
    """Whether it was unmounted, after the kernel had passed on all writes."""

    @classmethod
    def of(cls, request: MountRequest, ring: KeyRing, calls: SystemCalls) -> ServedMount:
        """Make the parts; nothing is mounted, and nothing of the volume is changed yet.

        :raises OSError: the data directory cannot be opened.
        """
        root_fd = open_data(request.volume)
        last = request.believed.last
        expected = request.believed.expectations(request.volume)
        # files that the last session left half made were mended before, unless nothing may be changed
        expected = replace(expected, lost_headers=expected.lost_headers and request.read_only)
        forms = FileForms(ring, expected)
        tree = Tree(calls, root_fd)
        staging = None if request.read_only else Staging(request.volume.private / STAGING_DIRECTORY)
        policy = PolicyInUse(request.policy.policy)
        # sessions without a manifest may have left files in the clear where this policy encrypts
        left_plain = last.ending is Ending.UNCLEAN and last.policy != policy.policy.digest()
        bound = Bound(calls, request.state, refuses=request.refuses_tampering, left_plain=left_plain)
        complaints = Complaints()
        files = Files(tree, forms, policy, complaints, bound)
        operations = FuseOperations(files, root_fd, staging)
        return cls(
            request=request,
            calls=calls,
            root_fd=root_fd,
            forms=forms,
            inodes=tree.inodes,
            bound=bound,
            complaints=complaints,
            opener=files.opener,
            operations=operations,
            staging=staging,
            policy=request.policy,
            first_revision=ring.revision,
        )

    def close(self) -> None:
        """Close the descriptors of the backing directory, once nothing is served any more."""
        os.close(self.root_fd)
        if self.staging is not None:
            self.staging.close()

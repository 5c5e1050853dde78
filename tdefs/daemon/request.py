"""A request for a mount: all that the command line, the configuration and the keystore say of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tdefs.manifest.state import State
from tdefs.mounts.table import source_name
from tdefs.volume.believed import Believed
from tdefs.volume.description import Volume
from tdefs.volume.policy_choice import PolicyChoice
from tdefs.volume.session_record import SessionBook


@dataclass(frozen=True, slots=True)
class MountRequest:
    """One mount that is to be made."""

    volume: Volume
    believed: Believed
    """What the volume may do, as the keystore says, and how its last session ended."""
    book: SessionBook
    keystore: Path
    policy: PolicyChoice
    mountpoint: Path
    options: tuple[str, ...]
    memory_locked: bool
    log_file: Path | None
    policy_is_named: bool = False
    """Whether the command line or the configuration names the policy, and not the keystore."""
    background: bool = False
    """Whether the daemon has no terminal, so that SIGHUP does not mean that the terminal is gone."""
    watchdog: int = 0
    """Seconds after which a frozen daemon is ended; 0: never."""
    read_only: bool = False
    """Whether nothing in the backing directory may be changed, by anybody."""
    state: State | None = None
    """What is known of the volume's files; None: nothing is bound."""
    refuses_tampering: bool = True
    """Whether a file that differs from the manifest is refused, or only reported."""


def fuse_options(request: MountRequest) -> set[str]:
    """Return the options for libfuse: those that tdefs needs, and those that the user asked for.

    A daemon of root serves every user, and the kernel checks permissions. A daemon of the cluster's user serves
    nobody else, not even root.
    """
    source = source_name(request.volume.backing)
    options = {"default_permissions", "subtype=tdefs", f"fsname={source}", *request.options}
    if os.geteuid() == 0:
        options.add("allow_other")
    if request.read_only:
        options.add("ro")
    return options

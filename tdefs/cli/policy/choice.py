"""The options that name a policy."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tdefs.config import VolumeConfig
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.volume.policy_choice import PolicyChoice


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """Which policy the command line names."""

    policy: Path | None
    no_policy: bool


def add_policy(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the options ``--policy`` and ``--no-policy``."""
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument("--policy", metavar="FILE", type=Path, help=default)
    policy.add_argument("--no-policy", action="store_true", help="use no policy: everything is encrypted")


def named_policy(options: PolicyOptions, settings: VolumeConfig) -> PolicyChoice | None:
    """Return the policy that the command line names, or else the configuration; ``None`` if neither does.

    :raises TdefsError: POLICY_INVALID.
    """
    if options.no_policy:
        return PolicyChoice(None, Policy.everything())
    file: Path | None = options.policy or settings.policy
    return None if file is None else PolicyChoice(file.absolute(), load_policy(file))

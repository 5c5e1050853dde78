"""The policy that a running mount decides by. It can be exchanged, so it is asked anew for each decision."""

from __future__ import annotations

from tdefs.policy.model import Decision, Policy
from tdefs.policy.paths import classify


class PolicyInUse:
    """Holds the policy of one mount; everything that decides by policy shares this object."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def policy(self) -> Policy:
        """The policy as it is now."""
        return self._policy

    def use(self, policy: Policy) -> None:
        """Decide by another policy from now on."""
        self._policy = policy

    def decide(self, path: str) -> Decision:
        """Return what the policy says about a new file at *path*, which is relative to the mount point."""
        return self._policy.decide(classify(path), path)

    def encrypts(self, path: str) -> bool:
        """Return whether a new file at *path* would be encrypted."""
        return self.decide(path).encrypted

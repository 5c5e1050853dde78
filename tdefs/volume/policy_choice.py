"""The policy that a volume uses, and whether it was accepted for the volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.keystore.entries import Statements
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.volume.description import Volume

#: So many digits of a digest are shown.
_SHOWN_DIGITS = 16


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """A policy, and the absolute path of its file; ``None`` if everything is encrypted without a file."""

    file: Path | None
    policy: Policy

    @property
    def digest(self) -> str:
        """What the keystore holds of an accepted policy; "" for a policy that encrypts everything."""
        digest = self.policy.digest()
        return "" if digest == Policy.everything().digest() else digest


def remembered_policy(statements: Statements) -> PolicyChoice:
    """Return the policy at the place that the keystore names; it may differ from the accepted one by now.

    :raises TdefsError: POLICY_INVALID.
    """
    if not statements.policy:
        return PolicyChoice(None, Policy.everything())
    file = Path(statements.policy)
    return PolicyChoice(file, load_policy(file))


def check_accepted(choice: PolicyChoice, statements: Statements, volume: Volume) -> None:
    """Check that the policy may be used: that it was accepted, or encrypts everything.

    :raises TdefsError: POLICY_NOT_ACCEPTED.
    """
    if choice.digest in ("", statements.policy_digest):
        return
    accepted = (
        f'that of the accepted one, of "{statements.policy}", begins with {shown(statements.policy_digest)}'
        if statements.policy_digest
        else "no policy is accepted, so that everything is encrypted"
    )
    raise TdefsError(
        Exit.POLICY_NOT_ACCEPTED,
        f'the policy "{choice.file}" was not accepted for volume "{volume.backing}"',
        detail=f"its digest begins with {shown(choice.digest)}; {accepted}",
        hint=f'if it is meant: "tdefs policy accept --volume {volume.backing} --policy {choice.file}" (for a copy,'
        " which the keystore does not know at its place, 'tdefs volume moved', 'copied' or 'add' first);"
        " --no-policy encrypts everything",
    )


def shown(digest: str) -> str:
    """Return the beginning of a digest, as it is shown."""
    return digest[:_SHOWN_DIGITS]


def check_key_names(choice: PolicyChoice, ring: KeyRing) -> None:
    """Check that the keystore has the data keys that the policy needs for new files.

    :raises TdefsError: DATA_KEY_UNKNOWN, DATA_KEY_REVOKED.
    """
    missing = sorted(choice.policy.key_names() - set(ring.names()))
    if missing:
        raise TdefsError(
            Exit.DATA_KEY_UNKNOWN,
            f"the policy uses data keys that the keystore does not hold: {', '.join(missing)}",
            detail=f'policy "{choice.file}"; the keystore holds {", ".join(ring.names())}',
            hint="use one of the keystore's data keys in the policy, or make those with 'tdefs key create' first",
        )
    for name in choice.policy.key_names():
        # refused now: later a database could not create files
        ring.current(name)

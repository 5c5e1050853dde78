"""``tdefs policy accept``: note in the keystore which policy a volume may use."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.keystore_change import changing
from tdefs.cli.common.output import print_line
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.unlocking import KeystoreAccess, add_keystore_access
from tdefs.cli.policy.choice import PolicyOptions, add_policy, named_policy
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.changes import find_volume, restate_volume
from tdefs.keys.keystore.entries import Statements
from tdefs.policy.changes import newly_plain
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.text import printable
from tdefs.volume.lock import is_in_use
from tdefs.volume.policy_choice import PolicyChoice, check_key_names, remembered_policy
from tdefs.volume.registry import recognised


def add_accept(commands: Subcommands) -> None:
    """Add the subcommand ``accept``."""
    accept = commands.add_parser(
        "accept",
        help="accept a policy for a volume; a mount uses no other policy",
        description="Notes in the keystore which policy the volume may use. This needs a secret. The note is "
        "a digest of what the policy decides, so comments may change. The command shows what the "
        "policy leaves in the clear that the old one encrypts, and asks for confirmation. "
        "Existing files stay as they are. The next mount uses the policy, and a mounted volume "
        "uses it after 'tdefs policy reload'.",
    )
    add_volume(accept)
    add_policy(accept, "default: the policy that the configuration names, else the file of the accepted one")
    accept.add_argument("--yes", action="store_true", help="do not ask")
    add_keystore_access(accept)
    takes(accept, _Options, _run)


@dataclass(frozen=True, slots=True)
class _Options:
    volume: VolumeChoice
    policy: PolicyOptions
    yes: bool
    access: KeystoreAccess


def _run(_invocation: Invocation, options: _Options) -> int:
    volume = options.volume.find()
    named = named_policy(options.policy, options.access.settings(volume))
    with changing(options.access, volume) as change:
        entry = recognised(change.document, volume)
        if entry is None:  # the directory was exchanged since
            raise TdefsError(Exit.VOLUME_NOT_REGISTERED, f'the keystore does not know volume "{volume.backing}"')
        old = find_volume(change.document, entry.id).statements
        choice = named or remembered_policy(old)
        check_key_names(choice, change.unlocked.ring)
        new = statements_with(old, choice)
        _ask(old, choice, is_meant=options.yes)
        change.save(
            restate_volume(change.unlocked, entry.id, new),
            volume=entry.id,
            policy=printable(new.policy) or "none",
            digest=new.policy_digest or "none",
            plain_files="yes" if new.plain_files else "no",
        )
        change.tell_revision()
    print_line(
        f'the policy "{printable(new.policy)}" is accepted for volume {entry.id}'
        if new.policy
        else f"volume {entry.id} has no policy: everything is encrypted"
    )
    if new.plain_files and not choice.policy.leaves_anything_plain():
        print_line("files that are in the clear already stay so, and readable")
    if is_in_use(volume):
        print_line("it is mounted, and the mount goes on as before until 'tdefs policy reload', or the next mount")
    return Exit.OK


def statements_with(old: Statements, choice: PolicyChoice) -> Statements:
    """Return what a volume may do once a policy is accepted; files in the clear must stay readable."""
    return Statements(
        plain_files=old.plain_files or choice.policy.leaves_anything_plain(),
        lowest_suite=old.lowest_suite,
        policy_digest=choice.digest,
        policy="" if choice.file is None else str(choice.file),
    )


def _ask(old: Statements, choice: PolicyChoice, *, is_meant: bool) -> None:
    """Print which files will be in the clear that were encrypted before, and ask whether that is wanted.

    :raises TdefsError: POLICY_NOT_ACCEPTED if it is not.
    """
    for warning in choice.policy.warnings:
        print(f"tdefs: warning: {printable(warning)}", file=sys.stderr)
    before = _accepted(old)
    plain = newly_plain(before or Policy.everything(), choice.policy)
    if not plain:
        return
    print("tdefs: new files will be in the clear that were encrypted before:", file=sys.stderr)
    if before is None:
        print(
            "tdefs: the policy of before was changed, and cannot be compared: all that this one leaves in the"
            " clear is listed",
            file=sys.stderr,
        )
    for line in plain:
        print(f"    {printable(line)}", file=sys.stderr)
    if is_meant:
        return
    if not sys.stdin.isatty():
        raise TdefsError(
            Exit.POLICY_NOT_ACCEPTED,
            "the policy leaves files in the clear, and nobody is there to confirm this",
            hint="add --yes if it is",
        )
    print('Type "yes" to confirm: ', end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != "yes":
        raise TdefsError(Exit.POLICY_NOT_ACCEPTED, "the policy was not accepted, and nothing was changed")


def _accepted(old: Statements) -> Policy | None:
    """Return the policy that is accepted now; ``None`` if its file has changed."""
    if not old.policy_digest:
        return Policy.everything()
    try:
        policy = load_policy(Path(old.policy))
    except (TdefsError, OSError):
        return None
    return policy if policy.digest() == old.policy_digest else None

"""Reading the policy again while a volume is mounted: if any check of a mount fails, the old policy stays.

Existing files stay as they are, also those that are open. A new file is made under one policy, the old or the new
one: they are exchanged between two requests.
"""

from __future__ import annotations

import logging

import trio

from tdefs.daemon.served import ServedMount
from tdefs.data.workers import in_thread
from tdefs.errors import Exit, TdefsError, from_os_error
from tdefs.keys.keystore.entries import Statements
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.reserve import with_own_rights
from tdefs.volume.accepted import statements_now
from tdefs.volume.policy_choice import PolicyChoice, check_accepted, check_key_names, remembered_policy

log = logging.getLogger(__name__)


class PolicyReload:
    """Exchanges the policy of one mount."""

    def __init__(self, served: ServedMount) -> None:
        self._served = served
        self._one_at_a_time = trio.Lock()

    async def run(self) -> bool:
        """Use the policy that its file has now; return whether it is another one than before.

        :raises TdefsError: a mount could not use it; the old one stays.
        """
        served = self._served
        if served.request.read_only:
            raise TdefsError(
                Exit.USAGE,
                f'the mount at "{served.request.mountpoint}" is read-only: no file is made in it, by any policy',
                hint="the next mount uses the policy as it is then",
            )
        async with self._one_at_a_time:
            # the file, or the keystore, may lie on a slow disk, or even on this mount
            choice, may = await in_thread(self._read)
            if choice.policy.digest() == served.policy.policy.digest():
                served.policy = choice
                log.info("the policy was read again, and decides as before")
                return False
            if self._becomes_plain(may):
                # most data is synced here, so that the sync in _use is quick
                await in_thread(self._sync)
            self._use(choice, may)
        return True

    async def run_and_log(self) -> None:
        """Do the same, and log the result, since nobody waits for an answer."""
        try:
            await self.run()
        except TdefsError as error:
            text = f"{error.message} ({error.detail})" if error.detail else error.message
            log.error("the policy was not reloaded, and the old one goes on: %s (HINT: %s)", text, error.hint)
        except Exception:
            log.exception("the policy was not reloaded, and the old one goes on")

    def _read(self) -> tuple[PolicyChoice, Statements]:
        """Read the policy, and what the volume may do now; check one against the other. Runs in a thread.

        :raises TdefsError: POLICY_INVALID, POLICY_NOT_ACCEPTED, DATA_KEY_UNKNOWN, DATA_KEY_REVOKED, or an error
            of the keystore.
        """
        served = self._served
        request, ring = served.request, served.forms.ring
        with with_own_rights():
            may = request.believed.statements
            if ring.history_key is not None:
                may = statements_now(
                    request.volume,
                    request.keystore,
                    ring.history_key,
                    may,
                    since=served.first_revision,
                    newest=ring.revision,
                )
            choice = self._named() if request.policy_is_named else remembered_policy(may)
        check_accepted(choice, may, request.volume)
        check_key_names(choice, ring)
        return choice, may

    def _named(self) -> PolicyChoice:
        file = self._served.request.policy.file
        return PolicyChoice(file, load_policy(file) if file is not None else Policy.everything())

    def _becomes_plain(self, may: Statements) -> bool:
        """Return whether files may be in the clear from now on, for the first time."""
        return may.plain_files and not self._served.forms.plain_files

    def _use(self, choice: PolicyChoice, may: Statements) -> None:
        """Exchange the policy. Nothing is served meanwhile.

        Before the first file in the clear, the headers of all others must be on the disk: after a crash, zeros
        could be a plain file or a lost header. Before the first file is made under the new policy, the record of
        the session must say that there were several: the policy of the next mount may encrypt where this one left
        files in the clear.

        :raises TdefsError: OS_ERROR, or DATA_KEY_UNKNOWN or DATA_KEY_REVOKED where the keys were changed since the
            policy was read; the old policy goes on.
        """
        served = self._served
        check_key_names(choice, served.forms.ring)
        becomes_plain = self._becomes_plain(may)
        if becomes_plain:
            self._sync()
        try:
            with with_own_rights():
                served.request.book.change_policy(choice.policy.digest(), plain_files=may.plain_files)
        except OSError as error:
            raise from_os_error(error) from None
        if becomes_plain:
            served.forms.allow_plain_files()
        served.bound.note_policy(served.policy.policy)
        served.opener.use_policy(choice.policy)
        served.policy = choice
        for warning in choice.policy.warnings:
            log.warning("%s", warning)
        log.info("new files follow another policy from now on: %s", choice.file or "none, so all are encrypted")

    def _sync(self) -> None:
        """Write everything to the disk.

        :raises TdefsError: OS_ERROR.
        """
        try:
            self._served.calls.syncfs("policy:sync", self._served.root_fd)
        except OSError as error:
            raise from_os_error(error) from None

"""``tdefs policy reload``: have the daemon of a mounted volume read its policy again, and use it."""

from __future__ import annotations

from dataclasses import dataclass

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_line
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.unlocking import add_config
from tdefs.control import ask, from_refusal
from tdefs.errors import DaemonNotToldError, Exit, TdefsError
from tdefs.volume.lock import is_in_use

# The daemon may have to write much to the disk before it leaves a first file in the clear.
_PATIENCE_SECONDS = 600


def add_reload(commands: Subcommands) -> None:
    """Add the subcommand ``reload``."""
    reload = commands.add_parser(
        "reload",
        help="have a running mount read its policy again",
        description="The daemon reads the policy's file again and checks it as 'tdefs mount' does: a policy that "
        "leaves more in the clear must have been accepted ('tdefs policy accept'). If anything is wrong, the old "
        "policy stays in use. New files follow the new policy; files that are there stay as they are.",
    )
    add_volume(reload)
    add_config(reload)
    takes(reload, _Options, _run)


@dataclass(frozen=True, slots=True)
class _Options:
    volume: VolumeChoice


def _run(_invocation: Invocation, options: _Options) -> int:
    volume = options.volume.find()
    answer = ask(volume, "policy", seconds=_PATIENCE_SECONDS)
    if answer is None:
        if not is_in_use(volume):
            raise TdefsError(
                Exit.NOT_MOUNTED,
                f'the volume "{volume.backing}" is not mounted',
                hint="'tdefs mount' reads the policy when it begins",
            )
        raise DaemonNotToldError(
            f'the daemon of volume "{volume.backing}" does not answer this user',
            hint="try as root or as the daemon's user",
        )
    if "refused" in answer or "changed" not in answer:
        raise from_refusal(answer.get("refused"))
    if answer["changed"]:
        print_line("new files follow the new policy from now on; files that are there stay as they are")
    else:
        print_line("the policy decides as before")
    return Exit.OK

"""``tdefs policy reload``: have the daemon of a mounted volume read its policy again, and use it."""

from __future__ import annotations

import argparse
from pathlib import Path

from tdefs.cli.common.output import print_line
from tdefs.cli.common.place import add_place, volume_of
from tdefs.cli.common.unlocking import add_config
from tdefs.control import ask, from_refusal
from tdefs.errors import Exit, TdefsError
from tdefs.volume.description import is_in_use

# The daemon may have to write much to the disk before it leaves a first file in the clear.
_PATIENCE_SECONDS = 600


def add_reload(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command ``reload``."""
    reload = commands.add_parser(
        "reload",
        help="have the daemon of a mounted volume read its policy again",
        description="The daemon reads the policy's file again and checks it as 'tdefs mount' does: a policy that "
        "leaves more in the clear must have been accepted ('tdefs policy accept'). If anything is wrong, the old "
        "policy stays in use. New files follow the new policy; files that are there stay as they are.",
    )
    add_place(reload)
    reload.add_argument("place", metavar="VOLUME", type=Path, nargs="?", help="the same without --volume")
    add_config(reload)
    reload.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.place is not None:
        if args.volume is not None:
            raise TdefsError(Exit.USAGE, "the volume is named twice", hint="name it once")
        args.volume = args.place
    volume = volume_of(args)
    answer = ask(volume, "policy", seconds=_PATIENCE_SECONDS)
    if answer is None:
        if not is_in_use(volume):
            raise TdefsError(
                Exit.NOT_MOUNTED,
                f'the volume "{volume.backing}" is not mounted',
                hint="'tdefs mount' reads the policy when it begins",
            )
        raise TdefsError(
            Exit.DAEMON_NOT_TOLD,
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

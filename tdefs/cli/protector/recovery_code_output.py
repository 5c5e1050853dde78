"""Printing a new recovery code after it was saved, and taking it back if it cannot be printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tdefs.cli.common.output import print_line
from tdefs.cli.common.streams import nobody_reads, output_loss
from tdefs.errors import Exit, TdefsError


def show_code(code: str, protector: str, *, unread_is_lost: bool, take_back: Callable[[], None]) -> None:
    """Print the recovery code of *protector*, which is saved, or take it back.

    A code that a full disk swallowed is of no use. That nobody reads it (a closed pipe) is the caller's choice,
    and no failure, unless *unread_is_lost*: the code has replaced a secret that was known.

    :raises TdefsError: OS_ERROR, with the keystore as it was, or what its message says.
    """
    with _taken_back_on_error(protector, take_back):
        print_line(f"recovery code of protector {protector}, which is not shown again:")
        print_line(f"\n    {code}\n")
        loss = output_loss()
        if loss is None:
            return
        if unread_is_lost or not nobody_reads(loss):
            raise TdefsError(
                Exit.OS_ERROR,
                f"could not write the recovery code: {loss.strerror}",
                detail=f"nobody can have read it, so the change of protector {protector} is taken back",
                hint="try again, with a standard output that takes it, such as the terminal",
            )
    print(
        f"tdefs: warning: nobody reads the recovery code of protector {protector}: {loss.strerror}\n"
        "DETAIL:  the protector is added, but it is not shown again\n"
        f"HINT:  remove it with 'tdefs protector remove {protector}', and add another",
        file=sys.stderr,
    )


@contextmanager
def _taken_back_on_error(protector: str, take_back: Callable[[], None]) -> Iterator[None]:
    """Take the change back if an error, or Ctrl-C, ends the ``with`` block."""
    try:
        yield
    except BaseException as error:
        try:
            take_back()
        except (TdefsError, OSError) as failure:
            raise TdefsError(
                Exit.OS_ERROR,
                f"nobody has seen the recovery code of protector {protector}, and it could not be taken back",
                detail=str(failure),
                hint="change the protector by the secret of another one; if there is none, copy the data while "
                "the volume is mounted",
            ) from error
        raise

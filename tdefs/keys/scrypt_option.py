"""The option that says how much a new passphrase costs whoever tries one."""

from __future__ import annotations

import argparse
import sys

from tdefs.keys.protectors.passphrase import DEFAULT_COST, LEAST_COST, MOST_COST, ScryptCost


def add_scrypt_cost(parser: argparse.ArgumentParser) -> None:
    """Add the option, to a command that may make a new passphrase."""
    parser.add_argument(
        "--scrypt-cost",
        metavar="N",
        type=_cost,
        default=DEFAULT_COST,
        help=f"of a new passphrase: scrypt takes 2^N KiB of memory, and time to match; {LEAST_COST} to"
        f" {MOST_COST}, default {DEFAULT_COST} (1 GiB)",
    )


def chosen_cost(args: argparse.Namespace) -> ScryptCost:
    """Return the cost of a new passphrase; warn on stderr, once, if it is below the default."""
    cost: int = getattr(args, "scrypt_cost", DEFAULT_COST)
    if cost < DEFAULT_COST and not getattr(args, "cost_told", False):
        args.cost_told = True
        print(
            f"tdefs: warning: a passphrase of cost {cost} is {1 << (DEFAULT_COST - cost)} times easier to guess"
            f" than one of the default, {DEFAULT_COST}, for somebody who has a copy of the keystore\n"
            "HINT:  leave out --scrypt-cost, unless the host cannot spare the memory; make the passphrase longer",
            file=sys.stderr,
        )
    return ScryptCost(n=1 << cost)


def _cost(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and LEAST_COST <= int(text[:9]) <= MOST_COST):
        raise argparse.ArgumentTypeError(f"the cost is a number from {LEAST_COST} to {MOST_COST}, such as 18")
    return int(text)

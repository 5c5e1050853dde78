"""tdefs whose start fails at a step, while somebody waits for an answer through the mount that is being made.

Run as ``tdefs`` is, with the step in TDEFS_FAIL_AT.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pyfuse3
import trio

from tdefs.cli.common import background
from tdefs.cli.main import run
from tdefs.daemon import control_server, serving
from tdefs.daemon.signals import EndSignals
from tdefs.data.workers import Workers, workers
from tdefs.fuse import loop


def fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("cannot, since the test says so")


async def fail_later(*_: object, **__: object) -> NoReturn:
    await trio.lowlevel.checkpoint()
    fail()


async def listen_and_fail(
    self: EndSignals, mountpoint: Path, device: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    task_status.started()
    await fail_later()


async def ask_the_mount(
    self: EndSignals, mountpoint: Path, device: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """A thread that the event loop waits for, and that waits for the event loop to answer."""
    task_status.started()
    await workers.run(partial(os.listdir, mountpoint))


_announce = serving._announce


async def announce_later(*arguments: Any) -> None:
    """What else fails shall do so before."""
    await trio.sleep(0.5)
    await _announce(*arguments)


def slowly(device: str) -> bool:
    time.sleep(1.5)
    return True


class Unsayable:
    """What the daemon cannot write to the pipe that its parent reads."""


STEPS: dict[str, Callable[[], Any]] = {
    "threads": lambda: setattr(Workers, "start", fail),
    "device": lambda: setattr(serving, "devices_at", fail),
    "loop": lambda: setattr(trio, "run", fail),
    "signals": lambda: setattr(EndSignals, "unmount_on_first", fail_later),
    "signals, later": lambda: setattr(EndSignals, "unmount_on_first", listen_and_fail),
    "serving": lambda: setattr(pyfuse3, "main", fail_later),
    "polling": lambda: setattr(loop, "install_polling_wait", fail),
    "kernel limits": lambda: setattr(serving, "raise_kernel_limits", fail),
    "control socket": lambda: setattr(serving, "_control", fail_later),
    "slow": lambda: setattr(serving, "raise_kernel_limits", slowly),
    "ready": lambda: setattr(background, "_READY", {"ready": Unsayable()}),
    "control socket, inside": lambda: setattr(control_server, "_BACKLOG", "many"),
}

if __name__ == "__main__":
    step = os.environ["TDEFS_FAIL_AT"]
    if step in ("serving", "kernel limits", "control socket"):
        setattr(EndSignals, "unmount_on_first", ask_the_mount)  # noqa: B010 - it is not its own method
    if step in ("signals, later", "control socket"):
        setattr(serving, "_announce", announce_later)  # noqa: B010
    STEPS[step]()
    run()

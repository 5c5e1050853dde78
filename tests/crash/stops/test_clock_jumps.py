"""The clock jumps, by hours and by decades, under a daemon that serves: nothing waits for a time that never comes.

The daemon alone gets a clock of its own, by libfaketime: the machine's clock is everybody's.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tdefs.control import ask
from tdefs.volume.description import read_volume
from tests.crash.conftest import Dice
from tests.crash.stops.writers import DURABLE, MAPPED, check_written, stop, writing
from tests.support.processes import is_alive, send, wait_until
from tests.support.volume import TDEFS, Volume

LIBRARIES = "/usr/lib/*/faketime/libfaketimeMT.so.1"
JUMPS = ["+3h", "-5h", "+40y", "-50y", "+0", "-1d", "+10y", "-1s"]


@pytest.fixture
def clock(volume: Volume) -> Path:
    """The file that says by how much tdefs's clock is wrong."""
    libraries = sorted(Path("/").glob(LIBRARIES[1:]))
    assert libraries, "libfaketime is missing: run scripts/setup.sh --dev"
    clock = volume.root / "clock"
    clock.write_text("+0\n")
    settings = {
        "LD_PRELOAD": libraries[0],
        "FAKETIME_TIMESTAMP_FILE": clock,
        "FAKETIME_NO_CACHE": "1",
        # what jumps is the time of day; the monotonic clock never does
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    # without the command's own launcher, which lets no LD_PRELOAD pass
    python = [sys.executable, "-I", "-m", "tdefs"]
    volume.program = ["env", *(f"{name}={value}" for name, value in settings.items()), *python]
    return clock


def set_clock(clock: Path, offset: str) -> None:
    """In one step, since the daemon reads it at each look at the clock."""
    new = clock.with_suffix(".new")
    new.write_text(f"{offset}\n")
    new.rename(clock)


def daemons_year(volume: Volume) -> int:
    """The year of the last line of its log."""
    return int(volume.log_tail(1)[:4])


def test_clock_jumps_lose_nothing_and_stop_nothing(volume: Volume, clock: Path, dice: Dice) -> None:
    volume.mount()
    (daemon,) = volume.daemons
    began = time.time()
    volume.program = [str(TDEFS)]
    with writing(volume.mountpoint, dice.random(), ways=(DURABLE, MAPPED)) as writers:
        for turn in range(dice.rounds(1)):
            jumps = JUMPS[:]
            dice.random(turn).shuffle(jumps)
            for jump in jumps:
                set_clock(clock, jump)
                before = time.monotonic()
                with (volume.mountpoint / "file").open("wb") as file:
                    file.write(b"1")
                    os.fsync(file.fileno())
                assert time.monotonic() - before < 5, f"a sync hangs after {jump}"
                time.sleep(0.1)
                assert ask(read_volume(volume.backing), "status"), f"the daemon does not answer after {jump}"
        written = stop(writers)
    # the kernel's clock, not the daemon's, says when a file was written
    for name in written:
        assert began - 5 < (volume.mountpoint / name).stat().st_mtime < time.time() + 5, name
    set_clock(clock, "-20y")
    # signals are still obeyed, and tried again
    with (volume.mountpoint / "file").open("rb"):
        send(daemon, signal.SIGTERM)
        assert wait_until(lambda: "cannot end yet" in volume.log.read_text(), 10)
        assert daemons_year(volume) < 2020, "libfaketime does not reach the daemon"
        set_clock(clock, "-30y")
    assert wait_until(lambda: not is_alive(daemon), 30)
    assert [line for line in volume.complaints() if "cannot end yet" not in line] == []
    volume.mount()
    check_written(volume.mountpoint, written)


def test_a_volume_made_at_one_time_is_mounted_at_any_other(volume: Volume, clock: Path) -> None:
    """As on a machine whose battery is empty: the clock stands in 1971."""
    wrong, right = volume.program, [str(TDEFS)]
    for number, offset in enumerate(("-55y", "+100y", "+0")):
        set_clock(clock, offset)
        volume.program = wrong
        volume.mount()
        volume.program = right  # under libfaketime, Python cannot sleep in 1971
        (volume.mountpoint / str(number)).write_bytes(b"1" * 10_000)
        assert volume.status()["since"] is not None
        volume.umount()
    volume.mount()
    assert [len((volume.mountpoint / str(number)).read_bytes()) for number in range(3)] == [10_000] * 3

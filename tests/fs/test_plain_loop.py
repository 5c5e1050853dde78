"""A mount works with pyfuse3's own loop, too, where tdefs's does not fit."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.volume import Volume

_AS_ANOTHER_VERSION = """
import sys, pyfuse3
pyfuse3.__version__ = "3.6.0"
from tdefs.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_mount_serves_with_the_loop_of_an_unknown_pyfuse3(volume: Volume) -> None:
    subprocess.run(
        [
            *(sys.executable, "-c", _AS_ANOTHER_VERSION),
            *("mount", str(volume.backing), str(volume.mountpoint), "--log-file", str(volume.log), *volume.unlock),
        ],
        check=True,
    )
    assert "is not 3.5.0: using its own, slower loop" in volume.log.read_text()
    data = os.urandom(300_000)
    for number in range(20):
        with (volume.mountpoint / str(number)).open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
    volume.umount()
    volume.mount()
    assert all((volume.mountpoint / str(number)).read_bytes() == data for number in range(20))

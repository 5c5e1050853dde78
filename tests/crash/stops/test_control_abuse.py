"""The control socket abused: the mount serves on meanwhile, within bounds, and the daemon answers afterwards."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.crash.conftest import Dice
from tests.support.children import NOBODY, in_child, needs_root
from tests.support.processes import wait_until
from tests.support.volume import Volume

#: The daemon drops a connection after 5 s, or when there are more than 16.
LIMIT = 15
MOST_DESCRIPTORS = 40
MOST_MEMORY_KB = 20_000


def control_socket(volume: Volume) -> Path:
    return volume.backing / ".tdefs" / "control"


@contextmanager
def connection(volume: Volume) -> Iterator[socket.socket]:
    directory = os.open(volume.backing / ".tdefs", os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LIMIT)
            while True:
                with suppress(BlockingIOError):  # so many wait already
                    client.connect(f"/proc/self/fd/{directory}/control")
                    break
            yield client
    finally:
        os.close(directory)


def send(volume: Volume, request: bytes) -> bytes:
    """Sends bytes; returns what is answered, nothing if the daemon closes the connection."""
    with connection(volume) as client, suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))
    return b""


class Pulse:
    """A thread that uses the mount all the time, and how long it had to wait."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seconds: list[float] = []

    def _run(self) -> None:
        while not self._over.is_set():
            before = time.monotonic()
            with (self._directory / f"pulse{len(self.seconds) % 7}").open("wb") as file:
                file.write(b"1" * 8192)
                os.fsync(file.fileno())
            self.seconds.append(time.monotonic() - before)
            time.sleep(0.005)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)


def descriptors(daemon: int) -> int:
    return len(os.listdir(f"/proc/{daemon}/fd"))


def memory_kb(daemon: int) -> int:
    lines = Path(f"/proc/{daemon}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def garbage(volume: Volume, dice: Dice) -> None:
    random = dice.random()
    for request in (
        b"",
        b"\n",
        b"\0" * 100_000,
        b"\xff\xfe\n",
        b"not JSON\n",
        b"{}\n",
        b"[]\n",
        b'"status"\n',
        b"null\n",
        b'{"request": ["status"]}\n',
        b'{"request": {"status": 1}}\n',
        b'{"request": null}\n',
        b'{"request": 1e999}\n',
        b'{"request": "no such request"}\n',
        b'{"request": "__class__"}\n',
        b"[" * 4000 + b"\n",
        b'{"request":' * 350 + b"1" + b"}" * 350 + b"\n",
        b'{"request": "' + b"9" * 4000 + b'"}\n',
        b"9" * 4500 + b"\n",
        *(random.randbytes(random.randrange(1, 9000)) for _ in range(dice.rounds(100))),
    ):
        assert send(volume, request) in (b"", b'{"error": "unknown request"}\n'), request


def endless_line(volume: Volume, dice: Dice) -> None:
    for _ in range(dice.rounds(2)):
        assert send(volume, b"x" * (100 << 20)) in (b"", b'{"error": "unknown request"}\n')


def half_a_request(volume: Volume, dice: Dice) -> None:
    """Two hundred clients that send a letter now and then; one more is answered all the same."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connection(volume)) for _ in range(200)]
        for client in clients:
            with suppress(OSError):
                client.send(b'{"requ')
        assert volume.status()["daemon_answers"]
        for _ in range(3):
            for client in clients:
                with suppress(OSError):
                    client.send(b"e")
        assert volume.status()["daemon_answers"]


def early_close(volume: Volume, dice: Dice) -> None:
    for number in range(dice.rounds(1500)):
        with connection(volume) as client:
            if number % 3:
                client.sendall(b'{"request": "status"}\n' if number % 3 == 1 else b'{"re')


def no_reader(volume: Volume, dice: Dice) -> None:
    """Who asks and never reads."""
    with ExitStack() as stack:
        for _ in range(dice.rounds(50)):
            client = stack.enter_context(connection(volume))
            with suppress(OSError):
                client.sendall(b'{"request": "status"}\n' * 100)


ABUSES: list[Callable[[Volume, Dice], None]] = [garbage, endless_line, half_a_request, early_close, no_reader]


def test_the_mount_serves_on_while_the_control_socket_is_abused(volume: Volume, dice: Dice) -> None:
    volume.mount()
    (daemon,) = volume.daemons
    with Pulse(volume.mountpoint) as pulse:
        assert wait_until(lambda: len(pulse.seconds) > 30, 30)
    memory = memory_kb(daemon)
    open_before = descriptors(daemon)
    for abuse in ABUSES:
        most = [0]
        over = threading.Event()

        def watch(most: list[int] = most, over: threading.Event = over) -> None:
            while not over.wait(0.01):
                most[0] = max(most[0], descriptors(daemon))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with Pulse(volume.mountpoint) as pulse:
                while len(pulse.seconds) < 10:
                    abuse(volume, dice)
        finally:
            over.set()
            watcher.join()
        worst, usual = max(pulse.seconds), sorted(pulse.seconds)[len(pulse.seconds) // 2]
        print(f"{abuse.__name__}: {usual * 1e3:.1f} ms, at worst {worst * 1e3:.0f} ms, {most[0]} descriptors")
        assert worst < 5, abuse.__name__
        assert most[0] < open_before + MOST_DESCRIPTORS, abuse.__name__
        assert volume.status()["daemon_answers"], abuse.__name__
    assert wait_until(lambda: descriptors(daemon) <= open_before + 2, LIMIT), descriptors(daemon)
    assert memory_kb(daemon) < memory + MOST_MEMORY_KB
    assert volume.daemons == [daemon]
    assert volume.complaints() == []
    volume.umount()


def test_the_mount_serves_on_without_its_control_socket(volume: Volume) -> None:
    volume.mount()
    control_socket(volume).unlink()
    assert not volume.status()["daemon_answers"]
    control_socket(volume).mkdir()
    (volume.mountpoint / "file").write_bytes(b"1")
    assert not volume.status()["daemon_answers"]
    volume.umount()
    assert control_socket(volume).is_dir(), "it has taken away what is not its own"
    assert volume.complaints() == []


@pytest.mark.parametrize("place", ["directory", "symbolic link", "file", "old socket"])
def test_what_lies_in_the_place_of_the_control_socket_keeps_no_mount_from_serving(
    volume: Volume, place: str
) -> None:
    path = control_socket(volume)
    outside = volume.root / "outside"
    outside.write_bytes(b"not tdefs's")
    match place:
        case "directory":
            path.mkdir()
        case "symbolic link":
            path.symlink_to(outside)
        case "file":
            path.write_bytes(b"")
        case _:
            with socket.socket(socket.AF_UNIX) as old:
                old.bind(str(volume.root / "s"))
            (volume.root / "s").rename(path)
    volume.mount()
    (volume.mountpoint / "file").write_bytes(b"1")
    assert volume.status()["daemon_answers"] == (place != "directory")
    volume.umount()
    assert outside.read_bytes() == b"not tdefs's"
    assert (volume.root / "outside").stat().st_mode & 0o777 != 0o600


@needs_root
def test_no_other_user_reaches_the_control_socket(volume: Volume) -> None:
    volume.mount()
    path = control_socket(volume)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # the way to it is closed, and if it were open the socket itself is
    for mode in (0o700, 0o755):
        volume.backing.chmod(mode)
        path.parent.chmod(mode)

        def ask() -> None:
            with connection(volume):
                pass

        with pytest.raises(PermissionError):
            in_child(ask, uid=NOBODY)

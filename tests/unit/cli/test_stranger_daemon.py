"""Keys are told to the volume's daemon alone. Covers tdefs/cli/common/daemon_keys.py and tdefs/control.py."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tdefs.cli.key import command as key
from tdefs.daemon.status import KeyStatus
from tdefs.errors import Exit, TdefsError
from tests.support.children import NOBODY, needs_root
from tests.support.daemon_status import daemon_status
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume

#: What a listener says that it has: a round that it may have learned, by which the message would be sealed.
LEAKED = (KeyStatus("dk_1", 1, "aes-256-xts", "active"),)


@contextmanager
def claimed(volume_directory: Path, data_keys: tuple[KeyStatus, ...], *, user: int) -> Iterator[list[bytes]]:
    """Somebody has the volume's lock and listens in the daemon's place, as *user*; what they were asked."""
    heard: list[bytes] = []
    directory = os.open(volume_directory, os.O_PATH)  # a socket's address is limited to 107 bytes
    address = f"/proc/self/fd/{directory}/control"
    lock = os.open(volume_directory, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        fcntl.flock(lock, fcntl.LOCK_EX)
        listener.bind(address)
        os.seteuid(user)  # the kernel notes who calls listen(2)
        try:
            listener.listen()
        finally:
            os.seteuid(os.getuid())

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    request = connection.makefile("rb").readline()
                    if request == b"end\n":
                        return
                    if not request:  # the other side did not like who listens
                        continue
                    heard.append(request)
                    connection.sendall(json.dumps(daemon_status(data_keys=data_keys).to_json()).encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield heard
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(address)
                last.sendall(b"end\n")
            thread.join()
            os.close(directory)
            os.close(lock)


def rotated(small: SmallVolume, command: Command) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        command.run(key, "rotate", "dk_1", "--volume", small.volume.backing, "--key-command", KEY_COMMAND)
    assert caught.value.exit_code == Exit.DAEMON_NOT_TOLD
    return caught.value


def asked(heard: list[bytes]) -> set[str]:
    return {json.loads(request)["request"] for request in heard}


def test_who_says_to_have_no_key_is_told_none(small: SmallVolume, command: Command) -> None:
    with claimed(small.volume.private, (), user=os.geteuid()) as heard:
        assert "none of the keys" in rotated(small, command).detail
    assert asked(heard) == {"status"}


@needs_root
def test_process_of_a_user_who_cannot_read_the_keystore_is_told_none(small: SmallVolume, command: Command) -> None:
    with claimed(small.volume.private, LEAKED, user=NOBODY) as heard:
        assert f"user {NOBODY} listens" in rotated(small, command).detail
    assert asked(heard) == {"status"}


@needs_root
def test_daemon_of_the_keystores_owner_is_told(small: SmallVolume, command: Command) -> None:
    os.chown(small.volume.keystore, NOBODY, NOBODY)
    with claimed(small.volume.private, LEAKED, user=NOBODY) as heard:
        rotated(small, command)  # as this one does not answer like a daemon
    assert asked(heard) == {"status", "keys"}

"""What a cluster's user leaves in its files, and what answers for the daemon, holds up no command of root's."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from fcntl import LOCK_EX, flock
from pathlib import Path
from types import FrameType

import pytest

from tdefs import control
from tdefs.doctor import beside
from tdefs.doctor.cluster import examine_cluster
from tdefs.keys.keystore.history import append, history_path, read_history
from tdefs.pg.settings import read_settings
from tdefs.volume.description import Volume

LIMIT = 10


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """Whatever waits is interrupted."""

    def waits(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError("it waits for what never ends")

    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def pgdata(tmp_path: Path) -> Path:
    (tmp_path / "global").mkdir()
    (tmp_path / "PG_VERSION").write_text("15\n")
    (tmp_path / "postgresql.conf").write_text("port = 5432\n")
    (tmp_path / "postgresql.auto.conf").write_text("fsync = off\n")
    return tmp_path


def endless_file(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 42)


#: What never comes to an end, or waits for somebody, put in the place of a file.
PLANTS: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
}
FILES = ["postgresql.conf", "postmaster.opts", "global/pg_control", "global/pg_control.old"]


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_not_read(pgdata: Path, name: str, plant: str) -> None:
    (pgdata / name).unlink(missing_ok=True)
    PLANTS[plant](pgdata / name)
    assert read_settings(pgdata)["fsync"].value == "off"
    assert any("fsync" in finding.what for finding in examine_cluster(pgdata, [pgdata]))
    assert beside._identifier(pgdata) is None


@pytest.mark.parametrize("name", FILES)
def test_no_more_is_read_of_a_file_than_such_a_file_has(pgdata: Path, name: str) -> None:
    endless_file(pgdata / name)
    read_settings(pgdata)
    list(examine_cluster(pgdata, [pgdata]))
    assert beside._identifier(pgdata) is None


def test_files_that_include_one_another_are_read_so_often_and_no_more(pgdata: Path) -> None:
    (pgdata / "postgresql.conf").write_text("include 'postgresql.conf'\n" * 30 + "port = 1\n")
    assert read_settings(pgdata)["port"].value == "1"


@pytest.mark.parametrize("said", [b"x", b"["], ids=["a byte now and then", "nested without end"])
def test_an_answer_that_never_ends_is_no_answer(
    tmp_path: Path, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "TIMEOUT_SECONDS", 1)
    volume = Volume(tmp_path, b"v" * 16, tmp_path / "keystore")
    volume.private.mkdir(mode=0o700)
    listener = socket.socket(socket.AF_UNIX)
    # by a short way: the name of a socket has 107 bytes at most
    above = os.open(volume.private, os.O_PATH)
    listener.bind(f"/proc/self/fd/{above}/{volume.control_socket.name}")
    os.close(above)
    listener.listen()
    ended = threading.Event()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                if said == b"[":
                    connection.sendall(said * 100_000 + b"\n")
                while said == b"x" and not ended.is_set():
                    connection.send(said)
                    ended.wait(0.2)
            except OSError:
                return

    thread = threading.Thread(target=answer)
    thread.start()
    began = time.monotonic()
    try:
        assert control.ask(volume, "status") is None
    finally:
        ended.set()
        thread.join()
        listener.close()
    assert time.monotonic() - began < 5


def test_who_holds_the_historys_lock_keeps_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdefs.keys.keystore.history._LOCK_SECONDS", 0.5)
    keystore = tmp_path / "keystore"
    keystore.touch(mode=0o600)
    append(keystore, "first", {}, b"k" * 32)
    fd = os.open(history_path(keystore), os.O_RDONLY)  # to read it is enough for that
    try:
        flock(fd, LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            append(keystore, "second", {}, b"k" * 32)
    finally:
        os.close(fd)
    assert append(keystore, "second", {}, b"k" * 32)[0] == 2


def test_a_history_without_end_is_not_read(tmp_path: Path) -> None:
    keystore = tmp_path / "keystore"
    keystore.touch(mode=0o600)
    append(keystore, "first", {}, b"k" * 32)
    os.truncate(history_path(keystore), 1 << 42)
    with pytest.raises(OSError, match="too large"):
        append(keystore, "second", {}, b"k" * 32)
    with pytest.raises(OSError, match="too large"):
        read_history(keystore)

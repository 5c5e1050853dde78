"""What ``tdefs cat`` gives out, and how it refuses. Covers tdefs/cli/cat.py and tdefs/cli/common/unlocking.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tdefs.cli.main import build_parser
from tdefs.errors import Exit, TdefsError
from tests.support.offline_volumes import KEY_COMMAND, SmallVolume

Cat = Callable[..., bytes]


@pytest.fixture
def run(small: SmallVolume, capfdbinary: pytest.CaptureFixture[bytes]) -> Cat:
    """Returns what the command prints about a file of the small volume."""

    def run(path: str, *options: str, volume: SmallVolume = small) -> bytes:
        words = ["cat", path, "--volume", str(volume.volume.backing), *options]
        parser = build_parser("cat")
        args = parser.parse_args(words if "--key-command" in options else [*words, "--key-command", KEY_COMMAND])
        assert args.run(args) == 0
        return capfdbinary.readouterr().out

    return run


def refusal(run: Cat, *words: str) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        run(*words)
    return caught.value


def test_encrypted_file_comes_out_byte_for_byte(small: SmallVolume, run: Cat) -> None:
    content = os.urandom((2 << 20) + 77)
    small.encrypt("base/5/16384", content)
    assert run("base/5/16384") == content


def test_plain_file_comes_out_as_it_is(tmp_path: Path, run: Cat) -> None:
    small = SmallVolume(tmp_path / "other", plain_files=True)
    small.plain("postgresql.conf", b"port = 5432\r\n\xff")
    assert run("postgresql.conf", volume=small) == b"port = 5432\r\n\xff"


def test_empty_file_comes_out_empty(small: SmallVolume, run: Cat) -> None:
    small.plain("empty", b"")
    assert run("empty") == b""


def test_file_that_was_never_synced_before_a_crash_comes_out_empty(small: SmallVolume, run: Cat) -> None:
    small.plain("base/5/16384", bytes(20000))
    small.crash()
    assert run("base/5/16384") == b""


@pytest.mark.parametrize(
    "path",
    ["missing", "../keystore", ".tdefs/volume.json", "base", "link", "base/link/file", "fifo", "/etc/passwd"],
)
def test_what_is_no_file_of_the_volume_is_not_found(small: SmallVolume, run: Cat, path: str) -> None:
    small.encrypt("base/file", b"x")
    small.path("link").symlink_to("base/file")
    small.path("base/link").symlink_to(".")
    os.mkfifo(small.path("fifo"))
    error = refusal(run, path)
    assert error.exit_code == Exit.FILE_NOT_FOUND
    assert path in error.message
    assert error.detail
    assert "tdefs ls" in error.hint


def test_damaged_file_says_what_is_wrong_and_what_to_do(small: SmallVolume, run: Cat) -> None:
    small.encrypt("base/5/16384", b"x")
    small.damage("base/5/16384", 50)
    error = refusal(run, "base/5/16384")
    assert error.exit_code == Exit.FILE_DAMAGED
    assert "the header is damaged: its checksum does not match" in error.message
    assert "restore the file from a backup" in error.hint


def test_file_of_another_relation_is_refused(small: SmallVolume, run: Cat) -> None:
    small.encrypt("base/5/16384", b"x")
    small.path("base/5/16384").rename(small.path("base/5/16385"))
    error = refusal(run, "base/5/16385")
    assert error.exit_code == Exit.FILE_DAMAGED
    assert "belongs to relation file 16384 of database 5" in error.message


def test_wrong_key_gives_out_nothing(small: SmallVolume, run: Cat) -> None:
    small.encrypt("file", b"x")
    assert refusal(run, "file", "--key-command", "printf %%064d 8").exit_code == Exit.WRONG_SECRET


def test_keystore_can_be_named(small: SmallVolume, run: Cat, tmp_path: Path) -> None:
    small.encrypt("file", b"x")
    moved = small.volume.keystore.rename(tmp_path / "moved")
    assert refusal(run, "file").exit_code == Exit.KEYSTORE_MISSING
    assert run("file", "--keystore", str(moved)) == b"x"


def test_configuration_says_how_to_unlock(small: SmallVolume, tmp_path: Path) -> None:
    small.encrypt("file", b"x")
    config = tmp_path / "tdefs.yaml"
    config.write_text(
        f'version: 1\nvolumes:\n  {small.volume.backing}:\n    key_command: "{KEY_COMMAND}"\n'
        f"    keystore: {small.volume.keystore}\n"
    )
    words = ["cat", "file", "--volume", str(small.volume.backing), "--config", str(config)]
    args = build_parser("cat").parse_args(words)
    assert args.run(args) == 0

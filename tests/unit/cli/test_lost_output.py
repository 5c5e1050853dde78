"""An exit code is that of the work.

Covers tdefs/cli/common/streams.py and tdefs/cli/protector/recovery_code_output.py.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tdefs.cli.common.streams import steady_streams
from tdefs.cli.main import build_parser, main
from tdefs.cli.protector import command as protector
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.protectors.command import CommandProtector
from tdefs.volume.lock import VolumeLock
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume
from tests.support.volume import TDEFS

NEW_KEY_COMMAND = "printf %%064d 8"
DAMAGED = "base/5/16384"
#: Neither a fault of tdefs itself nor a signal.
ANSWERS = range(2, 128)


class Scene:
    """A volume with a damaged file, a second protector, a revoked data key and a second round of the other one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.small = SmallVolume(root)
        self.backing = self.small.volume.backing
        self.small.encrypt(DAMAGED, b"content")
        self.small.damage(DAMAGED, 50)
        self.config = root / "tdefs.yaml"
        self.config.write_text(
            f"version: 1\nvolumes:\n  {self.backing}:\n    host_key_directory: {root}/host-keys\n"
            f'    key_command: "{KEY_COMMAND}"\n'
        )
        self.policy = root / "policy.yaml"
        self.policy.write_text("version: 1\n")
        self.quietly("protector", "add", "--new-key-command", NEW_KEY_COMMAND)
        self.quietly("key", "revoke", "dk_2")
        self.quietly("key", "rotate", "dk_1")

    @property
    def place(self) -> list[str]:
        return ["--volume", str(self.backing), "--config", str(self.config)]

    def quietly(self, *words: str) -> None:
        """Run a command that must succeed."""
        with Path(os.devnull).open("w") as null:
            assert code_of([*words, *self.place], null.fileno(), null.fileno()) == Exit.OK

    def words(self, command: str) -> list[str]:
        """Return the command line of *command*, one of the parser's; KeyError for one that nobody thought of."""
        place, config, backing = self.place, ["--config", str(self.config)], str(self.backing)
        keyed = ["--key-command", KEY_COMMAND, *config]
        new = str(self.root / "new")
        rest: dict[str, list[str]] = {
            "init": [f"{new}/backing", "--keystore", f"{new}.keystore", *keyed],
            "accept": ["--all", *place],
            "mount": [backing, f"{new}/missing", *keyed],
            "umount": [new],
            "status": [new],
            "doctor": config,
            "ls": [backing],
            "cat": [DAMAGED, "--volume", backing, *keyed],
            "verify": [backing, *keyed],
            "policy check": [str(self.policy)],
            "policy explain": ["base/5/1259"],
            "policy reload": place,
            "policy accept": ["--policy", str(self.policy), "--yes", *place],
            "key create": ["dk_3", *place],
            "key rotate": ["dk_1", *place],
            "key revoke": ["dk_1", "--round", "1", *place],
            "key destroy": ["dk_2", "--destroy-files-of", "dk_2", *place],
            "key rotate-master": place,
            "key reload": place,
            "key list": place,
            "key show": ["dk_1", *place],
            "key verify": place,
            "key history": place,
            "key repair": place,
            "protector add": ["--recovery-code", *place],
            "protector change": ["pr_2", "--new-key-command", "printf %%064d 9", *place],
            "protector label": ["pr_2", "rack 4", *place],
            "protector remove": ["pr_2", *place],
            "protector list": place,
            "protector test": ["--id", "pr_2", *place],
            "key-source list": config,
            "auto-open enable": ["--host-key", *place],
            "auto-open disable": place,
            "auto-open status": place,
            "volume list": place,
            "volume add": [backing, *keyed],
            "volume moved": [backing, *keyed],
            "volume copied": [backing, "--keystore", f"{new}.keystore", *keyed],
            "volume forget": ["vol_1", *place],
        }
        for action in ("test", "keys", "create"):
            rest[f"key-source {action}"] = ["kms1", *config]
        rest["key-source register"] = ["kms1", "--key-file", str(self.policy), *config]
        for action in ("activate", "revoke", "destroy"):
            rest[f"key-source {action}"] = ["kms1", "uid", *config]
        return [*command.split(), *rest[command]]

    @property
    def state(self) -> tuple[int, list[str], list[str]]:
        """Return what commands change: the keystore's revision, its protectors, the files that there are."""
        document = load_keystore(self.small.volume.keystore).document
        names = (str(path.relative_to(self.root)) for path in self.root.rglob("*"))
        files = sorted(re.sub(r"[0-9a-f]{32}", "ID", name) for name in names)
        return document.revision, [f"{one.id} {one.kind} {one.label}" for one in document.protectors], files


def code_of(words: list[str], output: int, errors: int) -> int:
    """Run tdefs with its standard output and error on these descriptors, and return its exit code."""
    child = os.fork()
    if child == 0:
        code: int = Exit.UNEXPECTED
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for number, descriptor in enumerate((null, output, errors)):
                os.dup2(descriptor, number)
            steady_streams()
            code = main(words)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def pipe_without_reader() -> Iterator[int]:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


@contextmanager
def full_disk() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def commands_of(parser: argparse.ArgumentParser, name: str = "") -> Iterator[str]:
    """Yield the names of all commands that do something: those without sub-commands."""
    groups = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not groups:
        yield name
    for group in groups:
        for word, inner in group.choices.items():
            yield from commands_of(inner, f"{name} {word}".strip())


@pytest.mark.parametrize("command", sorted(commands_of(build_parser())))
def test_exit_code_and_work_do_not_depend_on_who_reads(command: str, tmp_path: Path) -> None:
    scenes = [Scene(tmp_path / name) for name in ("read", "closed")]
    with (tmp_path / "said").open("w") as said, pipe_without_reader() as closed:
        code = code_of(scenes[0].words(command), said.fileno(), said.fileno())
        assert code_of(scenes[1].words(command), closed, closed) == code
    assert code == Exit.OK or code in ANSWERS, (tmp_path / "said").read_text()
    assert (tmp_path / "said").read_text()
    assert scenes[1].state == scenes[0].state


CHANGES = {
    "init": ["init"],
    "key": ["create", "rotate", "revoke", "destroy", "rotate-master", "repair"],
    "protector": ["change", "label", "remove"],
    "auto-open": ["enable"],
}


@pytest.mark.parametrize(
    "command", [name if name == word else f"{name} {word}" for name, words in CHANGES.items() for word in words]
)
def test_change_that_a_full_disk_does_not_tell_of_is_made_and_succeeds(command: str, tmp_path: Path) -> None:
    scenes = [Scene(tmp_path / name) for name in ("read", "full")]
    with (tmp_path / "said").open("w+") as said, full_disk() as full:
        assert code_of(scenes[0].words(command), said.fileno(), said.fileno()) == Exit.OK
        said.truncate(0)
        assert code_of(scenes[1].words(command), full, said.fileno()) == Exit.OK
        assert "could not write the output: No space left on device" in (tmp_path / "said").read_text()
    assert scenes[1].state == scenes[0].state


@pytest.mark.parametrize("command", ["ls", "key list", "protector list", "policy check", "key-source list"])
def test_report_that_a_full_disk_swallows_fails(command: str, tmp_path: Path) -> None:
    scene = Scene(tmp_path / "scene")
    with (tmp_path / "said").open("w") as said, full_disk() as full:
        assert code_of(scene.words(command), full, said.fileno()) == Exit.OS_ERROR
    assert "could not write the output: No space left on device" in (tmp_path / "said").read_text()


def test_help_that_cannot_be_written_fails_and_one_that_nobody_reads_does_not(tmp_path: Path) -> None:
    with (tmp_path / "said").open("w") as said, full_disk() as full, pipe_without_reader() as closed:
        assert code_of(["--help"], full, said.fileno()) == Exit.OS_ERROR
        assert code_of(["--help"], closed, closed) == Exit.OK
        assert code_of(["verify"], closed, closed) == Exit.USAGE


def test_damage_is_told_by_the_exit_code_whatever_becomes_of_the_output(tmp_path: Path) -> None:
    """The installed command, and the shell's own ways not to read."""
    scene = Scene(tmp_path / "scene")
    for command in ("verify", "cat"):
        words = [str(TDEFS), *scene.words(command)]
        expected = Exit.VERIFY_FOUND_DAMAGE if command == "verify" else Exit.FILE_DAMAGED
        for ending in (">/dev/null", "| true", "2>&1 | true", ">/dev/full", ">&-", "2>&-", ">&- 2>&-"):
            shell = f'"$@" {ending}; exit "${{PIPESTATUS[0]}}"'
            done = subprocess.run(
                ["bash", "-c", shell, "bash", *words], capture_output=True, text=True, check=False
            )
            assert done.returncode == expected, (ending, done)
            assert "Traceback" not in done.stderr
            assert "BrokenPipe" not in done.stderr


def test_content_that_nobody_reads_is_no_failure_and_one_that_a_full_disk_swallows_is(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "scene")
    scene.small.encrypt("large", os.urandom(3 << 20))
    words = ["cat", "large", "--volume", str(scene.backing), "--config", str(scene.config)]
    with pipe_without_reader() as closed, full_disk() as full:
        assert code_of(words, closed, closed) == Exit.OK
        assert code_of(words, full, closed) == Exit.OS_ERROR


def kinds(scene: Scene) -> list[str]:
    return [one.kind for one in load_keystore(scene.small.volume.keystore).document.protectors]


def opens(scene: Scene, key_command: str) -> bool:
    words = ["protector", "test", "--id", "pr_2", "--volume", str(scene.backing), "--key-command", key_command]
    with Path(os.devnull).open("w") as null:
        return code_of(words, null.fileno(), null.fileno()) == Exit.OK


def test_recovery_code_that_nobody_reads_is_added_with_a_warning(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "scene")
    with (tmp_path / "said").open("w") as said, pipe_without_reader() as closed:
        assert code_of(scene.words("protector add"), closed, said.fileno()) == Exit.OK
    assert kinds(scene) == ["command", "command", "recovery-code"]
    warning = (tmp_path / "said").read_text()
    assert "nobody reads the recovery code of protector pr_3" in warning
    assert "tdefs protector remove pr_3" in warning


def test_recovery_code_that_cannot_be_written_is_not_added(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "scene")
    with (tmp_path / "said").open("w") as said, full_disk() as full:
        assert code_of(scene.words("protector add"), full, said.fileno()) == Exit.OS_ERROR
    assert kinds(scene) == ["command", "command"]
    assert "could not write the recovery code: No space left on device" in (tmp_path / "said").read_text()
    history = tmp_path / "history"
    with history.open("w") as said:
        assert code_of(scene.words("key history"), said.fileno(), said.fileno()) == Exit.OK
    assert history.read_text().count("  protector add  ") == 3  # the second protector; the code, and back
    assert "checked: 0 findings" in history.read_text()


@pytest.mark.parametrize("lost", [pipe_without_reader, full_disk])
def test_old_secret_stays_if_the_recovery_code_in_its_place_was_not_seen(
    tmp_path: Path, lost: Callable[[], AbstractContextManager[int]]
) -> None:
    scene = Scene(tmp_path / "scene")
    with (tmp_path / "said").open("w") as said, lost() as output:
        words = ["protector", "change", "pr_2", "--new-recovery-code", *scene.place]
        assert code_of(words, output, said.fileno()) == Exit.OS_ERROR
    assert kinds(scene) == ["command", "command"]
    assert opens(scene, NEW_KEY_COMMAND)
    assert "the change of protector pr_2 is taken back" in (tmp_path / "said").read_text()


def test_recovery_code_is_shown_only_once_it_counts(
    small: SmallVolume, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be saved is not shown."""
    keystore = small.volume.keystore
    keystore.with_name("keystore.history").mkdir()
    with pytest.raises(TdefsError, match="it is a directory"):
        command.run(
            protector, "add", "--volume", small.volume.backing, "--key-command", KEY_COMMAND, "--recovery-code"
        )
    assert "recovery code" not in capsys.readouterr().out
    keystore.with_name("keystore.history").rmdir()
    assert load_keystore(keystore).unlock(CommandProtector(KEY_COMMAND))


def test_volume_in_use_is_verified_though_nobody_reads_the_warning(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "scene")
    lock = VolumeLock(scene.small.volume)
    lock.acquire()
    try:
        with pipe_without_reader() as closed, Path(os.devnull).open("w") as null:
            assert code_of(scene.words("verify"), null.fileno(), closed) == Exit.VERIFY_FOUND_DAMAGE
    finally:
        lock.release()

"""Key source pkcs11 against SoftHSM. Covers tdefs/keys/sources/pkcs11."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from pkcs11.constants import TokenFlag

from tdefs.cli import init
from tdefs.cli.common.terminal import TerminalDialogue
from tdefs.cli.key import command as key
from tdefs.cli.key_source import command as key_source
from tdefs.cli.protector import command as protector
from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.keystore.wrapped_keys import now
from tdefs.keys.protectors.base import NotMineError, WrongSecretError
from tdefs.keys.sources.base import make_key_source
from tdefs.keys.sources.pkcs11 import source
from tdefs.keys.sources.pkcs11.request import Request
from tdefs.keys.sources.pkcs11.source import Pkcs11
from tdefs.keys.sources.pkcs11.token import refusal_before_login
from tdefs.keys.wrapping import WrapContext
from tests.keysources.soft_token import LABEL, MODULE, PIN, SoftToken, compiled_module
from tests.support.offline_volumes import Command
from tests.support.terminal import Terminal
from tests.support.volume import TDEFS
from tests.support.workspace import Workspace

CONTEXT = WrapContext(bytes(range(16)), "protector key by pkcs11", "pr_1", 0, "pr_1")
SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SoftToken:
    """A token with the AES key ``kek``, the RSA key ``card``, and keys that are not as they should be."""
    token = SoftToken(tmp_path_factory.mktemp("softhsm"))
    token.add()
    token.tool("--keypairgen", "--key-type", "rsa:2048", "--label", "card")
    token.tool("--keypairgen", "--key-type", "rsa:1024", "--label", "small")
    token.tool("--keygen", "--key-type", "aes:32", "--label", "kek", "--sensitive", "--usage-decrypt")
    token.tool("--keygen", "--key-type", "aes:32", "--label", "leaves", "--sensitive", "--extractable")
    for _ in range(2):
        token.tool("--keygen", "--key-type", "aes:32", "--label", "twice", "--sensitive")
    return token


@pytest.fixture
def token(made: SoftToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftToken:
    """A copy of the token, which this process's children find."""
    token = made.copy(tmp_path / "softhsm")
    monkeypatch.setenv("SOFTHSM2_CONF", token.environment["SOFTHSM2_CONF"])
    return token


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations that processes with the module are started for."""
    operations: list[str] = []

    def ask(request: Request, timeout_seconds: float) -> dict[str, Any]:
        operations.append(request.operation)
        return real(request, timeout_seconds)

    real = source.ask
    monkeypatch.setattr(source, "ask", ask)
    return operations


class Site:
    """A configuration with key sources, a volume to be made, and the commands run on it."""

    def __init__(self, root: Path, command: Command) -> None:
        self.config = root / "tdefs.yaml"
        self.backing = root / "backing"
        self.keystore = root / "keystore"
        self.pin_file = root / "pin"
        self._command = command
        self.pin_file.touch(0o600)
        self.pin_file.write_text(f"{PIN}\n")

    def describe(self, name: str = "hsm", **changes: str) -> None:
        """Adds a key source to the configuration; fields that are "" are left out."""
        if not self.config.exists():
            variable = f"environment: {{SOFTHSM2_CONF: '{os.environ.get('SOFTHSM2_CONF', '/nonexistent')}'}}"
            self.config.write_text(f"version: 1\nlog_level: debug\n{variable}\nkey_sources:\n")
        fields = {
            "kind": "pkcs11",
            "module": str(MODULE),
            "token_label": LABEL,
            "key_label": "kek",
            "pin_file": str(self.pin_file),
            "patience_seconds": "0",
            **changes,
        }
        with self.config.open("a") as file:
            file.write(
                f"  {name}:\n" + "".join(f"    {field}: {value}\n" for field, value in fields.items() if value)
            )

    def source(self, name: str = "hsm") -> Pkcs11:
        found = make_key_source(load_config(self.config).key_source(name), TerminalDialogue())
        assert isinstance(found, Pkcs11)
        return found

    def init(self, name: str = "hsm") -> None:
        words = ("--key-source", name, "--config", self.config, "--keystore", self.keystore)
        self._command.run(init, self.backing, *words)

    def run(self, module: Any, action: str, *words: str, name: str = "hsm") -> str:
        place = ("--volume", self.backing, "--config", self.config, "--key-source", name)
        return self._command.run(module, action, *words, *place)[1]

    def test(self, name: str = "hsm") -> str:
        return self._command.run(key_source, "test", name, "--config", self.config)[1]

    def refused(self, name: str = "hsm") -> TdefsError:
        with pytest.raises(TdefsError) as caught:
            self.test(name)
        assert PIN not in caught.value.render()
        return caught.value


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture
def site(tmp_path: Path, command: Command, token: SoftToken) -> Site:
    return Site(tmp_path, command)


def entry_of(source: Pkcs11, **changes: str) -> ProtectorEntry:
    """A protector of CONTEXT that wraps SECRET, with some parameters changed."""
    made = source.wrap(SECRET, CONTEXT)
    return ProtectorEntry("pr_1", "pkcs11", now(), "mk_1", {**made.params, **changes}, made.wrapped, "")


def test_life_of_a_keystore_with_protectors_of_a_token(site: Site) -> None:
    site.describe(key_label="new", create="yes")
    site.describe("card", key_label="card", mechanism="rsa-oaep")
    assert site.test() == 'key source "hsm" (pkcs11) wraps and unwraps\n'
    site.init()
    assert "pr_2 (pkcs11)" in site.run(protector, "add", "--new-key-source", "card")
    lines = site.run(protector, "test").splitlines()
    assert [line.split("  ")[-1].strip() for line in lines[-2:]] == ["opens", "of another kind"]
    site.run(protector, "change", "pr_1", "--new-key-source", "hsm")
    site.run(key, "rotate-master")
    site.run(key, "verify", name="card")
    site.run(protector, "remove", "pr_1", name="card")
    with pytest.raises(TdefsError) as caught:
        site.run(key, "verify")
    assert caught.value.exit_code == Exit.WRONG_SECRET
    assert PIN not in site.keystore.read_text()


def test_a_made_key_cannot_leave_the_token_nor_be_changed(site: Site, token: SoftToken) -> None:
    site.describe(key_label="new", create="yes")
    entry = entry_of(site.source())
    assert site.source().unwrap(entry, CONTEXT) == SECRET
    listed = subprocess.run(
        ["pkcs11-tool", "--module", str(MODULE), "--login", "--pin", PIN, "--list-objects", "--label", "new"],
        env={**os.environ, **token.environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "AES length 32" in listed
    assert "encrypt, decrypt\n" in listed
    assert "sensitive, always sensitive, never extractable" in listed


def test_key_made_for_a_keystore_that_was_not_saved_is_named_with_the_command_that_removes_it(
    site: Site, token: SoftToken, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("tdefs.private.OwnDirectory.write_durably", full)
    site.describe(key_label="new key", create="yes")
    with pytest.raises(TdefsError, match="could not create the keystore"):
        site.init()
    said = capsys.readouterr().err
    assert f'the key "new key" in token "{LABEL}", which this command has made, is left behind' in said
    assert "the next protector of this key source uses it" in said
    with pytest.raises(TdefsError):  # which it does, and has made none
        site.init()
    assert "left behind" not in capsys.readouterr().err
    command = shlex.split(said.partition("to remove it: ")[2])
    subprocess.run([*command, "--pin", PIN], env={**os.environ, **token.environment}, check=True)
    with pytest.raises(TdefsError):
        site.init()
    assert "left behind" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"key_label": "card", "mechanism": "rsa-oaep"}])
def test_what_a_token_wrapped_opens_in_its_context_alone(site: Site, changes: dict[str, str]) -> None:
    site.describe(**changes)
    entry = entry_of(site.source())
    assert site.source().unwrap(entry, CONTEXT) == SECRET
    with pytest.raises(WrongSecretError) as caught:
        site.source().unwrap(entry, WrapContext(bytes(16), CONTEXT.purpose, "pr_1", 0, "pr_1"))
    if not changes:
        assert caught.value.detail == "the token answered GeneralError", "the token did not check the context"
    site.describe("other", key_label="small")
    with pytest.raises(NotMineError):
        site.source("other").unwrap(entry, CONTEXT)


def test_another_token_with_a_key_of_the_same_name_does_not_open(site: Site, token: SoftToken) -> None:
    token.add("second")
    for number, changes in enumerate(({"key_label": "new", "create": "yes"}, {"key_label": "card"})):
        mechanism = {"mechanism": "rsa-oaep"} if changes["key_label"] == "card" else {}
        site.describe(f"first{number}", **changes, **mechanism)
        site.describe(f"second{number}", token_label="second", **changes, **mechanism)
    token.tool("--keypairgen", "--key-type", "rsa:2048", "--label", "card", label="second")
    site.source("second0").wrap(SECRET, CONTEXT)  # makes the key
    for number in range(2):
        entry = entry_of(site.source(f"first{number}"))
        with pytest.raises(WrongSecretError) as caught:
            site.source(f"second{number}").unwrap(entry, CONTEXT)
        assert 'the key in token "second" did not encrypt this protector' in caught.value.message


@pytest.mark.parametrize(
    ("changes", "expected", "text"),
    [
        ({"key_label": "none"}, Exit.WRAPPING_KEY_UNUSABLE, 'there is no AES key "none" in token "tdefs token"'),
        ({"key_label": "none", "mechanism": "rsa-oaep"}, Exit.WRAPPING_KEY_UNUSABLE, 'there is no RSA key "none"'),
        ({"key_label": "twice"}, Exit.WRAPPING_KEY_UNUSABLE, 'there are several AES keys "twice"'),
        ({"key_label": "leaves"}, Exit.WRAPPING_KEY_UNUSABLE, 'the key "leaves" can leave token'),
        ({"key_label": "small", "mechanism": "rsa-oaep"}, Exit.WRAPPING_KEY_UNUSABLE, "fewer than 2048 bits"),
        ({"token_label": "none"}, Exit.KEY_SERVER_UNREACHABLE, 'there is no token "none"'),
        ({"serial": "0123"}, Exit.KEY_SERVER_UNREACHABLE, 'there is no token "tdefs token"'),
        ({"module": "/none.so"}, Exit.KEY_SOURCE_UNAVAILABLE, 'the PKCS#11 module "/none.so" cannot be loaded'),
        ({"module": "/etc/passwd"}, Exit.KEY_SOURCE_UNAVAILABLE, "cannot be loaded"),
        ({"pin_file": "/none"}, Exit.KEY_SOURCE_UNAVAILABLE, 'the PIN file "/none" cannot be used'),
        ({"module": "relative.so"}, Exit.CONFIG_INVALID, "module must be an absolute path"),
        ({"token_label": ""}, Exit.CONFIG_INVALID, "token_label or serial must say which token"),
        ({"mechanism": "rsa"}, Exit.CONFIG_INVALID, "mechanism must be one of aes-gcm, rsa-oaep"),
        ({"mechanism": "rsa-oaep", "create": "yes"}, Exit.CONFIG_INVALID, "create is for aes-gcm"),
        ({"pin": "hunter2"}, Exit.CONFIG_INVALID, "the secret itself must not stand in the configuration"),
    ],
)
def test_what_is_lacking_is_told(site: Site, changes: dict[str, str], expected: Exit, text: str) -> None:
    site.describe(**changes)
    error = site.refused()
    assert (error.exit_code, text in error.message) == (expected, True), error.render()


def test_for_a_lost_key_no_new_one_is_proposed(site: Site, token: SoftToken) -> None:
    site.describe(key_label="lost", create="yes")
    entry = entry_of(site.source())
    token.tool("--delete-object", "--type", "secrkey", "--label", "lost")
    with pytest.raises(TdefsError, match='there is no AES key "lost"') as caught:
        site.source().unwrap(entry, CONTEXT)
    assert "unlock with another protector" in caught.value.hint


def test_a_token_without_the_mechanism_is_told(site: Site, token: SoftToken) -> None:
    token.configure("slots.mechanisms = CKM_AES_KEY_GEN,CKM_RSA_PKCS")
    site.describe()
    site.describe("card", key_label="card", mechanism="rsa-oaep")
    for name, mechanism in {"hsm": "aes-gcm", "card": "rsa-oaep"}.items():
        error = site.refused(name)
        assert (error.exit_code, error.message) == (
            Exit.WRAPPING_KEY_UNUSABLE,
            f'token "{LABEL}" does not have the mechanism {mechanism}',
        )


def test_two_tokens_of_one_name_are_told_apart_by_the_serial_number(site: Site, token: SoftToken) -> None:
    site.describe()
    serial = str(site.source().wrap(SECRET, CONTEXT).params["token_serial"])
    token.add()
    assert site.refused().message == f'there are 2 tokens "{LABEL}"'
    site.describe("by_serial", token_label="", serial=serial)
    site.test("by_serial")


def test_a_wrong_pin_is_tried_once(site: Site, asked: list[str]) -> None:
    site.describe(patience_seconds="5")
    site.init()
    site.run(protector, "add", "--new-key-source", "hsm")
    asked.clear()
    site.pin_file.write_text("000000")
    for action in ((key, "verify"), (protector, "test"), (key, "rotate-master")):
        with pytest.raises(TdefsError) as caught:
            site.run(*action)
        assert caught.value.exit_code == Exit.KEY_SERVER_REFUSED
        assert caught.value.message == f'the PIN of token "{LABEL}" is wrong'
    assert asked == ["decrypt"] * 3
    source = site.source()
    for _ in range(2):
        with pytest.raises(TdefsError):
            source.wrap(SECRET, CONTEXT)
    assert asked == ["decrypt"] * 3 + ["encrypt"]


def test_the_last_try_of_a_pin_is_left_to_a_person() -> None:
    assert refusal_before_login(TokenFlag.USER_PIN_COUNT_LOW, "t", typed=False) is None
    assert refusal_before_login(TokenFlag.USER_PIN_FINAL_TRY, "t", typed=True) is None
    for flags, typed, text in (
        (TokenFlag.USER_PIN_FINAL_TRY, False, "the last try of the PIN of t is left to a person"),
        (TokenFlag.USER_PIN_LOCKED, True, "the PIN of t is locked"),
    ):
        error = refusal_before_login(flags, "t", typed=typed)
        assert error is not None
        assert (error.exit_code, error.message) == (Exit.KEY_SERVER_REFUSED, text)


def test_a_pin_file_that_others_can_read_is_refused(site: Site) -> None:
    site.describe()
    site.pin_file.chmod(0o640)
    error = site.refused()
    assert error.exit_code == Exit.KEY_SOURCE_UNAVAILABLE
    assert f"chmod 600 {site.pin_file}" in error.hint
    site.pin_file.chmod(0o600)
    site.pin_file.write_text("\n")
    assert site.refused().exit_code == Exit.NO_SECRET


def test_a_token_that_is_plugged_in_late_is_waited_for(site: Site, token: SoftToken, tmp_path: Path) -> None:
    site.describe(patience_seconds="10")
    away = tmp_path / "away"
    shutil.move(token.tokens, away)
    waiting = subprocess.Popen(
        [TDEFS, "key-source", "test", "hsm", "--config", site.config],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert waiting.stderr
        assert "trying again for up to" in waiting.stderr.readline()
        shutil.move(away, token.tokens)
        assert waiting.wait(30) == Exit.OK
    finally:
        waiting.kill()
        waiting.communicate()


def test_a_module_that_hangs_or_crashes_is_ended_and_told(site: Site, tmp_path: Path) -> None:
    hanging = compiled_module(tmp_path, "hanging", "sleep(60);")
    crashing = compiled_module(tmp_path, "crashing", "abort();")
    refusing = compiled_module(tmp_path, "refusing", 'puts("noise"); fflush(stdout);')
    site.describe(module=str(hanging), timeout_seconds="1", patience_seconds="30")
    site.describe("crashing", module=str(crashing))
    site.describe("refusing", module=str(refusing))
    started = time.monotonic()
    error = site.refused()
    assert error.exit_code == Exit.KEY_SERVER_UNREACHABLE
    assert error.message == "the PKCS#11 module did not answer within 1 s"
    # its patience is 30 s
    assert time.monotonic() - started < 20, "it was tried again, and might have tried the PIN again"
    error = site.refused("crashing")
    assert (error.exit_code, error.detail) == (Exit.KEY_SOURCE_UNAVAILABLE, "Aborted")
    error = site.refused("refusing")
    assert (error.exit_code, error.detail) == (Exit.KEY_SERVER_UNREACHABLE, "it answered FunctionFailed")


@pytest.mark.parametrize(
    "changes", [{"mechanism": "des"}, {"ciphertext": "AAAAA"}, {"ciphertext": ""}, {"token_label": "\x1b"}]
)
def test_parameters_that_are_never_written_are_damage(site: Site, changes: dict[str, str]) -> None:
    site.describe()
    params = {
        "token_label": "t",
        "token_serial": "1",
        "key_label": "kek",
        "mechanism": "aes-gcm",
        "ciphertext": "AAAA",
        **changes,
    }
    with pytest.raises(TdefsError) as caught:
        site.source().unwrap(ProtectorEntry("pr_1", "pkcs11", now(), "mk_1", params, b"", ""), CONTEXT)
    assert caught.value.exit_code == Exit.KEYSTORE_DAMAGED


def test_the_pin_is_asked_for_once_on_the_terminal_and_only_if_the_token_is_there(
    site: Site, token: SoftToken
) -> None:
    site.describe(pin_file="")
    place: list[str | Path] = ["--key-source", "hsm", "--config", site.config]
    words = [TDEFS, "init", site.backing, "--keystore", site.keystore, *place]
    with Terminal(words) as terminal:
        terminal.expect(f"PIN for token {LABEL}: ")
        terminal.press(f"{PIN}\n")
        code, echo = terminal.end()
        assert (code, echo, terminal.unread) == (0, True, 0), terminal.shown
        assert PIN not in terminal.shown
    verify = [TDEFS, "key", "verify", "--volume", site.backing, *place]
    with Terminal(verify) as terminal:
        terminal.expect("PIN for token")
        terminal.press("000000\n")
        assert terminal.end()[0] == Exit.KEY_SERVER_REFUSED
    alone = subprocess.run(
        verify,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert alone.returncode == Exit.NO_SECRET
    assert f'no PIN for token "{LABEL}" could be asked for' in alone.stderr
    shutil.rmtree(token.tokens)
    token.tokens.mkdir()
    assert site.refused().message == f'there is no token "{LABEL}"'


def test_a_mount_has_neither_module_nor_pin_and_outlives_the_token(
    scratch: Workspace, token: SoftToken, tmp_path: Path
) -> None:
    site = Site(tmp_path, None)  # type: ignore[arg-type] # everything runs as processes here
    site.describe(patience_seconds="4")
    volume = scratch.volume("token")
    unlock = ("--key-source", "hsm", "--config", site.config)
    volume.tdefs("init", volume.backing, "--keystore", volume.keystore, *unlock)
    volume.tdefs("mount", volume.backing, volume.mountpoint, *unlock, "--log-file", volume.log)
    [daemon] = volume.daemons
    assert "softhsm" not in Path(f"/proc/{daemon}/maps").read_text()
    assert Path(f"/proc/{daemon}/task/{daemon}/children").read_text() == ""
    (volume.mountpoint / "a").write_bytes(b"before" * 2000)
    shutil.move(token.tokens, tmp_path / "away")
    (volume.mountpoint / "b").write_bytes(b"during" * 2000)
    assert (volume.mountpoint / "a").read_bytes() == b"before" * 2000
    assert memory_with(daemon, PIN.encode()) == []
    volume.umount()
    done = volume.tdefs("mount", volume.backing, volume.mountpoint, *unlock, check=False)
    assert done.returncode == Exit.KEY_SERVER_UNREACHABLE
    assert "trying again for up to" in done.stderr
    assert not volume.is_mounted
    for file in (volume.log, volume.keystore, Path(f"{volume.keystore}.history")):
        assert PIN not in file.read_text(), file


def memory_with(pid: int, text: bytes) -> list[str]:
    """The writable regions of a process's memory in which a text is."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, mode = line.split()[:2]
            start, end = (int(one, 16) for one in place.split("-"))
            if mode.startswith("rw"):
                memory.seek(start)
                if text in memory.read(end - start):
                    found.append(line)
    return found

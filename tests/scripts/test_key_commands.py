"""The sample key commands in scripts/key-commands: each makes a volume and unlocks it, and shows no secret."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from tdefs.errors import Exit
from tests.support.terminal import Terminal
from tests.support.volume import TDEFS
from tests.support.workspace import Workspace

SAMPLES = Path(__file__).parents[2] / "scripts" / "key-commands"
PASSPHRASE = "grüße, aus 'dem' $HOME"
PIN = "648219"
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


class Place:
    """A directory with a volume to be made, whose keystore's name is hard on shells."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.backing = root / "backing"
        self.keystore = root / "it's the keystore"
        self.directory = root / "it's the keystore.d"
        self.samples = root / "samples"
        # Debian's /bin/sh is dash; that a sample has bash's features would show.
        shutil.copytree(SAMPLES, self.samples)
        #: What the key command finds: tdefs takes nothing from its caller, so it stands in the configuration.
        self.environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.config = root / "tdefs.yaml"

    def command(self, sample: str, arguments: str) -> str:
        return f"{shlex.quote(str(self.samples / sample))} {arguments}"

    def credentials(self) -> Path:
        """A file with credentials for AWS."""
        file = self.root / "credentials"
        file.touch(0o600)
        file.write_text("[default]\naws_access_key_id = testing\naws_secret_access_key = testing\n")
        return file

    def words(self, action: str, command: str) -> list[str]:
        variables = "".join(f"  {name}: '{value}'\n" for name, value in self.environment.items())
        self.config.write_text(f"version: 1\nenvironment:\n{variables}")
        place = ["--keystore", str(self.keystore), "--key-command", command, "--config", str(self.config)]
        return [str(TDEFS), action, str(self.backing), *place]

    def run(self, action: str, command: str, expected: Exit = Exit.OK) -> str:
        """Runs tdefs without a terminal; returns what it printed."""
        done = subprocess.run(
            self.words(action, command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            start_new_session=True,
        )
        assert done.returncode == expected, done.stderr
        return done.stdout + done.stderr

    def ask(self, action: str, command: str, *answers: str) -> tuple[int, str]:
        """Runs tdefs on a terminal, answers what it asks, and returns its exit code and what was shown."""
        with Terminal([*self.words(action, command), "-R"]) as terminal:
            for number, answer in enumerate(answers):
                again = ", again" if number else ""
                terminal.expect(rf"Secret for the keystore \".*/it's the keystore\"{again}: ")
                terminal.press(f"{answer}\n")
            code, echo = terminal.end()
            assert echo
            return code, terminal.shown


@pytest.fixture
def place(workspace: Workspace) -> Place:
    return Place(workspace.directory("keycmd"))


def others(directory: Path) -> list[Path]:
    """What others than the owner may read, below a directory and itself."""
    return [path for path in (directory, *directory.rglob("*")) if path.stat().st_mode & 0o077]


def test_direct_entry_takes_the_key_itself_without_echo(place: Place) -> None:
    command = place.command("direct.sh", '%R "%p"')
    key = secrets.token_hex(32)
    spaced = " ".join(key[start : start + 8] for start in range(0, 64, 8))
    code, shown = place.ask("init", command, key, spaced)
    assert code == Exit.OK, shown
    assert key not in shown
    assert key[:8] not in shown
    assert place.ask("verify", command, key.upper())[0] == Exit.OK
    assert place.ask("verify", command, key[::-1])[0] == Exit.WRONG_SECRET
    assert place.ask("verify", command, key[1:])[0] == Exit.KEY_COMMAND_FAILED
    assert place.ask("verify", command, "\x04")[0] == Exit.KEY_COMMAND_FAILED


def test_a_key_mistyped_at_init_makes_no_volume(place: Place) -> None:
    key = secrets.token_hex(32)
    code, shown = place.ask("init", place.command("direct.sh", '%R "%p"'), key, key[::-1])
    assert code == Exit.KEY_COMMAND_FAILED
    assert "two different keys" in shown
    assert key not in shown
    assert not place.keystore.exists()
    assert not (place.backing / ".tdefs").exists()


@pytest.mark.slow
def test_passphrase_makes_the_key_with_a_salt_of_the_volumes_own(place: Place) -> None:
    command = place.command("passphrase.sh", '"%d" %R "%p"')
    code, shown = place.ask("init", command, PASSPHRASE, PASSPHRASE)
    assert code == Exit.OK, shown
    assert PASSPHRASE not in shown
    assert str(place.directory) in shown, "nobody was told to keep a copy of the salt"
    assert others(place.directory) == []
    assert os.listdir(place.directory) == ["passphrase.salt"]
    assert place.ask("verify", command, PASSPHRASE)[0] == Exit.OK
    assert place.ask("verify", command, PASSPHRASE + " ")[0] == Exit.WRONG_SECRET
    salt = place.directory / "passphrase.salt"
    salt.write_text(secrets.token_hex(16))
    assert place.ask("verify", command, PASSPHRASE)[0] == Exit.WRONG_SECRET


def test_short_passphrase_is_refused_and_leaves_nothing(place: Place) -> None:
    command = place.command("passphrase.sh", '"%d" %R "%p"')
    assert place.ask("init", command, "12345678901")[0] == Exit.KEY_COMMAND_FAILED
    assert not place.directory.exists()
    assert not (place.backing / ".tdefs").exists()


@pytest.fixture
def kms(place: Place) -> Iterator[Callable[..., str]]:
    """The command line of AWS, with a stand-in for the service; its keys are in its memory."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    place.environment |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_SHARED_CREDENTIALS_FILE": str(place.credentials()),
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_CONFIG_FILE": "/nonexistent",
        "NO_PROXY": "127.0.0.1",
    }

    def aws(*words: str) -> str:
        command = ["aws", "--output", "json", "kms", *words]
        environment = {**os.environ, **place.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    try:
        yield aws
    finally:
        server.stop()


def new_kms_key(aws: Callable[..., str]) -> str:
    key: str = json.loads(aws("create-key"))["KeyMetadata"]["KeyId"]
    return key


@pytest.mark.slow
def test_aws_kms_keeps_the_key_encrypted_and_decrypts_it_each_time(place: Place, kms: Callable[..., str]) -> None:
    command = place.command("aws-kms.sh", '"%d"')
    place.run("init", command, Exit.KEY_COMMAND_FAILED)  # which key of AWS KMS is not said
    place.environment["TDEFS_AWS_KMS_KEY"] = kms_key = new_kms_key(kms)
    place.run("init", command)
    assert os.listdir(place.directory) == ["aws-kms.wrapped"]
    assert others(place.directory) == []
    del place.environment["TDEFS_AWS_KMS_KEY"]
    place.run("verify", command)
    # Encrypted for another use of the same key.
    wrapped = place.directory / "aws-kms.wrapped"
    good = wrapped.read_bytes()
    foreign = json.loads(kms("generate-data-key-without-plaintext", "--key-id", kms_key, "--key-spec", "AES_256"))
    wrapped.write_bytes(base64.b64decode(foreign["CiphertextBlob"]))
    place.run("verify", command, Exit.KEY_COMMAND_FAILED)
    wrapped.write_bytes(good)
    place.run("verify", command)
    place.environment["AWS_DEFAULT_REGION"] = "us-east-1"  # which has no such key
    place.run("verify", command, Exit.KEY_COMMAND_FAILED)


def test_aws_kms_out_of_reach_makes_no_volume(place: Place) -> None:
    place.environment |= {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_SHARED_CREDENTIALS_FILE": str(place.credentials()),
        "AWS_DEFAULT_REGION": "eu-central-1",
        "TDEFS_AWS_KMS_KEY": "alias/tdefs",
    }
    place.run("init", place.command("aws-kms.sh", '"%d"'), Exit.KEY_COMMAND_FAILED)
    assert not place.directory.exists()
    assert not (place.backing / ".tdefs").exists()


@pytest.fixture
def card(place: Place) -> None:
    """A token of SoftHSM with an RSA key where a PIV card has its key management key."""
    configuration = place.root / "softhsm2.conf"
    tokens = place.root / "tokens"
    tokens.mkdir(mode=0o700)
    configuration.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    place.environment |= {"SOFTHSM2_CONF": str(configuration), "TDEFS_PIV_MODULE": str(SOFTHSM)}
    environment = {**os.environ, **place.environment}
    tool = ["pkcs11-tool", "--module", str(SOFTHSM)]
    for words in (
        [*tool, "--slot-index", "0", "--init-token", "--label", "PIV", "--so-pin", "12345678"],
        [*tool, "--init-pin", "--login", "--so-pin", "12345678", "--new-pin", PIN],
        [*tool, "--login", "--pin", PIN, "--keypairgen", "--key-type", "rsa:2048", "--id", "03"],
    ):
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("card")
def test_card_with_its_pin_typed_on_the_terminal(place: Place) -> None:
    command = place.command("piv.sh", '"%d" %R "%p"')
    code, shown = place.ask("init", command, PIN, PIN)
    assert code == Exit.OK, shown
    assert PIN not in shown
    assert os.listdir(place.directory) == ["piv.wrapped"]
    assert others(place.directory) == []
    assert place.ask("verify", command, PIN)[0] == Exit.OK
    code, shown = place.ask("verify", command, "000000")
    assert code == Exit.KEY_COMMAND_FAILED
    assert "CKR_PIN_INCORRECT" in shown, (
        "who mistypes a PIN three times has a blocked card, and must see the reason"
    )
    assert os.listdir(place.directory) == ["piv.wrapped"]


@pytest.mark.usefixtures("card")
def test_card_with_its_pin_in_a_file(place: Place) -> None:
    command = place.command("piv.sh", '"%d"')
    place.run("init", command, Exit.KEY_COMMAND_FAILED)
    pin_file = place.root / "pin"
    pin_file.touch(0o600)
    pin_file.write_text(f"{PIN}\n")
    place.environment["TDEFS_PIV_PIN_FILE"] = str(pin_file)
    place.run("init", command)
    place.run("verify", command)
    delete = ["--delete-object", "--type", "privkey", "--id", "03"]
    subprocess.run(
        ["pkcs11-tool", "--module", str(SOFTHSM), "--login", "--pin", PIN, *delete],
        env={**os.environ, **place.environment},
        capture_output=True,
        check=True,
    )
    place.run("verify", command, Exit.KEY_COMMAND_FAILED)


def test_mount_asks_on_the_terminal_and_serves_without_it(scratch: Workspace) -> None:
    volume = scratch.volume()
    key = secrets.token_hex(32)
    unlock = ["--key-command", f'{SAMPLES / "direct.sh"} %R "%p"', "-R"]
    made = [str(TDEFS), "init", str(volume.backing), "--keystore", str(volume.keystore), *unlock]
    mounted = [
        str(TDEFS),
        "mount",
        str(volume.backing),
        str(volume.mountpoint),
        "--log-file",
        str(volume.log),
        *unlock,
    ]
    for words, times in ((made, 2), (mounted, 1)):
        with Terminal(words) as terminal:
            for _ in range(times):
                terminal.expect("Secret for the keystore .*: ")
                terminal.press(f"{key}\n")
            assert terminal.end() == (Exit.OK, True)
    (volume.mountpoint / "file").write_text("still served, with the terminal gone")
    assert volume.is_mounted
    volume.umount()
    assert key not in volume.log.read_text()


@pytest.mark.parametrize("sample", sorted(path.name for path in SAMPLES.iterdir()))
def test_sample_called_wrongly_tells_how_it_is_used_and_prints_no_key(sample: str) -> None:
    done = subprocess.run(
        [SAMPLES / sample], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{sample}: usage: {sample}" in done.stderr

"""The promises of tdefs.keys.protectors: passphrase, command and recovery code."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.protectors.base import NotMineError, Protector, WrongSecretError
from tdefs.keys.protectors.command import CommandProtector, KeyCommand
from tdefs.keys.protectors.passphrase import PassphraseProtector, ScryptCost
from tdefs.keys.protectors.recovery import RecoveryCodeProtector, show_code
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret
from tests.unit.keys.keystore_samples import CHEAP, KEY_HEX, PASSPHRASE, VOLUME_ID, everything_shown, passphrase

PROTECTOR_KEY = bytes(range(100, 132))
CONTEXT = WrapContext(VOLUME_ID, "protector key by test", "pr_1", 0, "pr_1")
OTHER_CONTEXTS = [
    replace(CONTEXT, volume_id=bytes(16)),
    replace(CONTEXT, purpose="protector key by other"),
    replace(CONTEXT, key_name="pr_2"),
    replace(CONTEXT, round=1),
    replace(CONTEXT, wrapped_by="pr_2"),
    # The same letters, divided otherwise.
    replace(CONTEXT, key_name="pr_1p", wrapped_by="r_1"),
]
PROTECTORS: list[Protector] = [
    passphrase(),
    CommandProtector(f"echo {KEY_HEX}"),
    RecoveryCodeProtector(show_code(4711).encode),
]


def entry_of(protector: Protector) -> ProtectorEntry:
    wrapped = protector.wrap(PROTECTOR_KEY, CONTEXT)
    now = datetime.now(UTC)
    return ProtectorEntry("pr_1", protector.kind, now, "mk_1", wrapped.params, wrapped.wrapped)


@pytest.mark.parametrize("protector", PROTECTORS, ids=lambda protector: protector.kind)
def test_wrapped_key_comes_back_in_its_own_context_only(protector: Protector) -> None:
    entry = entry_of(protector)
    assert protector.unwrap(entry, CONTEXT) == PROTECTOR_KEY
    assert PROTECTOR_KEY not in entry.wrapped
    for other in OTHER_CONTEXTS:
        with pytest.raises(WrongSecretError):
            protector.unwrap(entry, other)


@pytest.mark.parametrize("protector", PROTECTORS, ids=lambda protector: protector.kind)
def test_entry_of_another_kind_is_not_mine(protector: Protector) -> None:
    with pytest.raises(NotMineError):
        protector.unwrap(replace(entry_of(protector), kind="kmip"), CONTEXT)


@pytest.mark.parametrize("protector", PROTECTORS, ids=lambda protector: protector.kind)
def test_parameter_that_the_kind_never_writes_is_damage(protector: Protector) -> None:
    entry = entry_of(protector)
    with pytest.raises(TdefsError) as caught:
        protector.unwrap(replace(entry, params={**entry.params, "strange": 1}), CONTEXT)
    assert caught.value.exit_code == Exit.KEYSTORE_DAMAGED
    assert "protector pr_1" in caught.value.detail


def test_wrapping_twice_gives_different_bytes() -> None:
    first, second = (wrap_secret(bytes(32), PROTECTOR_KEY, CONTEXT) for _ in range(2))
    assert first[:12] != second[:12]
    assert first[12:] != second[12:]


@pytest.mark.parametrize("size", [0, 11, 12, 59, 61, 4096])
def test_wrapped_key_of_another_length_does_not_unwrap(size: int) -> None:
    with pytest.raises(UnwrapFailedError):
        unwrap_secret(bytes(32), bytes(size), CONTEXT)


def test_context_bytes_are_the_documented_layout() -> None:
    expected = (
        b"tdefs v1 wrap"
        + VOLUME_ID
        + b"\x00\x00\x00\x00"
        + b"\x15protector key by test"
        + b"\x04pr_1"
        + b"\x04pr_1"
    )
    assert CONTEXT.to_bytes() == expected


def test_default_cost_is_the_promised_one_and_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[dict[str, int]] = []

    def cheap(*, salt: bytes, length: int, **cost: int) -> Scrypt:
        used.append(cost)
        return Scrypt(salt=salt, length=length, n=16, r=1, p=1)  # the promised cost takes a gibibyte

    monkeypatch.setattr("tdefs.keys.protectors.passphrase.Scrypt", cheap)
    assert ScryptCost() == ScryptCost(n=1048576, r=8, p=1)
    params = entry_of(PassphraseProtector(lambda: PASSPHRASE)).params
    assert {name: params[name] for name in ("kdf", "n", "r", "p")} == {"kdf": "scrypt", "n": 2**20, "r": 8, "p": 1}
    assert len(bytes.fromhex(str(params["salt"]))) == 16
    assert used == [{"n": 2**20, "r": 8, "p": 1}]


def test_each_wrapping_has_its_own_salt() -> None:
    assert entry_of(passphrase()).params["salt"] != entry_of(passphrase()).params["salt"]


@pytest.mark.parametrize(
    "change",
    [
        {"n": 2**22, "r": 16},  # 8 GiB
        {"n": 2**30},
        {"n": 2**62},
        {"n": 2**17, "r": 8, "p": 2**20},
        {"r": 2**40},
        {"n": 100},
        {"n": 1},
        {"n": 0},
        {"n": 2**16, "r": 1},  # undefined by RFC 7914
        {"n": "16"},
        {"p": 0},
        {"salt": ""},
        {"salt": "00" * 15},
        {"salt": 7},
        {"kdf": "md5"},
        {"pepper": "x"},
    ],
    ids=str,
)
def test_absurd_parameters_are_damage_found_before_any_work(change: Mapping[str, str | int]) -> None:
    entry = entry_of(passphrase())
    began = time.monotonic()
    with pytest.raises(TdefsError) as caught:
        passphrase().unwrap(replace(entry, params={**entry.params, **change}), CONTEXT)
    assert caught.value.exit_code == Exit.KEYSTORE_DAMAGED
    assert time.monotonic() - began < 1


def test_heaviest_allowed_cost_is_4_gib_and_4_times_the_default_work() -> None:
    assert ScryptCost(n=2**21, r=8).is_sane()
    assert not ScryptCost(n=2**22, r=8).is_sane()
    assert ScryptCost(p=4).is_sane()
    assert not ScryptCost(p=5).is_sane()
    assert CHEAP.is_sane()


def test_lack_of_memory_is_an_error_with_the_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(**_: object) -> None:
        raise MemoryError

    entry = entry_of(passphrase())
    monkeypatch.setattr("tdefs.keys.protectors.passphrase.Scrypt", no_memory)
    with pytest.raises(TdefsError, match="memory") as caught:
        PassphraseProtector(lambda: PASSPHRASE).wrap(PROTECTOR_KEY, CONTEXT)
    assert "1024 MiB" in caught.value.detail
    with pytest.raises(TdefsError, match="memory"):
        passphrase().unwrap(entry, CONTEXT)


@pytest.mark.parametrize("text", [b"", b"12345678901"])
def test_short_passphrase_is_refused_at_creation(text: bytes) -> None:
    with pytest.raises(TdefsError) as caught:
        passphrase(text).wrap(PROTECTOR_KEY, CONTEXT)
    assert caught.value.exit_code == (Exit.PASSPHRASE_TOO_SHORT if text else Exit.NO_SECRET)
    if text:
        assert text.decode() not in everything_shown(caught.value)


def test_empty_passphrase_is_refused_at_unlocking_and_a_short_one_is_only_wrong() -> None:
    entry = entry_of(passphrase())
    with pytest.raises(TdefsError) as caught:
        passphrase(b"").unwrap(entry, CONTEXT)
    assert caught.value.exit_code == Exit.NO_SECRET
    with pytest.raises(WrongSecretError):
        passphrase(b"short").unwrap(entry, CONTEXT)


def test_passphrase_is_asked_for_once() -> None:
    asked: list[None] = []
    protector = PassphraseProtector(lambda: asked.append(None) or PASSPHRASE, cost=CHEAP)  # type: ignore[func-returns-value]
    entry = entry_of(protector)
    protector.unwrap(entry, CONTEXT)
    assert len(asked) == 1


def test_command_is_run_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    protector = CommandProtector(f"echo run >> {runs}; echo {KEY_HEX}")
    protector.unwrap(entry_of(protector), CONTEXT)
    assert runs.read_text() == "run\n"


@pytest.mark.parametrize("end", ["", "\\n", "\\n\\n\\n", "\\r\\n"])
def test_trailing_newlines_of_a_key_command_are_stripped(end: str) -> None:
    assert KeyCommand(f"printf '{KEY_HEX}{end}'").read_key() == bytes.fromhex(KEY_HEX)


LEAK = "feedface"


@pytest.mark.parametrize(
    ("command", "message", "detail"),
    [
        (f"echo {LEAK}; echo {LEAK} >&2; exit 3", "failed with exit status 3", "printed 9 bytes on stderr"),
        (f"echo {LEAK} >&2; kill -9 $$", "ended by signal 9", "printed 9 bytes on stderr"),
        (f"echo {LEAK}", "wrong length", "it printed 8 characters"),
        (f"echo {KEY_HEX}{LEAK}", "wrong length", "it printed 72 characters"),
        (f"echo ' {KEY_HEX[1:]}'x", "wrong length", "it printed 65 characters"),
        ("true", "wrong length", "it printed 0 characters"),
        (f"echo {KEY_HEX[:-8]}{LEAK[:-1]}g", "not hexadecimal", ""),
        (f"printf '{KEY_HEX[:32]}\\n{KEY_HEX[:23]}{LEAK}'", "not hexadecimal", ""),
        (f"printf '\\377{KEY_HEX[:55]}{LEAK}'", "not hexadecimal", ""),
        (f"while :; do echo {LEAK}; done", "wrong length", "more than 4096"),
        (f"echo {KEY_HEX}; echo {LEAK} >&2", "messages on stderr", "printed 9 bytes on stderr"),
        ("nonexistent-command-of-tdefs", "exit status 127", "on stderr"),
        ("echo \0", "could not run", "null"),
    ],
)
def test_each_failure_of_a_key_command_is_told_apart_and_shows_no_output(
    command: str, message: str, detail: str
) -> None:
    with pytest.raises(TdefsError) as caught:
        KeyCommand(command).read_key()
    assert caught.value.exit_code == Exit.KEY_COMMAND_FAILED
    assert message in caught.value.message
    assert detail in caught.value.detail
    shown = everything_shown(caught.value) + caught.value.render()
    assert LEAK not in shown
    assert KEY_HEX[:16] not in shown


@pytest.mark.parametrize(
    "command",
    [
        "echo $$ > {pid}; echo feedface; sleep 100",
        "sleep 100 & echo $! > {pid}; wait",
        "sleep 100 & echo $! > {pid}; exit 0",
        "echo $$ > {pid}; exec yes >&2",
        "echo $$ > {pid}; exec >&- 2>&-; sleep 100",
    ],
    ids=["hangs", "child hangs", "left in background", "floods stderr", "closed its output"],
)
def test_hanging_key_command_times_out_and_leaves_no_process(command: str, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    began = time.monotonic()
    with pytest.raises(TdefsError, match=r"did not finish within 0\.5 seconds") as caught:
        KeyCommand(command.format(pid=pid_file), timeout_seconds=0.5).read_key()
    assert time.monotonic() - began < 5
    assert caught.value.exit_code == Exit.KEY_COMMAND_FAILED
    assert "feedface" not in everything_shown(caught.value)
    assert_ends(int(pid_file.read_text()))


def assert_ends(pid: int) -> None:
    """A killed orphan is gone, or a zombie if this host's init reaps slowly."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} still runs")


def test_stdin_of_a_key_command_is_empty() -> None:
    assert KeyCommand(f"cat; echo {KEY_HEX}").read_key() == bytes.fromhex(KEY_HEX)


def test_key_command_leaves_no_descriptor_open() -> None:
    gc.collect()  # else what other tests have left is closed meanwhile
    before = os.listdir("/proc/self/fd")
    KeyCommand(f"echo {KEY_HEX}").read_key()
    with pytest.raises(TdefsError):
        KeyCommand("sleep 100", timeout_seconds=0.1).read_key()
    assert os.listdir("/proc/self/fd") == before


def test_one_command_gives_each_volume_another_wrapping_key() -> None:
    protector = CommandProtector(f"echo {KEY_HEX}")
    keys = {protector.wrapping_key(bytes.fromhex(KEY_HEX), context) for context in (CONTEXT, *OTHER_CONTEXTS)}
    assert len(keys) == 1 + len(OTHER_CONTEXTS)

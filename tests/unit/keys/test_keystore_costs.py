"""Whoever can write to the keystore cannot make unlocking it take long.

Covers tdefs/keys/keystore/checking.py and memory.py.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import tdefs
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.changes import add_protector, change_protector
from tdefs.keys.keystore.entries import Document
from tdefs.keys.keystore.file import Keystore, Unlocked, create_keystore, load_keystore
from tdefs.keys.keystore.text import serialise
from tdefs.keys.memory import available_bytes
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.protectors.passphrase import MAX_TOTAL_WORK, PassphraseProtector, ScryptCost
from tests.support.account import Account
from tests.support.children import in_child
from tests.unit.keys.keystore_samples import VOLUME_ID, WRONG_PASSPHRASE, new_keystore, passphrase

_MCL_FUTURE_ONFAULT = 6
_MIB = 1 << 20
#: Less than one derivation of the default cost takes anywhere.
AT_ONCE_SECONDS = 1.0


def forged(path: Path, count: int, kind: str = "passphrase", **params: int) -> Path:
    """Write a keystore that somebody without a secret has made of another: it has ``count`` entries of a kind."""
    new_keystore(path)
    document = load_keystore(path).document
    (entry,) = document.protectors
    entries = tuple(
        replace(entry, id=f"pr_{number}", kind=kind, params={**entry.params, **params})
        for number in range(1, count + 1)
    )
    path.write_bytes(serialise(replace(document, protectors=entries)))
    return path


def refused_at_once(act: Callable[[], object]) -> TdefsError:
    began = time.monotonic()
    with pytest.raises(TdefsError) as caught:
        act()
    assert time.monotonic() - began < AT_ONCE_SECONDS
    return caught.value


@pytest.mark.parametrize("count", [17, 900])
@pytest.mark.parametrize("kind", ["passphrase", "command", "recovery-code", "this-host", "kmip", "aws-kms"])
def test_more_than_16_protectors_of_one_kind_are_damage_found_before_any_is_tried(
    tmp_path: Path, kind: str, count: int
) -> None:
    path = forged(tmp_path / "keystore", count, kind)
    error = refused_at_once(lambda: load_keystore(path).unlock(passphrase(WRONG_PASSPHRASE)))
    assert error.exit_code is Exit.KEYSTORE_DAMAGED
    assert f"{count} protectors of kind {kind}, and the most is 16" in error.detail


@pytest.mark.parametrize(("count", "n"), [(9, 2**21), (16, 2**21), (5, 2**20 * 4)])
def test_costs_of_all_passphrases_are_limited_together(tmp_path: Path, count: int, n: int) -> None:
    path = forged(tmp_path / "keystore", count, n=n, r=8)
    error = refused_at_once(lambda: load_keystore(path).unlock(passphrase(WRONG_PASSPHRASE)))
    assert error.exit_code is Exit.KEYSTORE_DAMAGED


def test_one_absurd_entry_is_refused_before_those_ahead_of_it_are_tried(tmp_path: Path) -> None:
    path = tmp_path / "keystore"
    forged(path, 2, n=2**20, r=8)
    document = load_keystore(path).document
    absurd = replace(document.protectors[1], params={**document.protectors[1].params, "p": 2**18})
    path.write_bytes(serialise(replace(document, protectors=(document.protectors[0], absurd))))
    error = refused_at_once(lambda: load_keystore(path).unlock(passphrase(WRONG_PASSPHRASE)))
    assert "protector pr_2" in error.detail


@pytest.mark.slow
def test_the_most_expensive_keystore_costs_a_wrong_passphrase_as_much_as_16_of_the_default_cost(
    tmp_path: Path,
) -> None:
    # a sixteenth of it, and what one of these takes here
    one = ScryptCost(n=2**16)
    assert 16 * ScryptCost().work() == MAX_TOTAL_WORK
    began = time.monotonic()
    with pytest.raises(TdefsError):
        load_keystore(forged(tmp_path / "one", 1, n=one.n, r=8)).unlock(passphrase(WRONG_PASSPHRASE))
    single = time.monotonic() - began
    began = time.monotonic()
    with pytest.raises(TdefsError) as caught:
        load_keystore(forged(tmp_path / "most", 16, n=one.n, r=8)).unlock(passphrase(WRONG_PASSPHRASE))
    assert caught.value.exit_code is Exit.WRONG_SECRET
    assert time.monotonic() - began < 16 * single * 3 + AT_ONCE_SECONDS


def test_16_protectors_of_a_kind_fit_and_a_17th_is_refused_before_its_secret_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "keystore"
    create_keystore(path, VOLUME_ID, passphrase())
    unlocked = load_keystore(path).open(passphrase())
    for _ in range(15):
        unlocked, _ = add_protector(unlocked, passphrase(), "")
    assert load_again(path, unlocked).unlock(passphrase())

    def never() -> bytes:
        raise AssertionError

    error = refused_at_once(lambda: add_protector(unlocked, PassphraseProtector(never), ""))
    assert error.exit_code is Exit.KEYSTORE_FULL
    assert "protector list" in error.hint
    other, id = add_protector(unlocked, CommandProtector("printf %%064d 7"), "")
    error = refused_at_once(lambda: change_protector(other, id, PassphraseProtector(never)))
    assert error.exit_code is Exit.KEYSTORE_FULL
    change_protector(other, "pr_3", passphrase())


def load_again(path: Path, unlocked: Unlocked) -> Keystore:
    path.write_bytes(serialise(unlocked.document))
    return load_keystore(path)


def test_a_passphrase_is_refused_that_would_make_the_keystore_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "keystore"
    create_keystore(path, VOLUME_ID, passphrase())
    unlocked = load_keystore(path).open(passphrase())
    full = replace(unlocked, document=_padded(unlocked.document))
    with pytest.raises(TdefsError) as caught:
        add_protector(full, PassphraseProtector(lambda: b"a long passphrase", cost=ScryptCost(n=2**14)), "")
    assert caught.value.exit_code is Exit.KEYSTORE_FULL
    assert "--scrypt-cost" in caught.value.hint


def _padded(document: Document) -> Document:
    """Return it with passphrases that cost all that is allowed."""
    (entry,) = document.protectors
    more = {**entry.params, "n": 2**21, "r": 8}
    extra = tuple(replace(entry, id=f"pr_{number}", params=more) for number in range(2, 10))
    return replace(document, protectors=(entry, *extra))


# --- memory


def test_a_passphrase_beyond_the_limit_of_address_space_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    path = forged(tmp_path / "keystore", 1, n=2**20, r=8)

    def limited() -> tuple[int, str]:
        resource.setrlimit(resource.RLIMIT_AS, (700 * _MIB, 700 * _MIB))
        try:
            load_keystore(path).unlock(passphrase())
        except TdefsError as error:
            return error.exit_code, error.render()
        return 0, ""

    code, said = in_child(limited)
    assert code == Exit.OS_ERROR
    assert "not enough memory to derive a key from the passphrase" in said
    assert "it takes 1024 MiB" in said
    assert "HINT:  free memory" in said


#: Unlocks the keystore that the command line names, as the user and group that it names.
_UNLOCK_WITH_LITTLE = """
import ctypes, os, resource, sys
from pathlib import Path
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.protectors.passphrase import PassphraseProtector

path, uid, gid, limit, flags = Path(sys.argv[1]), *map(int, sys.argv[2:])
keystore = load_keystore(path)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
assert ctypes.CDLL(None, use_errno=True).mlockall(flags) == 0
try:
    bytearray(1 << 26)
except MemoryError:
    print(len(list(keystore.unlock(PassphraseProtector(lambda: b"a long passphrase")))))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes the user of the server")
def test_a_user_who_may_lock_little_memory_can_unlock_in_a_process_that_locks_all_it_gets(tmp_path: Path) -> None:
    """With MCL_FUTURE each allocation beyond RLIMIT_MEMLOCK fails, and scrypt takes 64 MiB here.

    In a process of its own: one that has run many tests takes as much for itself.
    """
    account = Account.of_server()
    path = tmp_path / "keystore"
    create_keystore(path, VOLUME_ID, PassphraseProtector(lambda: b"a long passphrase", cost=ScryptCost(n=2**16)))
    numbers = map(str, (account.uid, account.gid, 4 * _MIB, _MCL_FUTURE_ONFAULT))
    command = [sys.executable, "-c", _UNLOCK_WITH_LITTLE, str(path), *numbers]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(tdefs.__file__).parents[1]
    )
    assert done.stdout == "1\n", done.stderr


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 3000),
        ({"own": "0::/a/b\n", "cg/a/memory.max": "1024000\n", "cg/a/memory.current": "24000\n"}, 1000 + 1000),
        ({"own": "0::/a\n", "cg/a/memory.max": "max\n", "cg/a/memory.current": "24000\n"}, 3000),
        (
            {
                "own": "0::/a\n",
                "cg/a/memory.max": "1024000\n",
                "cg/a/memory.current": "1024000\n",
                "cg/a/memory.stat": "anon 1\ninactive_file 512000\nactive_file 256000\n",
                "cg/a/memory.swap.max": "0\n",
            },
            750,
        ),
        (
            {
                "own": "9:cpu:/a\n4:memory:/elsewhere\n",
                "cg/memory/memory.limit_in_bytes": "512000\n",
                "cg/memory/memory.usage_in_bytes": "256000\n",
                "cg/memory/memory.stat": "total_inactive_file 256000\n",
            },
            500 + 1000,
        ),
    ],
    ids=["host", "group", "unlimited", "files-of-a-group", "version-1-in-a-container"],
)
def test_memory_of_the_host_and_of_the_container_is_what_there_is(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    """In KiB: 2000 of the host, and 1000 of swap."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 2000 kB\nSwapFree: 1000 kB\n")
    for name, text in {"own": "", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = available_bytes(tmp_path / "meminfo", tmp_path / "own", tmp_path / "cg")
    assert abs(found - expected * 1024) < 32 * 1024

"""Keys and secrets change while clients commit: nobody notices, and what was acknowledged is there."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tdefs.keys.keystore.file import load_keystore
from tests.crash.ledger import Ledger
from tests.postgres.replication import Host
from tests.support.processes import wait_until
from tests.support.workspace import Workspace

pytestmark = pytest.mark.slow(seconds=50)

ROUNDS = 2
#: Commits that must follow each change.
COMMITS = 20


def test_rotations_and_new_secrets_under_load(scratch: Workspace) -> None:
    host = Host.new(scratch, "load")
    host.make_primary(scratch)
    volume, ledger = host.volume, Ledger()
    ledger.set_up(host.server)

    def goes_on() -> bool:
        commits = ledger.commits
        return wait_until(lambda: ledger.commits > commits + COMMITS, 60)

    old_secrets: list[Path] = []
    # the rewrites make new files all the time: under each new round, too
    with ledger.clients(host.server, "rewrites", Random(5)):
        for _ in range(ROUNDS):
            volume.run("key", "rotate-master")
            assert goes_on()
            volume.run("key", "rotate", "dk_1")
            assert goes_on()
            old_secrets.append(volume.change_passphrase())
            assert goes_on()
    ledger.check(host.server)
    used = {one["round"]: one["files"] for one in volume.status()["data_keys"]}
    assert used.keys() == set(range(1, ROUNDS + 2))
    assert used[ROUNDS + 1] > 0, "no file was made under the newest round"
    assert volume.complaints() == []

    host.server.stop()
    volume.umount()
    for secret in old_secrets:
        assert not volume.opens_with(secret)
    volume.mount()
    host.server.start()
    ledger.check(host.server)
    assert load_keystore(volume.keystore).document.current_master_key().name == f"mk_{ROUNDS + 1}"

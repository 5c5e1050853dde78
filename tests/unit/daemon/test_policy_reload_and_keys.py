"""Keys may change while a daemon reads its policy again. Covers tdefs/daemon/policy_reload.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from tdefs.daemon.policy_reload import PolicyReload
from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.keystore.entries import Statements
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.volume.policy_choice import PolicyChoice
from tests.support.served_volume import DK_1, RING, VOLUME_ID


def test_a_policy_whose_key_went_while_it_was_read_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("version: 1\ndefault: dk_2\n")
    choice = PolicyChoice(file, load_policy(file))
    old = PolicyChoice(None, Policy.everything())
    changed: list[object] = []
    served = SimpleNamespace(
        request=SimpleNamespace(
            read_only=False, book=SimpleNamespace(change_policy=lambda *_, **__: changed.append("record"))
        ),
        forms=SimpleNamespace(ring=RING, plain_files=False),
        bound=SimpleNamespace(note_policy=changed.append),
        opener=SimpleNamespace(use_policy=changed.append),
        policy=old,
    )

    def read(_reload: PolicyReload) -> tuple[PolicyChoice, Statements]:
        served.forms.ring = KeyRing(VOLUME_ID, "dk_1", [DK_1])
        return choice, Statements(plain_files=False)

    monkeypatch.setattr(PolicyReload, "_read", read)
    with pytest.raises(TdefsError) as caught:
        trio.run(PolicyReload(cast(Any, served)).run)
    assert caught.value.exit_code == Exit.DATA_KEY_UNKNOWN
    assert served.policy is old
    assert changed == []

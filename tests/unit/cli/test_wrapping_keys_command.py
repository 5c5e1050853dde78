"""The commands for the keys on a server, with a key source that has none."""

from __future__ import annotations

from typing import Self

import pytest

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.main import build_parser
from tdefs.errors import Exit, TdefsError
from tdefs.keys.dialogue import Dialogue
from tdefs.keys.protectors.base import Obtained, Parameters, WrongSecretError
from tdefs.keys.sources.base import KeySource
from tdefs.keys.sources.settings import SettingsReader
from tdefs.keys.wrapping import WrapContext


class Token(KeySource):
    """A key source whose key never leaves it, and is not managed by tdefs."""

    kind = "token"

    @classmethod
    def from_settings(cls, read: SettingsReader, dialogue: Dialogue) -> Self:
        raise NotImplementedError

    def obtain(self, context: WrapContext) -> Obtained:
        raise NotImplementedError

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        raise NotImplementedError

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        raise NotImplementedError


@pytest.mark.parametrize(
    "words", [["keys"], ["create"], ["register", "--key-fd", "0"], ["activate"], ["revoke"], ["destroy"]]
)
def test_a_source_without_keys_on_a_server_is_a_usage_error(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Invocation, "key_source", lambda _self, _name: Token())
    uid = ["uid"] if words[0] in ("activate", "revoke", "destroy") else []
    args = build_parser("key-source").parse_args(["key-source", words[0], "kms1", *uid, *words[1:]])
    with pytest.raises(TdefsError) as caught:
        args.run(args)
    assert caught.value.exit_code is Exit.USAGE
    assert "token" in caught.value.detail

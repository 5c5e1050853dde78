"""The policy of a running mount can be exchanged: new files follow the new one, and no file becomes unreadable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tdefs.data.forms import Empty, Encrypted, Plain
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tests.support.served_volume import ServedVolume

EVERYTHING = Policy.everything()
FIRST, SECOND = "some.conf", "other.conf"


@pytest.fixture
def plain_configuration(tmp_path: Path) -> Policy:
    (tmp_path / "policy.yaml").write_text("version: 1\nkinds: {configuration: plain}\n")
    return load_policy(tmp_path / "policy.yaml")


@pytest.fixture
def served(tmp_path: Path, plain_configuration: Policy) -> Iterator[ServedVolume]:
    (tmp_path / "data").mkdir()
    volume = ServedVolume(tmp_path / "data", plain_configuration)
    yield volume
    volume.close()


def test_a_new_file_follows_the_policy_of_the_moment(served: ServedVolume, plain_configuration: Policy) -> None:
    served.create(FIRST, b"first")
    served.opener.use_policy(EVERYTHING)
    served.create(SECOND, b"second")
    assert isinstance(served.files.headers.form(served.inode(FIRST)), Plain)
    assert isinstance(served.files.headers.form(served.inode(SECOND)), Encrypted)
    served.opener.use_policy(plain_configuration)
    served.create("third.conf", b"third")
    assert isinstance(served.files.headers.form(served.inode("third.conf")), Plain)
    assert [served.read(path) for path in (FIRST, SECOND, "third.conf")] == [b"first", b"second", b"third"]


def test_a_plain_file_may_not_move_to_where_the_new_policy_encrypts(served: ServedVolume) -> None:
    served.create(FIRST, b"first")
    served.opener.use_policy(EVERYTHING)
    with pytest.raises(OSError, match="cross-device"):
        served.rename(FIRST, SECOND)


def test_an_open_file_keeps_its_form(served: ServedVolume) -> None:
    served.create(FIRST, bytes(8192))
    inode = served.inode(FIRST)
    file = served.opener.open(inode, writable=True)
    inode.opened()
    served.opener.use_policy(EVERYTHING)
    file.content.write(0, b"still plain")
    assert isinstance(inode.form, Plain)
    assert served.stored(FIRST).startswith(b"still plain")
    inode.closed()
    served.opener.close_if_unused(inode)


def test_a_closed_file_without_a_header_is_looked_at_again(served: ServedVolume) -> None:
    """A file of zeros that nobody has marked is plain under one policy, and undecided under the other."""
    (served.data / FIRST).write_bytes(bytes(100))
    inode = served.inode(FIRST)
    assert isinstance(served.files.headers.form(inode), Plain)
    served.opener.use_policy(EVERYTHING)
    assert served.files.headers.form(inode) == Empty(100)
    served.write(FIRST, 0, b"secret")
    assert isinstance(inode.form, Encrypted)
    assert served.read(FIRST) == b"secret" + bytes(94)

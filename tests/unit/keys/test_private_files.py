"""What is asked of the files of a key source. Covers tdefs/keys/private_files.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdefs.errors import Exit, TdefsError
from tdefs.keys.private_files import read_file


def test_bundle_of_all_public_authorities_is_read_and_a_file_of_any_size_is_not(tmp_path: Path) -> None:
    bundle = tmp_path / "ca-certificates.crt"
    bundle.write_bytes(b"x" * 219597)  # Debian 12's
    assert read_file(bundle, "CA", secret=False) == bundle.read_bytes()
    with bundle.open("ab") as file:
        file.truncate(1 << 21)
    with pytest.raises(TdefsError) as caught:
        read_file(bundle, "CA", secret=False)
    assert caught.value.exit_code == Exit.KEY_SOURCE_UNAVAILABLE

"""Tests lie beside what they test, and each file has a name of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import tdefs

TESTS = Path(__file__).parents[2]
PACKAGE = Path(tdefs.__file__).parent
#: Folders of tests/unit that test no package of tdefs: the benchmark, the volumes that are kept, and the layers.
OTHERS = {"bench", "golden", "layering"}


def test_no_two_test_files_have_one_name() -> None:
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, number in names.items() if number > 1] == []


def test_each_folder_of_unit_tests_has_the_name_of_a_package() -> None:
    folders = {path.parent.relative_to(TESTS / "unit").as_posix() for path in (TESTS / "unit").rglob("test_*.py")}
    assert [name for name in folders - OTHERS if not (PACKAGE / name).is_dir()] == []
    assert len(folders) > 10


def test_the_tests_of_a_file_stay_on_one_worker(request: pytest.FixtureRequest) -> None:
    """Otherwise each worker makes the fixtures of a file, and tests run beside those that they follow."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("there are no workers")
    assert request.node.nodeid.endswith("@tests/unit/layering/test_places_of_tests.py")

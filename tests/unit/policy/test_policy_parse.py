"""What the policy parser refuses, and with which words. Covers tdefs/policy/parse.py and tdefs/yamlfile.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdefs.errors import Exit, TdefsError
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy, parse_policy
from tdefs.yamlfile import MAX_BYTES

CONF = Path(__file__).parents[3] / "conf"


def refusal(data: bytes) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        parse_policy(data, "p.yaml")
    assert caught.value.exit_code is Exit.POLICY_INVALID
    return caught.value


def test_the_sample_policy_is_valid_and_without_warnings() -> None:
    policy = load_policy(CONF / "policy.yaml")
    assert policy.key_names() == {"dk_1", "dk_2"}
    assert policy.warnings == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "p.yaml:1: the file is empty"),
        ("# nothing\n", "p.yaml:1: the file is empty"),
        ("default: dk_1", 'p.yaml:1: the field "version" is missing'),
        ("version: 2", 'p.yaml:1: unknown version "2"'),
        ("version: '1'", 'p.yaml:1: unknown version "1"'),
        ("- 1", "p.yaml:1: a policy must be fields with values, not a list"),
        ("version: 1\ndefault:", "p.yaml:2: default must be a data key's name or plain, not nothing"),
        ("version: 1\ndefault: no", 'p.yaml:2: default must be a data key\'s name or plain, not "no"'),
        ("version: 1\ndefault: DK", 'p.yaml:2: default: "DK" is not a data key\'s name or plain'),
        ("version: 1\ndefault: " + "a" * 32, "p.yaml:2: default: "),
        ("version: 1\ndefault: [a]", "p.yaml:2: default must be a data key's name or plain, not a list"),
        ("version: 1\nunlisted_relations: plain", "p.yaml:2: unlisted_relations must not be plain"),
        ("version: 1\nkinds: {relation: plain}", "p.yaml:2: kinds: relation must not be plain"),
        ("version: 1\nkinds: {stray: plain}", "p.yaml:2: kinds: stray must not be plain"),
        ("version: 1\ndefault: a\ndefault: b", 'p.yaml:3: duplicate field "default", first on line 2'),
        ("version: 1\nkinds:\n  wal: a\n  wal: b", 'p.yaml:4: duplicate field "wal", first on line 3'),
        ("version: 1\ndefault: &x a", "p.yaml:2: YAML anchors and aliases are not supported"),
        ("version: 1\ndefault: *x", "p.yaml:2: YAML anchors and aliases are not supported"),
        ("version: !!int 1", "p.yaml:1: YAML tags are not supported"),
        ("version: 1\n---\nversion: 1", "p.yaml:2: a second YAML document begins here"),
        ("version: 1\ndefault: {", "p.yaml:2: not valid YAML: "),
        ("version: 1\n\tdefault: a", "p.yaml:2: not valid YAML: found character"),
        ("version: 1\ndefault: a\x01", "p.yaml:2: not valid YAML: special characters"),
        ('default: "\\UFFFFFFFF"', "p.yaml:1: not valid YAML: a value is out of range"),
        ("[a]: b", "p.yaml:1: a field's name must be a single word"),
        ("version: 1\nrelations: 5", "p.yaml:2: relations must be a list, not a single value"),
        ("version: 1\nrelations:", "p.yaml:2: relations must be a list, not nothing"),
        ("version: 1\nrelations:\n- {}", "p.yaml:3: an item of relations lacks database and relfilenodes and key"),
        (
            "version: 1\ndatabases:\n- {database: 4294967296, key: a}",
            'p.yaml:3: database must be a number from 0 to 4294967295, not "4294967296"',
        ),
        (
            "version: 1\ndatabases:\n- {database: '5', key: a}",
            'p.yaml:3: database must be a number from 0 to 4294967295, not "5"',
        ),
        (
            "version: 1\ndatabases:\n- {database: 5, key: a}\n- {database: 5, key: a}",
            "p.yaml:4: a second rule for database 5, the first is on line 3",
        ),
    ],
)
def test_a_wrong_policy_is_refused_with_its_line(text: str, expected: str) -> None:
    assert refusal(text.encode()).message.startswith(expected)


@pytest.mark.parametrize(
    ("relfilenodes", "expected"),
    [
        ("0", "relfilenode 0 is not a number from 1 to 4294967295"),
        ("4294967296", "relfilenode 4294967296 is not a number"),
        ("016385", "relfilenode 016385 is not a number"),
        ("1-4294967296", "relfilenode 4294967296 is not a number"),
        ("0x10", 'expected a relfilenode or a range of them, not "0x10"'),
        ("-5", 'expected a relfilenode or a range of them, not "-5"'),
        ("16384.5", "expected a relfilenode or a range of them"),
        ("16400-16390", "the range 16400-16390 is empty"),
        ("[1]", "expected a relfilenode or a range of them, not a list"),
        ("", "relfilenodes is an empty list"),
    ],
)
def test_a_wrong_relfilenode_is_refused(relfilenodes: str, expected: str) -> None:
    text = f"version: 1\nrelations:\n- database: 5\n  relfilenodes: [{relfilenodes}]\n  key: a"
    assert refusal(text.encode()).message.startswith(f"p.yaml:4: {expected}")


def test_contradictory_rules_are_refused_with_both_lines() -> None:
    text = b"""\
version: 1
relations:
- {database: 5, relfilenodes: [16384-16400], key: plain}
- {database: 6, relfilenodes: [16390], key: dk_1}
- {database: 5, relfilenodes: [16390], key: dk_1}
"""
    assert refusal(text).message == (
        "p.yaml:5: contradiction: relfilenode 16390 of database 5 is dk_1 here and plain on line 3"
    )


def test_the_same_rule_twice_is_only_a_warning_and_still_holds() -> None:
    policy = parse_policy(
        b"version: 1\nrelations:\n- {database: 5, relfilenodes: [10-20, 15-30, 12-13, 31], key: dk_1}", "p.yaml"
    )
    assert policy.warnings == (
        "p.yaml:3: relfilenode 12-13 of database 5 is listed twice, first on line 3",
        "p.yaml:3: relfilenode 15-20 of database 5 is listed twice, first on line 3",
    )
    assert [(entry.first, entry.last) for entry in policy.relfilenodes[5]] == [(10, 20), (21, 30), (31, 31)]


def test_all_errors_are_reported_at_once_in_order_of_lines() -> None:
    error = refusal(b"verison: 1\ndefault: NO\nkinds: {wla: a}\ndatabases:\n- 5\n- {database: x, key: a}\n")
    assert [line.split(": ")[0] for line in error.message.splitlines()] == [
        "p.yaml:1",
        "p.yaml:1",
        "p.yaml:2",
        "p.yaml:3",
        "p.yaml:5",
        "p.yaml:6",
    ]
    assert 'line 1: Perhaps you meant "version".' in error.hint
    assert 'line 3: Perhaps you meant "wal".' in error.hint


def test_text_that_is_not_utf8_is_refused_with_its_line() -> None:
    assert refusal(b"version: 1\ndefault: \xff").message == "p.yaml:2: the file is not valid UTF-8"


def test_a_huge_or_deep_file_is_refused_quickly() -> None:
    started = time.monotonic()
    assert "larger than" in refusal(b"#" * (MAX_BYTES + 1)).message
    assert "nested deeper" in refusal(b"[" * MAX_BYTES).message
    assert "nested deeper" in refusal(b"- " * (MAX_BYTES // 2)).message
    assert time.monotonic() - started < 5


def test_a_policy_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TdefsError, match="could not read policy file") as caught:
        load_policy(tmp_path / "missing.yaml")
    assert caught.value.exit_code is Exit.POLICY_INVALID


yaml_like = st.lists(
    st.sampled_from(
        [
            *("version", "default", "relations", "databases", "kinds", "database", "relfilenodes", "key", "wal"),
            *("1", "16385", "16390-16400", "plain", "dk_1", ": ", "\n", "\n  ", "- ", "[", "]", "{", "}", ", "),
            *('"', "'", "|", ">", "&a ", "*a", "!!int ", "? ", "#", "%YAML 1.1\n", "---\n", "...\n", "\t", "\\U"),
        ]
    )
).map("".join)


@given(
    st.one_of(st.binary(), yaml_like.map(str.encode), yaml_like.map(lambda text: f"version: 1\n{text}".encode()))
)
def test_any_bytes_are_a_policy_or_a_refusal(data: bytes) -> None:
    try:
        policy = parse_policy(data, "p.yaml")
    except TdefsError as error:
        assert error.exit_code is Exit.POLICY_INVALID
        assert all(line.startswith("p.yaml:") for line in error.message.splitlines())
    else:
        assert isinstance(policy, Policy)

"""What ``tdefs policy`` prints and returns. Covers tdefs/cli/policy/command.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tdefs.cli.main import build_parser
from tdefs.errors import Exit, TdefsError

TEXT = """\
version: 1
default: dk_1
relations:
  - {database: 16384, relfilenodes: [16385], key: dk_2}
kinds: {wal: plain}
"""


def run(*argv: str) -> int:
    args = build_parser("policy").parse_args(["policy", *argv])
    result = args.run(args)
    assert isinstance(result, int)
    return result


@pytest.fixture
def policy_file(tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(TEXT)
    return str(path)


def test_check_reports_warnings_and_ok(policy_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", policy_file) == 0
    warning, summary = capsys.readouterr().out.splitlines()
    assert warning.startswith(f"warning: {policy_file}:5: kinds: wal: plain: leaves the kind wal in the clear")
    assert summary == (
        f"{policy_file}: OK: 1 relfilenode rule, 0 database rules, 1 kind rule, 1 warning; data keys: dk_1, dk_2"
    )


def test_check_fails_with_the_exit_code_of_an_invalid_policy(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("version: 3")
    with pytest.raises(TdefsError) as caught:
        run("check", str(path))
    assert caught.value.exit_code is Exit.POLICY_INVALID


def test_explain_names_the_deciding_rule(policy_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "base/16384/16385_fsm.1", "--policy", policy_file) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert {name: value.strip() for name, value in lines.items()} == {
        "path": "base/16384/16385_fsm.1",
        "kind": "relation",
        "database": "16384",
        "relfilenode": "16385",
        "fork": "fsm",
        "segment": "1",
        "encrypted": "yes",
        "data key": "dk_2",
        "rule": f"{policy_file}:4: relfilenodes 16385 of database 16384: dk_2",
        "why": "the rule that names its relfilenode",
    }


def test_explain_says_plain(policy_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("explain", "pg_wal/000000010000000000000001", "--policy", policy_file)
    out = capsys.readouterr().out
    assert "encrypted:   no, plain" in out
    assert "data key" not in out


def test_explain_without_a_policy_says_the_default_key(capsys: pytest.CaptureFixture[str]) -> None:
    run("explain", "postgresql.conf")
    assert "the keystore's default data key" in capsys.readouterr().out


def test_explain_json_is_complete(policy_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("explain", "postgresql.conf", "--policy", policy_file, "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["kind"] == "configuration"
    assert answer["encrypted"] is True
    assert answer["data_key"] == "dk_1"
    assert answer["relfilenode"] is None


def test_explain_prints_a_path_that_is_not_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    run("explain", os.fsdecode(b"log/\xff"))
    assert r"log/\udcff" in capsys.readouterr().out

"""PostgreSQL's settings are read as PostgreSQL itself would read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdefs.pg.settings import Setting, parse_settings, read_settings


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fsync = off", [("fsync", "off")]),
        ("fsync off", [("fsync", "off")]),
        ("fsync=off # comment", [("fsync", "off")]),
        ("  FSYNC='off'", [("fsync", "off")]),
        ("#fsync = off", []),
        ("", []),
        ("archive_command = 'cp ''%p'' /a\\tb # c'", [("archive_command", "cp '%p' /atb # c")]),
        ("plpgsql.check = on", [("plpgsql.check", "on")]),
        ("fsync", []),
        ("fsync = off trailing", []),
        ("port = 5432", [("port", "5432")]),
        ("log_line_prefix = ''", [("log_line_prefix", "")]),
    ],
)
def test_lines_are_read_by_postgresqls_grammar(line: str, expected: list[tuple[str, str]]) -> None:
    assert list(parse_settings(line)) == expected


def test_later_files_and_the_command_line_win(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    (etc / "conf.d").mkdir(parents=True)
    (etc / "postgresql.conf").write_text(
        "fsync = on\nwork_mem = 1MB\nport = 1\ninclude_dir 'conf.d'\ninclude_if_exists 'nowhere'\ninclude 'more'\n"
    )
    (etc / "conf.d" / "a.conf").write_text("fsync = off\n")
    (etc / "conf.d" / "ignored.txt").write_text("fsync = on\n")
    (etc / "more").write_text("work_mem = 2MB\n")
    (tmp_path / "postgresql.conf").write_text("fsync = on  # not this one: config_file says another\n")
    (tmp_path / "postgresql.auto.conf").write_text("port = '2'\n")
    (tmp_path / "postmaster.opts").write_text(
        f'/usr/bin/postgres "-D" "{tmp_path}" "-c" "config_file={etc}/postgresql.conf" "--max-wal-size=1GB"\n'
    )
    assert read_settings(tmp_path) == {
        "fsync": Setting("off", f"{etc}/conf.d/a.conf"),
        "work_mem": Setting("2MB", f"{etc}/more"),
        "port": Setting("2", f"{tmp_path}/postgresql.auto.conf"),
        "config_file": Setting(f"{etc}/postgresql.conf", "the command line of the last start"),
        "max_wal_size": Setting("1GB", "the command line of the last start"),
    }


def test_a_file_that_includes_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "postgresql.conf").write_text("include 'postgresql.conf'\nfsync = off\n")
    assert read_settings(tmp_path)["fsync"].value == "off"


def test_no_files_are_no_settings(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == {}

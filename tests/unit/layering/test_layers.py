"""Dependencies point one way: cli → daemon → fuse → tree → data → (format, keys, policy)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tdefs

ROOT = Path(tdefs.__file__).parent
FUSE = {"pyfuse3", "trio"}
PURE_INPUT_AND_OUTPUT = {"os", "io", "pathlib", "shutil", "subprocess", "socket", "tempfile"}

#: What talks to a person; the program that uses the keys does that for them (tdefs.keys.dialogue).
TERMINAL = {"argparse", "getpass", "termios", "tdefs.doctor"}

SERVING = {"tdefs.data", "tdefs.tree", "tdefs.fuse", "tdefs.daemon"}
ABOVE = {"tdefs.cli", "tdefs.doctor", "argparse"}

#: What no module of a part may import, directly.
FORBIDDEN = {
    "format": FUSE | SERVING | ABOVE | {"tdefs.keys", "tdefs.policy", "tdefs.offline", "tdefs.pg", "tdefs.volume"},
    "keys": FUSE
    | SERVING
    | TERMINAL
    | {"tdefs.format", "tdefs.policy", "tdefs.offline", "tdefs.cli", "tdefs.volume"},
    "policy": FUSE | SERVING | {"tdefs.format", "tdefs.keys", "tdefs.offline", "tdefs.cli", "tdefs.volume"},
    "pg": FUSE | SERVING | {"tdefs.offline", "tdefs.cli"},
    "data": ABOVE | {"pyfuse3", "tdefs.tree", "tdefs.fuse", "tdefs.daemon", "tdefs.offline"},
    "tree": ABOVE | FUSE | {"tdefs.daemon", "tdefs.fuse", "tdefs.offline"},
    "fuse": ABOVE | {"tdefs.daemon", "tdefs.offline"},
    "daemon": ABOVE,
    "offline": FUSE | ABOVE | {"tdefs.tree", "tdefs.fuse", "tdefs.daemon"},
    "mounts": FUSE | SERVING | ABOVE,
    "volume": FUSE | ABOVE | {"tdefs.tree", "tdefs.fuse", "tdefs.daemon", "tdefs.offline", "tdefs.manifest"},
    "manifest": FUSE | ABOVE | {"tdefs.tree", "tdefs.fuse", "tdefs.daemon", "tdefs.offline"},
}


def imports_of(module: Path) -> set[str]:
    """Every module that a file imports, wherever in it, also under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import hides what is imported"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules_of(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py"))


def violations(part: str, forbidden: set[str]) -> list[str]:
    return [
        f"{module.relative_to(ROOT)} imports {name}"
        for module in modules_of(part)
        for name in sorted(imports_of(module))
        if any(name == one or name.startswith(one + ".") for one in forbidden)
    ]


@pytest.mark.parametrize("part", FORBIDDEN)
def test_dependencies_point_one_way(part: str) -> None:
    assert modules_of(part), f"there is no part {part}"
    assert violations(part, FORBIDDEN[part]) == []


def test_the_format_is_pure() -> None:
    assert violations("format", PURE_INPUT_AND_OUTPUT) == []


def test_the_path_classifier_and_the_policys_decision_are_pure() -> None:
    for name in ("paths", "model"):
        assert imports_of(ROOT / "policy" / f"{name}.py").isdisjoint(PURE_INPUT_AND_OUTPUT)


def talk_of(source: str) -> list[str]:
    """What a module prints, and the standard streams that it uses."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "input"):
            found.append(ast.unparse(node.func))
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdin", "sys.stdout", "sys.stderr"):
            found.append(ast.unparse(node))
    return found


def test_keys_print_nothing_and_ask_nobody() -> None:
    talking = {str(module.relative_to(ROOT)): talk_of(module.read_text()) for module in modules_of("keys")}
    assert {name: found for name, found in talking.items() if found} == {
        # a process of its own, whose stdin is a pipe
        "keys/sources/pkcs11/token.py": ["sys.stdin"],
    }


@pytest.mark.parametrize("line", ["print(1)", "input()", "import sys\nsys.stderr.write('x')"])
def test_talk_is_found(line: str) -> None:
    assert talk_of(line) != []


def test_only_the_parts_that_serve_a_mount_know_fuse() -> None:
    users = {
        module.parent.name
        for module in ROOT.rglob("*.py")
        if {name.split(".")[0] for name in imports_of(module)} & {"pyfuse3"}
    }
    assert users == {"fuse"}


def test_a_forbidden_import_is_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def late() -> None:\n    from tdefs.tree import inodes\n    import pyfuse3.asyncio\n")
    assert {"tdefs.tree", "tdefs.tree.inodes", "pyfuse3.asyncio"} <= imports_of(module)


@pytest.mark.parametrize("part", ["data", "tree", "fuse"])
def test_no_two_modules_of_a_part_need_each_other(part: str) -> None:
    """Not even under TYPE_CHECKING: of two such modules nobody can say which one is the lower one."""
    needs = {
        f"tdefs.{part}.{module.stem}": {name for name in imports_of(module) if name.startswith(f"tdefs.{part}.")}
        for module in modules_of(part)
    }
    while lowest := [name for name, needed in needs.items() if not needed & set(needs)]:
        for name in lowest:
            del needs[name]
    assert needs == {}

"""What lies in the backing directory is reached in one way: by descriptor, without links, and checked."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tdefs

ROOT = Path(tdefs.__file__).parent
#: What serves a mount, and so acts on what the kernel knows for whoever asks.
SERVING = (
    *("data/descriptors", "data/durability", "data/backing_store", "data/data_file", "data/reading", "data/zeros"),
    *("fuse/entries", "fuse/handles", "fuse/operations"),
    *("tree/attributes", "tree/checked_opening", "tree/contents", "tree/creating", "tree/directory_descriptors"),
    "tree/exchanging",
    *("tree/files", "tree/headers", "tree/held", "tree/identities", "tree/inodes", "tree/links", "tree/names"),
    *("tree/namespace", "tree/opening", "tree/places", "tree/removing", "tree/renaming", "tree/tree"),
    "tree/unsynced_names",
)
#: Functions of ``os`` that take no path and no name in a directory.
HARMLESS = {
    *("close", "dup2", "fsdecode", "fsencode", "fspath", "geteuid", "getegid", "getpid", "strerror", "urandom"),
    *("major", "minor"),
}
#: System calls that change attributes of what a name leads to, or make another name for it: where the name stands
#: among the arguments. It is empty: what counts is the descriptor.
BY_NAME = {"chown": 1, "utimens": 1, "readlink": 1}
#: System calls that get nothing but descriptors of what they change.
BY_DESCRIPTOR = ("chmod", "link", "fchmod", "fchown", "futimens", "ftruncate", "setxattr", "removexattr")


def calls_in(source: str) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


def bypasses(source: str) -> list[str]:
    """What a module does to the tree past the one way."""
    found = []
    for call in calls_in(source):
        target = call.func
        if not isinstance(target, ast.Attribute):
            if isinstance(target, ast.Name) and target.id in ("open", "Path"):
                found.append(ast.unparse(call))
            continue
        owner = target.value
        if isinstance(owner, ast.Name) and owner.id in ("os", "shutil", "pathlib"):
            if target.attr not in HARMLESS:
                found.append(ast.unparse(call))
        elif isinstance(owner, ast.Attribute | ast.Name) and ast.unparse(owner).endswith("calls"):
            if target.attr in BY_NAME and ast.unparse(call.args[BY_NAME[target.attr]]) != "b''":
                found.append(ast.unparse(call))
            if target.attr in ("open", "create"):
                # opening is retried, and checked: see below
                found.append(ast.unparse(call))
    return found


def opened_by_name(source: str) -> list[str]:
    """Where something is opened by a name, and not as what an inode is."""
    return [
        ast.unparse(call)
        for call in calls_in(source)
        if isinstance(call.func, ast.Attribute)
        and call.func.attr == "open_at"
        and ast.unparse(call.args[1]) not in ("b''", "b'.'")
    ]


@pytest.mark.parametrize("module", SERVING)
def test_no_module_that_serves_goes_past_the_one_way(module: str) -> None:
    source = (ROOT / f"{module}.py").read_text()
    if module == "data/descriptors":
        assert bypasses(source) == [
            "self._calls.open(label, name, flags, mode, directory)",
            "self._calls.create(label, name, flags, mode, directory, owner)",
        ]
    else:
        assert bypasses(source) == []


@pytest.mark.parametrize("module", SERVING)
def test_only_the_checked_opening_opens_by_name(module: str) -> None:
    opened = opened_by_name((ROOT / f"{module}.py").read_text())
    assert opened == (
        ["self._descriptors.open_at(label, name, flags, 0, directory)"] if module == "tree/checked_opening" else []
    )


def test_every_module_that_is_given_the_system_calls_is_looked_at() -> None:
    """One that comes anew is either added above, or named here with the reason."""
    others = {
        "data/calls": "it makes them",
        "offline/describing": "it gives them to zeros, with a descriptor",
        "data/read_only": "it refuses them",
        "tree/file_ids": "it only reads",
        "daemon/session": "of the whole file system, by the descriptor of the root",
        "daemon/policy_reload": "of the whole file system, by the descriptor of the root",
        "daemon/served": "it gives them to the parts of a mount",
    }
    users = {
        f"{part}/{path.stem}"
        for part in ("daemon", "data", "fuse", "mounts", "offline", "tree")
        for path in (ROOT / part).glob("*.py")
        if "SystemCalls" in path.read_text() or "calls." in path.read_text()
    }
    assert users - set(SERVING) == set(others)


def test_the_system_calls_follow_no_link() -> None:
    """By name they say so; by way of /proc they go to what a descriptor is open for, and nowhere else."""
    follows = []
    for call in calls_in((ROOT / "data/calls.py").read_text()):
        text = ast.unparse(call)
        if text.startswith(("os.stat(", "os.chown(", "os.utime(", "os.link(", "os.chmod(")) and not (
            "follow_symlinks=False" in text or "_itself(" in text or text.startswith("os.utime(fd,")
        ):
            follows.append(text)
        if text.startswith("os.open(") and not (
            "_itself(" in text or "O_NOFOLLOW" in text or "flags, mode" in text
        ):
            follows.append(text)
    assert follows == []


@pytest.mark.parametrize(
    "line",
    [
        "os.chmod(path, 0o777)",
        "os.chmod(name, 0o777, dir_fd=directory)",
        "os.truncate(path, 0)",
        "open(path)",
        "self._calls.chown('label', name, 0, 0, directory)",
        "self._calls.utimens('label', name, 0, 0, directory)",
        "self._calls.readlink('label', name, directory)",
        "self._calls.open('label', name, 0, 0, directory)",
        "Path(name).chmod(0)",
    ],
)
def test_a_way_past_is_found(line: str) -> None:
    assert bypasses(line) != []


def test_opening_by_name_is_found() -> None:
    assert opened_by_name("self._inodes.descriptors.open_at('label', name, 0, 0, directory)") != []

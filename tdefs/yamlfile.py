"""YAML read into a tree in which every node knows its line. The policy and the configuration use it.

PyYAML's own constructors lose line numbers, accept duplicate keys silently, and turn ``010`` into 8 and ``no``
into False. Here the parser's events become a small tree of text, and the reader of a field decides what the text
means. Aliases, anchors, tags and deep nesting are refused: no field needs them, and with them a small file can
become very large.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tdefs.errors import Exit, TdefsError
from tdefs.private import read_regular
from tdefs.text import shortened

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
#: At most so many errors of one file are shown.
MAX_ERRORS = 100

_NULL_WORDS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEAN_WORDS = frozenset({"yes", "no", "true", "false", "on", "off"})


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value as written; ``quoted`` distinguishes ``"1"`` from ``1``."""

    line: int
    text: str
    quoted: bool

    @property
    def is_null(self) -> bool:
        return not self.quoted and self.text in _NULL_WORDS

    @property
    def is_boolean(self) -> bool:
        """Whether YAML 1.1 reads the word as a truth value, which no field here takes."""
        return not self.quoted and self.text.lower() in _BOOLEAN_WORDS


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    line: int
    items: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mapping:
    """Fields in the order of the file. Duplicates, and keys that are not scalars, were reported already."""

    line: int
    fields: dict[str, tuple[Scalar, Node]] = field(default_factory=dict)


Node = Scalar | Sequence | Mapping


class Problems:
    """Collects the errors of one file, so that all of them are reported at once."""

    def __init__(self, source: str, exit_code: Exit) -> None:
        self.source = source
        self._exit_code = exit_code
        self._errors: list[tuple[int, str]] = []
        self._hints: dict[str, int] = {}

    def add(self, line: int, message: str, *, hint: str = "") -> None:
        """Record an error of the given line (from 1)."""
        self._errors.append((line, message))
        if hint:
            self._hints[hint] = min(line, self._hints.get(hint, line))

    def error(self) -> TdefsError:
        """Return the collected errors as one, a line for each, in the order of the file."""
        lines = [f"{self.source}:{line}: {message}" for line, message in sorted(self._errors)]
        if len(lines) > MAX_ERRORS:
            lines[MAX_ERRORS:] = [f"... and {len(lines) - MAX_ERRORS} more errors"]
        hints = [f"line {line}: {hint}" for hint, line in sorted(self._hints.items(), key=lambda pair: pair[1])]
        del hints[MAX_ERRORS:]
        return TdefsError(self._exit_code, "\n".join(lines), hint="\n".join(hints))

    def raise_if_any(self) -> None:
        """Raise :class:`TdefsError` if anything was recorded."""
        if self._errors:
            raise self.error()


def read_limited(path: Path, exit_code: Exit, what: str) -> bytes:
    """Return at most :data:`MAX_BYTES` + 1 bytes of the file, so that a parser sees if it is too long."""
    try:
        return read_regular(path, MAX_BYTES + 1)
    except OSError as error:
        hint = let_read(path, error)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            hint = "check the path"
        raise TdefsError(exit_code, f'could not read {what} "{path}": {error.strerror}', hint=hint) from error


def let_read(path: Path, error: OSError) -> str:
    """Return a hint for a file that this user may not read; an empty one for other errors."""
    if not isinstance(error, PermissionError):
        return ""
    return f'let this user read "{unreadable_part(path)}", or run the command as a user who may'


def unreadable_part(path: Path) -> Path:
    """Return the outermost directory above *path* that this user may not enter, or *path* itself."""
    above = reversed(path.absolute().parents)
    return next((directory for directory in above if not os.access(directory, os.X_OK)), path)


def parse_yaml(data: bytes, problems: Problems) -> Node:
    """Return the tree of the file's one document.

    Duplicate keys are recorded in ``problems``, and reading goes on.

    :raises TdefsError: an error after which nothing can be trusted (syntax, encoding, size).
    """
    if len(data) > MAX_BYTES:
        problems.add(1, f"the file is larger than {MAX_BYTES} bytes")
        raise problems.error()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        problems.add(data.count(b"\n", 0, error.start) + 1, "the file is not valid UTF-8")
        raise problems.error() from error
    try:
        roots = list(_documents(yaml.parse(text, Loader=yaml.SafeLoader), problems))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.add(line, f"not valid YAML: {error.problem or error.context}")
        raise problems.error() from error
    except yaml.reader.ReaderError as error:
        problems.add(text.count("\n", 0, error.position) + 1, f"not valid YAML: {error.reason}")
        raise problems.error() from error
    except (ValueError, OverflowError) as error:
        # PyYAML does not catch them, for example for the escape "\UFFFFFFFF".
        problems.add(1, "not valid YAML: a value is out of range")
        raise problems.error() from error
    if not roots:
        problems.add(1, "the file is empty", hint='Start it with "version: 1".')
        raise problems.error()
    return roots[0]


def _documents(events: Iterable[yaml.Event], problems: Problems) -> Iterator[Node]:
    """Build trees without recursion, so that nesting cannot exhaust the stack. Yield one tree at most."""
    open_nodes: list[Sequence | Mapping] = []
    open_keys: list[Scalar | None] = []
    documents = 0
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                problems.add(line, "a second YAML document begins here")
                raise problems.error()
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            node: Node = open_nodes.pop()
            open_keys.pop()
            if not open_nodes:
                yield node
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        _refuse_indirection(event, line, problems)
        if isinstance(event, yaml.ScalarEvent):
            node = Scalar(line, event.value, quoted=event.style is not None)
        else:
            node = Sequence(line) if isinstance(event, yaml.SequenceStartEvent) else Mapping(line)
        if open_nodes:
            open_keys[-1] = _attach(open_nodes[-1], open_keys[-1], node, problems)
        if isinstance(node, Scalar):
            if not open_nodes:
                yield node
            continue
        open_nodes.append(node)
        open_keys.append(None)
        if len(open_nodes) > MAX_DEPTH:
            problems.add(line, f"nested deeper than {MAX_DEPTH} levels")
            raise problems.error()


def _refuse_indirection(event: yaml.NodeEvent, line: int, problems: Problems) -> None:
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        problems.add(line, "YAML anchors and aliases are not supported")
        raise problems.error()
    if getattr(event, "tag", None) is not None:
        problems.add(line, "YAML tags are not supported")
        raise problems.error()


def _attach(parent: Sequence | Mapping, key: Scalar | None, node: Node, problems: Problems) -> Scalar | None:
    """Put ``node`` into its parent, and return the key that now waits for its value."""
    if isinstance(parent, Sequence):
        parent.items.append(node)
        return None
    if key is None:
        if not isinstance(node, Scalar):
            problems.add(node.line, "a field's name must be a single word")
            raise problems.error()
        return node
    if key.text in parent.fields:
        first = parent.fields[key.text][0].line
        problems.add(key.line, f'duplicate field "{shortened(key.text)}", first on line {first}')
    else:
        parent.fields[key.text] = (key, node)
    return None


def known_fields(node: Node, known: Iterable[str], what: str, problems: Problems) -> dict[str, Node]:
    """Return the known fields of the mapping ``node``, and record anything else as a problem."""
    if not isinstance(node, Mapping):
        problems.add(node.line, f"{what} must be fields with values, not {shape(node)}")
        return {}
    names = list(known)
    found = {}
    for name, (key, value) in node.fields.items():
        if name in names:
            found[name] = value
            continue
        nearest = difflib.get_close_matches(name[:64], names, n=1)
        hint = f'Perhaps you meant "{nearest[0]}".' if nearest else f"Known fields: {', '.join(names)}."
        problems.add(key.line, f'unknown field "{shortened(name)}" in {what}', hint=hint)
    return found


def items(node: Node, what: str, problems: Problems) -> list[Node]:
    """Return the items of the list ``node``, and record anything else as a problem."""
    if isinstance(node, Sequence):
        return node.items
    problems.add(node.line, f"{what} must be a list, not {shape(node)}")
    return []


def check_version(fields: dict[str, Node], line: int, problems: Problems) -> None:
    """Record a problem unless the field ``version`` is the number 1."""
    version = fields.get("version")
    hint = 'This tdefs reads "version: 1".'
    if version is None:
        problems.add(line, 'the field "version" is missing', hint=hint)
    elif not isinstance(version, Scalar) or version.quoted or version.text != "1":
        problems.add(version.line, f"unknown version {describe(version)}", hint=hint)


def shape(node: Node) -> str:
    """Return in words what kind of node it is, but never its value, which may be a secret in the wrong place."""
    match node:
        case Sequence():
            return "a list"
        case Mapping():
            return "fields with values"
        case Scalar():
            return "nothing" if node.is_null else "a single value"


def describe(node: Node) -> str:
    """Return a node in words for a message: a scalar's value, shortened, or else its shape."""
    if isinstance(node, Scalar) and not node.is_null:
        return f'"{shortened(node.text)}"'
    return shape(node)

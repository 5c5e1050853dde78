"""Every call site of tdefs: which labelled system calls on the backing directory its source makes."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import tdefs
from tdefs.data import calls
from tdefs.data.calls import SystemCalls
from tests.crash.faults.orders import Call

METHODS = frozenset(name for name, value in vars(SystemCalls).items() if callable(value) and name[0] != "_")

_Function = ast.FunctionDef | ast.AsyncFunctionDef
#: A function that gets a label: its name and the label's position, ``self`` not counted → what it calls with it.
_Passes = dict[tuple[str, int], set[str]]


class UnknownLabel(Exception):
    """A label that is neither written at its call nor a parameter of the function around it."""


def call_sites() -> set[Call]:
    """Return all of them, read from the source.

    :raises UnknownLabel: the source does not show one of the labels
    """
    functions = [
        node
        for path in Path(tdefs.__file__).parent.rglob("*.py")
        if path != Path(calls.__file__)
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(node, _Function)
    ]
    found: set[Call] = set()
    passes: _Passes = defaultdict(set)
    known = -1
    # until nothing new is found: a label may be passed on more than once
    while known < (known := len(found) + sum(map(len, passes.values()))):
        for function in functions:
            _look_into(function, found, passes)
    return found


def _look_into(function: _Function, found: set[Call], passes: _Passes) -> None:
    """Add the calls that a function makes, and what it does with its parameters."""
    parameters = [argument.arg for argument in function.args.args if argument.arg != "self"]
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        target, arguments = node.func, node.args
        if _name(target) == "partial" and arguments:
            target, *arguments = arguments
        for position, methods in _labels_of(target, passes):
            label = arguments[position]
            if isinstance(label, ast.Constant) and isinstance(label.value, str):
                found |= {Call(method, label.value) for method in methods}
            elif isinstance(label, ast.Name) and label.id in parameters:
                passes[function.name, parameters.index(label.id)] |= methods
            else:
                raise UnknownLabel(ast.unparse(node))


def _labels_of(target: ast.expr, passes: _Passes) -> list[tuple[int, set[str]]]:
    """Return the positions of labels among the arguments of a call, each with the system calls that get it."""
    name = _name(target)
    if isinstance(target, ast.Attribute) and _name(target.value) in ("calls", "_calls"):
        return [(0, {name})] if name in METHODS else []
    return [(position, set(methods)) for (passing, position), methods in passes.items() if passing == name]


def _name(expression: ast.expr) -> str:
    if isinstance(expression, ast.Attribute):
        return expression.attr
    return expression.id if isinstance(expression, ast.Name) else ""

"""Where strategies were published, read from their decorators without importing torch, which takes seconds."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple


class Reference(NamedTuple):
    """A publication.

    Args:
        title: of the paper.
        venue: where and when it appeared.
        address: where to read it.
    """

    title: str
    venue: str
    address: str

    def __str__(self) -> str:
        return f"{self.title} ({self.venue}), {self.address}"


def references() -> dict[str, Reference]:
    """Return the reference of every strategy of this folder that has one, by its name."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for call in _decorators(ast.parse(path.read_text(encoding="utf-8")), path.stem):
            for keyword in call.keywords:
                if keyword.arg == "reference" and isinstance(keyword.value, ast.Call):
                    found[path.stem] = Reference(*(ast.literal_eval(value) for value in keyword.value.args))
    return found


def _decorators(module: ast.Module, name: str) -> list[ast.Call]:
    """Return the calls that decorate the function `name` of a module."""
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return [call for function in functions for call in function.decorator_list if isinstance(call, ast.Call)]

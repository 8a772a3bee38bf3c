"""Merge strategies: file ``X.py`` holds the function ``X``, from task vectors to the merged task vector.

Files that start with an underscore hold code that several strategies share.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from mergestream.runtime.rules import require_choice

if TYPE_CHECKING:  # torch takes seconds to import, and the references need none
    from mergestream.strategies.strategy import Strategy

INTERFACE = (
    "reference",
    "strategy",
    "task_vectors",
    "adjustments",
    "depth",
    "calibrations",
)  # modules that hold no strategy


def names() -> list[str]:
    """Return the name of every strategy in this folder."""
    files = [module.name for module in iter_modules(__path__)]
    return sorted(name for name in files if name not in INTERFACE and not name.startswith("_"))


def get(name: str) -> Strategy:
    """Return the strategy called `name`.

    Raises:
        UserError: if there is none.
    """
    require_choice("strategy", name, names())
    return getattr(import_module(f"{__name__}.{name}"), name)

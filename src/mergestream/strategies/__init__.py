"""Merge strategies: file ``X.py`` holds the function ``X``, task vectors in and the merged task vector out.

Files that start with an underscore hold what several strategies share.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from mergestream.runtime.errors import UserError
from mergestream.strategies.strategy import Strategy


def names() -> list[str]:
    """Every strategy in this folder."""
    files = [module.name for module in iter_modules(__path__)]
    return sorted(name for name in files if name != "strategy" and not name.startswith("_"))


def get(name: str) -> Strategy:
    """The strategy called `name`.

    Raises:
        UserError: if there is none.
    """
    if name not in names():
        raise UserError(f"strategy must be one of {', '.join(names())}; got strategy={name}")
    return getattr(import_module(f"{__name__}.{name}"), name)

"""Calibrations of the merged task vector: file ``X.py`` holds the function ``X``, which rescales a strategy's result.

They have nothing to do with the calibration of probabilities, which is in `mergestream.calibration`.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from mergestream.runtime.rules import require_choice
from mergestream.strategies.calibrations.calibration import TaskVectorCalibration


def names() -> list[str]:
    """Return the name of every calibration in this folder."""
    return sorted(module.name for module in iter_modules(__path__) if module.name != "calibration")


def get(name: str) -> TaskVectorCalibration:
    """Return the calibration called `name`.

    Raises:
        UserError: if there is none.
    """
    require_choice("calibration", name, names())
    return getattr(import_module(f"{__name__}.{name}"), name)

"""What the options of an analysis must satisfy; each error names its key."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from mergestream.errors import UserError


def require_numbers(key: str, values: Any, rule: str, holds: Callable[[float], bool]) -> None:
    """
    Raises:
        UserError: if `values` is not a list of finite numbers for which `holds`.
    """
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if not listed or not values or not all(_finite(value) and holds(value) for value in values):
        raise UserError(f"{key} must be a list of numbers, {rule}; got {key}={values}")


def require_whole(key: str, value: Any, least: int, most: int | None = None) -> None:
    """
    Raises:
        UserError: if `value` is not a whole number from `least` to `most`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        rule = f"{least} or more" if most is None else f"between {least} and {most}"
        raise UserError(f"{key} must be a whole number, {rule}; got {key}={value}")


def require_pair(key: str, pair: Any, tasks: int) -> None:
    """
    Raises:
        UserError: if `pair` is not two different tasks, counted from 1.
    """
    whole = isinstance(pair, Sequence) and all(isinstance(x, int) and 1 <= x <= tasks for x in pair)
    if not whole or len(pair) != 2 or pair[0] == pair[1]:
        raise UserError(f"{key} must be two different tasks from 1 to {tasks}, such as [1,{tasks}]; got {key}={pair}")


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)

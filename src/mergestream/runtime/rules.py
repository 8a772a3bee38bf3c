"""Rules that values of the config must satisfy; each error names the key, the rule and what arrived."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from mergestream.runtime.errors import UserError


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number; true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def require_number(key: str, value: Any, rule: str, holds: Callable[[float], bool] = lambda x: True) -> None:
    """
    Raises:
        UserError: if `value` is not a finite number for which `holds`.
    """
    if not is_number(value) or not holds(value):
        raise UserError(f"{key} must be a number, {rule}; got {key}={value}")


def require_numbers(key: str, values: Any, rule: str, holds: Callable[[float], bool] = lambda x: True) -> None:
    """
    Raises:
        UserError: if `values` is not a list of finite numbers for which `holds`.
    """
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if not listed or not values or not all(is_number(value) and holds(value) for value in values):
        raise UserError(f"{key} must be a list of numbers, {rule}; got {key}={values}")


def require_whole(key: str, value: Any, least: int, most: int | None = None) -> None:
    """
    Raises:
        UserError: if `value` is not a whole number from `least` to `most`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        rule = f"{least} or more" if most is None else f"between {least} and {most}"
        raise UserError(f"{key} must be a whole number, {rule}; got {key}={value}")


def require_fraction(key: str, value: Any, *, zero: bool = False) -> None:
    """
    Raises:
        UserError: if `value` is not a number in (0, 1], or in [0, 1) where `zero` is allowed.
    """
    if not is_number(value) or not (0 <= value < 1 if zero else 0 < value <= 1):
        raise UserError(
            f"{key} must be a fraction in {'[0, 1)' if zero else '(0, 1]'}; got {key}={value}. "
            f"Write {key}=0.2 for 20 %."
        )

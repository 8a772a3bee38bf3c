"""Rules for single config values. Each raises a `UserError` that names the key, the rule and the value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from mergestream.runtime.errors import UserError


def is_number(value: Any) -> bool:
    """Return whether `value` is a finite number; true and false are not numbers."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Return whether `value` is an integer; true and false are not integers."""
    return isinstance(value, int) and not isinstance(value, bool)


def require_number(key: str, value: Any, rule: str, holds: Callable[[float], bool] = lambda x: True) -> None:
    """Require a finite number for which `holds`; `rule` says the condition in words."""
    if not is_number(value) or not holds(value):
        raise UserError(f"{key} must be a number, {rule}; got {key}={value}")


def require_numbers(key: str, values: Any, rule: str, holds: Callable[[float], bool] = lambda x: True) -> None:
    """Require a non-empty list of finite numbers for which `holds`; `rule` says the condition in words."""
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if not listed or not values or not all(is_number(value) and holds(value) for value in values):
        raise UserError(f"{key} must be a list of numbers, {rule}; got {key}={values}")


def require_whole(key: str, value: Any, least: int, most: int | None = None) -> None:
    """Require a whole number from `least` to `most`."""
    if not is_whole(value) or value < least or (most is not None and value > most):
        rule = f"{least} or more" if most is None else f"between {least} and {most}"
        raise UserError(f"{key} must be a whole number, {rule}; got {key}={value}")


def require_fraction(key: str, value: Any, *, zero: bool = False) -> None:
    """Require a number in (0, 1], or in [0, 1) where `zero` is allowed."""
    if not is_number(value) or not (0 <= value < 1 if zero else 0 < value <= 1):
        raise UserError(
            f"{key} must be a fraction in {'[0, 1)' if zero else '(0, 1]'}; got {key}={value}. "
            f"Write {key}=0.2 for 20 %."
        )


def require_bool(key: str, value: Any) -> None:
    """Require true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{key} must be true or false; got {key}={value}")


def require_choice(key: str, value: Any, options: Sequence[str], *, null: str | None = None) -> None:
    """Require one of `options`, or null where `null` says what that means."""
    if value in options or (value is None and null is not None):
        return
    or_null = "" if null is None else f", or null for {null}"
    raise UserError(f"{key} must be one of {', '.join(options)}{or_null}; got {key}={value}")

"""Rules for config values: what each accepts, and what it says otherwise."""

from __future__ import annotations

import pytest

from mergestream.runtime import rules
from mergestream.runtime.errors import UserError


@pytest.mark.parametrize(
    ("rule", "arguments", "good", "bad", "message"),
    [
        (rules.require_bool, (), [True, False], [0, 1, None, "true"], "k must be true or false; got k="),
        (rules.require_choice, (("a", "b"),), ["a", "b"], ["c", None, 1], "k must be one of a, b; got k="),
        (rules.require_whole, (1,), [1, 10**9], [0, True, 1.0, "1"], "k must be a whole number, 1 or more; got k="),
        (rules.require_whole, (1, 3), [1, 3], [0, 4], "k must be a whole number, between 1 and 3; got k="),
        (rules.require_fraction, (), [0.1, 1], [0, 1.1, True, "0.5"], r"k must be a fraction in \(0, 1\]; got"),
        (rules.require_number, ("any",), [-1, 0.5], [True, float("inf"), "1", None], "k must be a number, any; got k="),
        (rules.require_numbers, ("any",), [[1, 2.5]], [[], 1, "12", [1, "2"]], "k must be a list of numbers"),
    ],
)  # fmt: skip
def test_rule(rule, arguments, good, bad, message):
    for value in good:
        rule("k", value, *arguments)
    for value in bad:
        with pytest.raises(UserError, match=message):
            rule("k", value, *arguments)


def test_zero_and_null_are_allowed_where_the_rule_says_so():
    rules.require_fraction("k", 0, zero=True)
    with pytest.raises(UserError, match=r"k must be a fraction in \[0, 1\); got k=1"):
        rules.require_fraction("k", 1, zero=True)
    rules.require_choice("k", None, ("a",), null="no choice")
    with pytest.raises(UserError, match="k must be one of a, or null for no choice; got k=b"):
        rules.require_choice("k", "b", ("a",), null="no choice")

"""What the merge engine needs to know of a strategy besides its equation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mergestream.errors import UserError

PLACE = ("name", "start")  # where a block lies


@dataclass(frozen=True)
class Strategy:
    """A pure function of task vectors, and how it is applied: θ_merged = θ₀ + scale · function(taus).

    Args:
        function: ``function(taus, **options) -> tau``: T float32 tensors of one shape, stacked, in; one out. The engine
            calls it for one block of a weight after another, so each element of the result depends on the same
            element of the task vectors only. If it has parameters ``name`` or ``start``, it is told which weight,
            and at which element of it the block starts.
        scale: the published λ.
        survey: ``survey(vectors, **options) -> dict``, for a strategy that must see all weights first (a global
            threshold). It takes the options, and what it returns goes to the function in their place.
    """

    function: Callable[..., Tensor]
    scale: float
    survey: Callable[..., dict[str, Any]] | None = None

    def __call__(self, taus: Tensor, **options: Any) -> Tensor:
        return self.function(taus, **options)

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def wanted(self) -> list[str]:
        """Which of `PLACE` the function is told."""
        return [key for key in PLACE if key in inspect.signature(self.function).parameters]

    def defaults(self) -> dict[str, Any]:
        """The options and their default values."""
        parameters = inspect.signature(self.survey or self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in PLACE}

    def check(self, options: dict[str, Any]) -> dict[str, Any]:
        """All options, those in `options` over the defaults.

        Raises:
            UserError: if one is not an option of this strategy.
        """
        defaults = self.defaults()
        if unknown := sorted(options.keys() - defaults.keys()):
            known = ", ".join(f"strategy.{key}" for key in defaults) or "no options"
            raise UserError(f"strategy={self.name} takes {known}; got strategy.{unknown[0]}={options[unknown[0]]}")
        return {**defaults, **options}


def strategy(
    *, scale: float, survey: Callable[..., dict[str, Any]] | None = None
) -> Callable[[Callable[..., Tensor]], Strategy]:
    """Decorator that makes a function a strategy."""
    return lambda function: Strategy(function, scale, survey)

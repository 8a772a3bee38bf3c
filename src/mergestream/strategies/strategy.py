"""What the merge engine needs to know of a strategy besides its equation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mergestream.runtime.errors import UserError

PLACE = ("name", "start")  # where a block lies


@dataclass(frozen=True)
class Strategy:
    """A pure function of task vectors, and how it is applied: θ_merged = θ₀ + scale · function(taus).

    Args:
        function: ``function(taus, **options) -> tau``: T float32 task vectors in, one out. The engine calls it for one
            block of a weight after another; `taus` is the stack [T, n] of the block. If it has parameters ``name`` or
            ``start``, it is told which weight, and at which element of it the block starts.
        scale: the published λ.
        survey: ``survey(vectors, **options) -> dict``, for a strategy that must see all weights first (a global
            threshold). It takes the options, and what it returns goes to the function in their place.
        rows: `taus` is a `Rows` instead of a stack: it has a length, and iterating reads one [n] after the other into
            one buffer, which the function may change. Faster where the function is a loop over the tasks.
        whole: a block is a whole weight in its own shape: [T, *shape], or rows of that shape.
        carries: NaN or infinity in any task vector shows in the result, so the inputs need not be checked one by one.
        running: function((function((τ_1 … τ_{t−1})), τ_t)) = function((τ_1 … τ_t)), to the bit, so that a running merge
            needs the merge so far and the new task vector only.
        again: ``again(**options) -> dict``, asked once all is merged: (name, start) of the tiles that are merged once
            more, because of something that only shows in the end, and at which positions; None is all of them.
        finish: ``finish(tau, T) -> tau``, what is left to do with the function's result once all tasks are in.
    """

    function: Callable[..., Tensor]
    scale: float
    survey: Callable[..., dict[str, Any]] | None = None
    rows: bool = False
    whole: bool = False
    carries: bool = False
    running: bool = False
    again: Callable[..., dict[tuple[str, int], Tensor | None]] | None = None
    finish: Callable[[Tensor, int], Tensor] | None = None

    def __call__(self, taus: Any, **options: Any) -> Tensor:
        tau = self.function(taus, **options)
        return self.finish(tau, len(taus)) if self.finish else tau

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

    def bind(self, options: Mapping[str, Any], seed: int | None = None) -> BoundStrategy:
        """Return this strategy with all of its options.

        Args:
            options: those that differ from the defaults.
            seed: the default of an option ``seed``; None is the strategy's own.

        Raises:
            UserError: if one is not an option of this strategy.
        """
        defaults = self.defaults()
        if seed is not None and "seed" in defaults:
            defaults["seed"] = seed
        return BoundStrategy(self, self.check(dict(options)), defaults)

    def require_running(self) -> None:
        """Check that a running merge can continue this strategy task by task.

        Raises:
            UserError: if it needs all task vectors at once.
        """
        if not self.running:
            raise UserError(
                "merge_every_task=true needs a strategy that can be continued: magmax, average, task_arithmetic, ema; "
                f"strategy={self.name} needs all task vectors at once"
            )


@dataclass(frozen=True)
class BoundStrategy:
    """A strategy with all of its options.

    Args:
        strategy: the strategy.
        options: all of its options.
        defaults: their default values.
    """

    strategy: Strategy
    options: dict[str, Any]
    defaults: dict[str, Any]

    @property
    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        return {key: value for key, value in self.options.items() if value != self.defaults[key]}

    def folder(self, scale: float | str) -> str:
        """Return the name of a merge's folder: ``magmax-0.5``, with changed options in between."""
        changed = [f"{key}={value}" for key, value in sorted(self.changed.items())]
        return "-".join([self.strategy.name, *changed, scale if isinstance(scale, str) else f"{scale:.12g}"])


def strategy(*, scale: float, **how: Any) -> Callable[[Callable[..., Tensor]], Strategy]:
    """Decorator that makes a function a strategy; the arguments are those of `Strategy`."""
    return lambda function: Strategy(function, scale, **how)

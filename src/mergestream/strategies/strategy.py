"""A strategy: the equation of a merge, and what the merge engine must know to apply it."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.strategies.adjustments import PLAIN, Adjustments
from mergestream.strategies.reference import Reference
from mergestream.strategies.task_vectors import Block, Rows, StackedRows

PLACE = ("name", "start")  # parameters that the engine fills in from the block
MERGED = ""  # the tensor of a `State` that has the name of the weight alone, in the file of a running merge
State = dict[str, Tensor]


@dataclass(frozen=True)
class Running:
    """How a strategy takes one task after the other, in space that does not grow with their number.

    What it keeps of a weight is its state, tensors by name; before the first task it has none.

    Args:
        step: ``step(state, tau, **options) -> state``, which adds a task vector to the state of a whole weight, and may
            change its tensors. A function with a parameter ``name``, ``task`` or ``curvature`` gets the name of the
            weight, the task, counted from 0, or what the strategy `needs` of that task (None if there is none for this
            weight). None stands for f(f(τ_1 … τ_{t−1}), τ_t) = f(τ_1 … τ_t), where f is the strategy.
        finish: ``finish(state, tasks) -> tau``, the merged task vector; None is `Strategy.finalize` of `MERGED`.
        factor: ``factor(lengths, length) -> float``, applied at the end. It gets ‖τ_t‖ of every task and the length of
            the merge, over the whole model.
        check: ``check(shapes, **options) -> str | None``, which refuses options that do not fit, and returns a
            warning or None; `shapes` are those of the weights by name, or None before they are known. Without it, a
            step checks the options.
    """

    step: Callable[..., State] | None = None
    finish: Callable[[State, int], Tensor] | None = None
    factor: Callable[[Sequence[float], float], float] | None = None
    check: Callable[..., str | None] | None = None


@dataclass(frozen=True)
class Strategy:
    """A function from task vectors to the merged task vector; θ_merged = θ₀ + scale · function(taus).

    The engine calls the function for one block of a weight at a time.

    Args:
        function: ``function(taus, **options) -> tau``. `taus` is the stack [T, n] of a block of n elements, in float32.
            A function with a parameter ``name`` or ``start`` gets the name of the weight, or the position in the weight
            at which the block starts.
        scale: the published λ.
        survey: ``survey(vectors, **options) -> dict``, for a strategy that has to see all weights first, such as one
            with a global threshold. It takes the options; the function gets what it returns instead. `vectors` is a
            `SurveyedVectors`.
        streams: `taus` is a `Rows` instead of a stack, which reads one task vector after the other. Faster for a
            function that loops over the tasks.
        whole: each block is a whole weight in its own shape, so `taus` is the stack [T, *shape], or a `Rows` of that
            shape.
        propagates_nan: a NaN or an infinite value in any task vector makes the result NaN or infinite, so the engine
            checks the result instead of every input.
        running: how a merge is continued by one task; the result equals the merge of all to the bit. None if all task
            vectors are needed at once.
        revisit: ``revisit(**options) -> dict``, called after all blocks, for a strategy that learns only then how to
            merge some of their elements. It maps (name, start) of tiles that must be merged again to positions in the
            tile; None stands for all.
        needs: curvature that it takes from `SurveyedVectors.curvature`: ``fisher`` or ``gram``.
        reference: where it was published.
        finalize: ``finalize(tau, T) -> tau``, applied once to the function's result for all T tasks.
    """

    function: Callable[..., Tensor]
    scale: float
    survey: Callable[..., dict[str, Any]] | None = None
    streams: bool = False
    whole: bool = False
    propagates_nan: bool = False
    running: Running | None = None
    revisit: Callable[..., dict[tuple[str, int], Tensor | None]] | None = None
    needs: str | None = None
    reference: Reference | None = None
    finalize: Callable[[Tensor, int], Tensor] | None = None

    def __call__(self, taus: Tensor | Rows, **options: Any) -> Tensor:
        """Return the merged task vector of a block.

        Args:
            taus: the stack of the task vectors, or `Rows` if the strategy `streams`.
            options: the options, or what `survey` returned.
        """
        tau = self.accumulate(taus, **options)
        return self.finalize(tau, len(taus)) if self.finalize else tau

    def accumulate(self, taus: Tensor | Rows, **options: Any) -> Tensor:
        """Return the merged task vector of a block before `finalize`."""
        return self.function(StackedRows(taus) if self.streams and isinstance(taus, Tensor) else taus, **options)

    def add(self, state: State, tau: Tensor, options: Mapping[str, Any], **place: Any) -> State:
        """Return the state of a weight with one more task; see `Running`.

        Args:
            state: the state so far, whose tensors may be changed.
            tau: the task vector of the weight.
            options: the options.
            place: name, task and curvature.
        """
        assert self.running is not None
        if (step := self.running.step) is None:
            taus = torch.stack([state[MERGED], tau] if state else [tau])
            return {MERGED: self.accumulate(taus, **options)}
        asked = inspect.signature(step).parameters.keys() & place.keys()
        return step(state, tau, **{key: place[key] for key in asked}, **options)

    def finish(self, state: State, tasks: int) -> Tensor:
        """Return the merged task vector of a weight from its state, before `Running.factor`."""
        if self.running is not None and self.running.finish is not None:
            return self.running.finish(state, tasks)
        return self.finalize(state[MERGED], tasks) if self.finalize else state[MERGED]

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.__name__

    def place(self, block: Block) -> dict[str, Any]:
        """Return the arguments for the function's parameters ``name`` and ``start``, if it has them."""
        return {key: getattr(block, key) for key in self._place}

    @cached_property
    def _place(self) -> list[str]:
        return [key for key in PLACE if key in inspect.signature(self.function).parameters]

    def defaults(self) -> dict[str, Any]:
        """Return the options and their default values."""
        parameters = inspect.signature(self.survey or self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in PLACE}

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
        if unknown := sorted(options.keys() - defaults.keys()):
            known = ", ".join(f"strategy.{key}" for key in defaults) or "no options"
            raise UserError(f"strategy={self.name} takes {known}; got strategy.{unknown[0]}={options[unknown[0]]}")
        return BoundStrategy(self, {**defaults, **options}, defaults)


@dataclass(frozen=True)
class BoundStrategy:
    """A strategy with all of its options, and the adjustments of the merge.

    Args:
        strategy: the strategy.
        options: all of its options.
        defaults: their default values.
        adjustments: which weights are merged, how much of each task and layer, and how the result is calibrated.
    """

    strategy: Strategy
    options: dict[str, Any]
    defaults: dict[str, Any]
    adjustments: Adjustments = PLAIN

    def adjusted(self, adjustments: Adjustments) -> BoundStrategy:
        """Return it with adjustments.

        Raises:
            UserError: if an option of the strategy has the name of one.
        """
        if clash := sorted(adjustments.changed.keys() & self.options.keys()):
            key = clash[0]
            raise UserError(
                f"{key} is for strategies that have no {key} of their own; got {key}={adjustments.changed[key]} with "
                f"strategy={self.strategy.name}. Write strategy.{key}={adjustments.changed[key]}"
            )
        if adjustments.calibration is not None:
            calibration = adjustments.calibration.of_strategy(self.strategy.name, self.strategy.scale)
            adjustments = replace(adjustments, calibration=calibration)
        return replace(self, adjustments=adjustments)

    def require_scales(self, scales: Sequence[float]) -> None:
        """Check that the calibration works with these values of λ, none if λ is to be selected, and with ``depth``.

        Raises:
            UserError: if it does not.
        """
        calibration = self.adjustments.calibration
        if calibration is None or not calibration.calibration.fixed:
            return
        wrong = [f"lambda={scales[0]:g}" if scales else "lambda=select"] if list(scales) != [1.0] else []
        wrong += [f"depth={list(self.adjustments.depth)}"] if self.adjustments.depth is not None else []
        if wrong:
            raise UserError(
                f"calibration={calibration.calibration.name} fits the merge as it is, with lambda=1 and no depth; got "
                f"{wrong[0]}. Leave it out, and write calibration.coefficient=NUMBER, or select"
            )

    def require_chosen(self) -> None:
        """Check that no option of the calibration is left to be chosen on validation data.

        Raises:
            UserError: if one is.
        """
        calibration = self.adjustments.calibration
        if calibration is not None and calibration.selected is not None:
            raise UserError(
                f"calibration.{calibration.selected}=select is for merge.py, which chooses it on the validation data "
                "of a run; give a number here"
            )

    @property
    def scale(self) -> float:
        """The published λ: that of the calibration, if there is one, or of the strategy."""
        calibration = self.adjustments.calibration
        return self.strategy.scale if calibration is None else calibration.calibration.scale

    @property
    def changed(self) -> dict[str, Any]:
        """The options and adjustments that differ from their defaults."""
        changed = {key: value for key, value in self.options.items() if value != self.defaults[key]}
        return {**changed, **self.adjustments.changed}

    def require_running(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> str | None:
        """Check that a running merge can continue this strategy task by task.

        Args:
            shapes: of the weights, by name; None before they are known.

        Returns:
            A warning about the options, or None.

        Raises:
            UserError: if it needs all task vectors at once, or an option breaks its rule or does not fit the weights.
        """
        running = self.strategy.running
        if running is None:
            from mergestream import strategies

            known = ", ".join(name for name in strategies.names() if strategies.get(name).running is not None)
            raise UserError(
                f"a merge after every task needs a strategy that can continue task by task: {known}; "
                f"strategy={self.strategy.name} needs all task vectors at once"
            )
        if running.check is not None:
            return running.check(shapes, **self.options)
        self.strategy.add({}, torch.zeros(1, 1), self.options, name="", task=0, curvature=None)
        return None

    def folder(self, scale: float | str, others: Mapping[str, Any] = MappingProxyType({})) -> str:
        """Return the name of a merge's folder: ``magmax-0.5``, with changed options in between.

        Args:
            scale: λ, or how it is found.
            others: changed settings of the merge that are not options of the strategy.
        """
        short = {key: _short(value) for key, value in self.adjustments.changed.items()}
        changed = [f"{key}={value}" for key, value in sorted({**self.changed, **short, **others}.items())]
        return "-".join([self.strategy.name, *changed, scale if isinstance(scale, str) else f"{scale:.12g}"])


def sum_of_squares(values: Tensor) -> float:
    """Return Σ v², in float64."""
    return float(values.double().square().sum())


def _short(value: Any) -> str:
    """Return a value as a part of a folder's name: its text without blanks, or a hash of what no folder is named."""
    text = str(value).replace(" ", "")
    plain = re.fullmatch(r"[\w.,\[\]-]{1,40}", text)
    return text if plain else hashlib.sha256(text.encode()).hexdigest()[:12]


def strategy(*, scale: float, **how: Any) -> Callable[[Callable[..., Tensor]], Strategy]:
    """Decorate a function to make it a strategy; the arguments are those of `Strategy`."""
    return lambda function: Strategy(function, scale, **how)

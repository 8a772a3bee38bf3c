"""A calibration: how the merged task vector of any strategy is rescaled, and what the merge engine must know of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.strategies.task_vectors import Block, Rows

SELECT = "select"  # the value of an option that is chosen on validation data


class MergedVector(Protocol):
    """The merged task vector of all weights, read block by block."""

    def read(self, block: Block) -> Tensor:
        """Return a block in float32, of the block's shape, on the CPU; the caller may change it."""


@dataclass(frozen=True)
class TaskVectorCalibration:
    """A function that rescales the merged task vector; θ = θ₀ + scale · function(merged, taus).

    Args:
        function: ``function(merged, taus, **options) -> tau``. `merged` is what the strategy made of a weight or of a
            block of one, float32; `taus` are the `Rows` of the same shape, read only if it iterates over them. A
            function with a parameter ``name`` gets the name of the weight.
        scale: the published λ, which takes the place of the strategy's.
        matrices: a weight of two dimensions comes as a whole, in its own shape; others come in blocks, [n].
        layered: it needs the depth of each weight, so the weights must be in numbered blocks.
        survey: ``survey(merged, vectors, **options) -> dict``, for a calibration that has to see all weights first. The
            function gets what it returns instead of the options. `merged` is a `MergedVector`, `vectors` a
            `SurveyedVectors`.
        check: ``check(**options)``, which raises a `UserError` if an option breaks its rule.
        fixed: the result is fitted to all weights as they are, so λ must be 1, and ``depth`` changes none.
        selectable: the option that may be ``select``: it is then chosen on validation data, like λ.
        published: options that were published for certain strategies, by the name of the strategy. An option that is
            None takes this value, or the one under "". One called ``coefficient`` takes the strategy's published λ.
    """

    function: Callable[..., Tensor]
    scale: float
    matrices: bool = False
    layered: bool = False
    survey: Callable[..., dict[str, Any]] | None = None
    check: Callable[..., None] | None = None
    fixed: bool = False
    selectable: str | None = None
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __call__(self, merged: Tensor, taus: Rows, **options: Any) -> Tensor:
        """Return the calibrated task vector of a weight or a block.

        Args:
            merged: the merged task vector.
            taus: the task vectors.
            options: the options, or what `survey` returned.
        """
        return self.function(merged, taus, **options)

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.function.__name__

    def place(self, block: Block) -> dict[str, Any]:
        """Return the argument for the function's parameter ``name``, if it has one."""
        return {"name": block.name} if "name" in inspect.signature(self.function).parameters else {}

    def defaults(self) -> dict[str, Any]:
        """Return the options and their default values."""
        parameters = list(inspect.signature(self.survey or self.function).parameters.values())
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "name"}

    def bind(self, options: Mapping[str, Any], seed: int | None = None) -> BoundCalibration:
        """Return this calibration with all of its options.

        Args:
            options: those that differ from the defaults.
            seed: the default of an option ``seed``; None is the calibration's own.

        Raises:
            UserError: if one is not an option of this calibration, or breaks its rule.
        """
        defaults = self.defaults()
        if seed is not None and "seed" in defaults:
            defaults["seed"] = seed
        if unknown := sorted(options.keys() - defaults.keys()):
            known = ", ".join(f"calibration.{key}" for key in defaults) or "no options"
            raise UserError(
                f"calibration={self.name} takes {known}; got calibration.{unknown[0]}={options[unknown[0]]}"
            )
        bound = BoundCalibration(self, {**defaults, **options}, defaults)
        if self.check:
            self.check(**bound.options)
        return bound


@dataclass(frozen=True)
class BoundCalibration:
    """A calibration with all of its options.

    Args:
        calibration: the calibration.
        options: all of its options.
        defaults: their default values.
    """

    calibration: TaskVectorCalibration
    options: dict[str, Any]
    defaults: dict[str, Any]

    def of_strategy(self, name: str, scale: float) -> BoundCalibration:
        """Return it with the options that were published for a strategy with this λ where they are None."""
        of = self.calibration.published
        published = {"coefficient": scale, **of.get("", {}), **of.get(name, {})}
        options = {key: published.get(key) if value is None else value for key, value in self.options.items()}
        defaults = {key: published.get(key) if value is None else value for key, value in self.defaults.items()}
        return replace(self, options=options, defaults=defaults)

    @property
    def selected(self) -> str | None:
        """The option that is chosen on validation data, if there is one."""
        option = self.calibration.selectable
        return option if option is not None and self.options[option] == SELECT else None

    def with_value(self, value: float) -> BoundCalibration:
        """Return it with a value of the selectable option."""
        assert self.calibration.selectable is not None
        return replace(self, options={**self.options, self.calibration.selectable: value})

    @property
    def changed(self) -> dict[str, Any]:
        """Its name, and the options that differ from their defaults."""
        changed = {key: value for key, value in self.options.items() if value != self.defaults[key]}
        return {"calibration": self.calibration.name, **{f"calibration.{k}": value for k, value in changed.items()}}

    @property
    def record(self) -> dict[str, Any]:
        """Its name and all of its options."""
        return {"name": self.calibration.name, **self.options}


def calibration(*, scale: float, **how: Any) -> Callable[[Callable[..., Tensor]], TaskVectorCalibration]:
    """Decorate a function to make it a calibration; the arguments are those of `TaskVectorCalibration`."""
    return lambda function: TaskVectorCalibration(function, scale, **how)

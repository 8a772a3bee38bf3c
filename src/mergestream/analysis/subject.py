"""The run that is analysed: its encoders as task vectors and as classifiers, and the runs to compare it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from mergestream.compose.build import method_of
from mergestream.compose.inputs import Inputs
from mergestream.evaluation import Evaluator
from mergestream.merging.encoder import read_encoder
from mergestream.merging.engine import merged_task_vector
from mergestream.merging.vectors import TaskVectors
from mergestream.methods.method import Method
from mergestream.metrics import Row, row
from mergestream.runs.directory import Run, readable
from mergestream.runs.identity import deciding
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import is_whole, require_whole
from mergestream.strategies.strategy import BoundStrategy


@dataclass(frozen=True)
class Subject:
    """A finished run under analysis; its files and data are opened when they are first used.

    Args:
        run: the run directory.
        inputs: its CLIP and its data.
    """

    run: Run
    inputs: Inputs

    def with_methods(self, methods: Sequence[str]) -> dict[str, Subject]:
        """Return the runs of these methods that are otherwise named like this one.

        Args:
            methods: their ids, as in ``[ind, seq]``.

        Returns:
            The runs by label: the method, and in brackets what else its config has, as in ``ind (epochs=7)``.

        Raises:
            UserError: if `methods` is not a list of ids, or a run has not finished, has one encoder, or starts from
                other weights or data.
        """
        self.require_several()
        listed = isinstance(methods, Sequence) and not isinstance(methods, str)
        if not listed or not methods or not all(isinstance(method, str) for method in methods):
            raise UserError(
                f"analysis.methods must be a list of methods, such as [ind,seq]; got analysis.methods={methods}"
            )
        return dict(self._with_method(method) for method in methods)

    def _with_method(self, method: str) -> tuple[str, Subject]:
        """Return the label and the run of one method."""
        other = self._beside(self.run.with_method(method))
        if other.run.base()["sha256"] != self.run.base()["sha256"] or other.run.stream() != self.run.stream():
            raise UserError(
                f"runs that are compared need the same θ₀ and data; those of {readable(other.run.path)} and "
                f"{readable(self.run.path)} differ. Train both alike, with tag=NAME"
            )
        other.require_several()
        differing = self._differences(other, "method")
        return (f"{method} ({', '.join(differing)})" if differing else method), other

    def with_seeds(self, seeds: Sequence[int] | None) -> dict[int, Subject]:
        """Return the runs of these seeds that are otherwise equal to this one, by seed.

        Args:
            seeds: the seeds; None is this run alone.

        Raises:
            UserError: if `seeds` is not a list of seeds, or a run has not finished or differs in more than the seed.
        """
        if seeds is None:
            return {self.run.seed: self}
        if not isinstance(seeds, Sequence) or isinstance(seeds, str) or not seeds:
            raise UserError(f"analysis.seeds must be a list of seeds, such as [1,2,3]; got analysis.seeds={seeds}")
        for seed in seeds:
            require_whole("analysis.seeds", seed, 0)
        return {seed: self._with_seed(seed) for seed in seeds}

    def _with_seed(self, seed: int) -> Subject:
        other = self._beside(self.run.with_seed(seed))
        if differing := self._differences(other, "seed"):
            raise UserError(
                f"runs of several seeds must agree in all other values; {readable(other.run.path)} has {differing[0]}. "
                f"Leave seed {seed} out of analysis.seeds"
            )
        return other

    def _beside(self, run: Run) -> Subject:
        """Return another run, which must have finished."""
        run.require_finished()
        return replace(self, run=run)

    def _differences(self, other: Subject, key: str) -> list[str]:
        """Return the overrides that give the other run's config, except those of `key`."""
        ours, theirs = (deciding(run.config()) for run in (self.run, other.run))
        keys = sorted(k for k in ours.keys() | theirs.keys() if k.split(".")[0] != key)
        return [f"{k}={theirs.get(k)}" for k in keys if ours.get(k) != theirs.get(k)]

    @cached_property
    def task_names(self) -> list[str]:
        """Names of the tasks, in order."""
        return [task["name"] for task in self.run.stream()["tasks"]]

    @cached_property
    def method(self) -> Method:
        """The continual-learning method of the training."""
        return method_of(self.run.config())

    @cached_property
    def encoders(self) -> list[Path]:
        """The files of θ_1 … θ_T.

        Raises:
            UserError: if the method trains none, one is missing or was altered, or only the last was kept.
        """
        if self.method.data == "none":
            raise UserError(f"an analysis needs trained encoders; {readable(self.run.path)} has none. Try method=seq")
        if not self.run.keeps_tasks():
            raise UserError(
                f"an analysis needs every encoder; {readable(self.run.path)} was trained with keep_tasks=false. "
                "Train another run with keep_tasks=true tag=NAME"
            )
        return self.run.trained_encoders(1 if self.method.data == "all" else len(self.task_names))

    @cached_property
    def base_file(self) -> Path:
        """The file of θ₀."""
        return self.run.base_file()

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """The weights θ₀."""
        return files.read_tensors(self.base_file)

    def vectors(self) -> TaskVectors:
        """Return τ_1 … τ_T, to be read block by block inside a ``with`` statement."""
        return TaskVectors(self.base_file, self.encoders)

    def task_vector(self, task: int) -> dict[str, Tensor]:
        """Return τ of one task, counted from 0, in memory."""
        theta = read_encoder(self.encoders[task], self.base_file)
        return {name: theta[name] - base for name, base in self.base.items() if base.is_floating_point()}

    def merged(self, bound: BoundStrategy) -> dict[str, Tensor]:
        """Return the merged task vector of all tasks, before λ."""
        parameters = self.run.base()["clip_parameters"]
        return merged_task_vector(self.base_file, self.encoders, bound, clip_parameters=parameters)[0]

    def require_several(self) -> None:
        """Check that the run has more than one encoder.

        Raises:
            UserError: if it has one.
        """
        if len(self.encoders) < 2:
            raise UserError(
                f"this analysis compares encoders, and {readable(self.run.path)} has one. Try method=seq tasks=5"
            )

    def pair(self, between: Sequence[int] | None) -> tuple[int, int]:
        """Return the two tasks of the option ``analysis.between``, counted from 1; None is the first and the last.

        Raises:
            UserError: if they are not two different tasks of the run.
        """
        self.require_several()
        tasks = len(self.encoders)
        pair = [1, tasks] if between is None else between
        valid = isinstance(pair, Sequence) and all(is_whole(task) and 1 <= task <= tasks for task in pair)
        if not valid or len(pair) != 2 or pair[0] == pair[1]:
            raise UserError(
                f"analysis.between must be two different tasks from 1 to {tasks}, such as [1,{tasks}]; "
                f"got analysis.between={between}"
            )
        return pair[0], pair[1]

    @cached_property
    def evaluator(self) -> Evaluator:
        """The CLIP, its text head and the test data of the run.

        Raises:
            UserError: if the data are not those of the training.
        """
        evaluator = self.inputs.evaluator(self.run.decided("eval_precision"))
        self.run.require_data(evaluator.stream.describe())
        self.run.require_preprocessing(evaluator.preprocessing)
        return evaluator

    def accuracy(self, tau: Mapping[str, Tensor], scale: float = 1.0, only: int | None = None) -> Row:
        """Return the test accuracy of θ₀ + λ · τ.

        Args:
            tau: a task vector; a weight that it lacks stays as in θ₀.
            scale: λ.
            only: evaluate this task alone; None is all tasks.
        """
        tasks = len(self.evaluator.stream)
        return row(self.evaluator.counts(self._weights(tau, scale), tasks, only=only), tasks)

    def confusion(self, tau: Mapping[str, Tensor], scale: float = 1.0) -> np.ndarray:
        """Return the numbers of test images by class and predicted class of θ₀ + λ · τ, [C, C]; see `accuracy`."""
        return self.evaluator.confusion(self._weights(tau, scale))

    def _weights(self, tau: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
        theta = dict(self.base)
        for name, change in tau.items():
            theta[name] = theta[name] + scale * change
        return theta

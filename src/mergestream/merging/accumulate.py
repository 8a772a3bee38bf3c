"""The merge of the tasks so far, updated after each task, in space that does not grow with their number."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from mergestream.merging.engine import merged_task_vector
from mergestream.merging.provenance import dumped_options, provenance
from mergestream.merging.tensors import is_statistic
from mergestream.merging.vectors import TaskVectors, single_threaded
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.processes import cores
from mergestream.strategies.strategy import MERGED, BoundStrategy, State, sum_of_squares
from mergestream.strategies.task_arithmetic import task_arithmetic

Result = TypeVar("Result")
SPLIT = "::"  # between the name of a weight and that of a tensor of its state, in the file


@dataclass
class Accumulation:
    """The merged task vector of some tasks, in memory.

    Args:
        bound: a strategy with `running`, and its options.
        states: the state of each weight, by its name; see `Running`. Of a statistic, the sum over the tasks.
        tasks: how many tasks are in it.
        inputs: content hashes of θ₀ and of each encoder in it.
        lengths: ‖τ_t‖ of each task in it, if the strategy needs them.
    """

    bound: BoundStrategy
    states: dict[str, State] = field(default_factory=dict)
    tasks: int = 0
    inputs: list[str] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)

    def add(self, base: Path, encoder: Path) -> None:
        """Merge the encoder of the next task into it.

        Args:
            base: the file of θ₀.
            encoder: the file of the encoder.
        """
        tau, (base_hash, encoder_hash) = merged_task_vector(base, [encoder], task_arithmetic.bind({}))
        past, strategy = self.states, self.bound.strategy
        with self._curvature(base, encoder) as curvature:

            def added(name: str) -> State:
                state = past.get(name, {})
                if is_statistic(name):
                    return {MERGED: state[MERGED] + tau[name] if state else tau[name]}
                place = {"name": name, "task": self.tasks, "curvature": curvature(name)}
                return strategy.add(state, tau[name], self.bound.options, **place)

            if self._factor:
                self.lengths = [*self.lengths, _length(tau)]
            self.states = _by_name(added, tau)
        self.inputs = [*(self.inputs or [base_hash]), encoder_hash]
        self.tasks += 1

    def task_vector(self) -> tuple[dict[str, Tensor], list[str]]:
        """Return the merged task vector of its tasks, and the content hashes of θ₀ and of each encoder in it."""

        def finished(name: str) -> Tensor:
            state = self.states[name]
            return state[MERGED] / self.tasks if is_statistic(name) else self.bound.strategy.finish(state, self.tasks)

        tau = _by_name(finished, self.states)
        if self._factor:
            factor = self._factor(self.lengths, _length(tau))
            tau = {name: value if is_statistic(name) else value * factor for name, value in tau.items()}
        return tau, self.inputs

    @property
    def _factor(self) -> Callable[[Sequence[float], float], float] | None:
        running = self.bound.strategy.running
        assert running is not None  # RunningMerge requires it
        return running.factor

    @contextmanager
    def _curvature(self, base: Path, encoder: Path) -> Iterator[Callable[[str], Tensor | None]]:
        """Yield a function that returns what the strategy needs of the task for a weight, or None."""
        if (kind := self.bound.strategy.needs) is None:
            yield lambda name: None
            return
        with TaskVectors(base, [encoder]) as vectors:
            found = vectors.curvature(kind)
            # Linear layers alone have a Gram matrix; a Fisher information that is missing is an error.
            yield lambda name: next(found.tensors(name)) if kind != "gram" or name in found else None


def _length(tensors: Mapping[str, Tensor]) -> float:
    """Return the length of a task vector over the whole model, without the statistics of batch normalisation."""
    squares = _by_name(lambda name: sum_of_squares(tensors[name]), [n for n in tensors if not is_statistic(n)])
    return math.sqrt(math.fsum(squares.values()))


def _by_name(work: Callable[[str], Result], names: Iterable[str]) -> dict[str, Result]:
    """Return what `work` returns for each name. Each has one thread, as in the engine: more would change the bits."""
    names = list(names)
    with single_threaded(), ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return dict(zip(names, pool.map(work, names), strict=True))


@dataclass(frozen=True)
class RunningMerge:
    """The merged task vector of the tasks so far in a file, such as MagMax's extremes or the sum of an average.

    It holds the states of all weights, the number of tasks in it, and their lengths if the strategy needs them. Adding
    the next task vector gives the merge of all of them, to the bit.

    Args:
        path: the file.
        bound: a strategy with `running`, and its options.

    Raises:
        UserError: if the strategy needs all task vectors at once.
    """

    path: Path
    bound: BoundStrategy

    def __post_init__(self) -> None:
        self.bound.require_running()

    @property
    def tasks(self) -> int:
        """The number of tasks in it.

        Raises:
            UserError: if the file was made with other options.
        """
        if not self.path.is_file():
            return 0
        metadata = files.read_metadata(self.path)
        if metadata.get("options") != dumped_options(self.bound):
            raise UserError(
                f"options differ from those of the training; {self.path} was made with {metadata.get('options')}, got "
                f"{dumped_options(self.bound)}. Use the options of the training."
            )
        return int(metadata["tasks"])

    def add(self, task: int, base: Path, encoder: Path) -> None:
        """Merge an encoder into it, unless it already holds that task.

        Args:
            task: the task, counted from 0.
            base: the file of θ₀.
            encoder: the file of the task's encoder.

        Raises:
            UserError: if an earlier task is missing.
        """
        done = self.tasks
        if task < done:
            return
        if task > done:
            raise UserError(
                f"a running merge takes one task after the other; {self.path} holds {done} tasks, got task {task + 1}"
            )
        merged = self._read(done)
        merged.add(base, encoder)
        marks = provenance(self.bound, merged.inputs, tasks=merged.tasks, lengths=merged.lengths)
        tensors = {
            f"{name}{SPLIT}{key}" if key else name: t for name, s in merged.states.items() for key, t in s.items()
        }
        files.write_tensors(self.path, tensors, marks)

    def task_vector(self) -> tuple[dict[str, Tensor], list[str]]:
        """Return the merged task vector of its tasks, and the content hashes of θ₀ and of each encoder in it."""
        return self._read(self.tasks).task_vector()

    def _read(self, tasks: int) -> Accumulation:
        if not tasks:
            return Accumulation(self.bound)
        metadata = files.read_metadata(self.path)
        inputs, lengths = json.loads(metadata["inputs"]), json.loads(metadata.get("lengths", "[]"))
        states: dict[str, State] = {}
        for tensor, value in files.read_tensors(self.path).items():
            name, _, key = tensor.partition(SPLIT)
            states.setdefault(name, {})[key] = value
        return Accumulation(self.bound, states, tasks, inputs, lengths)

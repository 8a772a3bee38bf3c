"""The merge of all tasks so far, kept up to date after every task, in the space of one encoder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mergestream import __version__
from mergestream.merging.engine import merged_task_vector
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.strategies.strategy import BoundStrategy
from mergestream.strategies.task_arithmetic import task_arithmetic


@dataclass(frozen=True)
class RunningMerge:
    """What a strategy has made of the task vectors so far: MagMax's extremes, the average's sum.

    The file holds the strategy's result before it is `finish`ed, in float32, and the number of tasks in it. A strategy
    with `running` makes of it and the next task vector what it makes of all of them, to the bit.

    Args:
        path: the file.
        bound: a strategy with `running`, and its options.

    Raises:
        UserError: if the strategy needs all task vectors at once.
    """

    path: Path
    bound: BoundStrategy

    def __post_init__(self) -> None:
        self.bound.strategy.require_running()

    @property
    def tasks(self) -> int:
        """How many tasks are in it.

        Raises:
            UserError: if the file belongs to other options.
        """
        if not self.path.is_file():
            return 0
        metadata = files.read_metadata(self.path)
        if metadata.get("options") != self._options():
            raise UserError(
                f"{self.path} was merged with strategy.…={metadata.get('options')}, and this command says "
                f"{self._options()}. Use the options of the training."
            )
        return int(metadata["tasks"])

    def add(self, task: int, base: Path, encoder: Path) -> None:
        """Take the encoder of `task`, counted from 0, into the merge; if it is in already, leave it."""
        done = self.tasks
        if task < done:
            return
        if task > done:
            raise UserError(f"{self.path} holds {done} tasks, so task {task + 1} does not continue it")
        tau, (of_base, of_encoder) = merged_task_vector(base, [encoder], task_arithmetic, {})  # the sum of one
        past = self._read()
        result = {}
        for name, row in tau.items():
            rows = torch.stack([past[name], row] if past else [row])
            result[name] = self.bound.strategy.function(rows, **self.bound.options)
        inputs = [*(self._inputs() or [of_base]), of_encoder]
        metadata = {
            "strategy": self.bound.strategy.name,
            "options": self._options(),
            "tasks": str(task + 1),
            "inputs": json.dumps(inputs),
            "version": __version__,
        }
        files.write_tensors(self.path, result, metadata)

    def task_vector(self) -> tuple[dict[str, Tensor], list[str]]:
        """The merged task vector of all tasks in it, and the content hashes of θ₀ and of every encoder that went in."""
        result, tasks = self._read(), self.tasks
        if self.bound.strategy.finish:
            result = {name: self.bound.strategy.finish(tau, tasks) for name, tau in result.items()}
        return result, self._inputs()

    def _read(self) -> dict[str, Tensor]:
        return files.read_tensors(self.path) if self.path.is_file() else {}

    def _inputs(self) -> list[str]:
        return json.loads(files.read_metadata(self.path)["inputs"]) if self.path.is_file() else []

    def _options(self) -> str:
        return json.dumps(self.bound.options, sort_keys=True)

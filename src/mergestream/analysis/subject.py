"""What an analysis looks at: the encoders of a run, as task vectors and as classifiers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from mergestream.compose.build import build, load_evaluator
from mergestream.evaluation import Evaluator
from mergestream.merging.engine import merged_task_vector
from mergestream.merging.run import bound_strategy, scales_of
from mergestream.merging.vectors import Block, TaskVectors
from mergestream.methods.method import Method
from mergestream.metrics import Row, row
from mergestream.runs.directory import Run
from mergestream.runs.identity import deciding
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_whole
from mergestream.strategies.strategy import Strategy


@dataclass(frozen=True)
class Subject:
    """A finished run, opened as far as an analysis asks for.

    Args:
        cfg: of analyze.py, resolved.
        run: that the config names.
        asked: which of ``strategy`` and ``lambda`` the analysis has asked for.
    """

    cfg: DictConfig
    run: Run
    asked: set[str] = field(default_factory=set)

    def of_methods(self, methods: Sequence[str]) -> dict[str, Subject]:
        """The runs of other methods beside this one, by what they are called: the method, and what else it differs in.

        Raises:
            UserError: if `methods` is no list of them, or a run has one encoder, has not finished, or has another θ₀
                or other data.
        """
        self.require_several()
        listed = isinstance(methods, Sequence) and not isinstance(methods, str)
        if not listed or not methods or not all(isinstance(method, str) for method in methods):
            raise UserError(
                f"analysis.methods must be a list of methods, such as [ind,seq]; got analysis.methods={methods}"
            )
        return dict(self._of_method(method) for method in methods)

    def _of_method(self, method: str) -> tuple[str, Subject]:
        path = self.run.path.parents[1] / method / self.run.path.name
        other = self._at(path, re.sub(r"method=\S+", f"method={method}", self.run.command))
        if other.run.base()["sha256"] != self.run.base()["sha256"] or other.run.stream() != self.run.stream():
            raise UserError(
                f"runs that are compared need the same θ₀ and data; {path} has others than {self.run.path}. "
                "Train both alike, with tag=NAME"
            )
        other.require_several()
        differing = self._differing(other, "method")
        return (f"{method} ({', '.join(differing)})" if differing else method), other

    def of_seeds(self, seeds: Sequence[int] | None) -> dict[int, Subject]:
        """The runs of other seeds beside this one, by seed; without `seeds` this one alone.

        Raises:
            UserError: if `seeds` is no list of them, or a run has not finished, or differs in more than the seed.
        """
        if seeds is None:
            return {self.cfg.seed: self}
        if not isinstance(seeds, Sequence) or isinstance(seeds, str) or not seeds:
            raise UserError(f"analysis.seeds must be a list of seeds, such as [1,2,3]; got analysis.seeds={seeds}")
        for seed in seeds:
            require_whole("analysis.seeds", seed, 0)
        return {seed: self._of_seed(seed) for seed in seeds}

    def _of_seed(self, seed: int) -> Subject:
        path = self.run.path.with_name(re.sub(r"^seed-\d+", f"seed-{seed}", self.run.path.name))
        other = self._at(path, re.sub(r"\bseed=\d+", f"seed={seed}", self.run.command))
        if differing := self._differing(other, "seed"):
            raise UserError(
                f"runs of several seeds differ in nothing else; {path} has {differing[0]}. "
                "Leave it out of analysis.seeds"
            )
        return other

    def _at(self, path: Path, command: str) -> Subject:
        """Another run of the same root, which must have finished."""
        other = replace(self, run=replace(self.run, path=path, command=command))
        other.run.require_finished()
        return other

    def _differing(self, other: Subject, key: str) -> list[str]:
        """In what the other run's config differs besides `key`, as one types it."""
        mine, theirs = (deciding(run.config()) for run in (self.run, other.run))
        keys = sorted(k for k in mine.keys() | theirs.keys() if k.split(".")[0] != key)
        return [f"{k}={theirs.get(k)}" for k in keys if mine.get(k) != theirs.get(k)]

    @cached_property
    def task_names(self) -> list[str]:
        return [task["name"] for task in self.run.stream()["tasks"]]

    @cached_property
    def method(self) -> Method:
        return build(self.run.config().method)

    @cached_property
    def encoders(self) -> list[Path]:
        """The files of θ_1 … θ_T.

        Raises:
            UserError: if there are none, one is missing or altered, or only the last was kept.
        """
        if self.method.data == "none":
            raise UserError(f"an analysis needs trained encoders; {self.run.path} has none. Try method=seq")
        if not self.run.keeps_tasks():
            raise UserError(
                f"an analysis needs every encoder; {self.run.path} was trained with keep_tasks=false. "
                "Train one with keep_tasks=true tag=NAME beside it"
            )
        return self.run.trained_encoders(1 if self.method.data == "all" else len(self.task_names))

    @cached_property
    def base_file(self) -> Path:
        return self.run.base_file()

    def vectors(self) -> TaskVectors:
        """τ_1 … τ_T, block by block; to be used in a ``with`` statement."""
        return TaskVectors(self.base_file, self.encoders)

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """θ₀."""
        return files.read_tensors(self.base_file)

    def task_vector(self, task: int) -> dict[str, Tensor]:
        """τ of one task, counted from 0, in memory."""
        theta = files.read_tensors(self.encoders[task])
        return {name: theta[name] - base for name, base in self.base.items() if base.is_floating_point()}

    @cached_property
    def _bound(self) -> tuple[Strategy, dict[str, Any]]:
        self.asked.add("strategy")
        return bound_strategy(self.cfg)

    @property
    def strategy(self) -> Strategy:
        """Of the config."""
        return self._bound[0]

    @property
    def scale(self) -> float:
        """λ of the config."""
        self.asked.add("lambda")
        (scale,) = scales_of(self.cfg)
        return scale

    def merged(self) -> dict[str, Tensor]:
        """All task vectors merged by the config's strategy, before λ."""
        parameters = self.run.base()["clip_parameters"]
        strategy, options = self._bound
        return merged_task_vector(self.base_file, self.encoders, strategy, options, clip_parameters=parameters)[0]

    def require_several(self) -> None:
        """
        Raises:
            UserError: if the run has one encoder only.
        """
        if len(self.encoders) < 2:
            raise UserError(f"this analysis compares encoders, and {self.run.path} has one. Try method=seq tasks=5")

    def pair(self, key: str, between: Sequence[int] | None) -> tuple[int, int]:
        """Two tasks, counted from 1: those that the option `key` gives, or the first and the last.

        Raises:
            UserError: if they are not two different tasks of the run.
        """
        self.require_several()
        tasks = len(self.encoders)
        pair = [1, tasks] if between is None else between
        whole = isinstance(pair, Sequence) and all(isinstance(x, int) and 1 <= x <= tasks for x in pair)
        if not whole or len(pair) != 2 or pair[0] == pair[1]:
            raise UserError(
                f"{key} must be two different tasks from 1 to {tasks}, such as [1,{tasks}]; got {key}={between}"
            )
        return pair[0], pair[1]

    @cached_property
    def evaluator(self) -> Evaluator:
        """With the CLIP and the test data of the run.

        Raises:
            UserError: if the data are not those of the training.
        """
        evaluator = load_evaluator(self.cfg)
        self.run.require_data(evaluator.stream.describe())
        return evaluator

    def accuracy(self, tau: Mapping[str, Tensor], scale: float = 1.0, only: int | None = None) -> Row:
        """What θ₀ + λ · τ achieves on the test images: of all tasks, or of one."""
        theta = dict(self.base)
        for name, change in tau.items():
            theta[name] = theta[name] + scale * change
        tasks = len(self.evaluator.stream)
        return row(self.evaluator.counts(theta, tasks, only=only), tasks)


def places(names: Iterable[str]) -> dict[str, tuple[int | None, str]]:
    """weight → (block, kind): (3, "attn.out_proj.weight") of "transformer.resblocks.3.attn.out_proj.weight".

    Blocks are counted from 0 through the network, also where it has several stages (layer2.0.conv1.weight,
    stages.1.blocks.0.norm.weight); what is in none has None.
    """
    found = {name: re.match(r"((?:.*?\.)?\d+(?:\.(?:blocks\.)?\d+)?)\.(.+)$", name) for name in names}
    blocks = {match[1] for match in found.values() if match}
    order = sorted(blocks, key=lambda block: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", block)])
    return {name: (order.index(match[1]), match[2]) if match else (None, name) for name, match in found.items()}


def per_weight(blocks: Sequence[Block], results: Sequence[np.ndarray]) -> dict[str, tuple[int, np.ndarray]]:
    """weight → (its parameters, the sum of the results of its blocks)."""
    sums: dict[str, tuple[int, np.ndarray]] = {}
    for block, result in zip(blocks, results, strict=True):
        size, so_far = sums.get(block.name, (0, np.zeros_like(result)))
        sums[block.name] = size + block.size, so_far + result
    return sums


def winners(taus: Tensor) -> Tensor:
    """[T, n] → which task's value MagMax takes, [n]; equal magnitudes go to the later task, zeros to none (−1)."""
    magnitudes = taus.abs()
    last = len(taus) - 1 - magnitudes.flip(0).argmax(0)
    return torch.where(magnitudes.amax(0) > 0, last, -1)


def counted(values: Tensor, bins: int) -> np.ndarray:
    """How often each of 0 … bins − 1 occurs; others are left out."""
    return torch.bincount(values[values >= 0].flatten(), minlength=bins).numpy()

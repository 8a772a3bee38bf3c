"""merge_every_task=true: after every task, merge what there is so far, evaluate it, and drop what is not needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor

from mergestream.merging.accumulate import RunningMerge
from mergestream.merging.run import apply, bound_strategy, describe, merge_id, scales_of, write_merged
from mergestream.runs.directory import Run, readable
from mergestream.runs.results import Counts, assemble
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

Measure = Callable[[Mapping[str, Tensor], int], Counts]


class RunningEvaluation:
    """Called by the training after each task, on every process; files are written by the first.

    The order makes a run that is cut off anywhere continue to the same bytes: an encoder goes only when the next one,
    the merge with it and its evaluation are on disk.

    Args:
        cfg: of the training, with ``strategy``, ``lambda`` and ``keep_tasks``.
        run: where the training writes.

    Raises:
        UserError: if the strategy cannot be continued task by task.
    """

    def __init__(self, cfg: DictConfig, run: Run):
        self.cfg, self.run = cfg, run
        self.strategy, self.options = bound_strategy(cfg)
        (self.scale,) = scales_of(cfg)
        self.merge = RunningMerge(run.running(self.strategy.name), self.strategy, self.options)
        self.folder = run.path / "merges" / merge_id(self.strategy, self.scale, self.options, cfg.seed)
        self.rows: list[Counts] = []
        distributed = dist.is_available() and dist.is_initialized()
        self.first = not distributed or dist.get_rank() == 0
        self.barrier = dist.barrier if distributed else lambda: None

    def follow(self, index: int, measure: Measure) -> None:
        """Take task `index` in. ``measure(weights, seen)`` evaluates an encoder on all processes together."""
        path = self._row(index)
        if path.is_file():
            self.rows.append(files.read_json(path, "total", "agnostic", "aware", "seen_correct"))
        else:
            base, merged = self.run.base_file(), self.folder / "merged.safetensors"
            if self.first:
                self.merge.add(index, base, self.run.encoder(index))
                if self.merge.tasks != index + 1:
                    raise UserError(
                        f"the merge of the first {index + 1} tasks was not evaluated with this lambda or strategy, "
                        f"and {readable(self.merge.path)} holds {self.merge.tasks} already. Use those that the run was "
                        "started with."
                    )
                tau, inputs = self.merge.task_vector()
                theta = apply(files.read_tensors(base), tau, self.scale)
                write_merged(merged, theta, self.strategy, self.scale, self.options, inputs)
            self.barrier()
            self.rows.append(measure(files.read_tensors(merged), index + 1))
            self.barrier()
            if self.first:
                files.write_json(path, self.rows[-1])
        if self.first and not self.cfg.keep_tasks and index:
            self.run.drop(index - 1)

    def finish(self, zero_shot: Counts, timing: dict[str, float], devices: int, hashes: dict[str, str]) -> None:
        """Write metrics.json of the merge, as ``merge.py prefixes=true`` would; `hashes` go into its provenance."""
        seen = list(range(1, len(self.rows) + 1))
        metrics = assemble("merge", self.cfg, zero_shot, self.rows, seen, timing, devices)
        metrics["merge"] = describe(self.strategy, self.scale, self.options, self.cfg.seed, {})
        metrics["provenance"] |= hashes
        files.write_json(self.folder / "metrics.json", metrics)

    def _row(self, index: int) -> Path:
        return self.run.task(index) / f"{self.folder.name}.json"

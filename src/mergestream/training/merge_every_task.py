"""``merge_every_task=true``: after every task, merge the tasks so far, evaluate the merge, and drop old encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mergestream.compose.training import RunningMergeSettings
from mergestream.merging.accumulate import RunningMerge
from mergestream.merging.encoder import apply, describe, write_merged
from mergestream.metrics import Counts, still_known
from mergestream.runs.directory import Run, readable
from mergestream.runs.identity import content_hash
from mergestream.runs.results import COUNTED, assemble, counts_of
from mergestream.runtime import files, processes
from mergestream.runtime.errors import UserError

Measure = Callable[[Mapping[str, Tensor], int], Counts]


class RunningEvaluation:
    """Keeps a merge of all tasks so far, and its evaluation. Every process calls it; the first writes files.

    An encoder is deleted only when the next one, the merge with it and its evaluation are on disk, so a run that is
    interrupted anywhere continues to the same bytes.

    Args:
        run: the run directory.
        config: of the training, for the record.
        settings: strategy, λ, and whether all encoders are kept.
        tasks: class ids of each task of the stream.
    """

    def __init__(
        self, run: Run, config: Mapping[str, Any], settings: RunningMergeSettings, tasks: Sequence[Sequence[int]]
    ):
        self.run, self.config, self.settings, self.tasks = run, config, settings, tasks
        bound = settings.bound
        self.merge = RunningMerge(run.running(bound.strategy.name), bound)
        self.folder = run.path / "merges" / bound.folder(settings.scale)
        self.rows: list[Counts | None] = []

    def follow(self, index: int, measure: Measure | None) -> None:
        """Add task `index` to the merge and evaluate the result.

        Args:
            index: the task, from 0.
            measure: ``measure(weights, seen)`` returns counts, computed by all processes together; None after a task
                that is not evaluated.
        """
        if index == 0 and self.settings.keep_tasks:
            self._start_over_if_outdated()
        path = self._row(index)
        record = files.read_json(path, *COUNTED) if path.is_file() else None
        known = counts_of(record) if record else None
        if record and (known is None or self.run.is_current(record)):
            self.rows.append(known)
        else:
            checksum = record.get("merge_sha256") if record else None
            if processes.is_first() and record is None:
                checksum = self._merge(index)
            processes.barrier()
            if known is not None and self.merge.tasks > index + 1:  # its encoders are gone
                self.rows.append(still_known(known, index + 1, len(self.tasks)))
            else:
                merged = self.folder / "merged.safetensors"
                self.rows.append(measure(files.read_tensors(merged), index + 1) if measure is not None else None)
            processes.barrier()
            if processes.is_first():
                measured = self.rows[-1] or dict.fromkeys(Counts.__annotations__)
                files.write_json(path, {**measured, **self._stamp(), "merge_sha256": checksum})
            processes.barrier()
        if processes.is_first() and not self.settings.keep_tasks and index:
            self.run.drop(index - 1)

    def checksum(self, index: int) -> str:
        """Return what identifies the merge of the first `index` + 1 tasks: the hash of all that it was made of."""
        return str(files.read_json(self._row(index), "merge_sha256", own=True)["merge_sha256"])

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the merge of all tasks so far."""
        tau, _ = self.merge.task_vector()
        return apply(files.read_tensors(self.run.base_file()), tau, self.settings.scale)

    def finish(self, zero_shot: Counts, timing: Mapping[str, float], devices: int, hashes: Mapping[str, str]) -> None:
        """Write metrics.json of the merge, as ``merge.py prefixes=true`` would.

        Args:
            zero_shot: counts of θ₀.
            timing: seconds by stage.
            devices: processes that took part.
            hashes: of θ₀ and data, for the provenance.
        """
        seen = list(range(1, len(self.rows) + 1))
        metrics = assemble("merge", self.config, zero_shot, self.rows, seen, timing, devices, self.tasks)
        metrics["merge"] = describe(self.settings.bound, self.settings.scale)
        metrics["provenance"] |= hashes
        files.write_json(self.folder / "metrics.json", metrics)

    def _start_over_if_outdated(self) -> None:
        """Delete the merge and its evaluations if tasks have arrived since; all encoders are there to make it again."""
        if processes.is_first():
            rows = [path for index, _ in self.run.task_folders() if (path := self._row(index)).is_file()]
            found = [files.read_json(path, *COUNTED) for path in rows]
            if any(row["total"] is not None and not self.run.is_current(row) for row in found):
                self.merge.path.unlink(missing_ok=True)
                for path in rows:
                    path.unlink()
        processes.barrier()

    def _stamp(self) -> dict[str, str]:
        """Return what tells whether a row is of all data that the run has now."""
        return {"data_sha256": self.run.data_hash()} if self.run.grows else {}

    def _merge(self, index: int) -> str:
        """Merge task `index` and write the result; return what identifies it."""
        base, bound, scale = self.run.base_file(), self.settings.bound, self.settings.scale
        self.merge.add(index, base, self.run.encoder(index))
        if self.merge.tasks != index + 1:
            raise UserError(
                f"the merge of the first {index + 1} tasks was not evaluated with this lambda or strategy, and "
                f"{readable(self.merge.path)} already holds {self.merge.tasks}. Use the values that the run was "
                "started with."
            )
        tau, inputs = self.merge.task_vector()
        theta = apply(files.read_tensors(base), tau, scale)
        write_merged(self.folder / "merged.safetensors", theta, bound, scale, inputs)
        return content_hash([bound.strategy.name, bound.options, scale, inputs])

    def _row(self, index: int) -> Path:
        return self.run.task(index) / f"{self.folder.name}.json"

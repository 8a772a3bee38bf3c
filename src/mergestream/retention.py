"""evaluate.py: measure an encoder of a run on data sets that the run was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mergestream.compose.build import ADAPTER
from mergestream.compose.held_out import HeldOut, HeldOutSettings
from mergestream.display import tables
from mergestream.evaluation import Evaluator
from mergestream.merging.chosen import Chosen, chosen_encoder
from mergestream.metrics import class_means
from mergestream.runs.directory import readable
from mergestream.runs.identity import content_hash, equal_hash
from mergestream.runs.results import circumstances
from mergestream.runs.retention import Measurement, path_beside, path_of_base, read
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

SCHEMA_VERSION = 1


def measure(settings: HeldOutSettings) -> None:
    """Measure an encoder on every data set of the settings, and write a file for each beside the encoder.

    What is measured already is shown again. θ₀ is measured once for all runs of a root.

    Raises:
        UserError: if the run or the encoder is missing, damaged or does not fit the command, or a data set is missing
            or not held out.
    """
    chosen = chosen_encoder(settings.encoder)
    for held_out in settings.sets:
        settings.loaded.require_held_out(held_out, settings.encoder.run)
    work = _Work(settings, chosen)
    known = [work.known(held_out) for held_out in settings.sets]
    if None not in known:
        print("already measured, nothing to do")
    results = [found or work.measure(held_out) for found, held_out in zip(known, settings.sets, strict=True)]
    _show(chosen, results)
    print(f"results in {readable(work.path(settings.sets[0]).parent)}")


@dataclass(frozen=True)
class _Work:
    """The measurement of one encoder on several data sets."""

    settings: HeldOutSettings
    chosen: Chosen

    @property
    def base_sha256(self) -> str:
        """The hash of θ₀."""
        return self.settings.encoder.run.base()["sha256"]

    @property
    def is_base(self) -> bool:
        """Whether the encoder is θ₀ itself."""
        return self.chosen.sha256 == self.base_sha256

    def config(self, held_out: HeldOut) -> dict[str, Any]:
        """Return what decides a result besides the encoder and the data; see `Measurement`."""
        run = self.settings.encoder.run
        model, precision = run.config()["model"], run.decided("eval_precision")
        model = {key: value for key, value in model.items() if key not in ADAPTER}  # the weights say it all
        return {"dataset": dict(held_out.config), "model": model, "eval_precision": precision}

    def path(self, held_out: HeldOut) -> Path:
        """Return the file of a result."""
        if self.is_base:
            return self.base_path(held_out)
        return path_beside(self.chosen.path, held_out.name)

    def base_path(self, held_out: HeldOut) -> Path:
        """Return the file of the result of θ₀."""
        root = self.settings.encoder.run.root
        return path_of_base(root, self.base_sha256, held_out.name, self.config(held_out))

    def known(self, held_out: HeldOut) -> Measurement | None:
        """Return what an earlier command has measured of this encoder; None if there is nothing, or it is damaged."""
        return self._earlier(held_out, self.path(held_out), self.chosen.sha256)

    def _earlier(self, held_out: HeldOut, path: Path, sha256: str) -> Measurement | None:
        found = _earlier(path, sha256, self.config(held_out))
        if found is None or (images := found["provenance"].get("images", "unknown")) is None:
            return found  # nothing, or of images in memory
        now = self.settings.loaded.fingerprint(held_out)
        return found if now in (None, images) else None

    def measure(self, held_out: HeldOut) -> Measurement:
        """Measure the encoder, and θ₀ if that has not been done with the same data, and write the files."""
        run = self.settings.encoder.run
        evaluator = self.settings.loaded.evaluator(held_out, run.decided("eval_precision"))
        run.require_preprocessing(evaluator.clip.preprocessing)
        data = _data_hash(evaluator)
        path = self.base_path(held_out)
        base = self._earlier(held_out, path, self.base_sha256)
        if base is None or base["data_sha256"] != data:
            theta = files.read_tensors(run.base_file())
            base = self._result(held_out, evaluator, theta, self.base_sha256, data)
            files.write_json(path, base)
        if self.is_base:
            return base
        result = self._result(held_out, evaluator, self.chosen.weights(), self.chosen.sha256, data, base["accuracy"])
        files.write_json(self.path(held_out), result)
        return result

    def _result(
        self,
        held_out: HeldOut,
        evaluator: Evaluator,
        theta: Mapping[str, Tensor],
        sha256: str,
        data: str,
        zero_shot: float | None = None,
    ) -> Measurement:
        """Measure the weights `theta` with the hash `sha256`; θ₀ has no `zero_shot` but its own accuracy."""
        counts = evaluator.counts(theta, 1)
        total, correct = counts["class_total"], counts["class_correct"]
        assert total is not None  # counted just now
        assert correct is not None
        accuracy = sum(correct) / sum(total)
        before = accuracy if zero_shot is None else zero_shot
        now = circumstances(1, evaluator.precision)
        return {
            "schema_version": SCHEMA_VERSION,
            "dataset": held_out.name,
            "encoder_sha256": sha256,
            "base_sha256": self.base_sha256,
            "accuracy": accuracy,
            "macro_accuracy": class_means(total, correct, range(len(total))).macro,
            "zero_shot": before,
            "retention": accuracy - before,
            "test_samples": sum(total),
            "num_classes": len(total),
            "data_sha256": data,
            "config": self.config(held_out),
            "environment": now["environment"],
            "git": now["git"],
            "provenance": {
                "command": now["command"],
                "finished": now["at"],
                "encoder": self.chosen.name,
                "images": self.settings.loaded.fingerprint(held_out),
            },
        }


def _earlier(path: Path, sha256: str, config: Mapping[str, Any]) -> Measurement | None:
    """Return what an earlier command has measured; None if it is of another encoder or config, or damaged."""
    if not path.is_file():
        return None
    try:
        found = read(path)
    except UserError as error:
        print(f"{error}; measuring again")
        return None
    same = found["encoder_sha256"] == sha256 and equal_hash(found["config"]) == equal_hash(config)
    return found if same else None


def _data_hash(evaluator: Evaluator) -> str:
    """Return a hash of the classes, prompts and labels of a data set."""
    source = evaluator.stream.source
    prompts = [list(texts) for texts in source.prompts]
    return content_hash([list(source.class_names), prompts, source.test.labels.tolist(), dict(source.notes)])


def _show(chosen: Chosen, results: Sequence[Measurement]) -> None:
    """Print a line for each data set, and the mean retention of several."""

    def points(value: float) -> str:
        return f"{100 * value:+.2f}"

    columns = ["", "test images", "classes", "zero-shot", chosen.name, "retention, points"]
    rows: list[list[Any]] = [
        [r["dataset"], r["test_samples"], r["num_classes"], r["zero_shot"], r["accuracy"], points(r["retention"])]
        for r in results
    ]
    if len(results) > 1:
        means = [sum(r[key] for r in results) / len(results) for key in ("zero_shot", "accuracy", "retention")]
        rows.append(["mean", "", "", *means[:2], points(means[2])])
    tables.table("zero-shot accuracy on other data sets", columns, rows)

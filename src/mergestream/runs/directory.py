"""The run directory: where a config's results live, what it holds, and whether a run is what its config says.

<root>/<dataset>/<stream>-<tasks>/<model>/<method>/seed-<seed>[-<tag>]/
  config.yaml  stream.json  base.json  metrics.json
  task-00/encoder.safetensors  task-00/evaluation.json  …  (task-NN/checkpoint.safetensors while it is trained)
  merges/<strategy>-<scale>/merged.safetensors  metrics.json
<root>/_base/<sha256>.safetensors
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mergestream import __version__
from mergestream.runs.identity import config_hash, content_hash, deciding, option
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.processes import cores

SEAL = "# checksum: "  # of the lines above it in config.yaml


@dataclass(frozen=True)
class Run:
    """One run directory.

    Args:
        root: where results go.
        path: the directory.
        command: how to make it or to go on with it, for messages.
    """

    root: Path
    path: Path
    command: str

    @classmethod
    def of(cls, cfg: DictConfig, extra: Sequence[str] = ()) -> Run:
        """The run that a composed train or merge config names; `extra` overrides go into the command that makes it."""
        stream = f"{cfg.stream.name}-{cfg.tasks}"
        last = f"seed-{cfg.seed}" + (f"-{cfg.tag}" if cfg.tag is not None else "")
        names = (cfg.dataset.name, stream, cfg.model.name, cfg.method.id, last)
        path = Path(cfg.root).joinpath(*map(str, names))
        words = [f"dataset={option('dataset', cfg.dataset.name)}", f"tasks={cfg.tasks}"]
        words += [f"method={option('method', cfg.method.id)}", f"model={option('model', cfg.model.name)}"]
        words += [f"seed={cfg.seed}"] + [f"stream={cfg.stream.name}"] * (cfg.stream.name != "class")
        words += [f"tag={cfg.tag}"] * (cfg.tag is not None) + [f"root={cfg.root}"] * (cfg.root != "runs")
        return cls(Path(cfg.root), path, " ".join(["python train.py", *words, *extra]))

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    def task(self, index: int) -> Path:
        return self.path / f"task-{index:02d}"

    def encoder(self, index: int) -> Path:
        return self.task(index) / "encoder.safetensors"

    def method_state(self, index: int) -> Path:
        return self.task(index) / "method.safetensors"

    def evaluation(self, index: int) -> Path:
        return self.task(index) / "evaluation.json"

    def checkpoint(self, index: int) -> Path:
        """The state inside a task, while it is trained."""
        return self.task(index) / "checkpoint.safetensors"

    def record(self, index: int) -> dict[str, Any]:
        """What is known of a finished task: its counts, its files and their checksums."""
        return self.read(self.evaluation(index), "total", "agnostic", "aware", "seen_correct", "files", "seconds")

    def stamp(self, cfg: DictConfig) -> dict[str, str]:
        """What every file that the training writes belongs to."""
        return {
            "base_sha256": self.base()["sha256"],
            "config_sha256": config_hash(cfg),
            "data_sha256": content_hash({key: self.stream()[key] for key in ("num_classes", "class_order", "tasks")}),
            "version": __version__,
        }

    def require_stamp(self, path: Path, stamp: Mapping[str, str]) -> None:
        """
        Raises:
            UserError: if a file was written by a training from another θ₀, on other data, or with another config.
        """
        metadata = files.read_metadata(path)
        if wrong := [key for key, value in stamp.items() if key != "version" and metadata.get(key) != value]:
            raise UserError(
                f"{readable(path)} belongs to another run (its {wrong[0]} differs). Delete {readable(path.parent)}, "
                f"and type: {self.command}"
            )

    def parent(self, index: int) -> str | None:
        """Checksum of the encoder that the one of task `index` was fine-tuned from; None where it is gone."""
        path = self.encoder(index)
        return files.read_metadata(path).get("parent") if path.is_file() else None

    def running(self, strategy: str) -> Path:
        """The running merge of a strategy, see `RunningMerge`."""
        return self.path / "running" / f"{strategy}.safetensors"

    def drop(self, index: int) -> None:
        """Delete the encoder and the method's state of a task that a running merge stands in for, and say so."""
        files.write_json(self.evaluation(index), {**self.record(index), "dropped": True})
        self.method_state(index).unlink(missing_ok=True)
        self.encoder(index).unlink(missing_ok=True)

    def keeps_tasks(self) -> bool:
        """Whether no task is known to have been dropped."""
        for index, _ in self.tasks():
            with suppress(UserError):  # of a record that is missing or damaged
                if self.record(index).get("dropped"):
                    return False
        return True

    def tasks(self) -> list[tuple[int, Path]]:
        """Number and folder of every task that was begun."""
        found = [path for path in self.path.glob("task-*") if re.fullmatch(r"task-\d+", path.name) and path.is_dir()]
        return sorted((int(path.name.removeprefix("task-")), path) for path in found)

    def encoders(self) -> list[Path]:
        """The encoders that the run has saved, in the order of the tasks."""
        return [self.encoder(index) for index, _ in self.tasks() if self.encoder(index).is_file()]

    def claim(self, cfg: DictConfig) -> None:
        """Mark the directory as that of `cfg`; the last of the files that are written before the training begins."""
        text = OmegaConf.to_yaml(cfg, resolve=True)
        with files.whole(self.path / "config.yaml") as partial:
            partial.write_text(f"{text}{SEAL}{_sha256(text)}\n")

    def require_same(self, cfg: DictConfig, keys: Sequence[str] | None = None) -> None:
        """
        Args:
            cfg: a resolved config.
            keys: compare these parts only; None compares all that decides the result.

        Raises:
            UserError: if the run was made with another config.
        """
        here, there = deciding(cfg), deciding(self.config())
        for key in sorted(here.keys() | there.keys()):
            if keys is not None and not any(f"{key}.".startswith(f"{part}.") for part in keys):
                continue
            if here.get(key) != there.get(key):
                had, says = (f"{key}={d[key]}" if key in d else f"no {key}" for d in (there, here))
                raise UserError(
                    f"a run directory holds one config; {readable(self.path)} has {had} where this command says "
                    f"{says}. Use the run's own value, or write tag=NAME for a second run beside it."
                )

    def config(self) -> DictConfig:
        """The content of config.yaml."""
        path = self.path / "config.yaml"
        try:
            text, _, seal = path.read_text().rpartition(SEAL)
            if seal.strip() != _sha256(text):
                raise UserError("it is not as it was written (its checksum differs)")
            config = OmegaConf.create(text)
        except (UserError, OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            raise UserError(
                f"{readable(path)} must be the config of a run, but cannot be read: {_first(error)}. {self.advice}"
            ) from error
        assert isinstance(config, DictConfig)  # its checksum holds
        return config

    def read(self, path: Path, *keys: str) -> dict[str, Any]:
        """The content of a JSON file of the run.

        Raises:
            UserError: if it is missing or not as it was written.
        """
        try:
            return files.read_json(path, *keys, own=True)
        except UserError as error:
            raise UserError(f"{error}. {self.advice}") from error

    @property
    def advice(self) -> str:
        """What to type where a file of the run is damaged."""
        return f"To repair it, type: {self.command} repair=true"

    def require_data(self, described: Mapping[str, Any]) -> None:
        """
        Args:
            described: of the stream as it is now (`TaskStream.describe`).

        Raises:
            UserError: if the run was begun with other data.
        """
        begun = self.stream()
        if {key: begun.get(key) for key in described.keys() | {"notes"}} != {"notes": None, **described}:
            raise UserError(
                f"the data are not those that {readable(self.path)} was begun with; compare its stream.json. Restore "
                "them, or write tag=NAME for a second run beside it."
            )

    def stream(self) -> dict[str, Any]:
        """The content of stream.json."""
        return self.read(self.path / "stream.json", "tasks")

    def base(self) -> dict[str, Any]:
        """The content of base.json."""
        return self.read(self.path / "base.json", "sha256", "clip_parameters", "begun")

    def base_file(self) -> Path:
        """θ₀ of the run, below the root that the run lies in.

        Raises:
            UserError: if it is missing or not what its name says.
        """
        path = base_path(self.root, self.base()["sha256"])
        if not path.is_file() or files.sha256(path) != path.stem:
            raise UserError(
                f"θ₀ of {readable(self.path)} must be {readable(path)}, which is missing or altered. {self.advice}"
            )
        return path

    def trained_encoders(self, count: int) -> list[Path]:
        """The files of the first `count` encoders, as they were written, and trained from this run's θ₀.

        Raises:
            UserError: if one is missing, altered, or was trained from another θ₀.
        """
        sha256 = self.base()["sha256"]
        paths = [self.encoder(index) for index in range(count)]
        for path in paths:
            if not path.is_file() and not self.keeps_tasks():
                kept = ", ".join(f"strategy={p.stem}" for p in sorted((self.path / "running").glob("*.safetensors")))
                raise UserError(
                    f"{readable(self.path)} was trained with keep_tasks=false, so only {kept} can be merged, with the "
                    "options of its training"
                )
        with ThreadPoolExecutor(cores()) as pool:  # hashing leaves the interpreter to the others
            checks = [pool.submit(files.verify, path) for path in paths]
        for index, (path, check) in enumerate(zip(paths, checks, strict=True)):
            try:
                checksum = check.result()
            except UserError as error:
                raise UserError(f"{error}. {self.advice}") from error
            if files.read_metadata(path).get("base_sha256") != sha256:
                raise UserError(f"{readable(path)} was trained from another θ₀ than base.json names")
            if checksum != self.record(index)["files"].get(path.name):
                raise UserError(f"{readable(path)} is not the encoder that was evaluated. {self.advice}")
        return paths

    def begun(self) -> bool:
        """Whether there is anything that a run could be continued from."""
        return (self.path / "config.yaml").exists() or self.finished() or bool(self.tasks())

    def finished(self) -> bool:
        return self.metrics.is_file()

    def require_finished(self) -> None:
        """
        Raises:
            UserError: if the run does not exist or has not finished.
        """
        if not self.path.is_dir():
            raise UserError(f"a finished run is needed; {self.path} does not exist. Type: {self.command}")
        if not self.finished():
            done = len(self.encoders())
            raise UserError(
                f"a finished run is needed; {self.path} has only {done} tasks. To continue it, type: {self.command}"
            )


def store_base(root: Path, tensors: dict[str, Any]) -> tuple[Path, str]:
    """Keep θ₀ once under ``<root>/_base/<sha256>.safetensors``; returns its path and hash."""
    from safetensors.torch import save

    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(content).hexdigest()
    path = base_path(root, digest)
    if not path.exists() or files.sha256(path) != digest:
        with files.whole(path) as partial:
            partial.write_bytes(content)
    files.remove_partials(path.parent, hours=1)
    return path, digest


def base_path(root: Path, sha256: str) -> Path:
    """Where θ₀ with this hash is kept.

    Raises:
        UserError: if it is no hash, and might lead anywhere.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UserError(f"the sha256 of θ₀ must have 64 hexadecimal digits; got {sha256!r}")
    return root / "_base" / f"{sha256}.safetensors"


def readable(path: Path) -> str:
    """A path as short as it can be typed: relative to here where it is below here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

"""The run directory: which config leads to it, what it holds, and whether it still holds what was written.

<root>/<dataset>/<stream>[-<tasks>]/<model>/<method>/seed-<seed>[-<tag>]/
  config.yaml  stream.json  base.json  metrics.json
  task-00/encoder.safetensors  task-00/evaluation.json  …  (task-NN/checkpoint.safetensors during training)
  With adapters, task-00/adapter_model.safetensors and task-00/adapter_config.json stand in for the encoder.
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mergestream import __version__
from mergestream.runs.identity import FORMER, FORMER_PREPROCESSING, config_hash, content_hash, deciding
from mergestream.runs.results import COUNTED, Metrics, TaskRecord
from mergestream.runtime import files
from mergestream.runtime.errors import UserError, first_line, program
from mergestream.runtime.processes import cores

if TYPE_CHECKING:  # torch takes seconds to import, and a report needs none
    from torch import Tensor

SEAL = "# checksum: "  # of the lines above it in config.yaml
ENCODER = "encoder.safetensors"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as peft names them
CURVATURES = ("fisher", "gram", "classes")
AUTO = "auto"  # a value that the start of the training decides


@dataclass(frozen=True)
class Run:
    """One run directory, named by the values that tell runs apart.

    Args:
        root: folder of all results.
        dataset, stream_name, model, method: names of the options of these config groups.
        tasks: T; None where the data decide it, so that tasks can be added.
        seed: of the run.
        tag: tells apart runs that agree in everything else of the path.
        options: by config group, the option that was typed where it differs from the name, as in ``dataset=folder``.
        extra: overrides that the command needs besides those that name the run.
        adapter: whether the tasks train adapters.
    """

    root: Path
    dataset: str
    stream_name: str
    tasks: int | None
    model: str
    method: str
    seed: int
    tag: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    adapter: bool = False

    @property
    def path(self) -> Path:
        """The directory."""
        last = f"seed-{self.seed}" + ("" if self.tag is None else f"-{self.tag}")
        stream = stream_folder(self.stream_name, self.tasks)
        return self.root.joinpath(self.dataset, stream, self.model, self.method, last)

    @property
    def command(self) -> str:
        """The command that starts or continues the run, for messages."""
        return self.command_of("train")

    def command_of(self, script: str, *more: str) -> str:
        """Return the command of a script that names this run, for messages.

        Args:
            script: train, merge or another one.
            more: further words.
        """
        words = [f"dataset={self.options.get('dataset', self.dataset)}"]
        words += [f"tasks={self.tasks}"] * (self.tasks is not None)
        words += [f"{group}={self.options.get(group, getattr(self, group))}" for group in ("method", "model")]
        words += [f"seed={self.seed}"] + [f"stream={self.stream_name}"] * (self.stream_name != "class")
        words += [f"tag={self.tag}"] * (self.tag is not None) + [f"root={self.root}"] * (self.root != Path("runs"))
        return " ".join([program(script), *words, *self.extra, *more])

    def with_method(self, method: str) -> Run:
        """Return the run of another method that agrees in everything else."""
        return replace(self, method=method, options={**self.options, "method": method})

    def with_seed(self, seed: int) -> Run:
        """Return the run of another seed that agrees in everything else."""
        return replace(self, seed=seed)

    @property
    def metrics(self) -> Path:
        """metrics.json, which marks a finished run."""
        return self.path / "metrics.json"

    def task(self, index: int) -> Path:
        """The folder of task `index`, counted from 0."""
        return self.path / f"task-{index:02d}"

    def encoder(self, index: int) -> Path:
        """The image tower after task `index`, or the adapter of it."""
        return self.task(index) / (ADAPTER if self.adapter else ENCODER)

    def adapter_config(self, index: int) -> Path:
        """How peft reads the adapter of task `index`."""
        return self.task(index) / ADAPTER_CONFIG

    def method_state(self, index: int) -> Path:
        """What the method keeps after task `index`."""
        return self.task(index) / "method.safetensors"

    def curvature(self, index: int, kind: str) -> Path:
        """The Fisher information (``fisher``), Gram matrices (``gram``) or classes (``classes``) of task `index`."""
        return self.task(index) / f"{kind}.safetensors"

    def without_curvature(self, index: int, kinds: Sequence[str]) -> list[str]:
        """Return the kinds of curvature that a finished task lacks; one whose encoder was dropped needs none."""
        record = self.record(index)
        return [k for k in kinds if self.curvature(index, k).name not in record["files"] and not record.get("dropped")]

    def evaluation(self, index: int) -> Path:
        """The record of task `index`, which marks it as finished."""
        return self.task(index) / "evaluation.json"

    def checkpoint(self, index: int) -> Path:
        """The state inside task `index`, during its training."""
        return self.task(index) / "checkpoint.safetensors"

    def record(self, index: int) -> TaskRecord:
        """Return the record of a finished task: its counts, its files and their checksums."""
        return self.read(self.evaluation(index), *COUNTED, "files", "seconds")  # type: ignore[return-value]

    def result(self) -> Metrics:
        """Return the content of metrics.json."""
        keys = ("config", "accuracy", "summary", "timing", "provenance", "zero_shot", "test_samples")
        return self.read(self.metrics, *keys)  # type: ignore[return-value]

    @property
    def grows(self) -> bool:
        """Whether tasks can be added to the stream."""
        return self.tasks is None

    def stamp(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Return the metadata of every file that the training writes: hashes of θ₀, config and data."""
        return {
            "base_sha256": self.base()["sha256"],
            "config_sha256": config_hash(config, self.base().get("preprocessing")),
            "data_sha256": self.data_hash(),
            "version": __version__,
        }

    def data_hash(self, task: int | None = None) -> str:
        """Return the hash of the data of a task.

        Args:
            task: the task, from 0. In a stream that grows, later tasks do not count; None is all tasks.
        """
        stream = self.stream()
        if self.grows:
            return content_hash(stream["tasks"][: None if task is None else task + 1])
        return content_hash({key: stream[key] for key in ("num_classes", "class_order", "tasks")})

    def is_current(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record of an evaluation is of all data that the run has now."""
        return not self.grows or record.get("data_sha256") == self.data_hash()

    def require_stamp(self, path: Path, stamp: Mapping[str, str]) -> None:
        """Check that this run wrote a file.

        Raises:
            UserError: if it comes from a training with another θ₀, other data, or another config.
        """
        metadata = files.read_metadata(path)
        if wrong := [key for key, value in stamp.items() if key != "version" and metadata.get(key) != value]:
            raise UserError(
                f"{readable(path)} belongs to another run (its {wrong[0]} differs). Delete {readable(path.parent)} and "
                f"type: {self.command}"
            )

    def parent(self, index: int) -> str | None:
        """Return the checksum of the encoder that task `index` started from; None if its own encoder is gone."""
        path = self.encoder(index)
        return files.read_metadata(path).get("parent") if path.is_file() else None

    def running(self, strategy: str) -> Path:
        """The running merge of a strategy; see `RunningMerge`."""
        return self.path / "running" / f"{strategy}.safetensors"

    def drop(self, index: int) -> None:
        """Delete the encoder and the method's state of a task that a running merge covers, and record it."""
        files.write_json(self.evaluation(index), {**self.record(index), "dropped": True})
        others = (self.method_state(index), *(self.curvature(index, kind) for kind in CURVATURES))
        for path in (*others, self.adapter_config(index)):
            path.unlink(missing_ok=True)
        self.encoder(index).unlink(missing_ok=True)

    def keeps_tasks(self) -> bool:
        """Return whether the encoders of all tasks are kept."""
        for index, _ in self.task_folders():
            with suppress(UserError):  # the record is missing or damaged
                if self.record(index).get("dropped"):
                    return False
        return True

    def task_folders(self) -> list[tuple[int, Path]]:
        """Return the number and the folder of every task that was started."""
        found = [path for path in self.path.glob("task-*") if re.fullmatch(r"task-\d+", path.name) and path.is_dir()]
        return sorted((int(path.name.removeprefix("task-")), path) for path in found)

    def encoders(self) -> list[Path]:
        """Return the saved encoders, in the order of the tasks."""
        return [self.encoder(index) for index, _ in self.task_folders() if self.encoder(index).is_file()]

    def claim(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml, the last file before the training starts; it marks the directory as this config's."""
        text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
        with files.whole(self.path / "config.yaml") as partial:
            partial.write_text(f"{text}{SEAL}{_sha256(text)}\n")

    def require_same(self, config: Mapping[str, Any], keys: Sequence[str] | None = None) -> None:
        """Check that the run was made with this config; ``auto`` stands for whatever the run was begun with.

        Args:
            config: a resolved config.
            keys: parts to compare; None compares everything that decides the result.

        Raises:
            UserError: if the run was made with another config.
        """
        here, there = deciding(config), deciding(self.config())
        for key in sorted(here.keys() | there.keys()):
            if keys is not None and not any(f"{key}.".startswith(f"{part}.") for part in keys):
                continue
            if here.get(key) not in (AUTO, there.get(key)):
                had, says = (f"{key}={d[key]}" if key in d else f"no {key}" for d in (there, here))
                raise UserError(
                    f"a run directory holds one config; {readable(self.path)} has {had} where this command says "
                    f"{says}. Use the run's own value, or write tag=NAME to start a second run beside it."
                )

    def config(self) -> dict[str, Any]:
        """Return the content of config.yaml.

        Raises:
            UserError: if it is missing or was altered.
        """
        path = self.path / "config.yaml"
        try:
            text, _, seal = path.read_text().rpartition(SEAL)
            if seal.strip() != _sha256(text):
                raise UserError("it was altered (its checksum differs)")
            config = OmegaConf.create(text)
        except (UserError, OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            raise UserError(
                f"{readable(path)} must be the config of a run, but cannot be read: {first_line(error)}. {self.advice}"
            ) from error
        assert isinstance(config, DictConfig)  # its checksum is right
        return OmegaConf.to_container(config)  # type: ignore[return-value]

    def decided(self, key: str) -> Any:
        """Return the value of a key that the run was begun with, where a command says ``auto``."""
        return self.config().get(key, FORMER.get(key))

    def read(self, path: Path, *keys: str) -> dict[str, Any]:
        """Return the content of a JSON file of the run.

        Args:
            path: the file.
            keys: keys that it must have.

        Raises:
            UserError: if it is missing or was altered.
        """
        try:
            return files.read_json(path, *keys, own=True)
        except UserError as error:
            raise UserError(f"{error}. {self.advice}") from error

    @property
    def advice(self) -> str:
        """What to type when a file of the run is damaged."""
        return f"To repair it, type: {self.command} repair=true"

    def require_data(self, described: Mapping[str, Any]) -> None:
        """Check that the data are those of the run.

        Args:
            described: the stream as it is now, from `TaskStream.describe`.

        Raises:
            UserError: if the run was started with other data.
        """
        begun = self.stream()
        if self.grows:
            described = {**described, "notes": begun.get("notes")}
        if {key: begun.get(key) for key in described.keys() | {"notes"}} != {"notes": None, **described}:
            raise UserError(
                f"{readable(self.path)} was started with other data; compare its stream.json. Restore them, or write "
                "tag=NAME to start a second run beside it."
            )

    def require_preprocessing(self, preprocessing: Mapping[str, Any]) -> None:
        """Check that images are preprocessed as in the training.

        Args:
            preprocessing: of the model as it is loaded now; see `Clip`.

        Raises:
            UserError: if the run was started with another preprocessing or activation.
        """
        begun = {**FORMER_PREPROCESSING, **self.base().get("preprocessing", {})}
        for key in sorted(begun.keys() & preprocessing.keys()):
            if begun[key] != preprocessing[key]:
                instead = "tag=NAME to start a second run beside it"
                if key == "augment":
                    instead = f"data.augment={begun[key]}"
                elif key == "short_side":
                    instead = "data.cache=true" if begun[key] else "data.cache=false"
                raise UserError(
                    f"the preprocessing of a run must stay the same; {readable(self.path)} was started with "
                    f"{key}={begun[key]}, and this command has {key}={preprocessing[key]}, with model={self.model}. "
                    f"Write {instead}."
                )

    def started(self) -> list[str]:
        """Return the names of the tasks whose training has begun."""
        if not (self.path / "stream.json").is_file():
            return []
        begun = [index for index, folder in self.task_folders() if any(folder.iterdir())]
        return [task["name"] for task in self.stream()["tasks"][: max(begun, default=-1) + 1]]

    def images(self) -> dict[str, Any] | None:
        """Return the content of images.json, the inventory of a stream that grows; None before the run has begun."""
        path = self.path / "images.json"
        return self.read(path, "class_names", "prompts", "tasks", "notes") if path.is_file() else None

    def stream(self) -> dict[str, Any]:
        """Return the content of stream.json."""
        return self.read(self.path / "stream.json", "tasks")

    def class_names(self) -> list[str]:
        """Return the names of the classes of all tasks, in the order of the class ids."""
        tasks = self.stream()["tasks"]
        names = {c: n for task in tasks for c, n in zip(task["classes"], task["class_names"], strict=True)}
        return [names[c] for c in sorted(names)]

    def require_classes(self, names: Sequence[str]) -> None:
        """Check that the dataset has the classes of the run.

        Args:
            names: of its classes as they are now, in the order of the class ids.

        Raises:
            UserError: if they differ.
        """
        known = self.class_names()
        if list(names) != known:
            new, gone = ([n for n in one if n not in other] for one, other in ((names, known), (known, names)))
            changes = [f"{what} {n[0]!r}" for what, n in (("now has", new), ("has no longer", gone)) if n]
            raise UserError(
                f"the dataset must have the {len(known)} classes of {readable(self.path)}; it "
                f"{' and '.join(changes) or 'has them in another order'}. Restore it, or type: {self.command}"
            )

    def base(self) -> dict[str, Any]:
        """Return the content of base.json."""
        return self.read(self.path / "base.json", "sha256", "clip_parameters", "begun")

    def base_file(self) -> Path:
        """Return the file of θ₀, which all runs of a root share.

        Raises:
            UserError: if it is missing or was altered.
        """
        path = base_path(self.root, self.base()["sha256"])
        if not path.is_file() or files.sha256(path) != path.stem:
            raise UserError(
                f"θ₀ of {readable(self.path)} must be {readable(path)}, which is missing or altered. {self.advice}"
            )
        return path

    def trained_encoders(self, count: int) -> list[Path]:
        """Check and return the files of the first `count` encoders.

        Raises:
            UserError: if one is missing, was altered, or was trained from another θ₀.
        """
        with ThreadPoolExecutor(cores()) as pool:  # hashing releases the interpreter lock
            return list(pool.map(self.trained_encoder, range(count)))

    def trained_encoder(self, index: int) -> Path:
        """Check and return the file of the encoder after task `index`.

        Raises:
            UserError: if it is missing, was altered, or was trained from another θ₀.
        """
        path = self.encoder(index)
        if not path.is_file() and not self.keeps_tasks():
            kept = ", ".join(f"strategy={p.stem}" for p in sorted((self.path / "running").glob("*.safetensors")))
            raise UserError(
                f"{readable(self.path)} was trained with keep_tasks=false, so only {kept} can be merged, with the "
                "options of its training"
            )
        try:
            known = self.record(index)["files"]
            checksum = files.verify(path)
            config = self.adapter_config(index)
            if self.adapter and files.checksum(config) != known.get(config.name):
                raise UserError(f"{readable(config)} was altered (its checksum differs)")
        except UserError as error:
            raise UserError(f"{error}. {self.advice}") from error
        if files.read_metadata(path).get("base_sha256") != self.base()["sha256"]:
            raise UserError(f"{readable(path)} was trained from another θ₀ than base.json names")
        if checksum != known.get(path.name):
            raise UserError(f"{readable(path)} is not the encoder that was evaluated. {self.advice}")
        return path

    def begun(self) -> bool:
        """Return whether the directory holds anything that a training could continue from."""
        return (self.path / "config.yaml").exists() or self.finished() or bool(self.task_folders())

    def finished(self) -> bool:
        """Return whether the training has finished, with every task that has arrived."""
        if self.metrics.is_file() and self.grows:
            with suppress(UserError):  # damage is found elsewhere
                return self.is_current(self.result()["provenance"])
        return self.metrics.is_file()

    def require_finished(self) -> None:
        """Check that the training has finished.

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


def stream_folder(stream_name: str, tasks: int | None) -> str:
    """Return the name of the folder of a stream's runs; see `Run`."""
    return stream_name if tasks is None else f"{stream_name}-{tasks}"


def store_base(root: Path, tensors: Mapping[str, Tensor]) -> tuple[Path, str]:
    """Write θ₀ to ``<root>/_base/<sha256>.safetensors``, once for all runs, and return its path and hash."""
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
    """Return the file of the θ₀ with this hash.

    Raises:
        UserError: if it is not a hash: a path from a file could lead anywhere.
    """
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UserError(f"the sha256 of θ₀ must have 64 hexadecimal digits; got {sha256!r}")
    return root / "_base" / f"{sha256}.safetensors"


def readable(path: Path) -> str:
    """Return a path relative to the current folder if it is below it, else unchanged."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

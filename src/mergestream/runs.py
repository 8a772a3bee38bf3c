"""The run directory: where a config's results live, what it holds, and whether a run is what its config says.

<root>/<dataset>/<stream>-<tasks>/<model>/<method>/seed-<seed>[-<tag>]/
  config.yaml  stream.json  base.json  metrics.json
  task-00/encoder.safetensors  task-00/evaluation.json  …
  merges/<strategy>-<scale>/merged.safetensors  metrics.json
<root>/_base/<sha256>.safetensors
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mergestream import files
from mergestream.errors import UserError

# Parts of a config that leave the result as it is: where it runs, where it is written, how it is watched.
NEUTRAL: tuple[str, ...] = (
    "root",
    "tag",
    "devices",
    "accelerator",
    "logger",
    "data",
    "dataset.root",
    "dataset.download",
)
NEUTRAL += ("strategy", "lambda", "merge_every_task", "keep_tasks")


@dataclass(frozen=True)
class Run:
    """One run directory.

    Args:
        root: where results go.
        path: the directory.
        command: how to make it, for messages.
    """

    root: Path
    path: Path
    command: str

    @classmethod
    def of(cls, cfg: DictConfig, extra: Sequence[str] = ()) -> Run:
        """The run that a composed train or merge config names; `extra` overrides go into the command that makes it."""
        stream = f"{cfg.stream.name}-{cfg.tasks}"
        last = f"seed-{cfg.seed}" + (f"-{cfg.tag}" if cfg.tag is not None else "")
        path = Path(cfg.root) / cfg.dataset.name / stream / cfg.model.name / cfg.method.id / last
        words = [f"dataset={_option('dataset', cfg.dataset.name)}", f"tasks={cfg.tasks}"]
        words += [f"method={_option('method', cfg.method.id)}", f"model={_option('model', cfg.model.name)}"]
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

    def running(self, strategy: str) -> Path:
        """The running merge of a strategy, see `RunningMerge`."""
        return self.path / "running" / f"{strategy}.safetensors"

    def keeps_tasks(self) -> bool:
        """Whether the encoders before the last are there, or there is no running merge that could stand in for them."""
        return self.encoder(0).is_file() or not list((self.path / "running").glob("*.safetensors"))

    def encoders(self) -> list[Path]:
        """The encoders that the run has saved, in the order of the tasks."""
        return sorted(
            self.path.glob("task-*/encoder.safetensors"), key=lambda p: int(p.parent.name.removeprefix("task-"))
        )

    def claim(self, cfg: DictConfig) -> None:
        """Make the directory for `cfg`, or find that it already belongs to it.

        Raises:
            UserError: if it holds a run whose config gives other results.
        """
        if (self.path / "config.yaml").exists():
            self.require_same(cfg)
            return
        with files.whole(self.path / "config.yaml") as partial:
            partial.write_text(OmegaConf.to_yaml(cfg, resolve=True))

    def require_same(self, cfg: DictConfig, keys: Sequence[str] | None = None) -> None:
        """
        Args:
            cfg: a resolved config.
            keys: compare these parts only; None compares all that decides the result.

        Raises:
            UserError: if the run was made with another config.
        """
        here, there = _deciding(cfg), _deciding(self._config())
        for key in sorted(here.keys() | there.keys()):
            if keys is not None and not any(f"{key}.".startswith(f"{part}.") for part in keys):
                continue
            if here.get(key) != there.get(key):
                had, says = (f"{key}={d[key]}" if key in d else f"no {key}" for d in (there, here))
                raise UserError(
                    f"a run directory holds one config; {readable(self.path)} has {had} where this command says "
                    f"{says}. Use the run's own value, or write tag=NAME for a second run beside it."
                )

    def _config(self) -> DictConfig:
        path = self.path / "config.yaml"
        try:
            config = OmegaConf.load(path)
        except (OSError, YAMLError, OmegaConfBaseException) as error:
            raise UserError(
                f"{readable(path)} must be the config of a run, but cannot be read: {_first(error)}"
            ) from error
        if not isinstance(config, DictConfig):
            raise UserError(f"{readable(path)} must be the config of a run, but holds a list")
        return config

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
        return files.read_json(self.path / "stream.json", "tasks")

    def base(self) -> dict[str, Any]:
        """The content of base.json."""
        return files.read_json(self.path / "base.json", "sha256", "clip_parameters")

    def base_file(self) -> Path:
        """θ₀ of the run, below the root that the run lies in.

        Raises:
            UserError: if it is missing or not what its name says.
        """
        sha256 = self.base()["sha256"]
        path = self.root / "_base" / f"{sha256}.safetensors"
        if not path.is_file() or files.sha256(path) != sha256:
            raise UserError(
                f"θ₀ of {readable(self.path)} must be {readable(path)}, which is missing or altered. "
                f"Delete the run and it, and type: {self.command}"
            )
        return path

    def trained_encoders(self, count: int) -> list[Path]:
        """The files of the first `count` encoders, known to belong to this run's θ₀.

        Raises:
            UserError: if one is missing, damaged, or was trained from another θ₀.
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
            if not path.is_file():
                raise UserError(
                    f"{readable(path)} is missing from a finished run. Delete {readable(self.metrics)}, and type: "
                    f"{self.command}"
                )
            if files.read_metadata(path).get("base_sha256") != sha256:
                raise UserError(f"{readable(path)} was trained from another θ₀ than base.json names")
        return paths

    def begun(self) -> bool:
        return (self.path / "stream.json").is_file()

    def finished(self) -> bool:
        return self.metrics.is_file()

    def require_finished(self) -> None:
        """
        Raises:
            UserError: if the run does not exist or has not finished.
        """
        if not self.path.is_dir():
            raise UserError(f"a merge needs a finished run; {self.path} does not exist. Type: {self.command}")
        if not self.finished():
            done = len(self.encoders())
            raise UserError(
                f"a merge needs a finished run; {self.path} has only {done} tasks. To continue it, type: {self.command}"
            )


def _option(group: str, name: str) -> str:
    """The option of a config group that was typed, which its `name` may differ from, as in ``model=open_clip``."""
    return HydraConfig.get().runtime.choices.get(group, name) if HydraConfig.initialized() else name


def config_hash(cfg: DictConfig) -> str:
    """Short hash of the parts of a config that decide the result."""
    return hashlib.sha256(json.dumps(_deciding(cfg), sort_keys=True).encode()).hexdigest()[:16]


def store_base(root: Path, tensors: dict[str, Any]) -> tuple[Path, str]:
    """Keep θ₀ once under ``<root>/_base/<sha256>.safetensors``; returns its path and hash."""
    from safetensors.torch import save

    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(content).hexdigest()
    path = root / "_base" / f"{digest}.safetensors"
    if not path.exists():
        with files.whole(path) as partial:
            partial.write_bytes(content)
    return path, digest


def readable(path: Path) -> str:
    """A path as short as it can be typed: relative to here where it is below here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _deciding(cfg: DictConfig) -> dict[str, Any]:
    """Dotted keys and values of a config, without what leaves the result as it is."""
    flat = _flatten(OmegaConf.to_container(cfg, resolve=True))
    return {key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{n}.") for n in NEUTRAL)}


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat

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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mergestream import files
from mergestream.errors import UserError

# Parts of a config that leave the result as it is: where it runs, where it is written, how it is watched.
NEUTRAL = ("root", "tag", "devices", "accelerator", "logger", "data", "dataset.root", "dataset.download")


@dataclass(frozen=True)
class Run:
    """One run directory.

    Args:
        path: the directory.
        command: how to make it, for messages.
    """

    path: Path
    command: str

    @classmethod
    def of(cls, cfg: DictConfig) -> Run:
        """The run that a composed train or merge config names."""
        stream = f"{cfg.stream.name}-{cfg.tasks}"
        last = f"seed-{cfg.seed}" + (f"-{cfg.tag}" if cfg.tag is not None else "")
        path = Path(cfg.root) / cfg.dataset.name / stream / cfg.model.name / cfg.method.id / last
        words = [f"dataset={cfg.dataset.name}", f"tasks={cfg.tasks}", f"method={cfg.method.id}"]
        words += [f"model={cfg.model.name}", f"seed={cfg.seed}"]
        words += [f"stream={cfg.stream.name}"] * (cfg.stream.name != "class")
        words += [f"tag={cfg.tag}"] * (cfg.tag is not None) + [f"root={cfg.root}"] * (cfg.root != "runs")
        return cls(path, "python train.py " + " ".join(words))

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    def task(self, index: int) -> Path:
        return self.path / f"task-{index:02d}"

    def encoder(self, index: int) -> Path:
        return self.task(index) / "encoder.safetensors"

    def evaluation(self, index: int) -> Path:
        return self.task(index) / "evaluation.json"

    def encoders(self) -> list[Path]:
        """The encoders that the run has saved, in the order of the tasks."""
        return sorted(self.path.glob("task-*/encoder.safetensors"))

    @cached_property
    def config(self) -> DictConfig:
        """The resolved config that made the run."""
        return OmegaConf.load(self.path / "config.yaml")

    def claim(self, cfg: DictConfig) -> None:
        """Make the directory for `cfg`, or find that it already belongs to it.

        Raises:
            UserError: if it holds a run whose config gives other results.
        """
        if (self.path / "config.yaml").exists():
            if differences := _differences(self.config, cfg):
                raise UserError(
                    f"a run directory holds one config; {self.path} has {differences[0][1]} where this command says "
                    f"{differences[0][0]}. Write tag=NAME for a second run beside it, or delete the directory."
                )
            return
        with files.whole(self.path / "config.yaml") as partial:
            partial.write_text(OmegaConf.to_yaml(cfg, resolve=True))

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


def _deciding(cfg: DictConfig) -> dict[str, Any]:
    """Dotted keys and values of a config, without what leaves the result as it is."""
    flat = _flatten(OmegaConf.to_container(cfg, resolve=True))
    return {key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{n}.") for n in NEUTRAL)}


def _differences(there: DictConfig, here: DictConfig) -> list[tuple[str, str]]:
    """Pairs ("key=value here", "key=value there") where two configs differ in what decides the result."""
    flat_here, flat_there = _deciding(here), _deciding(there)

    def item(flat: dict[str, Any], key: str) -> str:
        return f"{key}={flat[key]}" if key in flat else f"no {key}"

    keys = sorted(flat_here.keys() | flat_there.keys())
    pairs = [(item(flat_here, key), item(flat_there, key)) for key in keys]
    return [pair for pair in pairs if pair[0] != pair[1]]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat

"""The settings of evaluate.py. Its data sets are options of the ``dataset`` group that the run was not trained on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from mergestream.compose import keys
from mergestream.compose.encoder import EncoderSettings, encoder_settings
from mergestream.compose.inputs import Inputs
from mergestream.compose.overrides import HELD_OUT_KEYS, require_read
from mergestream.compose.run import resolve
from mergestream.data.images import image_paths
from mergestream.data.integrity import fingerprint
from mergestream.data.inventory import Inventory
from mergestream.evaluation import Evaluator
from mergestream.models.clip import Clip
from mergestream.runs.directory import Run
from mergestream.runs.identity import content_hash
from mergestream.runtime.errors import UserError
from mergestream.runtime.precision import require_possible

ELSEWHERE = ("root", "download", "order", "domains")  # keys of a dataset that do not decide what is measured


class Listing(Inputs):
    """The inputs of a config, with a list of its image files."""

    @property
    def path(self) -> Path | None:
        """The folder or the table of the user's own that has the images; None for other data sets."""
        path = self._cfg.dataset.get("path")
        return None if path is None else Path(os.path.realpath(Path(str(path)).expanduser()))

    def image_files(self) -> tuple[list[str], list[str]]:
        """Return the image files of the training and of the test split, none of them opened; memory has none."""
        source = self._read()
        train, test = ([path for _, path in image_paths(split.images)] for split in (source.train, source.test))
        return train, test


@dataclass(frozen=True)
class HeldOut:
    """A data set that a run was not trained on.

    Args:
        option: its option of the ``dataset`` group.
        name: its name in results.
        config: the keys of its option that decide what is measured.
        inputs: its images and classes.
    """

    option: str
    name: str
    config: Mapping[str, Any]
    inputs: Listing

    def evaluator(self, clip: Clip) -> Evaluator:
        """Return an evaluator of `clip` among all classes of the data set, as a stream with a single task.

        Raises:
            UserError: if the data set is missing, or has no test images.
        """
        with self._own_keys():
            return self.inputs.evaluator_of_test(clip, self.name)

    def image_files(self) -> tuple[list[str], list[str]]:
        """Return its image files; see `Listing`.

        Raises:
            UserError: if the data set is missing.
        """
        with self._own_keys():
            return self.inputs.image_files()

    @contextmanager
    def _own_keys(self) -> Iterator[None]:
        """Name the keys in errors as they are typed for this data set."""
        try:
            yield
        except UserError as error:
            raise UserError(re.sub(r"\bdataset\.(?=\w)", f"+options.{self.option}.", str(error))) from error


@dataclass(frozen=True)
class HeldOutSettings:
    """What evaluate.py needs.

    Args:
        encoder: the encoder to measure.
        sets: the data sets to measure it on.
        loaded: loads the CLIP and the data sets.
    """

    encoder: EncoderSettings
    sets: list[HeldOut]
    loaded: Loaded


class Loaded:
    """The CLIP and the evaluators of the data sets, each loaded when it is asked for; jobs of a sweep share them.

    Args:
        inputs: of the run.
        shared: see `Inputs`.
        key: equal for jobs that can share them.
    """

    def __init__(self, inputs: Listing, shared: dict[str, Any], key: str):
        if shared.get("held out") != key:
            shared.clear()  # before others are loaded
            shared["held out"] = key
        self.inputs, self.shared = inputs, shared

    def clip(self) -> Clip:
        """Return the CLIP on its device."""
        if "clip" not in self.shared:
            clip = self.inputs.clip()
            clip.model.to(self.inputs.device())
            self.shared["clip"] = clip
        return self.shared["clip"]

    def image_files(self, held_out: HeldOut) -> tuple[list[str], list[str]]:
        """Return the image files of a data set; see `Listing`.

        Raises:
            UserError: if it is missing.
        """
        key = f"files of {held_out.name}"
        if key not in self.shared:
            self.shared[key] = held_out.image_files()
        return self.shared[key]

    def fingerprint(self, held_out: HeldOut) -> str | None:
        """Return what changes with the test images of a data set: a hash of their files; None if they have none.

        Raises:
            UserError: if the data set is missing.
        """
        _, test = self.image_files(held_out)
        return fingerprint([test]) if test else None

    def require_held_out(self, held_out: HeldOut, run: Run) -> None:
        """Check that a data set has no images that the run was trained or evaluated on.

        Raises:
            UserError: if image files are in both, or the data set is missing.
        """
        if self.inputs.path is None or held_out.inputs.path is None:
            return
        if (kept := run.images()) is not None:
            parts = [part for task in Inventory.read(kept).tasks for part in (task.train.paths, task.test.paths)]
        else:
            parts = [*self.inputs.image_files()] if self.inputs.path.exists() else []
        known = {os.path.realpath(path) for part in parts for path in part}
        both = [path for part in self.image_files(held_out) for path in part if os.path.realpath(path) in known]
        if both:
            raise UserError(
                f"on must be data sets that the run was not trained on; got {held_out.option}, which is not held out: "
                f"{len(both)} of its images are part of dataset={run.dataset}, such as {both[0]}"
            )

    def evaluator(self, held_out: HeldOut, precision: str) -> Evaluator:
        """Return the evaluator of a data set.

        Raises:
            UserError: if the data set is missing or has no test images, or the device cannot compute in the precision.
        """
        require_possible("eval_precision", precision, self.inputs.device(), training=False)
        key = f"evaluator of {held_out.name}"
        evaluator = self.shared.get(key) or held_out.evaluator(self.clip())
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            self.shared[key] = evaluator
        return replace(evaluator, precision=precision)


def held_out_settings(cfg: DictConfig, shared: dict[str, Any]) -> HeldOutSettings:
    """Check a config of evaluate.yaml and return its settings.

    Args:
        cfg: the composed config.
        shared: see `Inputs`.

    Raises:
        UserError: if a value breaks its rule.
    """
    require_read(cfg)
    resolve(cfg)
    encoder = encoder_settings(cfg, HELD_OUT_KEYS)
    sets = held_out_sets(cfg)
    return HeldOutSettings(encoder, sets, Loaded(Listing(cfg), shared, _shared_key(cfg, sets)))


def held_out_sets(cfg: DictConfig) -> list[HeldOut]:
    """Return the data sets that the key ``on`` names, with the ``options`` that were typed for them.

    Args:
        cfg: a resolved and checked config of evaluate.yaml.

    Raises:
        UserError: if one is none of the group, is several in one, or is what the run was trained on.
    """
    given: Any = cfg.on
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, ListConfig) else []
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise UserError(f"on must be different data sets, at least one, such as on=[cifar10,dtd]; got on={given}")
    if not isinstance(cfg.options, DictConfig):
        raise UserError(f"options must be keys of data sets, +options.{names[0]}.KEY=VALUE; got options={cfg.options}")
    options: dict[str, Any] = OmegaConf.to_container(cfg.options)  # type: ignore[assignment]
    if unknown := [name for name in options if name not in names or not isinstance(options[name], dict)]:
        raise UserError(
            f"options must be keys of data sets that on names, such as +options.{names[0]}.KEY=VALUE; "
            f"got options.{unknown[0]}={options[unknown[0]]}"
        )
    sets = [_held_out(cfg, name, options.get(name, {}), len(names)) for name in names]
    if len({of.name for of in sets}) < len(sets):
        raise UserError(
            f"data sets must differ in name; got {', '.join(of.name for of in sets)}. Type +options.X.name="
        )
    return sets


def _held_out(cfg: DictConfig, option: str, changes: Mapping[str, Any], count: int) -> HeldOut:
    """Return the data set of one option.

    Args:
        cfg: of the command.
        option: of the ``dataset`` group.
        changes: its keys that were typed.
        count: of data sets that share the memory for images.
    """
    node = _node(cfg, option)
    if "datasets" in node:
        raise UserError(
            f"on takes single data sets; {option} is several: write on=[{','.join(map(str, node.datasets))}]"
        )
    OmegaConf.set_struct(node, False)
    node.merge_with(changes)
    keys.folder_name(f"options.{option}.name", node.name)
    own = cfg.copy()
    OmegaConf.set_struct(own, False)
    own.dataset = node
    own.data.keep_mb = cfg.data.keep_mb / count
    inputs = Listing(own)
    one, other = inputs.path, Listing(cfg).path
    if node.get("_target_") in _targets(cfg.dataset) if one is other is None else _nested(one, other):
        raise UserError(
            f"on must be data sets that the run was not trained on; got {option}, which is not held out: it is part "
            f"of dataset={cfg.dataset.name}. The run's metrics.json has its accuracy"
        )
    plain: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    config = {key: value for key, value in plain.items() if key not in ELSEWHERE}
    return HeldOut(option, str(node.name), config, inputs)


def _nested(one: Path | None, other: Path | None) -> bool:
    """Return whether two paths are the same, or one folder is in the other."""
    if one is None or other is None:
        return False
    folders = one.is_dir() and other.is_dir()
    return one == other or (folders and (one in other.parents or other in one.parents))


def _node(cfg: DictConfig, option: str) -> DictConfig:
    """Return the keys ``dataset`` of an option of the group, with the folders of this command.

    Raises:
        UserError: if there is no such option.
    """
    try:
        composed = compose("common", [f"dataset={option}"])
    except MissingConfigException as error:
        known = ", ".join(error.options or ())
        raise UserError(f"on must be options of the dataset group: {known}; got {option}") from error
    OmegaConf.set_struct(composed, False)
    composed.data, composed.root = cfg.data, cfg.root
    OmegaConf.resolve(composed.dataset)
    return composed.dataset


def _targets(dataset: DictConfig) -> list[str]:
    """Return what a run's dataset calls, and for a suite what each of its members calls."""
    members = [str(name) for name in dataset.get("datasets", ())]
    return [str(dataset.get("_target_")), *(n if "." in n else f"mergestream.data.sources.{n}.{n}" for n in members)]


def _shared_key(cfg: DictConfig, sets: list[HeldOut]) -> str:
    """Return a hash of what decides the CLIP and the evaluators."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    parts = [plain[name] for name in ("model", "data", "batch_size", "accelerator", "root")]
    return content_hash([*parts, *(dict(of.config) for of in sets)])

"""The data and the weights that a config names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mergestream.compose import targets
from mergestream.compose.build import ADAPTER, build, device_of, method_of
from mergestream.compose.run import run_of
from mergestream.data.cache import cached
from mergestream.data.images import ImageArray
from mergestream.data.integrity import check_images
from mergestream.data.inventory import Inventory, extended, forgotten, require_unchanged
from mergestream.data.loaders import Loading, spare_workers
from mergestream.data.source import Source, Split
from mergestream.data.stream import TaskStream, describe
from mergestream.data.tasks import Task
from mergestream.evaluation import Evaluator
from mergestream.models.clip import Clip, text_head
from mergestream.models.transforms import Transforms
from mergestream.runs.identity import content_hash
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError
from mergestream.runtime.lock import turn
from mergestream.runtime.precision import require_possible

# Configs that agree in these parts are evaluated alike.
EVALUATED = ("dataset", "stream", "tasks", "seed", "model", "data", "batch_size", "accelerator", "root")


class Inputs:
    """Loads the CLIP, the dataset and the stream of a config, each when it is asked for.

    Args:
        cfg: a resolved and checked config.
        shared: keeps the evaluator for the next jobs of a sweep.
    """

    def __init__(self, cfg: DictConfig, shared: dict[str, Any] | None = None):
        self._cfg = cfg
        self._shared = {} if shared is None else shared

    def device(self) -> torch.device:
        """Return the device of this process."""
        return device_of(self._cfg.accelerator)

    def clip(self) -> Clip:
        """Return the CLIP of the ``model`` group."""
        return build(self._cfg.model, self._cfg.allow_targets, without=("name", *ADAPTER))

    def source(self, inventory: Inventory | None = None) -> Source:
        """Return the dataset of the ``dataset`` group, with every image file checked.

        Args:
            inventory: of the images of a run whose stream grows; None reads the one that the run keeps.

        Raises:
            UserError: if images of the run changed or are gone.
        """
        run = run_of(self._cfg)
        if not run.grows:
            return self._checked(self._read())
        if inventory is None and (kept := run.images()) is not None:
            inventory = Inventory.read(kept)
            require_unchanged(inventory, forget=self._cfg.data.forget)
        return (inventory or self.arrivals()).source()

    def arrivals(self) -> Inventory:
        """Return the images of a run whose stream grows: those of its trained tasks, and whatever is there besides.

        Raises:
            UserError: if images of a trained task differ; see `extended`.
        """
        cfg, run = self._cfg, run_of(self._cfg)
        known, trained = run.images(), run.started()
        by_tasks = method_of(cfg).data == "task"
        if known is not None and not by_tasks and (trained or run.metrics.is_file()):  # one task stands for all
            trained = [task["name"] for task in known["tasks"]]
        if known is None:
            return Inventory.of(self._checked(self._read()))
        listed = self._read(trained)
        others = self._checked(listed.without_domains(trained))
        return extended(Inventory.read(known), listed, others, trained, forget=cfg.data.forget)

    def classes(self) -> Source:
        """Return the dataset for its classes alone: no image is checked, unless corrupt ones decide the classes."""
        if (kept := run_of(self._cfg).images()) is not None:  # a stream that grows numbers classes by arrival
            return Inventory.read(kept).source()
        return self.source() if self._cfg.data.skip_corrupt else self._read()

    def _read(self, trained: Sequence[str] = ()) -> Source:
        """Return the dataset as it is now.

        Args:
            trained: names of the tasks of which parts may be gone.
        """
        cfg = self._cfg
        node = cfg.dataset.copy()
        if "root" in node:
            node.root = str(Path(node.root).expanduser())  # neither Hydra nor the readers expand ~
        suite = {"datasets": self._datasets()} if "datasets" in node else {}
        # `domains` and `order` are for the stream, and `version` for the config hash.
        without = ("name", "domains", "order", "version", *suite)
        kept = {"trained": list(trained)} if trained else {}
        with ExitStack() as stack:
            root = Path(str(node.get("root", "")))
            if node.get("download") and (not root.exists() or os.access(root, os.W_OK)):
                for name in sorted(suite.get("datasets") or [str(node.name)]):
                    stack.enter_context(turn(root / "_fetching" / name, f"fetches dataset={name}"))
            return build(node, cfg.allow_targets, without=without, **suite, **kept)

    def _checked(self, source: Source) -> Source:
        return check_images(source, Path(self._cfg.root) / "_data", skip_corrupt=self._cfg.data.skip_corrupt)

    def stream(self, transforms: Transforms, source: Source) -> TaskStream:
        """Return `source`, divided into tasks as the ``stream`` group says."""
        cfg, tasks = self._cfg, self._tasks(source)
        loading, images = self._loading(transforms, source), source
        gone = forgotten(source) if cfg.data.forget and run_of(cfg).grows else {"test": [], "train": []}
        for name in gone["test"]:
            processes.say(f"task {name} has no test images any more, so its accuracies are unknown (data.forget=true)")
        if transforms.recipe is not None:
            size, folder = transforms.recipe.size, Path(cfg.root) / "_data"
            cache = False if cfg.data.forget else cfg.data.cache  # what is gone cannot be read
            images, side = processes.first_alone(lambda: cached(source, folder, cache, size))
            loading = replace(loading, short_side=side)
        return TaskStream(
            images,
            tasks,
            transforms,
            batch_size=cfg.batch_size,
            seed=cfg.seed,
            loading=loading,
            gone={part: [n for n, task in enumerate(tasks) if task.name in names] for part, names in gone.items()},
        )

    def description(self) -> dict[str, Any]:
        """Return what ``stream.json`` would say of the data as they are now. No image is loaded."""
        source = self.source()
        return describe(source, self._tasks(source))

    def _tasks(self, source: Source) -> list[Task]:
        how = {"source": source, "tasks": self._cfg.tasks, "seed": self._cfg.seed}
        return build(self._cfg.stream, self._cfg.allow_targets, without=("name", "layout"), **how)

    def _loading(self, transforms: Transforms, source: Source) -> Loading:
        data, device = self._cfg.data, self.device()
        augment, workers = data.augment, data.num_workers
        if transforms.recipe is None and (augment == "device" or data.cache is True):
            key = "augment=device" if augment == "device" else "cache=true"
            raise UserError(
                f"data.{key} needs the transforms of clip_transforms; model={self._cfg.model.name} has others. "
                "Leave it out"
            )
        if augment == "auto":
            augment = "device" if device.type == "cuda" and transforms.recipe is not None else "pil"
        if workers == "auto":
            workers = spare_workers(source, device, augment == "device")
        return Loading(augment, workers, int(data.keep_mb * 2**20), pin=device.type == "cuda")

    def evaluator(self, precision: str) -> Evaluator:
        """Return the CLIP, its text head and the stream, ready to evaluate encoders.

        Jobs of a sweep that agree in `EVALUATED` share them.

        Args:
            precision: of the encoder.

        Raises:
            UserError: if the device cannot compute in it.
        """
        require_possible("eval_precision", precision, self.device(), training=False)
        return replace(self._evaluator(), precision=precision)

    def _evaluator(self) -> Evaluator:
        plain: Any = OmegaConf.to_container(self._cfg, resolve=True)
        key = content_hash([plain[name] for name in EVALUATED] + [run_of(self._cfg).images()])
        if key in self._shared:
            return self._shared[key]
        self._shared.clear()  # before the next one is loaded
        source, clip, device = self.source(), self.clip(), self.device()
        stream = self.stream(clip.transforms, source)
        clip.model.to(device)
        evaluator = Evaluator(clip, text_head(clip, source.prompts, source.class_groups), stream, device)
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            self._shared[key] = evaluator
        return evaluator

    def evaluator_of_test(self, clip: Clip, name: str) -> Evaluator:
        """Return an evaluator of a CLIP on all test images of the dataset, as a stream with a single task.

        Training images are not looked at, and images are never reduced: each is opened once.

        Args:
            clip: the model, on its device.
            name: of the task, for messages.

        Raises:
            UserError: if there are no test images.
        """
        nothing = np.array([], dtype=np.int64)
        whole = self._read()
        if not len(whole.test):
            raise UserError(f"an evaluation needs test images; {name} has none")
        source = self._checked(replace(whole, train=Split(ImageArray(np.empty((0, 1, 1), np.uint8)), nothing)))
        task = Task(name, list(range(source.num_classes)), nothing, nothing, np.arange(len(source.test)))
        loading = self._loading(clip.transforms, source)
        size, seed = self._cfg.batch_size, self._cfg.seed
        stream = TaskStream(source, [task], clip.transforms, batch_size=size, seed=seed, loading=loading)
        return Evaluator(clip, text_head(clip, source.prompts), stream, self.device())

    def _datasets(self) -> dict[str, Callable[..., Source]]:
        """Return the functions that ``dataset.datasets`` names."""
        names = list(self._cfg.dataset.datasets)
        if len(set(names)) < max(len(names), 1):
            raise UserError(f"dataset.datasets must be different datasets, at least one; got {names}")
        return {name: self._dataset(str(name)) for name in names}

    def _dataset(self, name: str) -> Callable[..., Source]:
        dotted = "." in name
        try:
            path = name if dotted else f"mergestream.data.sources.{name}.{name}"
            return targets.locate(path, self._cfg.allow_targets)
        except UserError as error:
            rule = f"dataset.datasets must be names of the dataset group, or package.module.function; got {name}"
            raise UserError(f"{rule}: {error}" if dotted else rule) from error

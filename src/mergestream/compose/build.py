"""From the composed config to the objects it names: the CLIP, the stream, the method, the strategy."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mergestream.compose import targets
from mergestream.data.integrity import check_images
from mergestream.data.source import Source
from mergestream.data.stream import TaskStream
from mergestream.evaluation import Evaluator
from mergestream.models.clip import Clip, Transforms, text_head
from mergestream.runs.identity import content_hash
from mergestream.runtime.errors import UserError

_EVALUATED = ("dataset", "stream", "tasks", "seed", "model", "data", "batch_size", "accelerator", "root")
_shared: dict[str, Evaluator] = {}  # of the last job of a sweep


def build(node: DictConfig, *, without: tuple[str, ...] = (), **arguments: Any) -> Any:
    """Call the node's ``_target_`` with its other keys and `arguments`, except the keys named in `without`.

    A node with ``_partial_: true`` comes back as the bound function.

    Raises:
        UserError: if the target is not allowed, or does not take a key of the node.
    """
    values = {str(key): value for key, value in node.items() if key not in without}
    targets.check(values)
    # Always bound first and called here: Hydra would turn dataclasses among the arguments into configs.
    try:
        bound = instantiate({**values, "_partial_": True, "_convert_": "all"})
    except InstantiationException as error:
        raise UserError(f"_target_={node.get('_target_')} must be importable: {str(error).splitlines()[0]}") from error
    signature, partial = inspect.signature(bound.func), bool(node.get("_partial_"))
    try:
        (signature.bind_partial if partial else signature.bind)(*bound.args, **bound.keywords, **arguments)
        if partial:
            return bound
    except TypeError as error:
        raise UserError(f"{node['_target_']} does not fit its config: {error}") from error
    return bound(**arguments)


def load_clip(cfg: DictConfig) -> Clip:
    """The CLIP of the ``model`` group."""
    return build(cfg.model, without=("name",))


def load_source(cfg: DictConfig) -> Source:
    """The dataset of the ``dataset`` group, its image files known to be sound."""
    # Of these keys, `domains` and `order` are for the stream.
    node = cfg.dataset.copy()
    if "root" in node:
        node.root = str(Path(node.root).expanduser())  # ~ reaches us unexpanded
    source = build(node, without=("name", "domains", "order"))
    return check_images(source, Path(cfg.root) / "_data", skip_corrupt=cfg.data.skip_corrupt)


def load_stream(cfg: DictConfig, transforms: Transforms, source: Source | None = None) -> TaskStream:
    """The dataset, cut as the ``stream`` group says; `source` is the dataset if it is loaded already."""
    source = source or load_source(cfg)
    tasks = build(cfg.stream, without=("name",), source=source, tasks=cfg.tasks, seed=cfg.seed)
    return TaskStream(
        source, tasks, transforms, batch_size=cfg.batch_size, seed=cfg.seed, num_workers=cfg.data.num_workers
    )


def load_evaluator(cfg: DictConfig) -> Evaluator:
    """The CLIP, its text head and the stream that merges and analyses are measured with.

    Neighbours in a sweep over strategies differ in none of them, so they share them.
    """
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    sweep = HydraConfig.get().sweep.dir if in_sweep else None
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    key = content_hash([sweep, *(plain[name] for name in _EVALUATED)])
    if key in _shared:
        return _shared[key]
    _shared.clear()
    source, clip, device = load_source(cfg), load_clip(cfg), local_device(cfg.accelerator)
    stream = load_stream(cfg, clip.transforms, source)
    clip.model.to(device)
    evaluator = Evaluator(clip, text_head(clip, source.prompts), stream, device)
    if in_sweep:
        _shared[key] = evaluator
    return evaluator


def local_device(accelerator: str, local_rank: int = 0) -> torch.device:
    """The device of this process: its GPU, or the CPU.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu needs a GPU that torch can use; there is none. Write accelerator=auto or cpu.")
    use_gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")

"""What a config may call: it is data that people pass around, so only functions of known packages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig

from mergestream.runtime.errors import UserError

PACKAGES = ("mergestream", "torch", "torchvision", "pytorch_lightning", "open_clip", "torchmetrics")
# Inside them, what runs, downloads or unpickles what it is given.
BARRED: tuple[str, ...] = ("torch.serialization", "torch.hub", "torch.package", "torch.utils", "torch.storage")
BARRED += ("torch.jit", "torch.distributed", "torch.multiprocessing", "torch._", "torchvision.datasets.utils")


_allowed: list[str] = []


def allow(packages: Iterable[str]) -> None:
    """Let configs call into these packages too, besides `PACKAGES`: ``allow_targets`` of the command line."""
    _allowed[:] = packages


def locate(target: Any) -> Any:
    """What a dotted path names.

    Raises:
        UserError: if it lies elsewhere, by its path or by where it was defined, or cannot be imported.
    """
    packages = (*PACKAGES, *_allowed)
    if not isinstance(target, str) or target.split(".")[0] not in packages:
        raise UserError(
            f"_target_ must lie in one of {', '.join(packages)}; got _target_={target}. "
            f"If you trust it, write allow_targets=[{str(target).split('.')[0]}]"
        )
    try:
        found = get_object(target)
    except Exception as error:  # whatever importing it raises
        raise UserError(f"_target_={target} must be importable: {str(error).splitlines()[0]}") from error
    if not callable(found):
        raise UserError(f"_target_ must be a function or class; got _target_={target}, which is {found!r:.40}")
    # The path alone would let torch.os.system through.
    origin = getattr(found, "__module__", None) or ""
    if origin.split(".")[0] not in packages or origin.startswith(BARRED) or target.endswith("load_from_checkpoint"):
        raise UserError(
            f"_target_ must be a plain function or class of {', '.join(packages)}; _target_={target} is of "
            f"{origin or 'nowhere'}, which can run or unpickle anything. Wrap it in a function of your own package"
        )
    return found


def check(node: Any) -> None:
    """Every ``_target_`` in a config node, at any depth; see `locate`."""
    if isinstance(node, (list, ListConfig)):
        for item in node:
            check(item)
    elif isinstance(node, (dict, DictConfig)):
        if node.get("_target_") is not None:
            locate(node["_target_"])
        for item in node.values():
            check(item)

"""Which functions a config may call. Configs are passed around as data, so they reach known packages only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig

from mergestream.runtime.errors import UserError, first_line

PACKAGES = ("mergestream", "torch", "torchvision", "pytorch_lightning", "open_clip", "torchmetrics")
# Modules of these packages that run, download or unpickle their arguments.
BARRED: tuple[str, ...] = ("torch.serialization", "torch.hub", "torch.package", "torch.utils", "torch.storage")
BARRED += ("torch.jit", "torch.distributed", "torch.multiprocessing", "torch._", "torchvision.datasets.utils")


def locate(target: Any, allowed: Sequence[str] = ()) -> Callable[..., Any]:
    """Return the function or class that a dotted path names.

    Args:
        target: the path.
        allowed: packages besides `PACKAGES`, from ``allow_targets`` on the command line.

    Raises:
        UserError: if it cannot be imported, or lies in another package by its path or by where it was defined.
    """
    packages = (*PACKAGES, *allowed)
    if not isinstance(target, str) or target.split(".")[0] not in packages:
        raise UserError(
            f"_target_ must be in one of {', '.join(packages)}; got _target_={target}. "
            f"If you trust it, write allow_targets=[{str(target).split('.')[0]}]"
        )
    try:
        found = get_object(target)
    except Exception as error:  # importing a module can raise anything
        raise UserError(f"_target_={target} must be importable: {first_line(error)}") from error
    if not callable(found):
        raise UserError(f"_target_ must be a function or class; got _target_={target}, which is {found!r:.40}")
    # The path alone would allow torch.os.system.
    origin = getattr(found, "__module__", None) or ""
    if origin.split(".")[0] not in packages or origin.startswith(BARRED) or target.endswith("load_from_checkpoint"):
        raise UserError(
            f"_target_ must be a plain function or class of {', '.join(packages)}; _target_={target} is defined in "
            f"{origin or 'no module'}, which can run or unpickle anything. Wrap it in a function of your own package"
        )
    return found


def check(node: Any, allowed: Sequence[str] = ()) -> None:
    """Check every ``_target_`` in a config node, at any depth, with `locate`."""
    if isinstance(node, (list, ListConfig)):
        for item in node:
            check(item, allowed)
    elif isinstance(node, (dict, DictConfig)):
        if node.get("_target_") is not None:
            locate(node["_target_"], allowed)
        for item in node.values():
            check(item, allowed)

"""Calls what a config node names."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from mergestream.compose import targets
from mergestream.methods.method import Method
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError, first_line
from mergestream.runtime.processes import Placement

ADAPTER = ("adapter", "adapter_rank", "adapter_alpha", "adapter_targets")  # keys of `model` that every model has
AVERAGING = ("average", "average_every", "average_decay")  # keys of `method` that every method has


def build(
    node: Mapping[Any, Any], allowed: Iterable[str] = (), *, without: tuple[str, ...] = (), **arguments: Any
) -> Any:
    """Call the node's ``_target_`` with the node's other keys and `arguments`, and return the result.

    A node with ``_partial_: true`` gives the bound function instead.

    Args:
        node: a config group, or a record of one.
        allowed: packages that it may call besides the known ones, from ``allow_targets``.
        without: keys of the node that are not arguments.
        arguments: passed on as they are.

    Raises:
        UserError: if the target is not allowed, or does not take a key of the node.
    """
    values = {str(key): value for key, value in node.items() if key not in without}
    targets.check(values, tuple(allowed))
    # Always bound first and called here: Hydra would turn dataclasses among the arguments into configs.
    try:
        bound = instantiate({**values, "_partial_": True, "_convert_": "all"})
    except InstantiationException as error:
        raise UserError(f"_target_={node.get('_target_')} must be importable: {first_line(error)}") from error
    partial = bool(node.get("_partial_"))
    try:
        signature = inspect.signature(bound.func)
    except ValueError as error:  # of a function in C
        raise UserError(
            f"_target_={node['_target_']} must say which arguments it takes, and does not. Wrap it in a function"
        ) from error
    try:
        (signature.bind_partial if partial else signature.bind)(*bound.args, **bound.keywords, **arguments)
        if partial:
            return bound
    except TypeError as error:
        raise UserError(
            f"{node['_target_']} does not fit its config: {error}{_typed(node, values, signature)}"
        ) from error
    return bound(**arguments)


def _typed(node: Mapping[Any, Any], values: Mapping[str, Any], signature: inspect.Signature) -> str:
    """Return the keys of a config group that a function does not take, as they are typed."""
    group = node._get_full_key(None) if isinstance(node, DictConfig) else ""
    keys = [key for key in values if key not in signature.parameters and not key.startswith("_")]
    return f"; got {', '.join(f'{group}.{key}={node[key]}' for key in keys)}" if group and keys else ""


def method_of(config: Mapping[Any, Any]) -> Method:
    """Return the method that a config names, or a record of one."""
    return build(DictConfig(config["method"], key="method"), config.get("allow_targets", ()), without=AVERAGING)


def device_of(accelerator: str) -> torch.device:
    """Return the device of this process: its GPU, or the CPU.

    Raises:
        UserError: if ``accelerator=gpu`` and there is no GPU, or the processes on this node see too few.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu needs a GPU that torch can use; there is none. Write accelerator=auto or cpu.")
    use_gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", _gpu_of(processes.placement())) if use_gpu else torch.device("cpu")


def _gpu_of(here: Placement) -> int:
    """Return which of the GPUs that a process sees is its own: each sees those of its whole node, or one alone."""
    visible = torch.cuda.device_count()
    if visible > 1 and here.local_rank >= visible:
        raise UserError(
            f"every process needs a GPU of its own; {here.launcher} started {here.local_size} on this node, which see "
            f"{visible}. Start {visible} on each node, or write accelerator=cpu."
        )
    return 0 if visible == 1 else here.local_rank

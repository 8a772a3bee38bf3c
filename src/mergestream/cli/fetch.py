"""``fetch.py``, ``mergestream-fetch``: download and check data sets and weights, before jobs run without internet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from mergestream.cli.command import Command
from mergestream.runtime.interrupt import Signals


def _work(cfg: DictConfig, signals: Signals, shared: dict[str, Any]) -> None:
    from mergestream.compose.checks import check_stream
    from mergestream.compose.inputs import Inputs
    from mergestream.compose.overrides import require_read
    from mergestream.compose.run import resolve

    require_read(cfg)
    resolve(cfg)
    check_stream(cfg)
    inputs = Inputs(cfg)
    loads: dict[str, Callable[[], Any]] = {f"dataset={cfg.dataset.name}": inputs.source}
    loads[f"model={cfg.model.name}"] = inputs.clip
    for name, load in loads.items():
        if name not in shared:
            load()
            shared[name] = True
            print(f"{name} is here")


main = Command("fetch", _work)

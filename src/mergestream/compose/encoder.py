"""Which encoder of a run a command means: the merge, θ₀, or the encoder after a task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mergestream.compose import checks, keys
from mergestream.compose.build import method_of
from mergestream.compose.overrides import ENCODER_KEYS, typed
from mergestream.compose.run import recorded, trained_run
from mergestream.compose.strategy import bound_strategy, scales_of
from mergestream.methods.method import Method
from mergestream.runs.directory import Run
from mergestream.strategies.strategy import BoundStrategy


@dataclass(frozen=True)
class EncoderSettings:
    """An encoder of a finished run, by name; see `mergestream.merging.chosen`.

    Args:
        run: the run directory.
        config: the resolved config.
        compared: keys in which the config of the run must agree with `config`.
        method: of the training.
        encoder: ``merge``, ``base`` (θ₀), ``last``, or the number of a task, from 1.
        bound: the strategy of the merge, and its options.
        scale: λ, or ``select``.
        bn: the running statistics of batch normalisation that the merge has.
    """

    run: Run
    config: dict[str, Any]
    compared: list[str]
    method: Method
    encoder: str | int
    bound: BoundStrategy
    scale: float | str
    bn: str

    @property
    def merge(self) -> Path:
        """The folder of the merge."""
        changed = {} if self.bn == "average" else {"bn": self.bn}
        return self.run.path / "merges" / self.bound.folder(self.scale, changed)

    @property
    def merge_command(self) -> str:
        """The command that makes the merge, for messages."""
        words = [word for key, word in typed() if key.split(".")[0] in ENCODER_KEYS and key != "encoder"]
        return self.run.command_of("merge", *words)


def encoder_settings(cfg: DictConfig, own_keys: Iterable[str]) -> EncoderSettings:
    """Return the encoder that a config with `ENCODER_KEYS` names.

    Args:
        cfg: a resolved config.
        own_keys: first parts of the command's own keys, besides `ENCODER_KEYS`.

    Raises:
        UserError: if a value breaks its rule.
    """
    checks.check_encoder(cfg)
    run, compared = trained_run(cfg, (*ENCODER_KEYS, *own_keys))
    return EncoderSettings(
        run=run,
        config=recorded(cfg),
        compared=compared,
        method=method_of(cfg),
        encoder=cfg.encoder,
        bound=bound_strategy(cfg),
        scale=next(iter(scales_of(cfg)), keys.SELECT),
        bn=cfg.bn,
    )

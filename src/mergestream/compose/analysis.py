"""The settings of analyze.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mergestream.compose import checks
from mergestream.compose.build import build
from mergestream.compose.inputs import Inputs
from mergestream.compose.overrides import ANALYSIS_KEYS, typed
from mergestream.compose.run import trained_run
from mergestream.compose.strategy import bound_strategy, scales_of
from mergestream.runs.directory import Run
from mergestream.strategies.strategy import BoundStrategy


@dataclass(frozen=True)
class AnalysisSettings:
    """What analyze.py needs.

    Args:
        run: the run directory.
        inputs: data and weights.
        analysis: ``analysis(subject) -> (table, figure)``, with its options bound.
        bound: the strategy and its options.
        scale: λ.
        words: (group, override) of what was typed about the analysis itself.
        compared: keys in which the run's config must agree with this one.
    """

    run: Run
    inputs: Inputs
    analysis: partial[Any]
    bound: BoundStrategy
    scale: float
    words: list[tuple[str, str]]
    compared: list[str]


def analysis_settings(cfg: DictConfig, shared: dict[str, Any]) -> AnalysisSettings:
    """Check a config of analyze.yaml and return its settings.

    Args:
        cfg: the composed config.
        shared: see `Inputs`.

    Raises:
        UserError: if a value breaks its rule.
    """
    OmegaConf.resolve(cfg)
    checks.check_analysis(cfg)
    run, compared = trained_run(cfg, ANALYSIS_KEYS)
    (scale,) = scales_of(cfg)
    return AnalysisSettings(
        run=run,
        inputs=Inputs(cfg, shared),
        analysis=build(cfg.analysis, cfg.allow_targets),
        bound=bound_strategy(cfg),
        scale=scale,
        words=[(key.split(".")[0], word) for key, word in typed() if key.split(".")[0] in ANALYSIS_KEYS],
        compared=compared,
    )

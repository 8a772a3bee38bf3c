"""The settings of analyze.py."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mergestream.compose import checks
from mergestream.compose.build import build
from mergestream.compose.inputs import Inputs
from mergestream.compose.overrides import ANALYSIS_KEYS, require_read, typed
from mergestream.compose.run import recorded, resolve, trained_run
from mergestream.compose.strategy import bound_strategy, scales_of
from mergestream.runs.directory import Run
from mergestream.strategies.strategy import BoundStrategy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AnalysisSettings:
    """What analyze.py needs.

    Args:
        run: the run directory.
        config: the resolved config.
        compared: keys in which the config of the run must agree with `config`.
        inputs: data and weights.
        analysis: ``analysis(subject, *, strategy, scale) -> (table, figure)`` with its options; `strategy` and `scale`
            only if it merges.
        bound: the strategy and its options.
        scale: λ.
        words: (config group, override) of what was typed about the analysis, the strategy and λ.
    """

    run: Run
    config: dict[str, Any]
    compared: list[str]
    inputs: Inputs
    analysis: partial[tuple[pd.DataFrame, Figure]]
    bound: BoundStrategy
    scale: float
    words: list[tuple[str, str]]


def analysis_settings(cfg: DictConfig, shared: dict[str, Any]) -> AnalysisSettings:
    """Check a config of analyze.yaml and return its settings.

    Args:
        cfg: the composed config.
        shared: see `Inputs`.

    Raises:
        UserError: if a value breaks its rule.
    """
    require_read(cfg)
    resolve(cfg)
    checks.check_analysis(cfg)
    run, compared = trained_run(cfg, ANALYSIS_KEYS)
    (scale,), bound = scales_of(cfg), bound_strategy(cfg)
    bound.require_chosen()
    return AnalysisSettings(
        run=run,
        config=recorded(cfg),
        compared=compared,
        inputs=Inputs(cfg, shared),
        analysis=build(cfg.analysis, cfg.allow_targets),
        bound=bound,
        scale=scale,
        words=[(key.split(".")[0], word) for key, word in typed() if key.split(".")[0] in ANALYSIS_KEYS],
    )

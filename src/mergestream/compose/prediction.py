"""The settings of predict.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig

from mergestream.compose import checks, keys
from mergestream.compose.build import device_of
from mergestream.compose.encoder import EncoderSettings, encoder_settings
from mergestream.compose.inputs import Inputs
from mergestream.compose.overrides import PREDICTION_KEYS, require_read, typed
from mergestream.compose.run import resolve
from mergestream.runtime.errors import UserError

ANYWHERE = (*PREDICTION_KEYS, "accelerator", "allow_targets")  # keys that classifier=FOLDER goes with


@dataclass(frozen=True)
class PredictionSettings:
    """What predict.py needs.

    Args:
        images: paths and patterns of pictures and folders; None is standard input.
        top: how many classes to list for each picture.
        out: a file for the answers; None is none.
        classes: texts to choose from; None is the classes of the run.
        source: the folder of an exported classifier, or the encoder of a run with the CLIP and the classes around it.
        device: where to compute.
        allowed: packages that an exported classifier may call.
    """

    images: list[str] | None
    top: int
    out: Path | None
    classes: list[str] | None
    source: Path | tuple[EncoderSettings, Inputs]
    device: torch.device
    allowed: tuple[str, ...]


def prediction_settings(cfg: DictConfig) -> PredictionSettings:
    """Check a config of predict.yaml and return its settings.

    Raises:
        UserError: if a value breaks its rule.
    """
    require_read(cfg)
    resolve(cfg)
    checks.check_prediction(cfg)
    if cfg.classifier is not None:
        _require_alone(cfg)
        source: Path | tuple[EncoderSettings, Inputs] = Path(cfg.classifier).expanduser()
    else:
        source = encoder_settings(cfg, PREDICTION_KEYS), Inputs(cfg)
    images = list(cfg.images) if isinstance(cfg.images, ListConfig) else [cfg.images]
    return PredictionSettings(
        images=None if images == [keys.STANDARD_INPUT] else images,
        top=cfg.top,
        out=None if cfg.out is None else Path(cfg.out).expanduser(),
        classes=None if cfg.classes is None else [keys.one_blank(text) for text in cfg.classes],
        source=source,
        device=device_of(cfg.accelerator),
        allowed=tuple(cfg.allow_targets),
    )


def _require_alone(cfg: DictConfig) -> None:
    """Check that nothing names a run beside an exported classifier."""
    if cfg.classes is not None:
        raise UserError(
            f"classes needs the text tower of a run, which classifier={cfg.classifier} has not. Leave out one of them"
        )
    if others := typed(without=ANYWHERE):
        raise UserError(f"classifier is used without a run; got {others[0][1]} beside it. Leave out one of them")

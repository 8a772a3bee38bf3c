"""``predict.py``, ``mergestream-predict``: classify pictures with a merge, or with an exported classifier."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from mergestream.cli.command import Command
from mergestream.runtime.interrupt import Signals


def _work(cfg: DictConfig, signals: Signals, shared: dict[str, Any]) -> None:
    from mergestream.compose.prediction import prediction_settings
    from mergestream.prediction.run import predict

    predict(prediction_settings(cfg))


main = Command("predict", _work, modules=("mergestream.compose.prediction", "mergestream.prediction.run"))

"""The numbers of the paper's tables (Marczak et al. 2024: Tables 1 and 2, and the supplement's two)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

DATASETS = {"cifar100": "CIFAR100", "imagenet_r": "ImageNet-R", "cub200": "CUB200", "cars": "Cars"}
MODELS = {
    "vit_b_16": ("ViT-B-16", "openai"),
    "vit_l_14": ("ViT-L-14", "openai"),
    "vit_b_16_laion400m": ("ViT-B-16", "laion400m"),
}
# The paper's name → method, strategy, and what differs from the strategy's defaults here.
PAPER_NAMES = {
    ("zeroshot", "", ""): "Zero-shot",
    ("joint", "", ""): "Joint",
    ("lwf", "", ""): "LwF",
    ("ewc", "", ""): "EWC",
    ("seq", "magmax", ""): "MagMax",
    ("ind", "magmax", ""): "MaxAbs",
    ("ind", "average", ""): "Avg",
    ("ind", "random_mix", ""): "RandMix",
    ("ind", "ties", "scope = clip"): "TIES",
    ("lwf", "magmax", ""): "LwF + MagMax",
    ("ewc", "magmax", ""): "EWC + MagMax",
}
SCALES = {"": "", "magmax": "0.5", "average": "1", "random_mix": "1", "ties": "0.55"}


def paper_accuracy(line: Mapping[str, Any]) -> float:
    """The paper's accuracy for a line of the report, as a fraction; NaN where the paper has none.

    Args:
        line: the columns of `collect.ROW`.
    """
    method = PAPER_NAMES.get((line["method"], line["strategy"], line["options"]))
    dataset, model = DATASETS.get(line["dataset"]), MODELS.get(line["model"])
    as_published = line["stream"] == "class" and not line["tag"] and line["scale"] == SCALES.get(line["strategy"])
    if method is None or dataset is None or model is None or not as_published:
        return float("nan")
    tasks = "all" if method in ("Zero-shot", "Joint") else str(line["tasks"])
    return _numbers().get((*model, method, dataset, tasks), float("nan"))


@cache
def _numbers() -> dict[tuple[str, ...], float]:
    table = pd.read_csv(Path(__file__).with_name("paper_results.csv"), dtype=str)
    keys = table[["backbone", "pretrained", "method", "dataset", "tasks"]].itertuples(index=False, name=None)
    numbers: dict[tuple[str, ...], float] = {}
    for key, value in zip(keys, table["accuracy"], strict=True):
        numbers.setdefault(key, float(value) / 100)  # LwF on CUB200/20 is 58.90 in Table 1, 58.89 in Table 2
    return numbers

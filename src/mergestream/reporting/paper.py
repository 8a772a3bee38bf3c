"""The numbers in the paper's tables (Marczak et al. 2024: Tables 1 and 2, and the two of the supplement)."""

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
# (method, strategy, options that differ from the defaults) → the paper's name
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
PUBLISHED_SCALES = {"": "", "magmax": "0.5", "average": "1", "random_mix": "1", "ties": "0.55"}


def paper_accuracy(line: Mapping[str, Any]) -> float:
    """Return the paper's accuracy for a row of the report, as a fraction; NaN if the paper has none.

    Args:
        line: the columns `rows.ROW`.
    """
    method = PAPER_NAMES.get((line["method"], line["strategy"], line["options"]))
    dataset, model = DATASETS.get(line["dataset"]), MODELS.get(line["model"])
    as_published = line["scale"] == PUBLISHED_SCALES.get(line["strategy"])
    if method is None or dataset is None or model is None:
        return float("nan")
    if not as_published or line["stream"] != "class" or line["tag"]:
        return float("nan")
    tasks = "all" if method in ("Zero-shot", "Joint") else str(line["tasks"])
    return _accuracies().get((*model, method, dataset, tasks), float("nan"))


@cache
def _accuracies() -> dict[tuple[str, ...], float]:
    """Map (backbone, pretrained, method, dataset, tasks) to the published accuracy, as a fraction."""
    table = pd.read_csv(Path(__file__).with_name("paper_results.csv"), dtype=str)
    keys = table[["backbone", "pretrained", "method", "dataset", "tasks"]].itertuples(index=False, name=None)
    accuracies: dict[tuple[str, ...], float] = {}
    for key, value in zip(keys, table["accuracy"], strict=True):
        accuracies.setdefault(key, float(value) / 100)  # LwF on CUB200/20 is 58.90 in Table 1, 58.89 in Table 2
    return accuracies

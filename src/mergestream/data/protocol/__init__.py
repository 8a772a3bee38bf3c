"""Facts of the published protocol: class orders and prompt templates, by dataset."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _facts(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())


def templates(dataset: str) -> tuple[str, ...]:
    """The prompts of a dataset; several datasets share those of another."""
    entry = _facts("prompt_templates")[dataset]
    return templates(entry) if isinstance(entry, str) else tuple(entry)


def class_orders(dataset: str) -> dict[str, list[int]]:
    """``{"paper": order}`` where the protocol has a class order for the dataset, else nothing."""
    order = _facts("orders")["class_order"].get(dataset)
    return {} if order is None else {"paper": order}

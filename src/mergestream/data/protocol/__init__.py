"""Facts of the published protocol, by dataset: class names, prompt templates, orders of classes and domains."""

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


def class_names(dataset: str) -> Any:
    """Class names in the order of the class ids; of EuroSAT, by folder name."""
    return _facts("class_names")[dataset]


def class_orders(dataset: str) -> dict[str, list[int]]:
    """``{"paper": order}`` where the protocol has a class order for the dataset, else nothing."""
    order = _facts("orders")["class_order"].get(dataset)
    return {} if order is None else {"paper": order}


def domains(dataset: str) -> list[str]:
    """Domain names in the order of the domain ids."""
    return _facts("orders")["domains"][dataset]


def domain_orders(dataset: str) -> dict[str, list[int]]:
    """``{"paper": order}`` of the domain ids."""
    return {"paper": [domains(dataset).index(name) for name in _facts("orders")["domain_order"][dataset]]}

"""Class names, prompt templates and orders of the published protocol, by dataset."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _facts(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())


def templates(dataset: str) -> tuple[str, ...]:
    """Return the prompt templates of a dataset."""
    entry = _facts("prompt_templates")[dataset]  # the templates, or the name of a dataset that has the same
    return templates(entry) if isinstance(entry, str) else tuple(entry)


def class_names(dataset: str) -> list[str]:
    """Return the class names of a dataset, in the order of the class ids."""
    return _facts("class_names")[dataset]


def class_names_by_folder(dataset: str) -> dict[str, str]:
    """Return the class name of each folder of a dataset."""
    return _facts("class_names")[dataset]


def class_orders(dataset: str) -> dict[str, list[int]]:
    """Return ``{"paper": order}``, or an empty dict if the protocol has no class order for the dataset."""
    order = _facts("orders")["class_order"].get(dataset)
    return {} if order is None else {"paper": order}


def domains(dataset: str) -> list[str]:
    """Return the domain names of a dataset, in the order of the domain ids."""
    return _facts("orders")["domains"][dataset]


def domain_orders(dataset: str) -> dict[str, list[int]]:
    """Return ``{"paper": order}``, the published order of the domain ids."""
    return {"paper": [domains(dataset).index(name) for name in _facts("orders")["domain_order"][dataset]]}

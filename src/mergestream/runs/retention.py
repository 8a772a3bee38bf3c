"""What an encoder can still do on other data sets: a file for each of them, beside the encoder.

Retention is the zero-shot accuracy of an encoder on a data set that its run was not trained on, minus that of θ₀.
Imports no torch, so that a report starts fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from mergestream.runs.identity import equal_hash
from mergestream.runtime import files


class Measurement(TypedDict):
    """The content of a file; all accuracies are fractions in [0, 1], among all classes of the data set.

    `config` holds what decides the measurement besides the encoder and the data: the keys of the data set and of the
    model, and the precision. `data_sha256` is of classes, prompts and labels. In `provenance`, `images` is
    a hash of names, sizes and times of the image files, or null for images in memory.
    """

    schema_version: int
    dataset: str
    encoder_sha256: str
    base_sha256: str
    accuracy: float
    macro_accuracy: float
    zero_shot: float
    retention: float
    test_samples: int
    num_classes: int
    data_sha256: str
    config: dict[str, Any]
    environment: dict[str, Any]
    git: dict[str, Any] | None
    provenance: dict[str, Any]


def path_beside(encoder: Path, dataset: str) -> Path:
    """Return the file of what was measured of an encoder on a data set."""
    return folder_beside(encoder) / f"{dataset}.json"


def folder_beside(encoder: Path) -> Path:
    """Return the folder of what was measured of an encoder."""
    return encoder.parent / "retention"


def path_of_base(root: Path, sha256: str, dataset: str, config: Mapping[str, Any]) -> Path:
    """Return the file of what was measured of θ₀, once for all runs of a root."""
    return root / "_zero_shot" / sha256[:16] / f"{dataset}-{equal_hash(config)[:16]}.json"


def all_beside(encoder: Path) -> list[Path]:
    """Return the files of what was measured of an encoder, by data set."""
    return sorted(folder_beside(encoder).glob("*.json"))


def read(path: Path) -> Measurement:
    """Return the content of a file.

    Raises:
        UserError: if it is missing or was altered.
    """
    return files.read_json(path, *Measurement.__annotations__, own=True)  # type: ignore[return-value]

"""Loads datasets from the Hub when the official source is unavailable: ``dataset.mirror=USER/NAME``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mergestream.data.archive import readable_name
from mergestream.data.decode import to_rgb
from mergestream.data.manifest import Record, split_by_name
from mergestream.data.source import Split
from mergestream.runtime.errors import UserError, first_line

if TYPE_CHECKING:  # an optional dependency
    from datasets import Dataset


class TableImages:
    """The images in one column of a table of the ``datasets`` library."""

    def __init__(self, table: Dataset, column: str):
        self.table, self.column = table, column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Image.Image:
        return to_rgb(self.table[int(index)][self.column])


def load_mirror(
    dataset: str, mirror: str, class_names: Sequence[str] = (), test_fraction: float = 0.2, split_seed: int = 0
) -> tuple[list[str], Split, Split, Record]:
    """Load a dataset from a repository on the Hub, or from a local folder that ``datasets`` can read.

    Labels are matched to `class_names` by name, because mirrors number the classes in orders of their own. A mirror
    with a single split is split by a manifest of its row numbers.

    Args:
        dataset: option of the ``dataset`` group.
        mirror: ``dataset.mirror``: USER/NAME, or a folder.
        class_names: in the order of the class ids; by default the mirror's own.
        test_fraction, split_seed: see `split_by_name`.

    Returns:
        Class names, train split, test split, and a record for ``stream.json``.

    Raises:
        UserError: if the library is not installed, or the mirror cannot be loaded or has other classes.
    """
    tables = _load_tables(mirror)
    image_column, label_column = _columns(tables, mirror)
    labels = {name: list(table[label_column]) for name, table in tables.items()}
    own_names, own_values = _own_classes(tables, label_column, labels)
    names = list(class_names) or [readable_name(name) for name in own_names]
    ids = {readable_name(name).lower(): c for c, name in enumerate(names)}
    if unknown := [name for name in own_names if readable_name(name).lower() not in ids]:
        raise UserError(f"dataset.mirror={mirror} must have the classes of {dataset}; {unknown[0]} is not one of them")
    to_id = {value: ids[readable_name(name).lower()] for value, name in zip(own_values, own_names, strict=True)}

    def split(name: str) -> Split:
        if any(value not in to_id for value in labels[name]):  # benchmarks hide test labels as -1 or null
            raise UserError(f"dataset.mirror={mirror} must have a label for every image; its split {name} does not")
        class_ids = np.array([to_id[value] for value in labels[name]], dtype=np.int64)
        return Split(TableImages(tables[name], image_column), class_ids)

    record: Record = {"mirror": mirror}
    if len(tables) == 1:
        everything = split(next(iter(tables)))
        rows = [f"{row:08d}" for row in range(len(everything))]
        train, test, manifest = split_by_name(
            rows, everything.labels.tolist(), test_fraction=test_fraction, seed=split_seed
        )
        return names, everything.subset(train), everything.subset(test), record | manifest
    test_name = next((name for name in ("test", "validation", "valid") if name in tables), None)
    if "train" not in tables or test_name is None:
        raise UserError(f"dataset.mirror={mirror} must have the splits train and test; it has {', '.join(tables)}")
    return names, split("train"), split(test_name), record


def _load_tables(mirror: str) -> Mapping[str, Dataset]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError("dataset.mirror needs the package datasets; type: pip install mergestream[mirrors]") from error
    try:
        return load_dataset(mirror)
    except Exception as error:  # the library passes on whatever its readers and its HTTP client raise
        rule = f"dataset.mirror={mirror} must be a dataset on the Hugging Face Hub"
        raise UserError(f"{rule}: {first_line(error)}") from error


def _columns(tables: Mapping[str, Dataset], mirror: str) -> tuple[str, str]:
    """The names of the image column and of the label column."""
    from datasets import ClassLabel
    from datasets import Image as ImageColumn

    features = next(iter(tables.values())).features
    images = [name for name, feature in features.items() if isinstance(feature, ImageColumn)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    for name in ("class_name", "label", "label_name"):
        if name in features and getattr(features[name], "dtype", None) in ("string", "large_string"):
            labels.append(name)
    if not images or not labels:
        raise UserError(
            f"dataset.mirror={mirror} must have an image column and a label column; its columns are "
            f"{', '.join(features)}"
        )
    return images[0], labels[0]


def _own_classes(
    tables: Mapping[str, Dataset], column: str, labels: Mapping[str, Sequence[int | str | None]]
) -> tuple[list[str], Sequence[int | str]]:
    """The mirror's class names, and the value by which its label column refers to each."""
    from datasets import ClassLabel

    feature = next(iter(tables.values())).features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names), range(len(feature.names))
    names = sorted({str(value) for values in labels.values() for value in values if value is not None})
    return names, names

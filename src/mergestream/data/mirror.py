"""A dataset from the Hugging Face Hub, for those whose official source is gone: ``dataset.mirror=USER/NAME``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mergestream.data.archive import spoken
from mergestream.data.manifest import divide
from mergestream.data.source import Split
from mergestream.runtime.errors import UserError


class Rows:
    """The images of a table of the ``datasets`` library."""

    def __init__(self, table: Any, column: str):
        self.table, self.column = table, column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Image.Image:
        return self.table[int(index)][self.column].convert("RGB")


def mirrored(
    dataset: str, mirror: str, class_names: Sequence[str] = (), test_fraction: float = 0.2, split_seed: int = 0
) -> tuple[list[str], Split, Split, dict[str, Any]]:
    """(class names, train, test, record) of a repository on the Hub, or of a local folder that ``datasets`` reads.

    The labels are matched to `class_names` by name, whatever their order in the mirror. A mirror with a single split
    is divided by a manifest of its row numbers.

    Args:
        dataset: name in the ``dataset`` group, for messages.
        mirror: USER/NAME, or a folder.
        class_names: in the order of the class ids; none takes the mirror's own.
        test_fraction, split_seed: see `divide`.

    Raises:
        UserError: if the library or the repository is not there, or its classes are others.
    """
    try:
        from datasets import ClassLabel, load_dataset
        from datasets import Image as ImageColumn
    except ImportError as error:
        raise UserError("dataset.mirror needs another package; type: pip install mergestream[mirrors]") from error
    try:
        tables = load_dataset(mirror)
    except Exception as error:  # the library raises whatever its readers and its HTTP client raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"dataset.mirror={mirror} must be a dataset of the Hugging Face Hub: {reason}") from error
    features = next(iter(tables.values())).features
    pixels = [name for name, feature in features.items() if isinstance(feature, ImageColumn)]
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    for name in ("class_name", "label", "label_name"):
        if name in features and getattr(features[name], "dtype", None) in ("string", "large_string"):
            labels.append(name)
    if not pixels or not labels:
        raise UserError(
            f"dataset.mirror={mirror} must have a column of images and one of labels; its columns are "
            f"{', '.join(features)}"
        )
    column, feature = labels[0], features[labels[0]]
    values = {name: list(table[column]) for name, table in tables.items()}
    numbered = isinstance(feature, ClassLabel)
    own = feature.names if numbered else sorted({v for vs in values.values() for v in vs if v is not None})
    names = list(class_names) or [spoken(name) for name in own]
    ids = {spoken(name).lower(): c for c, name in enumerate(names)}
    if unknown := [name for name in own if spoken(name).lower() not in ids]:
        raise UserError(
            f"dataset.mirror={mirror} must have the classes of {dataset}; it has {unknown[0]}, which is none"
        )
    to_id = {value if numbered else name: ids[spoken(name).lower()] for value, name in enumerate(own)}

    def split(name: str) -> Split:
        if any(value not in to_id for value in values[name]):  # -1 or null, where a benchmark keeps them secret
            raise UserError(f"dataset.mirror={mirror} must have a label for every image; those of {name} have none")
        return Split(Rows(tables[name], pixels[0]), np.array([to_id[v] for v in values[name]], dtype=np.int64))

    note: dict[str, Any] = {"mirror": mirror}
    if len(tables) == 1:
        whole = split(next(iter(tables)))
        rows = [f"{row:08d}" for row in range(len(whole))]
        train, test, record = divide(rows, whole.labels.tolist(), test_fraction=test_fraction, seed=split_seed)
        return names, whole.choose(train), whole.choose(test), {**note, **record}
    test_name = next((name for name in ("test", "validation", "valid") if name in tables), None)
    if "train" not in tables or test_name is None:
        raise UserError(f"dataset.mirror={mirror} must have the splits train and test; it has {', '.join(tables)}")
    return names, split("train"), split(test_name), note

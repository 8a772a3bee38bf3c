"""What a dataset is to the rest of the package: images by index, integer labels, class names and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image


class Images(Protocol):
    """N images by index, opened only when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image.Image: ...


@dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Args:
        images: N images by index.
        labels: class id of each image, int64 [N].
        domains: domain id of each image, int64 [N], for datasets that have domains.

    Raises:
        ValueError: if the lengths differ.
    """

    images: Images
    labels: np.ndarray
    domains: np.ndarray | None = None

    def __post_init__(self) -> None:
        lengths = [len(self.images), len(self.labels)]
        if self.domains is not None:
            lengths.append(len(self.domains))
        if len(set(lengths)) > 1:
            raise ValueError(f"images, labels and domains of a split must be equally many, got {lengths}")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    """A dataset: what a function in this folder returns.

    Args:
        class_names: name of each class, in the order of the class ids; goes into the prompts.
        templates: prompts with one ``{}`` for the class name; their text embeddings are averaged.
        train: images for training (and validation).
        test: images for evaluation only.
        class_orders: published orders of the class ids, by name (``paper``).
        domain_names: name of each domain, in the order of the domain ids.
    """

    class_names: Sequence[str]
    templates: Sequence[str]
    train: Split
    test: Split
    class_orders: Mapping[str, Sequence[int]] = field(default_factory=dict)
    domain_names: Sequence[str] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

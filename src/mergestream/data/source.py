"""What a dataset is to the rest of the package: images by index, integer labels, class names and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mergestream.data.images import Chosen, Images, Joined


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

    def choose(self, positions: np.ndarray) -> Split:
        """The samples at `positions`."""
        domains = None if self.domains is None else self.domains[positions]
        return Split(Chosen(self.images, positions), self.labels[positions], domains)

    @staticmethod
    def join(splits: Sequence[Split]) -> Split:
        """The samples of several splits, one after the other; without domains."""
        return Split(Joined([s.images for s in splits]), np.concatenate([s.labels for s in splits]))


@dataclass(frozen=True)
class Source:
    """A dataset: what a function in `sources` returns.

    Args:
        class_names: name of each class, in the order of the class ids.
        prompts: all prompts of each class (see `prompts`); their text embeddings are averaged.
        train: images for training (and validation).
        test: images for evaluation only.
        class_orders: published orders of the class ids, by name (``paper``).
        domain_names: name of each domain, in the order of the domain ids.
        domain_orders: published orders of the domain ids, by name.
        domain_classes: class ids of each domain, where each has classes of its own.
        notes: what ``stream.json`` records besides, such as the hash of a split that is not the dataset's own.
    """

    class_names: Sequence[str]
    prompts: Sequence[Sequence[str]]
    train: Split
    test: Split
    class_orders: Mapping[str, Sequence[int]] = field(default_factory=dict)
    domain_names: Sequence[str] = ()
    domain_orders: Mapping[str, Sequence[int]] = field(default_factory=dict)
    domain_classes: Sequence[Sequence[int]] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Every template, which has one ``{}`` for the class name, with the name of each class in turn."""
    return [[template.format(name) for template in templates] for name in class_names]

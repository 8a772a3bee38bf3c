"""What every dataset provides: train and test images, labels, class names and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mergestream.data.images import ConcatImages, Images, SubsetImages


@dataclass(frozen=True)
class Split:
    """The train or the test split of a dataset.

    Args:
        images: N images by index.
        labels: class id of each image, int64 [N].
        domains: domain id of each image, int64 [N], if the dataset has domains.

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
            raise ValueError(f"images, labels and domains of a split must have the same length, got {lengths}")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, positions: np.ndarray) -> Split:
        """Return the samples at `positions`."""
        domains = None if self.domains is None else self.domains[positions]
        return Split(SubsetImages(self.images, positions), self.labels[positions], domains)

    @staticmethod
    def concat(splits: Sequence[Split]) -> Split:
        """Return the samples of all `splits` in a row, without domains."""
        return Split(ConcatImages([s.images for s in splits]), np.concatenate([s.labels for s in splits]))


@dataclass(frozen=True)
class Source:
    """A dataset, as the functions in `mergestream.data.sources` return it.

    Args:
        class_names: name of each class, in the order of the class ids.
        prompts: prompts of each class (see `prompts`); the classifier averages their text embeddings.
        train: images for training and validation.
        test: images for evaluation only.
        class_orders: published orders of the class ids, by name (``paper``).
        domain_names: name of each domain, in the order of the domain ids.
        domain_orders: published orders of the domain ids, by name.
        domain_classes: class ids of each domain, if every domain has its own classes.
        notes: anything else that ``stream.json`` must record, such as the hash of a split by manifest.
    """

    class_names: Sequence[str]
    prompts: Sequence[Sequence[str]]
    train: Split
    test: Split
    class_orders: Mapping[str, Sequence[int]] = field(default_factory=dict)
    domain_names: Sequence[str] = ()
    domain_orders: Mapping[str, Sequence[int]] = field(default_factory=dict)
    domain_classes: Sequence[Sequence[int]] = ()
    notes: Mapping[str, object] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)


def prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return the prompts of each class: every template with its ``{}`` replaced by the class name."""
    return [[template.format(name) for template in templates] for name in class_names]

"""What every dataset provides: train and test images, labels, class names and prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import Formatter

import numpy as np

from mergestream.data.images import ConcatImages, Images, SubsetImages
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError


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
        domain_contents: hash of the images and labels of each domain, if tasks can be added.
        class_groups: how many classes became known at a time, in order; empty if all were known from the start.
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
    domain_contents: Sequence[str] = ()
    class_groups: Sequence[int] = ()
    notes: Mapping[str, object] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)

    def without_domains(self, names: Collection[str]) -> Source:
        """Return the dataset without the images of some domains; classes and domains keep their numbers."""

        def split(whole: Split) -> Split:
            assert whole.domains is not None  # the domains have names
            others = [number for number, name in enumerate(self.domain_names) if name not in names]
            return whole.subset(np.flatnonzero(np.isin(whole.domains, others)))

        return replace(self, train=split(self.train), test=split(self.test))

    def without_classes(self, classes: Sequence[int]) -> Source:
        """Return the dataset without some classes and their images; the others are renumbered."""
        kept = [c for c in range(self.num_classes) if c not in set(classes)]
        ids = {old: new for new, old in enumerate(kept)}

        def split(whole: Split) -> Split:
            part = whole.subset(np.flatnonzero(np.isin(whole.labels, kept)))
            return replace(part, labels=np.array([ids[c] for c in part.labels.tolist()], dtype=np.int64))

        def renumber(order: Sequence[int]) -> list[int]:
            return [ids[c] for c in order if c in ids]

        return replace(
            self,
            class_names=[self.class_names[c] for c in kept],
            prompts=[self.prompts[c] for c in kept],
            train=split(self.train),
            test=split(self.test),
            class_orders={name: renumber(order) for name, order in self.class_orders.items()},
            domain_classes=[renumber(head) for head in self.domain_classes],
        )


def prompts(
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    published: bool = False,
    folders: Sequence[str] | None = None,
) -> list[list[str]]:
    """Return the prompts of each class: every template with its ``{}`` replaced by the class name.

    Args:
        class_names: in the order of the class ids.
        templates: texts with one ``{}``.
        published: whether the names are a published list. Where it gives two classes the same prompts, they stay so,
            and a line says that only one of the two can be predicted.
        folders: where the names come from, for messages.

    Raises:
        UserError: if there is no template, one has not exactly one ``{}``, or two classes get the same prompts.
    """
    for template in templates or [""]:
        if not isinstance(template, str) or not _is_template(template):
            raise UserError(
                f"dataset.templates must each have one {{}} for the class name, and no other braces; got {template!r}"
            )
    made = [[template.format(name) for template in templates] for name in class_names]
    for same, index in shared(made):
        if not published:
            given = folders or class_names
            raise UserError(
                f"two classes must not share their prompts; {given[same]!r} and {given[index]!r} are the same to CLIP. "
                "Rename one of them, or merge them"
            )
        names = f"classes {same} and {index} are both named {class_names[same]!r}"
        processes.say(f"{names} in the published list, so only the first of them can be predicted")
    return made


def shared(prompts: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Return each class whose prompts an earlier class has, too, as (earlier class, class); case does not count."""
    first: dict[tuple[str, ...], int] = {}
    found = ((first.setdefault(tuple(map(str.casefold, texts)), index), index) for index, texts in enumerate(prompts))
    return [(same, index) for same, index in found if same != index]


def _is_template(template: str) -> bool:
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError:  # an open brace
        return False
    return fields == [("", "", None)]

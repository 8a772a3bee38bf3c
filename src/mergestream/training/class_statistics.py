"""What a merge can be aligned with: where the features of each class of a task lie, and what the head says of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mergestream.methods.method import Batches
from mergestream.models.clip import TextHead
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError

PROJECTION = "proj"  # of open_clip's vision transformers: features = x @ proj


def require_projection(encoder: nn.Module) -> None:
    """Check that the last step of the image tower is a matrix.

    Raises:
        UserError: if it is not.
    """
    if not isinstance(getattr(encoder, PROJECTION, None), nn.Parameter):
        raise UserError(
            f"curvature.classes is for a vision transformer of open_clip, which ends in a matrix {PROJECTION}; this "
            f"image tower, a {type(encoder).__name__}, has none. Leave it out"
        )


@torch.no_grad()
def class_statistics(
    encoder: nn.Module, head: TextHead, weights: Mapping[str, Mapping[str, Tensor]], batches: Iterable[Batches]
) -> dict[str, Tensor]:
    """Return mean and scatter of the inputs of the projection, x [B, d], for several weights of one image tower.

    Args:
        encoder: the image tower, in evaluation mode; it keeps its weights.
        head: text head over all classes.
        weights: by name, such as ``encoder``.
        batches: for each of `weights`, this process's share of the task's images, (images, class ids).

    Returns:
        ``classes`` and ``count`` [C], the ids of the classes and their images; ``text`` [C, D] and ``scale`` [1], the
        weights and the scale of the head; and for each name ``NAME.mean`` [C, d] and ``NAME.scatter`` [d, d], the mean
        over all images of (x − μ_c)(x − μ_c)ᵀ.
    """
    own = {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
    found: dict[str, Tensor] = {}
    for (name, theta), images in zip(weights.items(), batches, strict=True):
        encoder.load_state_dict(theta)
        count, found[f"{name}.mean"], found[f"{name}.scatter"] = _moments(encoder, len(head.weight_CD), images)
    encoder.load_state_dict(own)
    classes = count.nonzero().squeeze(1)
    of_head = {"text": head.weight_CD[classes], "scale": torch.tensor([head.scale])}
    return {"classes": classes, "count": count[classes], **of_head, **found}


def _moments(encoder: nn.Module, num_classes: int, batches: Batches) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images of every class, the means of those that have some, and the mean scatter, of all processes."""
    projection: Tensor = getattr(encoder, PROJECTION)
    width, device = projection.shape[0], projection.device
    count = torch.zeros(num_classes, dtype=torch.float64, device=device)
    sums = torch.zeros(num_classes, width, dtype=torch.float64, device=device)
    squares = torch.zeros(width, width, dtype=torch.float64, device=device)
    with _without_projection(encoder):
        for images, labels in batches:
            if len(images):  # a process may have no images of a small last batch
                x = encoder(images).double()
                count += torch.bincount(labels, minlength=num_classes)
                sums.index_add_(0, labels, x)
                squares += x.T @ x
    count, sums, squares = processes.total(count), processes.total(sums), processes.total(squares)
    classes = count.nonzero().squeeze(1)
    means = sums[classes] / count[classes].unsqueeze(1)
    scatter = (squares - means.T @ sums[classes]) / count.sum()
    return count.long(), means.float(), scatter.float()


@contextmanager
def _without_projection(encoder: nn.Module) -> Iterator[None]:
    """Let the image tower return what it would project."""
    projection = getattr(encoder, PROJECTION)
    setattr(encoder, PROJECTION, None)
    try:
        yield
    finally:
        setattr(encoder, PROJECTION, projection)

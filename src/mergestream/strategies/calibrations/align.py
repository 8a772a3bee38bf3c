"""Gaussian alignment: fits the projection of a merge to the text head, on the features that every task left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import is_number, require_choice, require_number, require_whole
from mergestream.strategies.calibrations.calibration import SELECT, MergedVector, calibration
from mergestream.strategies.task_vectors import Curvature, Rows, SurveyedVectors

PROJECTIONS = ("proj", "visual.proj")  # of an image tower, and of a whole CLIP
STATISTICS = ("average", "encoder")
FEATURES = 256  # of a step
JITTER = 1e-4  # of the mean variance, added to the covariance of few images


class Gaussians(NamedTuple):
    """A Gaussian for each class of each task, with one covariance for all, and the text head.

    Args:
        mean: μ, float64 [G, d].
        factor: L of the covariance L Lᵀ, float64 [d, d].
        column: of each Gaussian's class in `text`, int64 [G].
        text: embeddings of the classes, in the order of their ids, float64 [C, D].
        scale: the scale of the logits.
    """

    mean: Tensor
    factor: Tensor
    column: Tensor
    text: Tensor
    scale: float


def check(*, statistics: str, steps: int, rate: float, coefficient: float | str | None, seed: int) -> None:
    """Check the options.

    Raises:
        UserError: if one breaks its rule.
    """
    require_choice("calibration.statistics", statistics, STATISTICS)
    require_whole("calibration.steps", steps, 1)
    require_number("calibration.rate", rate, "positive", lambda x: x > 0)
    require_whole("calibration.seed", seed, 0)
    if coefficient not in (None, SELECT) and not is_number(coefficient):
        raise UserError(
            f"calibration.coefficient must be a number, null for the strategy's published λ, or {SELECT} to choose it "
            f"on validation data; got calibration.coefficient={coefficient}"
        )


def survey(
    merged: MergedVector,
    vectors: SurveyedVectors,
    *,
    statistics: str = "average",
    steps: int = 100,
    rate: float = 0.01,
    coefficient: float | str | None = None,
    seed: int = 5,
) -> dict[str, Any]:
    """Fit the projection.

    Args:
        merged: the merged task vector.
        vectors: all task vectors.
        statistics: the encoder whose features are taken: ``average``, the mean of all encoders up to the task, or
            ``encoder``, that of the task.
        steps: of Adam.
        rate: its learning rate, as a share of the root mean square of the projection.
        coefficient: c, which the merged task vector is multiplied with; None is the strategy's published λ.
        seed: of the features that are drawn.

    Raises:
        UserError: if the projection is not merged, or the class statistics of a task are missing.
    """
    assert coefficient is not None  # the published one by now
    name = next((name for name in vectors.names if name in PROJECTIONS), None)
    if name is None:
        raise UserError(
            "calibration=align fits the projection of a vision transformer of open_clip, proj; the weights that are "
            "merged have none. Leave calibration out"
        )
    found = vectors.curvature("classes")
    if statistics == "average":
        found.require_past()
    gaussians = gaussians_of(found, statistics)
    (block,) = vectors.blocks([name], whole=True)
    (base,) = vectors.map_rows(lambda _block, base, _taus: base.double().cpu().clone(), [block])
    if tuple(base.shape) != (gaussians.mean.shape[1], gaussians.text.shape[1]):
        raise UserError(
            f"calibration=align needs class statistics of the image tower that is merged; {name} is "
            f"{list(base.shape)}, and they are of {[gaussians.mean.shape[1], gaussians.text.shape[1]]}"
        )
    start = base + float(coefficient) * merged.read(block).double()
    fitted = fit(start, gaussians, steps=steps, rate=rate, seed=seed)
    return {"projection": name, "fitted": (fitted - base).float(), "coefficient": float(coefficient)}


@calibration(scale=1.0, matrices=True, fixed=True, survey=survey, check=check, selectable="coefficient")
def align(merged: Tensor, taus: Rows, *, name: str, projection: str, fitted: Tensor, coefficient: float) -> Tensor:
    """The projection P descends the mean over Gaussians g of E_{x ~ N(μ_g, Σ)} CE(s · cos(x P, e), class of g).

    All other weights are c·τ. x are the inputs of the projection; there is a Gaussian for each class of each task. Its
    mean, and the covariance that all share, are what the tasks saved (``curvature.classes``); e and s are the text
    embeddings and the scale of the frozen head. Adam starts at P₀ + c·τ_P and takes a fixed number of steps. Ours:
    Zhang et al. (SLCA, ICCV 2023) train a classifier on Gaussian features; here it stays, and the projection moves.

    Args:
        merged: τ, what the strategy made of a matrix, float32 [m, n], or of a block of another weight, [n].
        taus: not read.
        name: the weight.
        projection: the name of the projection.
        fitted: what replaces its task vector, [d, D].
        coefficient: c.
    """
    return fitted.to(merged.device) if name == projection else merged * coefficient


def gaussians_of(found: Curvature, statistics: str) -> Gaussians:
    """Return the Gaussians of all classes of all tasks, on the CPU."""

    def values(name: str) -> list[Tensor]:
        return [tensor.double().cpu() for tensor in found.tensors(name)]

    classes, scales = torch.cat(values("classes")).long(), torch.cat(values("scale"))
    known, column = torch.unique(classes, return_inverse=True)
    embeddings = _embeddings(values("text"), column, len(known))
    if embeddings is None or not torch.allclose(scales, scales[:1], rtol=1e-4):
        raise UserError(
            "calibration=align needs class statistics of one text head; those of the tasks have different embeddings "
            "of a class, or different scales"
        )
    counts, means = [tensor.sum() for tensor in values("count")], torch.cat(values(f"{statistics}.mean"))
    covariance = torch.zeros(means.shape[1], means.shape[1], dtype=torch.float64)
    for scatter, count in zip(found.tensors(f"{statistics}.scatter"), counts, strict=True):  # one at a time in memory
        covariance += scatter.double().cpu() * (count / sum(counts))
    # One image for each class leaves nothing but rounding, which is relative to the features themselves.
    jitter = JITTER * covariance.diagonal().mean() + torch.finfo(torch.float32).eps * means.square().mean()
    factor = torch.linalg.cholesky(covariance + jitter * torch.eye(len(covariance), dtype=torch.float64))
    # In the order of the ids, so that the order of tasks with different classes does not matter.
    order = torch.argsort(classes, stable=True)
    return Gaussians(means[order], factor, column[order], embeddings, float(scales[0]))


def _embeddings(texts: Sequence[Tensor], column: Tensor, classes: int) -> Tensor | None:
    """Return the embedding of each class, [C, D]; None if the tasks have different ones."""
    if len({text.shape[1] for text in texts}) > 1:
        return None
    found = torch.zeros(classes, texts[0].shape[1], dtype=torch.float64)
    found[column] = torch.cat(list(texts))
    return found if torch.allclose(found[column], torch.cat(list(texts)), rtol=0, atol=1e-4) else None


def fit(start: Tensor, gaussians: Gaussians, *, steps: int, rate: float, seed: int) -> Tensor:
    """Return the projection after `steps` of Adam from `start`, float64 [d, D]."""
    projection, generator = start.clone(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([projection], lr=rate * float(start.square().mean().sqrt()))
    width = gaussians.mean.shape[1]
    for _ in range(steps):
        drawn = torch.randint(len(gaussians.mean), (FEATURES,), generator=generator)
        noise = torch.randn(FEATURES, width, generator=generator, dtype=torch.float64)
        x = gaussians.mean[drawn] + noise @ gaussians.factor.T
        projection.grad = gradient(projection, x, gaussians.column[drawn], gaussians.text, gaussians.scale)
        optimizer.step()
    return projection


def gradient(projection: Tensor, x: Tensor, column: Tensor, text: Tensor, scale: float) -> Tensor:
    """Return the gradient of the mean cross-entropy of s · cos(x P, e) by P, [d, D]."""
    features = x @ projection
    lengths = features.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    directions = features / lengths
    wrong = torch.softmax(scale * directions @ text.T, 1) - F.one_hot(column, len(text))
    along = scale * wrong @ text / len(x)
    along = along - (along * directions).sum(1, keepdim=True) * directions  # a length changes no cosine
    return x.T @ (along / lengths)

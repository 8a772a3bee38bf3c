"""Elastic weight consolidation: a penalty on moving weights that earlier tasks need (Kirkpatrick et al. 2017)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from mergestream.methods.method import Batches, Method
from mergestream.models.clip import TextHead
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_choice, require_number
from mergestream.runtime.seeding import key

MICRO_BATCH = 32  # samples whose gradients are in memory at once
CONSOLIDATIONS = ("ema", "online", "separate")
ESTIMATORS = ("reference", "reference_cleared", "exact", "sample", "empirical", "max_pred", "batched")


def fisher_diagonal(
    model: nn.Module, batches: Batches, *, estimator: str, gradient: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information of p(y | x, θ) = softmax(model(x)), by parameter name.

    The estimators, for N samples in B batches b:

    - exact: 1/N Σ_n Σ_c p_c (∂ log p_c / ∂θ)²
    - sample: 1/N Σ_n (∂ log p_c / ∂θ)², c drawn from p, keyed by the input
    - empirical: the same with the label y_n for c
    - max_pred: the same with the most probable class for c
    - batched: 1/B Σ_b (∂ mean_{n∈b} log p_{y_n} / ∂θ)²; squares of batch means, smaller than the empirical Fisher
    - reference: as published with MagMax. It differs from max_pred in two ways: the gradients of batch means are never
      zeroed, so batch b squares the sum of `gradient` and of all batches up to b; and the sum of the squares, each
      times the size of its batch, is divided by (⌊N/s⌋ + 1) · s, where s is the size of the first batch
    - reference_cleared: the same, but the sum starts at zero instead of at `gradient`

    Args:
        model: images → logits, in the mode (train or eval) that the caller has set. Only parameters that require a
            gradient are included.
        batches: (inputs, labels) of this process; together, the processes have each sample once.
        estimator: one of the above.
        gradient: the gradient that the last training step left behind, by parameter name, the same on every process;
            the published code does not zero it before this pass. Only ``reference`` uses it; None is zero.

    Raises:
        UserError: if the estimator is unknown.
    """
    require_choice("method.estimator", estimator, ESTIMATORS)
    if estimator == "batched":
        return _of_batch_means(model, batches)
    if estimator in ("reference", "reference_cleared"):
        return _of_sums(model, batches, (gradient or {}) if estimator == "reference" else {})
    return _of_samples(model, batches, estimator)


def _of_samples(model: nn.Module, batches: Batches, estimator: str) -> dict[str, Tensor]:
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= dict(model.named_buffers())
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    count = 0

    def log_probability(theta: dict[str, Tensor], x: Tensor, c: Tensor) -> Tensor:
        logits = functional_call(model, {**theta, **fixed}, (x[None],))[0]
        return F.log_softmax(logits, dim=-1).gather(0, c[None])[0]

    per_sample: Callable[..., dict[str, Tensor]] = vmap(grad(log_probability), in_dims=(None, 0, 0))
    for inputs, labels in batches:
        for x, y in zip(inputs.split(MICRO_BATCH), labels.split(MICRO_BATCH), strict=True):
            if not len(x):  # a process may have no samples of a small last batch
                continue
            with torch.no_grad():
                probabilities = F.softmax(model(x), dim=-1)
            for classes, weights in _classes(probabilities, x, y, estimator):
                with sdpa_kernel(SDPBackend.MATH):  # vmap does not support the fused attention kernels
                    gradients = per_sample(parameters, x, classes)
                for name, gradient in gradients.items():
                    totals[name] += torch.einsum("n,n...->...", weights, gradient.square())
            count += len(x)
    samples = processes.total(torch.tensor(float(count)))
    return {name: processes.total(total) / samples.to(total.device) for name, total in totals.items()}


def _classes(probabilities: Tensor, inputs: Tensor, labels: Tensor, estimator: str) -> Iterable[tuple[Tensor, Tensor]]:
    """Yield (class of each sample, weight of each sample) for every gradient that the estimator needs."""
    ones = torch.ones_like(probabilities[:, 0])
    if estimator == "exact":
        for c in range(probabilities.shape[1]):
            yield torch.full_like(labels, c), probabilities[:, c]
    elif estimator == "sample":
        # Keyed by the input, so that the draw does not depend on the process or on the order of the samples.
        keys = [key(hashlib.sha256(x.cpu().numpy().tobytes()).hexdigest()) for x in inputs]
        uniform = torch.tensor([[k / 2**63] for k in keys], dtype=torch.float64)
        drawn = torch.searchsorted(probabilities.cpu().double().cumsum(-1), uniform)[:, 0]
        yield drawn.clamp(max=probabilities.shape[1] - 1).to(labels.device), ones
    else:
        yield (labels if estimator == "empirical" else probabilities.argmax(-1)), ones


def _of_batch_means(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    totals = _zeros(model)
    number = 0
    for _, gradients in _batch_means(model, batches, lambda logits, labels: labels):
        number += 1
        for name, gradient in gradients.items():
            totals[name] += gradient.square()
    return {name: total / number for name, total in totals.items()}


def _of_sums(model: nn.Module, batches: Batches, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    totals, running = _zeros(model), _zeros(model)
    for name, gradient in start.items():
        running[name] += gradient.to(running[name].device)
    samples = size = 0
    for count, gradients in _batch_means(model, batches, lambda logits, labels: logits.argmax(-1)):
        for name, gradient in gradients.items():
            running[name] += gradient
            totals[name] += running[name].square() * count
        size, samples = size or count, samples + count
    divisor = (samples // size + 1) * size
    return {name: total / divisor for name, total in totals.items()}


def _batch_means(
    model: nn.Module, batches: Batches, targets: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield the size of each batch, over all processes, and the gradient of its mean cross-entropy by parameter name.

    Args:
        model: images → logits.
        batches: (inputs, labels) of this process.
        targets: (logits, labels) → the class of each sample.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for inputs, labels in batches:
        gradients = list(_zeros(model).values())
        if len(inputs):  # a process may have no samples of a small last batch
            with torch.enable_grad():
                logits = model(inputs)
                loss = F.cross_entropy(logits, targets(logits, labels), reduction="sum")
                gradients = list(torch.autograd.grad(loss, list(parameters.values())))
        # Means are over the global batch, so every process gets the same ones.
        count = int(processes.total(torch.tensor(float(len(inputs)))))
        yield count, {n: processes.total(g) / count for n, g in zip(parameters, gradients, strict=True)}


def _zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}


def ewc_penalty(parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """Return ½ Σ F (θ − θ*)², a scalar: Kirkpatrick et al. 2017, Eq. 3, without λ.

    Args:
        parameters: θ, by name.
        fisher: F; its names are the parameters to penalise.
        anchor: θ*.
    """
    terms = [(fisher[name] * (parameters[name] - anchor[name]).square()).sum() for name in fisher]
    return 0.5 * torch.stack(terms).sum()


def _to(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


class EWC(Method):
    """Sequential fine-tuning with the loss plus ``strength`` · `ewc_penalty` of earlier tasks.

    Args:
        id: name of the method in the run directory.
        strength: λ, at least 0.
        estimator: see `fisher_diagonal`. The published λ = 1e6 goes with ``reference``.
        consolidation: how the Fishers of the tasks are combined. ``ema``: F ← decay · F + (1 − decay) · F_new, from 0
            (published). ``online``: F ← decay · F + F_new (Schwarz et al. 2018). Both anchor at the latest weights.
            ``separate``: each task keeps its own F and anchor (Kirkpatrick et al. 2017).
        decay: in [0, 1].
        mode: mode of the encoder while its Fisher is estimated, eval or train.

    Raises:
        UserError: if a value is out of range.
    """

    weighs_samples = False

    def __init__(
        self,
        id: str = "ewc",
        strength: float = 1e6,
        estimator: str = "reference",
        consolidation: str = "ema",
        decay: float = 0.5,
        mode: str = "eval",
    ):
        require_number("method.strength", strength, "at least 0", lambda x: x >= 0)
        require_number("method.decay", decay, "between 0 and 1", lambda x: 0 <= x <= 1)
        require_choice("method.estimator", estimator, ESTIMATORS)
        require_choice("method.consolidation", consolidation, CONSOLIDATIONS)
        require_choice("method.mode", mode, ("eval", "train"))
        super().__init__(id, start="previous", data="task")
        self.strength, self.estimator, self.consolidation = float(strength), estimator, consolidation
        self.decay, self.mode = decay, mode
        self.terms: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []  # (Fisher, anchor)
        self.samples: list[int] = []  # in the Fisher of each task
        self.gradient: dict[str, Tensor] | None = None  # of the task's last training step, once that is done

    def on_train_batch_end(self, trainer: pl.Trainer, learner: pl.LightningModule, *_: object) -> None:
        """Keep the gradient of the last training step, summed over processes and clipped, for the Fisher pass."""
        if self.estimator == "reference" and trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs:
            trained = {name.removeprefix("encoder."): p for name, p in learner.named_parameters()}
            self.gradient = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint of a task in progress needs."""
        return {} if self.gradient is None else {"gradient": self.gradient}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.gradient = state_dict["gradient"]

    def penalty(self, encoder: nn.Module, images: Tensor, features: Tensor, weights: Tensor) -> Tensor | None:
        """Return λ · Σ ½ F (θ − θ*)², which is the same on every process."""
        if not self.terms:
            return None
        self.terms = [(_to(fisher, images.device), _to(anchor, images.device)) for fisher, anchor in self.terms]
        parameters = dict(encoder.named_parameters())
        return self.strength * torch.stack([ewc_penalty(parameters, *term) for term in self.terms]).sum()

    def consolidate(self, encoder: nn.Module, head: TextHead, classes: Sequence[int], batches: Batches) -> None:
        """Estimate the Fisher of the task over its own classes, and combine it with the earlier ones."""
        columns = {c: i for i, c in enumerate(classes)}
        count = 0

        def counted() -> Iterable[tuple[Tensor, Tensor]]:
            nonlocal count
            for x, y in batches:
                count += len(x)
                yield x, torch.tensor([columns[int(c)] for c in y], device=y.device)

        model = nn.Sequential(encoder, head.restrict(classes)).train(self.mode == "train")
        left = self.gradient or {}
        # A step that 16-mixed skipped, because its gradient was not finite, leaves none.
        finite = all(bool(gradient.isfinite().all()) for gradient in left.values())
        gradient = {f"0.{name}": g for name, g in left.items()} if finite else None
        found = fisher_diagonal(model, counted(), estimator=self.estimator, gradient=gradient)
        self.gradient = None
        fisher = {name.removeprefix("0."): f for name, f in found.items()}
        anchor = {name: p.detach().clone() for name, p in encoder.named_parameters() if name in fisher}
        if self.consolidation != "separate":
            old = self.terms[-1][0] if self.terms else {name: torch.zeros_like(f) for name, f in fisher.items()}
            share = 1 - self.decay if self.consolidation == "ema" else 1.0
            fisher = {name: self.decay * old[name].to(f.device) + share * f for name, f in fisher.items()}
            self.terms.clear()
        self.terms.append((fisher, anchor))
        self.samples.append(int(processes.total(torch.tensor(count))))

    def facts(self) -> dict[str, object]:
        """Return how the Fishers were estimated, and from how many samples of each task."""
        return {"estimator": self.estimator, "consolidation": self.consolidation, "fisher_samples": self.samples}

    def state(self) -> dict[str, Tensor]:
        """Return Fisher and anchor of every term, and the number of samples of each task."""
        kinds = ("fisher", "anchor")
        terms = {
            f"{i}/{kind}/{name}": tensor
            for i, term in enumerate(self.terms)
            for kind, tensors in zip(kinds, term, strict=True)
            for name, tensor in tensors.items()
        }
        return {"samples": torch.tensor(self.samples), **terms}

    def restore(self, state: Mapping[str, Tensor], encoder: nn.Module, head: TextHead, classes: Sequence[int]) -> None:
        """Restore the terms from a saved state.

        Raises:
            UserError: if the state is empty: without its penalty, EWC would silently become plain fine-tuning.
        """
        if "samples" not in state:
            raise UserError(
                "method=ewc must resume from the method.safetensors of the last finished task, which does not exist. "
                "Restore the file, or delete the run directory, and run the same command again"
            )
        terms: dict[str, dict[str, dict[str, Tensor]]] = {}
        self.samples = state["samples"].tolist()
        for path, tensor in state.items():
            if path == "samples":
                continue
            i, kind, name = path.split("/", 2)
            terms.setdefault(i, {"fisher": {}, "anchor": {}})[kind][name] = tensor
        self.terms = [(terms[i]["fisher"], terms[i]["anchor"]) for i in sorted(terms, key=int)]

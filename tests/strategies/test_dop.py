"""DOP: its closed form is the minimum that gradient descent approaches, and what turns, scales and refuses."""

from __future__ import annotations

import pytest
import torch
from references import D, dop_loss
from weights import draw, merge, refused, write

from mergestream import strategies

dop = strategies.get("dop")


def summed_loss(merged, old, new, variant):
    return 0.8 * dop_loss(merged, old, variant=variant) + 0.2 * dop_loss(merged, new, variant=variant)


@pytest.mark.parametrize("variant", ["published", "corrected"])
def test_gradient_descent_approaches_the_closed_form(variant):
    old, new = draw(6, 5, seed=1).double(), draw(6, 5, seed=2).double()
    closed = dop(torch.stack([old, new]).float(), solver="closed", variant=variant).double()
    at_minimum = closed.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(summed_loss(at_minimum, old, new, variant), at_minimum)
    assert gradient.abs().max() < 1e-5
    moved = ((old + new) / 2).requires_grad_()
    distances = []
    for step in range(401):
        if step in (0, 20, 100, 400):
            distances.append(float((moved - closed).norm().detach()))
        (gradient,) = torch.autograd.grad(summed_loss(moved, old, new, variant), moved)
        moved = (moved - 0.02 * gradient).detach().requires_grad_()
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3 * distances[0]


def test_adam_approaches_the_closed_form():
    taus = torch.stack([draw(6, 5, seed=1), draw(6, 5, seed=2)])
    closed = dop(taus, solver="closed")
    few, many = (dop(taus, solver="adam", steps=steps, lr=0.03) for steps in (20, 500))
    assert (many - closed).norm() < 1e-4 < (few - closed).norm()


@pytest.mark.parametrize("variant", ["published", "corrected"])
def test_turning_the_task_vectors_turns_the_closed_form(variant):
    """Also where most singular values are zero, and the losses leave most directions as they start."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=D)

    taus = torch.stack([random(40, 2) @ random(2, 30) for _ in range(3)])
    left, right = torch.linalg.qr(random(40, 40)).Q, torch.linalg.qr(random(30, 30)).Q
    merged = dop(taus.float(), solver="closed", variant=variant, energy=0.999).double()
    turned = dop((left @ taus @ right).float(), solver="closed", variant=variant, energy=0.999).double()
    assert (left.T @ turned @ right.T - merged).norm() < 1e-4 * merged.norm()


@pytest.mark.parametrize("options", [{"solver": "closed"}, {"solver": "closed", "variant": "corrected"}])
def test_scaling_the_task_vectors_scales_the_closed_form(options):
    taus = torch.stack([draw(6, 5, seed=seed) for seed in (1, 2, 3)])
    torch.testing.assert_close(dop(8 * taus, **options), 8 * dop(taus, **options))


def test_the_past_and_the_task_count_the_same_at_one_half():
    taus = torch.stack([draw(6, 5, seed=1), draw(6, 5, seed=2)])
    options = {"solver": "closed", "alpha": 0.5}
    torch.testing.assert_close(dop(taus, **options), dop(taus.flip(0), **options))


@pytest.mark.parametrize("solver", ["mgda", "adam", "closed"])
def test_the_same_task_again(solver):
    tau = draw(6, 5)
    torch.testing.assert_close(dop(torch.stack([tau, tau]), solver=solver, steps=3), tau)


def test_a_task_that_changed_nothing():
    """It asks for nothing along any direction, so the past stays along those that it uses."""
    tau = draw(6, 5)
    merged = dop(torch.stack([tau, torch.zeros(6, 5)]), solver="closed", variant="corrected", alpha=0.9)
    torch.testing.assert_close(merged, tau)


def test_other_weights_are_pairwise_means():
    taus = torch.tensor([[4.0, 0.0], [0.0, 4.0], [2.0, 2.0]])
    assert dop(taus).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "exact"}, "strategy.solver must be one of mgda, adam, closed; got strategy.solver=exact"),
        ({"variant": "paper"}, "strategy.variant must be one of published, corrected; got strategy.variant=paper"),
        ({"alpha": 1.5}, "strategy.alpha must be a number, between 0 and 1; got strategy.alpha=1.5"),
        ({"energy": 0}, "strategy.energy must be a fraction"),
        ({"steps": -1}, "strategy.steps must be a whole number, 0 or more; got strategy.steps=-1"),
        ({"lr": -1}, "strategy.lr must be a number, positive; got strategy.lr=-1"),
        ({"decay": 1}, "strategy.decay must be a fraction"),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    paths = write(tmp_path, {"w": torch.zeros(6, 5)}, {"w": draw(6, 5)})
    refused(tmp_path, message, *paths, strategy="dop", **options)


def test_a_single_task_returns_that_task(tmp_path):
    tau = {"w": draw(6, 5), "b": draw(5)}
    result, _ = merge(tmp_path, *write(tmp_path, {n: torch.zeros_like(t) for n, t in tau.items()}, tau), strategy="dop")
    assert all(torch.equal(result[name], tau[name]) for name in tau)

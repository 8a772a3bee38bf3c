"""Elastic weight consolidation: Fisher estimators, penalty and consolidation."""

from __future__ import annotations

import pytest
import torch
from helpers import golden
from torch import nn

from mergestream.data.sources.digits import digits
from mergestream.methods.ewc import EWC, ewc_penalty, fisher_diagonal
from mergestream.models.clip import TextHead
from mergestream.models.tiny import tiny
from mergestream.runtime.errors import UserError


@pytest.fixture
def small():
    """The network of the golden file, its samples in batches of 8, and the expected values."""
    groups = golden("ewc.safetensors")
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    model.load_state_dict(groups["param"])
    x, y = groups[""]["x"], groups[""]["y"]
    return model, list(zip(x.split(8), y.split(8), strict=True)), groups


@pytest.mark.parametrize("estimator", ["reference", "exact", "empirical", "max_pred"])
def test_fisher_equals_the_published_one(small, estimator):
    model, batches, groups = small
    fisher = fisher_diagonal(model, batches, estimator=estimator)
    for name, expected in groups[f"fisher_{estimator}"].items():
        torch.testing.assert_close(fisher[name], expected, rtol=1e-5, atol=1e-6)


def loop_fisher(model, batches, choose):
    """The mean over samples of weighted squared gradients of log p_c, in float64, one backward pass per sample."""
    model = model.double()
    totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    count = 0
    for x, y in batches:
        for sample, label in zip(x.double(), y, strict=True):
            logits = model(sample[None])[0]
            for c, weight in choose(logits.softmax(-1), int(label)):
                model.zero_grad()
                model(sample[None])[0].log_softmax(-1)[c].backward()
                for name, p in model.named_parameters():
                    totals[name] += weight * p.grad**2
            count += 1
    return {name: (total / count).float() for name, total in totals.items()}


@pytest.mark.parametrize("estimator", ["exact", "empirical", "max_pred"])
def test_per_sample_fisher_against_a_loop(small, estimator):
    model, batches, _ = small
    fisher = fisher_diagonal(model, batches, estimator=estimator)
    choose = {
        "exact": lambda p, y: [(c, p[c].item()) for c in range(4)],
        "empirical": lambda p, y: [(y, 1.0)],
        "max_pred": lambda p, y: [(int(p.argmax()), 1.0)],
    }[estimator]
    for name, expected in loop_fisher(model, batches, choose).items():
        torch.testing.assert_close(fisher[name], expected, rtol=1e-4, atol=1e-6)


def test_per_sample_fisher_of_the_image_tower_against_a_loop():
    clip, source = tiny(), digits()
    torch.manual_seed(0)
    model = nn.Sequential(clip.encoder, TextHead(nn.functional.normalize(torch.randn(4, 128)), 10.0))
    images = torch.stack([clip.transforms.eval(source.train.images[i]) for i in range(5)])
    batches = [(images, torch.tensor([0, 1, 2, 3, 0]))]
    fisher = fisher_diagonal(model, batches, estimator="empirical")
    for name, expected in loop_fisher(model, batches, lambda p, y: [(y, 1.0)]).items():
        torch.testing.assert_close(fisher[name], expected, rtol=1e-3, atol=1e-5)


def test_sampled_fisher_does_not_depend_on_the_batches_and_is_close_to_the_exact_one(small):
    model, _, _ = small
    x = torch.randn(1500, 6, generator=torch.Generator().manual_seed(0))
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(50)]
    once = fisher_diagonal(model, batches, estimator="sample")
    again = fisher_diagonal(model, [(x.flip(0), torch.zeros(1500, dtype=torch.long))], estimator="sample")
    exact = fisher_diagonal(model, batches, estimator="exact")
    for name in exact:
        torch.testing.assert_close(once[name], again[name])  # although the samples come in other batches
    total = {kind: sum(f.sum().item() for f in fisher.values()) for kind, fisher in (("s", once), ("e", exact))}
    assert total["s"] == pytest.approx(total["e"], rel=0.1)


def test_batched_fisher_by_hand():
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.zero_()  # p = ½ for both classes: ∂ log p_y / ∂w_c = (1[c = y] − ½) x
    batches = [(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0])), (torch.tensor([[2.0]]), torch.tensor([1]))]
    # Batch means of the gradient for w_0: ½ · 2 = 1, and −1; squares 1 and 1.
    assert fisher_diagonal(model, batches, estimator="batched")["weight"].tolist() == [[1.0], [1.0]]


def test_penalty_equals_the_published_one_and_has_the_right_gradient(small):
    model, _, groups = small
    parameters = dict(model.named_parameters())
    penalty = ewc_penalty(parameters, groups["fisher_reference"], groups["anchor"])
    assert penalty.item() == pytest.approx(groups[""]["penalty_reference"].item(), rel=1e-5)
    penalty.backward()
    for name, p in parameters.items():
        expected = groups["fisher_reference"][name] * (p.detach() - groups["anchor"][name])
        torch.testing.assert_close(p.grad, expected)


def test_consolidations_by_hand():
    encoder, head = nn.Linear(2, 3, bias=False), TextHead(torch.eye(3), 1.0)
    batches = [(torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))]

    def fisher_after_two_tasks(**options):
        method = EWC(estimator="empirical", **options)
        for _ in range(2):
            method.consolidate(encoder, head, [0, 1, 2], batches)
        return [term[0]["weight"] for term in method.terms]

    (separate, _) = fisher_after_two_tasks(consolidation="separate")
    (ema,) = fisher_after_two_tasks(consolidation="ema", decay=0.5)
    (online,) = fisher_after_two_tasks(consolidation="online", decay=0.5)
    torch.testing.assert_close(ema, (0.25 + 0.5) * separate)
    torch.testing.assert_close(online, 1.5 * separate)


def test_restored_state_gives_the_same_penalty():
    encoder, head = nn.Linear(2, 3, bias=False), TextHead(torch.eye(3), 1.0)
    before, after = (EWC(estimator="empirical", consolidation="separate") for _ in range(2))
    for _ in range(2):
        before.consolidate(encoder, head, [0, 1, 2], [(torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))])
        with torch.no_grad():
            encoder.weight.add_(torch.randn(3, 2))
    after.restore(before.state(), encoder, head, [0, 1, 2])
    images = torch.zeros(1, 2)  # for their device
    penalties = [method.penalty(encoder, images, images, images) for method in (before, after)]
    assert penalties[0] > 0
    assert torch.equal(*penalties)
    assert after.facts() == before.facts()
    assert after.facts()["fisher_samples"] == [4, 4]


def test_error_for_a_run_without_saved_state():
    with pytest.raises(UserError) as caught:
        EWC().restore({}, nn.Linear(2, 3), TextHead(torch.eye(3), 1.0), [0, 1, 2])
    assert str(caught.value) == (
        "method=ewc must resume from the method.safetensors of the last finished task, which does not exist. Restore "
        "the file, or delete the run directory, and run the same command again"
    )

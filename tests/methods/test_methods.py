"""EWC and LwF: their formulas against published numbers and loops, and what they do to a stream."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
import time

import pytest
import torch
from helpers import apart, command, config, golden, noise
from safetensors.torch import load_file
from torch import nn

from mergestream.data.sources.digits import digits
from mergestream.methods.ewc import EWC, ewc_penalty, fisher_diagonal
from mergestream.methods.lwf import LwF, distillation_loss
from mergestream.models import tiny
from mergestream.models.clip import TextHead
from mergestream.runs.directory import Run
from mergestream.runtime.files import read_json

SHORT = ("tasks=3", "epochs=1")


@pytest.fixture
def small():
    """The golden network, its inputs in batches of 8, and everything expected of it."""
    groups = golden("ewc.safetensors")
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    model.load_state_dict(groups["param"])
    x, y = groups[""]["x"], groups[""]["y"]
    return model, list(zip(x.split(8), y.split(8), strict=True)), groups


@pytest.mark.parametrize("estimator", ["reference", "exact", "empirical", "max_pred"])
def test_published_fishers(small, estimator):
    model, batches, groups = small
    fisher = fisher_diagonal(model, batches, estimator=estimator)
    for name, expected in groups[f"fisher_{estimator}"].items():
        torch.testing.assert_close(fisher[name], expected, rtol=1e-5, atol=1e-6)


def loop_fisher(model, batches, choose):
    """Mean over samples of the weighted squared gradients of log p_c, one backward pass each, in float64."""
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
    clip, source = tiny.tiny(), digits()
    torch.manual_seed(0)
    model = nn.Sequential(clip.encoder, TextHead(nn.functional.normalize(torch.randn(4, 128)), 10.0))
    images = torch.stack([clip.transforms.eval(source.train.images[i]) for i in range(5)])
    batches = [(images, torch.tensor([0, 1, 2, 3, 0]))]
    fisher = fisher_diagonal(model, batches, estimator="empirical")
    for name, expected in loop_fisher(model, batches, lambda p, y: [(y, 1.0)]).items():
        torch.testing.assert_close(fisher[name], expected, rtol=1e-3, atol=1e-5)


def test_sampled_fisher_is_repeatable_and_close_to_the_exact_one(small):
    model, _, _ = small
    x = torch.randn(1500, 6, generator=torch.Generator().manual_seed(0))
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(50)]
    once = fisher_diagonal(model, batches, estimator="sample")
    again = fisher_diagonal(model, [(x.flip(0), torch.zeros(1500, dtype=torch.long))], estimator="sample")
    exact = fisher_diagonal(model, batches, estimator="exact")
    for name in exact:
        torch.testing.assert_close(once[name], again[name])  # whichever batch a sample comes in
    total = {kind: sum(f.sum().item() for f in fisher.values()) for kind, fisher in (("s", once), ("e", exact))}
    assert total["s"] == pytest.approx(total["e"], rel=0.1)


def test_batched_fisher_by_hand():
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.zero_()  # p = ½ for both classes: ∂ log p_y / ∂w_c = (1[c = y] − ½) x
    batches = [(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0])), (torch.tensor([[2.0]]), torch.tensor([1]))]
    # Batch means of the gradient for w_0: ½ · 2 = 1, and −1; squares 1 and 1.
    assert fisher_diagonal(model, batches, estimator="batched")["weight"].tolist() == [[1.0], [1.0]]


def test_published_penalty_and_its_gradient(small):
    model, _, groups = small
    parameters = dict(model.named_parameters())
    penalty = ewc_penalty(parameters, groups["fisher_reference"], groups["anchor"])
    assert penalty.item() == pytest.approx(groups[""]["penalty_reference"].item(), rel=1e-5)
    penalty.backward()
    for name, p in parameters.items():
        expected = groups["fisher_reference"][name] * (p.detach() - groups["anchor"][name])
        torch.testing.assert_close(p.grad, expected)


@pytest.mark.parametrize("temperature", [1, 2])
def test_published_distillation(temperature):
    group = golden("lwf.safetensors")[""]
    loss = distillation_loss(group["student_logits"], group["teacher_logits"], temperature=temperature)
    assert loss.item() == pytest.approx(group[f"loss_T{temperature}"].item(), rel=1e-6)


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


@pytest.mark.parametrize("method", ["ewc", "lwf"])
def test_strength_zero_is_sequential_fine_tuning(method, trained, tmp_path):
    arguments = [f"root={tmp_path}", *SHORT, f"method={method}", "method.strength=0"]
    assert command("train.py", *arguments).code == 0
    zero, seq = (Run.of(config("train", f"root={r}", "tasks=3", m)) for r, m in (
        (tmp_path, f"method={method}"), (trained, "method=seq")
    ))  # fmt: skip
    for ours, theirs in zip(zero.encoders(), seq.encoders(), strict=True):
        ours, theirs = load_file(ours), load_file(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_lost_state_is_not_passed_over(tmp_path):
    arguments = [f"root={tmp_path}", *SHORT, "method=ewc"]
    assert command("train.py", *arguments).code == 0
    run = Run.of(config("train", f"root={tmp_path}", "tasks=3", "method=ewc"))
    shutil.rmtree(run.task(2))
    run.metrics.unlink()
    run.method_state(1).unlink()
    outcome = command("train.py", *arguments)
    assert outcome.code == 1
    assert "method.safetensors is missing" in outcome.err
    assert "repair=true" in outcome.err


@pytest.mark.parametrize("method", ["ewc", "ewc method.estimator=sample", "lwf"])
def test_two_processes_equal_one(method, tmp_path):
    arguments = [
        f"root={tmp_path}",
        *noise(),
        "epochs=1",
        *f"method={method}".split(),
        "batch_size=53",  # and tasks have 54 images: a last batch of one leaves a process without a sample
        "accelerator=cpu",
    ]
    runs = {}
    for tag, devices in (("one", 1), ("two", 2)):
        outcome = command("train.py", *arguments, f"devices={devices}", f"tag={tag}")
        assert outcome.code == 0, outcome.err
        runs[tag] = Run.of(config("train", f"root={tmp_path}", *noise(), *f"method={method}".split(), f"tag={tag}"))
    facts = {tag: read_json(run.metrics, "method")["method"] for tag, run in runs.items()}
    if "ewc" in method:
        samples = [task["train"] for task in runs["one"].stream()["tasks"]]
        estimator = "sample" if "sample" in method else "reference"
        expected = {"estimator": estimator, "consolidation": "ema", "fisher_samples": samples}
        assert facts == {"one": expected, "two": expected}
    for ours, theirs in zip(runs["one"].encoders(), runs["two"].encoders(), strict=True):
        assert apart(load_file(ours), load_file(theirs), load_file(runs["one"].base_file())) < 2e-3
    if method == "lwf":
        check_a_lost_process(runs["two"], [*arguments, "devices=2", "tag=two"])


def check_a_lost_process(run, arguments):
    """One of two processes is killed in the last task; both are started again, and end in the same bytes."""
    whole = run.encoder(2).read_bytes()
    shutil.rmtree(run.task(2))
    run.metrics.unlink()

    def kill_when_saved() -> None:
        while not run.checkpoint(2).exists():
            time.sleep(0.02)
        multiprocessing.active_children()[1].kill()

    killer = threading.Thread(target=kill_when_saved, daemon=True)
    killer.start()
    outcome = command("train.py", *arguments, "checkpoint.every_minutes=0")
    assert outcome.code == 0, outcome.err
    assert "was ended by SIGKILL; starting all 2 again (1 of 3)" in outcome.err
    assert run.encoder(2).read_bytes() == whole


def test_ewc_holds_the_weights_back(trained, tmp_path):
    arguments = [f"root={tmp_path}", *SHORT, "method=ewc", "method.strength=1e8"]
    assert command("train.py", *arguments).code == 0
    held = Run.of(config("train", f"root={tmp_path}", "tasks=3", "method=ewc"))
    free = Run.of(config("train", f"root={trained}", "tasks=3"))

    def moved(run):
        first, last = load_file(run.encoder(0)), load_file(run.encoder(2))
        return sum((last[name] - first[name]).square().sum().item() for name in first)

    assert moved(held) < moved(free)


def test_teacher_is_frozen_and_apart():
    torch.manual_seed(0)
    encoder, head = nn.Linear(4, 3), TextHead(nn.functional.normalize(torch.randn(5, 3)), 2.0)
    method = LwF()
    images, weights = torch.randn(6, 4), torch.full((6,), 1 / 6)
    assert method.penalty(encoder, images, encoder(images), weights) is None
    method.consolidate(encoder, head, [0, 2], ())
    before = {name: p.clone() for name, p in method.teacher.named_parameters()}
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    for _ in range(3):
        features = encoder(images)
        (features.square().mean() + method.penalty(encoder, images, features, weights)).backward()
        optimizer.step()
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in method.teacher.named_parameters())
    assert not torch.equal(encoder.weight, method.teacher.weight)
    features = encoder(images)
    expected = 0.3 * distillation_loss(head.restrict([0, 2])(features), head.restrict([0, 2])(method.teacher(images)))
    torch.testing.assert_close(method.penalty(encoder, images, features, weights), expected)


@pytest.mark.parametrize("softmax", ["union", "per_task"])
def test_past_classes_count_once_where_tasks_share_them(softmax):
    torch.manual_seed(0)
    encoder, head = nn.Linear(4, 3), TextHead(nn.functional.normalize(torch.randn(5, 3)), 2.0)
    images, weights = torch.randn(6, 4), torch.full((6,), 1 / 6)
    once, twice = LwF(softmax=softmax), LwF(softmax=softmax)
    once.consolidate(encoder, head, [0, 1, 2], ())
    for _ in range(2):
        twice.consolidate(encoder, head, [0, 1, 2], ())
    penalties = [method.penalty(encoder, images, encoder(images), weights).item() for method in (once, twice)]
    assert penalties[1] == pytest.approx(penalties[0] * (1 if softmax == "union" else 2), rel=1e-6)

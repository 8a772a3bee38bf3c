"""Counts of correct predictions."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from torchmetrics.functional.classification import multiclass_accuracy

from mergestream.data.sources.digits import digits
from mergestream.data.stream import TaskStream
from mergestream.data.tasks import class_incremental
from mergestream.evaluation import Evaluator, TaskAccuracy
from mergestream.metrics import row
from mergestream.models.clip import text_head
from mergestream.models.tiny import tiny


@pytest.mark.parametrize("seen", [0, 1, 2, 3])
def test_counts_from_logits_against_a_loop(seen):
    generator = torch.Generator().manual_seed(0)
    classes = [[0, 3], [1, 4, 5], [2, 6]]
    task_of = {c: t for t, ids in enumerate(classes) for c in ids}
    logits, labels = torch.randn(200, 7, generator=generator), torch.randint(7, (200,), generator=generator)
    tasks = torch.tensor([task_of[int(c)] for c in labels])
    metric = TaskAccuracy(classes, 7, seen)
    for part in torch.arange(200).split(64):
        metric.update(logits[part], labels[part], tasks[part])

    expected = {name: [0, 0, 0] for name in ("total", "agnostic", "aware", "seen_correct")}
    expected |= {"class_total": [0] * 7, "class_correct": [0] * 7}
    allowed = [c for ids in classes[:seen] for c in ids]
    for values, label, task in zip(logits.tolist(), labels.tolist(), tasks.tolist(), strict=True):
        expected["total"][task] += 1
        expected["agnostic"][task] += max(range(7), key=lambda c: values[c]) == label
        expected["class_total"][label] += 1
        expected["class_correct"][label] += max(range(7), key=lambda c: values[c]) == label
        expected["aware"][task] += max(classes[task], key=lambda c: values[c]) == label
        if task < seen:
            expected["seen_correct"][task] += max(allowed, key=lambda c: values[c]) == label
    assert metric.compute() == expected


def test_the_mean_over_classes_against_two_libraries():
    generator = torch.Generator().manual_seed(1)
    labels = torch.multinomial(torch.tensor([0.5, 0.3, 0.1, 0.07, 0.03]), 300, replacement=True, generator=generator)
    logits = torch.randn(300, 5, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, 5)
    metric = TaskAccuracy([[0, 1], [2, 3, 4]], 5, 1)
    metric.update(logits, labels, (labels > 1).long())
    found = row(metric.compute(), 1, [[0, 1], [2, 3, 4]])
    assert found.classes.macro == pytest.approx(balanced_accuracy_score(labels, logits.argmax(-1)), abs=1e-12)
    assert found.classes.macro == pytest.approx(multiclass_accuracy(logits, labels, 5, average="macro").item())
    single = multiclass_accuracy(logits, labels, 5, average="none").tolist()
    assert found.classes.seen == pytest.approx(sum(single[:2]) / 2)
    assert found.classes.unseen == pytest.approx(sum(single[2:]) / 3)
    assert abs(found.classes.macro - found.overall) > 0.01  # the classes are unbalanced


def test_evaluator_uses_the_given_weights_and_leaves_them_trainable():
    clip, source = tiny(), digits()
    tasks = class_incremental(source, tasks=3, seed=0, order="natural", validation=0.0)
    stream = TaskStream(source, tasks, clip.transforms, batch_size=64, seed=0)
    evaluator = Evaluator(clip, text_head(clip, source.prompts), stream, torch.device("cpu"))
    theta = {name: tensor.clone() for name, tensor in clip.encoder.state_dict().items()}
    counts = evaluator.counts(theta, seen=1)
    assert counts["total"] == [len(task.test) for task in tasks]
    assert sum(counts["agnostic"]) / sum(counts["total"]) > 0.5  # the tiny CLIP recognises digits
    assert all(aware > agnostic for aware, agnostic in zip(counts["aware"], counts["agnostic"], strict=True))
    assert counts["seen_correct"][1:] == [0, 0]
    constant = {name: torch.zeros_like(tensor) for name, tensor in theta.items()}
    of_class_0 = int((source.test.labels == 0).sum())  # equal logits: the first class wins
    assert evaluator.counts(constant, seen=1, only=0)["agnostic"] == [of_class_0, 0, 0]
    confused = evaluator.confusion(theta)
    assert confused.diagonal().tolist() == counts["class_correct"]
    with torch.no_grad():
        images = [clip.transforms.eval(source.test.images[i]) for i in range(len(source.test))]
        predicted = evaluator.head(clip.encoder(torch.stack(images))).argmax(-1)
    assert (confused == confusion_matrix(source.test.labels, predicted)).all()
    clip.encoder(torch.zeros(1, 3, 32, 32)).sum().backward()

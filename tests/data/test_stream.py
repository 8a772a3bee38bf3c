"""The loaders and the description of a stream, and trainings of every kind of stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from archives import save
from helpers import command, config, noise

from mergestream.compose.checks import check_training
from mergestream.compose.inputs import Inputs
from mergestream.compose.run import resolve, run_of
from mergestream.data.datasets import TrainImages
from mergestream.data.loaders import Loading
from mergestream.data.sources.digits import digits
from mergestream.data.sources.glyphs import DOMAINS
from mergestream.data.stream import TaskStream
from mergestream.data.tasks import class_incremental
from mergestream.metrics import across_domains
from mergestream.models.tiny import tiny
from mergestream.runtime.files import read_json


def digits_stream(tasks=5, seed=5, validation=0.0, workers=0):
    source = digits()
    made = class_incremental(source, tasks=tasks, seed=seed, order="shuffled", validation=validation)
    return TaskStream(source, made, tiny().transforms, batch_size=64, seed=seed, loading=Loading(workers=workers))


def test_train_loader_serves_the_current_task():
    stream = digits_stream()
    for index, task in enumerate(stream.tasks):
        stream.current = index
        labels = torch.cat([labels for _, labels, _ in stream.train_dataloader()])
        assert sorted(labels.tolist()) == sorted(stream.source.train.labels[task.train])


def test_validation_loader_serves_the_current_task():
    stream = digits_stream(validation=0.1)
    stream.current = 2
    seen = [batch[1:] for batch in stream.val_dataloader()]
    labels, tasks = (torch.cat(column).tolist() for column in zip(*seen, strict=True))
    assert labels == stream.source.train.labels[stream.tasks[2].validation].tolist()
    assert set(tasks) == {2}
    assert digits_stream().val_dataloader() == []


def test_description_depends_on_the_seed_and_the_order_alone():
    def describe(*overrides):
        inputs = Inputs(config("train", *overrides))
        return inputs.stream(tiny().transforms, inputs.source()).describe()

    assert describe("seed=1") == describe("seed=1", "method=joint", "epochs=3")
    assert describe("seed=1")["class_order"] != describe("seed=2")["class_order"]
    assert describe("seed=1", "stream.order=natural")["class_order"] == list(range(10))


def test_a_listed_order_and_increments_decide_the_classes_of_the_tasks(tmp_path):
    cfg = config("train", "stream.order=[nine,8,7,6,5,4,3,2,one,zero]", "stream.increments=[5,3,2]")
    resolve(cfg)
    check_training(cfg)
    assert cfg.tasks == 3
    tasks = Inputs(cfg).description()["tasks"]
    assert [task["classes"] for task in tasks] == [[5, 6, 7, 8, 9], [2, 3, 4], [0, 1]]
    assert run_of(cfg).path.parts[1:3] == ("digits", "class-3")
    cfg, names = (
        config("train", "dataset=glyphs", "stream=domain", "stream.order=[5,4,3,2,plain,1]", *FEW[:2]),
        list(DOMAINS),
    )
    resolve(cfg)
    assert [task["name"] for task in Inputs(cfg).description()["tasks"]] == [*names[:1:-1], "plain", names[1]]
    for words, said in (
        (["tasks=4", "stream.increments=[5,5]"], "tasks must be 2, the number of stream.increments, or be left out"),
        (["stream.increments=[5,6]"], "stream.increments must be positive and add up to 10, the number of classes"),
        (["stream.increments=[5,0.5]"], "stream.increments must be the number of classes of each task, such as"),
        (["stream.order=[0.5]"], "stream.order must be the name of an order, such as natural, shuffled or paper, or"),
        (["stream.order=[1,2]"], "stream.order must list each class once, by its number from 0 to 9 or its name; it"),
    ):
        outcome = command("train.py", f"root={tmp_path}", *words)
        assert outcome.code == 1
        assert outcome.err.startswith(f"error: {said}")
    assert not list(tmp_path.rglob("task-*"))


def test_description_has_hashes_of_the_samples():
    plain, held_out = (digits_stream(validation=v).describe()["tasks"][0] for v in (0.0, 0.2))
    assert plain["train_sha256"] != held_out["train_sha256"]
    assert plain["test_sha256"] == held_out["test_sha256"]


def test_joined_stream_is_the_union_of_the_tasks():
    stream = digits_stream(validation=0.1)
    (task,) = stream.joined().tasks
    assert task.classes == list(range(10))
    for split in ("train", "validation", "test"):
        parts = [getattr(part, split) for part in stream.tasks]
        assert getattr(task, split).tolist() == sorted(np.concatenate(parts).tolist())


def test_batches_do_not_depend_on_the_number_of_workers():
    here, there = (next(iter(digits_stream(workers=workers).train_dataloader())) for workers in (0, 2))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_shards_have_each_sample_once(world_size):
    stream = digits_stream()
    seen = [
        (labels, tasks)
        for rank in range(world_size)
        for _, labels, tasks in stream.eval_dataloader("test", rank, world_size)
    ]
    labels, tasks = (torch.cat(column) for column in zip(*seen, strict=True))
    assert torch.bincount(labels).tolist() == np.bincount(stream.source.test.labels).tolist()
    for task, label in zip(tasks.tolist(), labels.tolist(), strict=True):
        assert label in stream.tasks[task].classes


FEW = ["+dataset.train_per_domain=1", "+dataset.test_per_domain=1", "batch_size=256"]


@pytest.fixture
def two_datasets(archives, any_checksum):
    """Overrides for a suite of MNIST with 20 training and 10 test images and SVHN with 10 of each."""
    words = ["dataset=eight_datasets", "dataset.datasets=[mnist,svhn]", "dataset.domains=2", "model=tiny"]
    return [*words, f"data.root={archives('mnist', 'svhn')}"]


def check_streams(root, tasks, overrides):
    """Train and merge, and check that the overall accuracy is that of all test samples."""
    for script in ("train.py", "merge.py"):
        outcome = command(script, f"root={root}", *overrides)
        assert outcome.code == 0, outcome.err
    results = [read_json(path, "accuracy", "summary", "test_samples") for path in root.rglob("metrics.json")]
    assert len(results) == 2
    for result in results:
        samples, last = result["test_samples"], result["accuracy"]["task_agnostic"][-1]
        assert len(samples) == len(last) == tasks
        correct = sum(n * accuracy for n, accuracy in zip(samples, last, strict=True))
        assert result["summary"]["final_accuracy"] == pytest.approx(correct / sum(samples))


def test_domain_stream_trains_and_merges(tmp_path):
    check_streams(tmp_path, 6, ["dataset=glyphs", "stream=domain", "epochs=1", *FEW])


def test_data_stream_trains_and_merges(tmp_path):
    check_streams(tmp_path, 2, [*noise(), "stream=data", "tasks=2", "epochs=1"])


def test_dataset_stream_trains_and_merges(two_datasets, tmp_path):
    check_streams(tmp_path, 2, [*two_datasets, "epochs=[2,1]"])
    (path,) = tmp_path.glob("*/*/*/*/*/metrics.json")
    result = read_json(path, "accuracy", "summary")
    for name, kind in (("mtil", "task_aware"), ("xtail", "task_agnostic")):
        for measure, value in across_domains(result["accuracy"][kind]).items():
            assert result["summary"][f"{name}_{measure}"] == value
    (merged,) = tmp_path.rglob("merges/*/metrics.json")
    assert "mtil_avg" not in read_json(merged, "summary")["summary"]  # one row says nothing of the steps before


def test_every_dataset_has_its_own_number_of_epochs(two_datasets, tmp_path, monkeypatch):
    drawn = {0: set(), 1: set()}

    def recorded(self, draws, original=TrainImages.__getitems__):
        drawn[draws[0].task].update(draw.epoch for draw in draws)
        return original(self, draws)

    monkeypatch.setattr(TrainImages, "__getitems__", recorded)
    outcome = command("train.py", f"root={tmp_path}", *two_datasets, "epochs=[3,1]")
    assert outcome.code == 0, outcome.err
    assert {task: epochs - {-1} for task, epochs in drawn.items()} == {0: {0, 1, 2}, 1: {0}}


def test_zero_shot_of_several_datasets_ignores_the_epochs(two_datasets, tmp_path):
    outcome = command("train.py", f"root={tmp_path}", *two_datasets, "epochs=[3,1]", "method=zeroshot")
    assert outcome.code == 0, outcome.err
    (path,) = tmp_path.rglob("metrics.json")
    result = read_json(path, "accuracy", "zero_shot", "test_samples")
    assert result["test_samples"] == [10, 10]
    assert result["accuracy"]["task_aware"] == [result["zero_shot"]["task_aware"]]


def test_error_for_a_run_whose_dataset_has_changed(tmp_path):
    def add_images(number):
        for label, name in enumerate(("cat", "dog")):
            save(tmp_path / "photos" / name / f"{number}.png", label, number)

    for number in range(5):
        add_images(number)
    words = [f"root={tmp_path}/runs", "dataset=folder", f"dataset.path={tmp_path}/photos", "tasks=2", "model=tiny"]
    assert (outcome := command("train.py", *words, "epochs=1")).code == 0, outcome.err
    (metrics,) = tmp_path.rglob("metrics.json")
    metrics.unlink()
    before = (metrics.parent / "stream.json").read_bytes()
    add_images(5)
    outcome = command("train.py", *words, "epochs=1")
    assert outcome.code == 1
    assert "was started with other data" in outcome.err
    assert (metrics.parent / "stream.json").read_bytes() == before

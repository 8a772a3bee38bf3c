"""The stream of tasks, the order of the samples, and the embedded sources."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import command, config, noise
from PIL import Image

from mergestream.compose.build import load_clip, load_stream
from mergestream.data.sampling import KeyedBatchSampler, TrainImages
from mergestream.data.source import Source, Split
from mergestream.data.sources.digits import digits
from mergestream.data.sources.glyphs import CHARACTERS, DOMAINS, FONTS, glyphs, render
from mergestream.data.tasks import domain_incremental
from mergestream.runtime.errors import UserError
from mergestream.runtime.files import read_json

FEW = ["+dataset.train_per_domain=1", "+dataset.test_per_domain=1"]


def make_stream(*overrides):
    cfg = config("train", *overrides)
    return load_stream(cfg, load_clip(cfg).transforms)


def samples_of(batches):
    return [draw.sample for batch in batches for draw in batch if draw.weight]


@pytest.mark.parametrize("tasks", [1, 3, 5, 10])
def test_tasks_are_disjoint_and_complete(tasks):
    stream = make_stream(f"tasks={tasks}", "stream.validation=0.2")
    assert len(stream) == tasks
    for split, total in (("test", len(stream.source.test)), ("train", None)):
        parts = [getattr(task, split) for task in stream.tasks]
        if split == "train":
            parts += [task.validation for task in stream.tasks]
            total = len(stream.source.train)
        assert sorted(np.concatenate(parts)) == list(range(total))
    for task in stream.tasks:
        assert set(stream.source.train.labels[task.train]) == set(task.classes)
        assert set(stream.source.test.labels[task.test]) == set(task.classes)


def test_iteration_moves_the_train_loader():
    stream = make_stream("tasks=5")
    for task in stream:
        labels = torch.cat([labels for _, labels, _ in stream.train_dataloader()])
        assert set(labels.tolist()) == set(task.classes)


def test_seed_decides_the_class_order_and_nothing_else_does():
    def describe(*overrides):
        return make_stream(*overrides).describe()

    assert describe("seed=1") == describe("seed=1", "method=joint", "epochs=3")
    assert describe("seed=1")["class_order"] != describe("seed=2")["class_order"]
    assert describe("seed=1", "stream.order=natural")["class_order"] == list(range(10))


def test_joined_stream_is_the_union():
    stream = make_stream("tasks=5", "stream.validation=0.1")
    (task,) = stream.joined().tasks
    assert task.classes == list(range(10))
    assert len(task.train) == sum(len(t.train) for t in stream.tasks)
    assert not set(task.train) & set(task.validation)


@pytest.mark.parametrize(("samples", "batch_size", "world_size"), [(37, 8, 2), (33, 8, 4), (5, 8, 3), (64, 8, 2)])
def test_ranks_together_draw_the_batches_of_one_process(samples, batch_size, world_size):
    indices = np.arange(100, 100 + samples)

    def batches(rank, world):
        sampler = KeyedBatchSampler(indices, batch_size, (1, 2, "shuffle"), rank, world)
        sampler.set_epoch(3)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    whole = batches(0, 1)
    ranks = [batches(rank, world_size) for rank in range(world_size)]
    assert sorted(samples_of(whole)) == indices.tolist()
    for number, batch in enumerate(whole):
        parts = [rank[number] for rank in ranks]
        assert sorted(samples_of(parts)) == sorted(samples_of([batch]))
        # DDP averages over ranks: the weights over all ranks, divided by their number, are those of a mean.
        assert sum(draw.weight for part in parts for draw in part) / world_size == pytest.approx(1)
        assert {draw.weight for part in parts for draw in part} - {0.0} == {world_size / len(batch)}


def test_lightning_draws_another_order_in_every_epoch(tmp_path, monkeypatch):
    drawn = []

    def recorded(self, draws, original=TrainImages.__getitems__):
        drawn.append([(draw.epoch, draw.sample) for draw in draws])
        return original(self, draws)

    monkeypatch.setattr(TrainImages, "__getitems__", recorded)
    assert command("train.py", f"root={tmp_path}", *noise(), "epochs=3").code == 0
    draws = [draw for batch in drawn for draw in batch]
    end = next(i for i in range(1, len(draws)) if draws[i][0] < draws[i - 1][0])  # the second task begins
    epochs = [[sample for epoch, sample in draws[:end] if epoch == e] for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(order) for order in epochs}) == 3


def test_shuffle_depends_on_seed_task_and_epoch():
    def order(seed, task, epoch):
        sampler = KeyedBatchSampler(np.arange(50), 50, (seed, task, "shuffle"))
        sampler.set_epoch(epoch)
        return samples_of(sampler)

    orders = [order(0, 0, 0), order(1, 0, 0), order(0, 1, 0), order(0, 0, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert order(0, 0, 1) == orders[3]


def test_augmentation_depends_on_the_sample_alone():
    stream = make_stream("batch_size=16")
    images = TrainImages(stream.source.train, stream.transforms.train, (5, 0, "augmentation"))
    sampler = KeyedBatchSampler(np.arange(40), 16, (5, 0, "shuffle"))
    draws = samples = [draw for batch in sampler for draw in batch]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    forward = {d.sample: image for d, (image, *_) in zip(draws, images.__getitems__(draws), strict=True)}
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    backward = {d.sample: image for d, (image, *_) in zip(samples[::-1], images.__getitems__(draws[::-1]), strict=True)}
    assert all(torch.equal(forward[s], backward[s]) for s in forward)
    other = images.__getitems__([draws[0]._replace(epoch=1)])[0][0]
    assert not torch.equal(other, forward[draws[0].sample])


def test_workers_change_nothing():
    def batch(workers):
        stream = make_stream(f"data.num_workers={workers}")
        return next(iter(stream.train_dataloader()))

    for here, there in zip(batch(0), batch(2), strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_shards_hold_each_sample_once(world_size):
    stream = make_stream("dataset=digits")
    seen = [
        (labels, tasks)
        for rank in range(world_size)
        for _, labels, tasks in stream.eval_dataloader("test", rank, world_size)
    ]
    labels, tasks = (torch.cat(column) for column in zip(*seen, strict=True))
    assert torch.bincount(labels).tolist() == np.bincount(stream.source.test.labels).tolist()
    for task, label in zip(tasks.tolist(), labels.tolist(), strict=True):
        assert label in stream.tasks[task].classes


def test_description_changes_with_the_samples():
    tasks = [make_stream(f"stream.validation={v}").describe()["tasks"][0] for v in (0.0, 0.2)]
    assert tasks[0]["train_sha256"] != tasks[1]["train_sha256"]
    assert tasks[0]["test_sha256"] == tasks[1]["test_sha256"]


def test_digits_are_the_uci_scans():
    source = digits()
    assert (len(source.train), len(source.test)) == (1352, 445)
    assert source.train.images[0].size == (8, 8)
    assert np.bincount(source.test.labels).min() >= 43


def test_glyphs_are_the_same_every_time_and_cover_classes_and_domains():
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 100
    first, second = glyphs(1, 1), glyphs(1, 1)
    assert np.array_equal(first.train.images.pixels, second.train.images.pixels)
    assert not np.array_equal(first.train.images.pixels, first.test.images.pixels)
    counts = np.zeros((100, len(DOMAINS)), dtype=int)
    np.add.at(counts, (first.train.labels, first.train.domains), 1)
    assert (counts == 1).all()
    assert first.class_names[0] == "digit zero"
    assert "greek small letter beta" in first.class_names


def test_every_font_draws_every_character():
    empty = {font: render("\U0010fffd", font).tobytes() for font in FONTS}  # a code point that no font has
    for font in FONTS:
        drawings = {render(character, font).tobytes() for character in CHARACTERS}
        assert len(drawings) == len(CHARACTERS), font
        assert empty[font] not in drawings


def test_a_split_with_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="have the same length, got \\[2, 3\\]"):
        Split([None, None], np.zeros(3, dtype=np.int64))
    assert Source(["a"], [["a"]], Split([], np.zeros(0)), Split([], np.zeros(0))).num_classes == 1


def test_domains_are_tasks_with_all_classes():
    stream = make_stream("dataset=glyphs", "stream=domain", "stream.validation=0.25", "stream.order=natural")
    assert [task.name for task in stream.tasks] == list(DOMAINS)
    train, test = stream.source.train, stream.source.test
    for number, task in enumerate(stream.tasks):
        assert task.classes == list(range(100))
        assert set(train.domains[task.train]) == set(train.domains[task.validation]) == {number}
        assert set(test.domains[task.test]) == {number}
        assert (len(task.train), len(task.validation)) == (600, 200)
    parts = [part for task in stream.tasks for part in (task.train, task.validation)]
    assert sorted(np.concatenate(parts)) == list(range(len(train)))
    assert sorted(np.concatenate([task.test for task in stream.tasks])) == list(range(len(test)))


def test_domain_order_is_drawn_by_the_seed():
    orders = [
        [t.name for t in make_stream("dataset=glyphs", "stream=domain", f"seed={s}", *FEW).tasks] for s in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(DOMAINS)


def test_published_domain_order():
    names = [["a"], ["b"]]
    split = Split([None] * 4, np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    orders = {"paper": [1, 0]}
    source = Source(["a", "b"], names, split, split, domain_names=["x", "y"], domain_orders=orders)
    made = domain_incremental(source, tasks=2, seed=0, order="paper", validation=0.0)
    assert [task.name for task in made] == ["y", "x"]
    assert made[0].train.tolist() == [2, 3]


def test_a_class_that_a_domain_lacks_shifts_nothing():
    split = Split([None] * 3, np.array([0, 2, 1]), np.array([0, 0, 1]))
    source = Source(list("abc"), [["a"], ["b"], ["c"]], split, split, domain_names=["x", "y"])
    made = domain_incremental(source, tasks=2, seed=0, order="natural", validation=0.0)
    assert [task.classes for task in made] == [[0, 1, 2], [0, 1, 2]]
    assert [task.train.tolist() for task in made] == [[0, 1], [2]]


def test_a_domain_without_images_is_refused():
    split = Split([None] * 2, np.array([0, 1]), np.array([0, 0]))
    source = Source(list("ab"), [["a"], ["b"]], split, split, domain_names=["x", "y"])
    with pytest.raises(UserError, match="every task needs training and test images; y has no training images"):
        domain_incremental(source, tasks=2, seed=0, order="natural", validation=0.0)


def test_datasets_are_tasks_with_heads_of_their_own():
    values = ["dataset=eight_datasets", "dataset.datasets=[digits,glyphs]", "dataset.domains=2", "epochs=1"]
    stream = make_stream(*values, "model=tiny", "stream.validation=0.1")
    first, second = stream.tasks
    assert (first.name, second.name) == ("digits", "glyphs")
    assert first.classes == list(range(10))
    assert second.classes == list(range(10, 110))
    assert (len(first.test), len(second.test)) == (445, 1200)
    whole = [digits(), glyphs()]
    assert stream.source.prompts == [said for source in whole for said in source.prompts]
    images, labels, tasks = next(iter(stream.eval_dataloader(only=1)))
    assert set(tasks.tolist()) == {1}
    assert labels.tolist() == (whole[1].test.labels[: len(labels)] + 10).tolist()
    torch.testing.assert_close(images[0], stream.transforms.eval(whole[1].test.images[0]))


def test_data_parts_have_all_classes_and_no_sample_twice():
    stream = make_stream("stream=data", "tasks=4", "stream.validation=0.2")
    for split in ("train", "validation", "test"):
        parts = [getattr(task, split) for task in stream.tasks]
        assert len(np.unique(np.concatenate(parts))) == sum(len(part) for part in parts)
        labels = stream.source.test.labels if split == "test" else stream.source.train.labels
        assert all(set(labels[part]) == set(range(10)) for part in parts)
    assert sum(len(t.train) + len(t.validation) for t in stream.tasks) == len(stream.source.train)
    assert sum(len(t.test) for t in stream.tasks) == len(stream.source.test)
    with pytest.raises(UserError, match="every task needs training and test images; part 1 has no"):
        make_stream("stream=data", "tasks=200")


SUITE = ["dataset=eight_datasets", "dataset.datasets=[digits,glyphs]", "dataset.domains=2", "model=tiny"]
SUITE += [f"+dataset.options.glyphs.{part}_per_domain=1" for part in ("train", "test")]


@pytest.mark.parametrize(
    ("overrides", "tasks"),
    [
        (["dataset=glyphs", "stream=domain", "epochs=1", *FEW], 6),
        ([*noise(), "stream=data", "tasks=2", "epochs=1"], 2),
        ([*SUITE, "epochs=[2,1]"], 2),
    ],
)
def test_streams_train_and_merge(overrides, tasks, tmp_path):
    for script in ("train.py", "merge.py"):
        outcome = command(script, f"root={tmp_path}", *overrides)
        assert outcome.code == 0, outcome.err
    for path in tmp_path.rglob("metrics.json"):
        metrics = read_json(path, "accuracy", "summary")
        assert len(metrics["accuracy"]["task_aware"][-1]) == tasks
        assert 0 < metrics["summary"]["final_accuracy"] < 1


def test_every_dataset_has_its_own_number_of_epochs(tmp_path):
    drawn = {0: set(), 1: set()}

    def recorded(self, draws, original=TrainImages.__getitems__):
        drawn[self.key_parts[1]].update(draw.epoch for draw in draws)
        return original(self, draws)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainImages, "__getitems__", recorded)
        outcome = command("train.py", f"root={tmp_path}", *SUITE, "epochs=[3,1]", "batch_size=512")
    assert outcome.code == 0, outcome.err
    assert {task: epochs - {-1} for task, epochs in drawn.items()} == {0: {0, 1, 2}, 1: {0}}


def test_zero_shot_of_several_datasets(tmp_path):
    outcome = command("train.py", f"root={tmp_path}", *SUITE, "epochs=[3,1]", "method=zeroshot")
    assert outcome.code == 0, outcome.err


def test_a_run_goes_on_with_its_own_data_only(tmp_path):
    def photos(number):
        for label, name in enumerate(("cat", "dog")):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (200 * label, 10 * number, 0)).save(path)

    for number in range(5):
        photos(number)
    what = [f"root={tmp_path}/runs", "dataset=folder", f"dataset.path={tmp_path}/photos", "tasks=2", "model=tiny"]
    assert (outcome := command("train.py", *what, "epochs=1")).code == 0, outcome.err
    (metrics,) = tmp_path.rglob("metrics.json")
    metrics.unlink()
    before = (metrics.parent / "stream.json").read_bytes()
    photos(5)
    outcome = command("train.py", *what, "epochs=1")
    assert outcome.code == 1
    assert "was started with other data" in outcome.err
    assert (metrics.parent / "stream.json").read_bytes() == before

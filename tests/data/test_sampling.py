"""The batch sampler."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import command, noise

from mergestream.data.datasets import TrainImages
from mergestream.data.sampling import KeyedBatchSampler


def samples_of(batches):
    return [draw.sample for batch in batches for draw in batch if draw.weight]


@pytest.mark.parametrize(("samples", "batch_size", "world_size"), [(37, 8, 2), (33, 8, 4), (5, 8, 3), (64, 8, 2)])
def test_ranks_together_draw_the_batches_of_a_single_process(samples, batch_size, world_size):
    indices = np.arange(100, 100 + samples)

    def batches(rank, world):
        sampler = KeyedBatchSampler(indices, batch_size, seed=1, task=2, rank=rank, world_size=world)
        sampler.set_epoch(3)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    whole = batches(0, 1)
    ranks = [batches(rank, world_size) for rank in range(world_size)]
    assert sorted(samples_of(whole)) == indices.tolist()
    for number, batch in enumerate(whole):
        parts = [rank[number] for rank in ranks]
        assert sorted(samples_of(parts)) == sorted(samples_of([batch]))
        # DDP averages over ranks, so the weights of all ranks, divided by their number, must be those of a mean.
        assert sum(draw.weight for part in parts for draw in part) / world_size == pytest.approx(1)
        assert {draw.weight for part in parts for draw in part} - {0.0} == {world_size / len(batch)}


def test_shuffle_depends_on_seed_task_and_epoch():
    def order(seed, task, epoch):
        sampler = KeyedBatchSampler(np.arange(50), 50, seed=seed, task=task)
        sampler.set_epoch(epoch)
        return samples_of(sampler)

    orders = [order(0, 0, 0), order(1, 0, 0), order(0, 1, 0), order(0, 0, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert order(0, 0, 1) == orders[3]


def test_sampler_starts_at_a_batch_of_one_epoch_only():
    sampler = KeyedBatchSampler(np.arange(20), 8, seed=0, task=0)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.start_at(2, batch=1)
    sampler.set_epoch(2)
    assert list(sampler) == whole[1:]
    sampler.set_epoch(3)
    assert len(list(sampler)) == 3


def test_lightning_draws_a_new_order_in_every_epoch(tmp_path, monkeypatch):
    drawn = []

    def recorded(self, draws, original=TrainImages.__getitems__):
        drawn.append([(draw.epoch, draw.sample) for draw in draws])
        return original(self, draws)

    monkeypatch.setattr(TrainImages, "__getitems__", recorded)
    outcome = command("train.py", f"root={tmp_path}", *noise(), "tasks=1", "batch_size=100", "epochs=3")
    assert outcome.code == 0, outcome.err
    epochs = [[sample for batch in drawn for epoch, sample in batch if epoch == e] for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2]) == list(range(6 * 27))
    assert len({tuple(order) for order in epochs}) == 3

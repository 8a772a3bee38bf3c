"""Words on the command line that no code reads, or that cannot be what they say."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from shutil import copytree

import pytest
from helpers import Outcome, command, forked, noise

from mergestream.training.callbacks.checkpoint import Checkpointing


@pytest.mark.parametrize(
    ("script", "word", "nearest"),
    [
        ("train.py", "+batch_sizes=2", "batch_size"),
        ("train.py", "+data.num_worker=2", "data.num_workers"),
        ("train.py", "+schedule.warm_up=2", "schedule.warmup"),
        ("train.py", "++gradient_clipping=2", "gradient_clip"),
        ("merge.py", "+prefix=true", "prefixes"),
        ("evaluate.py", "+encoders=1", "encoder"),
        ("analyze.py", "+lambdas=1", "lambda"),
        ("report.py", "+base_line=MagMax", "baseline"),
        ("train.py", "task", "tasks"),
    ],
)
def test_inputs_that_no_code_reads_are_refused_with_the_nearest_key(script, word, nearest, tmp_path):
    outcome = command(script, f"root={tmp_path}", word if "=" in word else f"{word}=5")
    assert (outcome.code, outcome.err) == (
        1,
        f"error: unknown key: {word}; did you mean {nearest}? See --help for all keys\n",
    )


def test_inputs_that_a_group_does_not_have_are_refused_with_those_that_it_has(tmp_path):
    outcome = command("merge.py", f"root={tmp_path}", "strategy=ties", "strategy.densty=0.1")
    assert (outcome.code, outcome.err) == (
        1,
        "error: unknown key: strategy.densty; strategy has density, scale, scope. "
        "To append to your config use +strategy.densty=0.1\n",
    )


@pytest.mark.parametrize("script", ["train.py", "merge.py", "evaluate.py", "analyze.py", "report.py"])
def test_inputs_of_other_frameworks_are_refused(script, tmp_path):
    outcome = command(script, f"root={tmp_path}", "+accumulate_grad_batches=2")
    assert outcome.code == 1
    assert outcome.err.startswith("error: unknown key: +accumulate_grad_batches=2; did you mean ")
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("accumulate_grad_batches: 2", "accumulate_grad_batches=2"),
        ("data: {num_worker: 2}", "data.num_worker=2"),
        ("checkpoint: {every_epoch: 2}", "checkpoint.every_epoch=2"),
    ],
)
def test_inputs_of_experiments_that_no_code_reads_are_refused(text, got, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    outcome = command("train.py", f"--config-dir={tmp_path}", f"root={tmp_path}/runs", "+experiment=mine")
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: unknown key: {got}; did you mean ")


def test_inputs_of_experiments_may_be_for_another_command_or_for_other_keys(tmp_path):
    (tmp_path / "experiment").mkdir()
    lines = ["# @package _global_", "prefixes: true", "mine: {many: 0}", "data: {num_workers: '${mine.many}'}"]
    (tmp_path / "experiment/mine.yaml").write_text("\n".join(lines))
    words = (f"--config-dir={tmp_path}", f"root={tmp_path}/runs", "+experiment=mine", "epochs=none")
    outcome = command("train.py", *words)  # stops at the next check
    assert outcome.err.startswith("error: epochs must be ")


def test_inputs_that_are_no_numbers_or_names_are_no_order(tmp_path):
    outcome = command("train.py", f"root={tmp_path}", "stream.order=[9,8,7,6,5,4,3,2,1,true]")
    rule = (
        "stream.order must be the name of an order, such as natural, shuffled or paper, or a list of numbers or names"
    )
    assert (outcome.code, outcome.err) == (1, f"error: {rule}; got stream.order=[9, 8, 7, 6, 5, 4, 3, 2, 1, True]\n")


def test_inputs_that_code_reads_may_have_a_plus(tmp_path):
    words = ("++epochs=1", "+optimizer.eps=1e-7", "method=zeroshot", "logger=none")
    outcome = command("train.py", f"root={tmp_path}", *noise(), *words)
    assert outcome.code == 0, outcome.err


def test_inputs_of_a_finished_run_are_compared(tmp_path):
    words = (f"root={tmp_path}", *noise(), "method=zeroshot", "logger=none")
    assert command("train.py", *words).code == 0
    assert "already finished" in command("train.py", *words).out
    path = next(word.partition("=")[2] for word in words if word.startswith("dataset.path"))
    copytree(path, tmp_path / "copy")
    image = sorted(Path(tmp_path / "copy").rglob("*.png"))[0]
    image.rename(image.with_name("other.png"))
    sorted(Path(tmp_path / "copy/test").rglob("*.png"))[-1].unlink()
    Path(path).rename(f"{path}-away")
    try:
        Path(path).symlink_to(tmp_path / "copy")
        outcome = command("train.py", *words)
        Path(path).unlink()
    finally:
        Path(f"{path}-away").rename(path)
    assert outcome.code == 1
    assert "was started with other data; compare its stream.json" in outcome.err


def test_inputs_of_an_interrupted_run_are_one_run_of_wandb(tmp_path):
    words = (f"root={tmp_path}", *noise(), "epochs=1", "tasks=2", "logger=wandb", "accelerator=cpu", "devices=1")

    def interrupted() -> Outcome:
        original = Checkpointing.on_train_batch_end

        def stop(self, *arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            original(self, *arguments)

        Checkpointing.on_train_batch_end = stop  # type: ignore[method-assign]
        outcome = command("train.py", *words)
        import wandb

        wandb.finish()  # as its exit handler does, which a forked process has none of; W&B's service outlives it
        return outcome

    assert forked(interrupted).code == 143
    outcome = forked(lambda: command("train.py", *words))
    assert outcome.code == 0, outcome.err
    parts = list(tmp_path.rglob("wandb/offline-run-*/run-*.wandb"))  # a folder's may also end in -1
    assert len({path.parent for path in parts}) == 2
    assert len({path.name for path in parts}) == 1

"""Train a stream: one config in, one run directory out."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from mergestream import __version__, display, files
from mergestream.checks import check_training
from mergestream.compose import build, load_clip, load_source, load_stream, local_device
from mergestream.data.stream import TaskStream
from mergestream.errors import UserError
from mergestream.evaluation import evaluate
from mergestream.keys import key
from mergestream.methods.method import Method
from mergestream.models.clip import Clip, text_head
from mergestream.results import Counts, assemble
from mergestream.runs import Run, config_hash, readable, store_base
from mergestream.training import launcher, loggers
from mergestream.training.learner import Learner
from mergestream.training.merge_every_task import RunningEvaluation
from mergestream.training.progress import StreamProgress

T = TypeVar("T")


def train(cfg: DictConfig) -> None:
    """Check the config, then train its stream here or in as many processes as ``devices`` says.

    Raises:
        UserError: if the config, the data or the weights are not what they must be.
    """
    OmegaConf.resolve(cfg)
    check_training(cfg)
    launcher.launch(train_stream, cfg, launcher.device_count(cfg.devices, cfg.accelerator))


def train_stream(cfg: DictConfig) -> None:
    """Train, save and evaluate every task in turn; tasks that are already on disk are loaded instead."""
    _silence_lightning()
    began = time.monotonic()
    run = Run.of(cfg)
    device = local_device(cfg.accelerator, launcher.local_rank())
    rank, world_size = launcher.join(device)
    first = rank == 0
    if run.finished():
        run.claim(cfg)
        if first:
            show(run, "already finished, nothing to do")
            if cfg.merge_every_task and not list(run.path.glob("running/*.safetensors")):
                print("it was trained without merge_every_task; python merge.py prefixes=true makes the same of it")
        return

    # Everything that can fail for want of data or weights comes before the first file is written.
    method: Method = build(cfg.method)
    build(cfg.optimizer)
    if cfg.merge_every_task and method.data != "task":
        raise UserError(
            f"merge_every_task=true needs a method with an encoder for each task; got method={cfg.method.id}"
        )
    follower = RunningEvaluation(cfg, run) if cfg.merge_every_task else None
    logger = build(cfg.logger, path=run.path, config=OmegaConf.to_container(cfg)) if first else None
    source = _first_alone(lambda: load_source(cfg))  # which fetches what is missing and decodes what is new
    clip = load_clip(cfg)
    stream = load_stream(cfg, clip.transforms, source)
    if run.begun():
        run.require_data(stream.describe())
    # What the method trains on: the stream, all of it as one task, or nothing.
    training = stream.joined() if method.data == "all" else stream
    tasks = [] if method.data == "none" else training.tasks
    clip.model.to(device)
    head = text_head(clip, stream.source.prompts)
    encoder = clip.encoder
    base = {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}
    stamp = _record(cfg, run, stream, clip, base) if first else {}
    del clip  # the text tower has made the head and is not needed any more
    _barrier()

    def measure(weights: Mapping[str, Tensor], seen: int) -> Counts:
        """Counts of other weights than those in training, which stay as they are."""
        own = {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
        encoder.load_state_dict(weights)
        counts = evaluate(encoder, head, stream, seen=seen, device=device)
        encoder.load_state_dict(own)
        return counts

    zero_shot = evaluate(encoder, head, stream, seen=0, device=device)
    timing = {"setup": time.monotonic() - began, "training": 0.0, "evaluation": 0.0}
    epochs = list(cfg.epochs)[: len(tasks)] if isinstance(cfg.epochs, ListConfig) else [cfg.epochs] * len(tasks)
    steps = [n * -(-len(task.train) // cfg.batch_size) for n, task in zip(epochs, tasks, strict=True)]
    done = [run.evaluation(index).is_file() for index in range(len(steps))]
    rows: list[Counts] = []
    remaining = sum(n for n, is_done in zip(steps, done, strict=True) if not is_done)
    with StreamProgress(remaining, epochs, visible=first) as progress:
        for index, task in enumerate(training if tasks else ()):
            if done[index]:
                last = index + 1 == len(steps) or not done[index + 1]
                if run.encoder(index).is_file() or last:
                    encoder.load_state_dict(files.read_tensors(run.encoder(index)))
                state = files.read_tensors(run.method_state(index)) if run.method_state(index).exists() else {}
                # With keep_tasks=false the files of the last finished task say it all.
                if state or last or run.encoder(index).is_file() or not stateful(run, done):
                    method.restore(state, encoder, head, task.classes)
                rows.append(files.read_json(run.evaluation(index), "total", "agnostic", "aware", "seen_correct"))
                if follower:
                    follower.follow(index, measure)
                continue
            progress.start(index)
            started = time.monotonic()
            if method.start == "base":
                encoder.load_state_dict(base)
            encoder.train()
            optimizer, warmup, first_step = build(cfg.optimizer), cfg.schedule.warmup, sum(steps[:index])
            learner = Learner(encoder, head, task.classes, optimizer, warmup, method, first_step)
            fit(learner, training, cfg, epochs[index], logger, [progress, method])
            encoder.to(device).eval()
            head.to(device)
            method.consolidate(encoder, head, task.classes, _real_samples(training, device))
            if first:
                weights = {name: tensor.float() for name, tensor in encoder.state_dict().items()}
                files.write_tensors(run.encoder(index), weights, {**stamp, "task": str(index)})
                if state := method.state():
                    files.write_tensors(run.method_state(index), state, {**stamp, "task": str(index)})
            trained = time.monotonic()
            seen = len(stream) if method.data == "all" else index + 1
            rows.append(evaluate(encoder, head, stream, seen=seen, device=device))
            timing["training"] += trained - started
            timing["evaluation"] += time.monotonic() - trained
            if first:
                files.write_json(run.evaluation(index), rows[-1])
                progress.finished(sum(rows[-1]["agnostic"]) / sum(rows[-1]["total"]))
            _barrier()
            if follower:
                follower.follow(index, measure)
    if first:
        seen_rows = [len(stream)] if method.data == "all" else list(range(1, len(rows) + 1))
        timing["total"] = time.monotonic() - began
        if follower:
            follower.finish(zero_shot, timing, world_size)
        metrics = assemble("train", cfg, zero_shot, rows, seen_rows, timing, world_size)
        files.write_json(run.metrics, {**metrics, "method": method.facts()})
        loggers.close(logger)
        show(run, f"trained in {timing['total']:.1f} s")


def stateful(run: Run, done: Sequence[bool]) -> bool:
    """Whether the last of the finished tasks has left a state of its method."""
    finished = [index for index, is_done in enumerate(done) if is_done]
    return bool(finished) and run.method_state(finished[-1]).exists()


def _record(cfg: DictConfig, run: Run, stream: TaskStream, clip: Clip, base: dict[str, Tensor]) -> dict[str, str]:
    """Write what is known before training; returns the metadata that every encoder of the run carries."""
    run.claim(cfg)
    _, sha256 = store_base(Path(cfg.root), base)
    parameters = sum(p.numel() for p in clip.model.parameters())
    files.write_json(run.path / "stream.json", {"stream": cfg.stream.name, **stream.describe()})
    files.write_json(
        run.path / "base.json",
        {"name": cfg.model.name, "source": clip.source, "sha256": sha256, "clip_parameters": parameters},
    )
    return {"base_sha256": sha256, "config_sha256": config_hash(cfg), "version": __version__}


def fit(
    learner: Learner,
    stream: TaskStream,
    cfg: DictConfig,
    epochs: int,
    logger: Logger | None,
    callbacks: list[pl.Callback],
) -> None:
    """Train one task. The Trainer is fresh: a second ``fit`` on one Trainer would train 0 steps."""
    local_size, nodes = launcher.world()
    pl.seed_everything(key(cfg.seed, stream.current) % 2**32, workers=True, verbose=False)
    trainer = pl.Trainer(
        accelerator=cfg.accelerator,
        devices=local_size,
        num_nodes=nodes,
        # Buffers are the frozen head: equal on all ranks, and broadcasting them would wait on uneven shards.
        strategy=DDPStrategy(forward_sync_buffers=False) if local_size * nodes > 1 else "auto",
        max_epochs=epochs,
        precision=cfg.precision,
        gradient_clip_val=cfg.gradient_clip,
        logger=logger or False,
        log_every_n_steps=min(10, len(stream.train_dataloader())),  # a short task leaves a row too
        callbacks=callbacks,
        use_distributed_sampler=False,  # the stream shards by rank itself
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(learner, datamodule=stream)


def show(run: Run, headline: str) -> None:
    """The table of a finished run, and where it lies."""
    metrics, stream = files.read_json(run.metrics, "accuracy", "summary", "zero_shot"), run.stream()
    display.run_table(headline, [task["name"] for task in stream["tasks"]], metrics)
    print(f"results in {readable(run.path)}")


def _real_samples(stream: TaskStream, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's shard of the current task, without the samples of weight 0 that only keep ranks in step."""
    for images, labels, weights in stream.consolidation_dataloader():
        real = weights > 0
        yield images[real].to(device), labels[real].to(device)


def _first_alone(work: Callable[[], T]) -> T:
    """The result of `work` on every process; the first has done it, or failed at it, before the others begin."""
    if not (dist.is_available() and dist.is_initialized()):
        return work()
    # A group of its own: a download may take longer than the collectives of the training are allowed to.
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=2))
    first = dist.get_rank() == 0
    try:
        if not first:
            dist.barrier(group)
        return work()
    finally:
        if first:
            dist.barrier(group)


def _barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def _silence_lightning() -> None:
    """Leave the screen to the progress display and the tables."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",  # data.num_workers is the user's choice
        r".*have no `val_dataloader`.*|.*across ranks is zero.*",  # stream.validation=0
        r".*The number of training batches.*",  # small tasks are normal here
        r".*Checkpoint directory.*|.*already configured with model summary.*|.*`isinstance\(treespec, LeafSpec\)`.*",
    ):
        warnings.filterwarnings("ignore", message=message)

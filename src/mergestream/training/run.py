"""Train a stream: one config in, one run directory out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from mergestream.compose import targets
from mergestream.compose.build import build, load_clip, load_source, load_stream, local_device
from mergestream.compose.checks import check_training
from mergestream.data.stream import TaskStream
from mergestream.display import tables
from mergestream.evaluation import evaluate
from mergestream.methods.method import Method
from mergestream.models.clip import Clip, text_head
from mergestream.runs.directory import Run, readable, store_base
from mergestream.runs.identity import NAMING_KEYS, typed
from mergestream.runs.repair import damage, repair
from mergestream.runs.results import Counts, assemble, circumstances
from mergestream.runtime import files, processes
from mergestream.runtime.errors import UserError
from mergestream.runtime.lock import Lock, held
from mergestream.runtime.seeding import key, seed_draws
from mergestream.training import launcher, loggers
from mergestream.training.callbacks.checkpoint import Checkpointing
from mergestream.training.callbacks.health import Health, require_finite
from mergestream.training.callbacks.merge_every_task import RunningEvaluation
from mergestream.training.callbacks.progress import StreamProgress
from mergestream.training.fit import fit, silence_lightning
from mergestream.training.learner import Learner

T = TypeVar("T")


def train(cfg: DictConfig) -> None:
    """Check the config, then train its stream here or in as many processes as ``devices`` says.

    Raises:
        UserError: if the config, the data or the weights are not what they must be.
    """
    run = prepare(cfg)
    devices = launcher.device_count(cfg.devices, cfg.accelerator)
    launcher.launch(partial(train_stream, run=run), cfg, devices, max_restarts=cfg.launcher.max_restarts)


def prepare(cfg: DictConfig) -> Run:
    """Everything that can be checked before data or weights are touched; returns the run that the config names.

    Raises:
        UserError: if the config is not what it must be.
    """
    OmegaConf.resolve(cfg)
    check_training(cfg)
    targets.allow(cfg.allow_targets)
    method: Method = build(cfg.method)
    build(cfg.optimizer)
    run = Run.of(cfg, [word for key, word in typed() if key not in NAMING_KEYS])
    if cfg.merge_every_task:
        if method.data != "task":
            raise UserError(
                f"merge_every_task=true needs a method with an encoder for each task; got method={cfg.method.id}"
            )
        RunningEvaluation(cfg, run)
    return run


def train_stream(cfg: DictConfig, run: Run) -> None:
    """Train, save and evaluate every task in turn, as this process's part of it; what is on disk is gone on from."""
    silence_lightning()
    targets.allow(cfg.allow_targets)  # in a process that a launcher has made, too
    device = local_device(cfg.accelerator, launcher.local_rank())
    rank, world_size = launcher.join(device, cfg.launcher.timeout_minutes)
    if device.type == "cuda":  # whose fastest kernels add up in another order every time
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    with held(run.path) if rank == 0 else nullcontext() as lock:
        if lock is not None:
            _open(cfg, run)
        _barrier()
        if run.finished():
            if lock is not None:
                show(run, "already finished, nothing to do")
                if cfg.merge_every_task and not list(run.path.glob("running/*.safetensors")):
                    print("it was trained without merge_every_task; python merge.py prefixes=true makes the same of it")
            return
        _train(cfg, run, device, world_size, lock)


def _open(cfg: DictConfig, run: Run) -> None:
    """Know that what is in the directory is sound and belongs to the config, or repair it."""
    files.remove_partials(run.path)
    found = damage(run)
    if found and not cfg.repair:
        more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(f"{found[0].reason}{more}. {run.advice}")
    if not any(d.path == run.path / "config.yaml" for d in found) and run.begun():
        run.require_same(cfg)
    for d in found:
        print(f"repair: {d.reason}")
    if found:
        repair(run, found)


def _train(cfg: DictConfig, run: Run, device: torch.device, world_size: int, lock: Lock | None) -> None:
    # Everything that can fail for want of data or weights comes before the first file is written.
    began = time.monotonic()
    first, rank = lock is not None, processes.rank()
    method: Method = build(cfg.method)
    follower = RunningEvaluation(cfg, run) if cfg.merge_every_task else None
    logger = build(cfg.logger, path=run.path, config=OmegaConf.to_container(cfg)) if first else None
    source = _first_alone(lambda: load_source(cfg))  # which fetches what is missing and decodes what is new
    clip = load_clip(cfg)
    stream = load_stream(cfg, clip.transforms, source)
    # What the method trains on: the stream, all of it as one task, or nothing.
    training = stream.joined() if method.data == "all" else stream
    tasks = [] if method.data == "none" else training.tasks
    clip.model.to(device)
    head = text_head(clip, stream.source.prompts)
    encoder = clip.encoder
    base = {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}
    if first:
        _record(cfg, run, stream, clip, base, world_size)
    del clip  # the text tower has made the head and is not needed any more
    _barrier()
    stamp = run.stamp(cfg)

    def measure(weights: Mapping[str, Tensor], seen: int) -> Counts:
        """Counts of other weights than those in training, which stay as they are."""
        own = {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
        encoder.load_state_dict(weights)
        counts = evaluate(encoder, head, stream, seen=seen, device=device)
        encoder.load_state_dict(own)
        return counts

    zero_shot = evaluate(encoder, head, stream, seen=0, device=device)
    setup = time.monotonic() - began
    epochs = list(cfg.epochs)[: len(tasks)] if isinstance(cfg.epochs, ListConfig) else [cfg.epochs] * len(tasks)
    steps = [n * -(-len(task.train) // cfg.batch_size) for n, task in zip(epochs, tasks, strict=True)]
    done = [run.evaluation(index).is_file() for index in range(len(steps))]
    rows: list[Counts] = []
    records: list[dict[str, Any]] = []
    parent = stamp["base_sha256"]  # checksum of the encoder that the next task starts from
    remaining = sum(n for n, is_done in zip(steps, done, strict=True) if not is_done)
    with StreamProgress(remaining, epochs, visible=first) as progress:
        for index, task in enumerate(training if tasks else ()):
            if done[index] and run.parent(index) not in (None, parent):
                done[index] = False  # its parent was trained again, and has become another
            if done[index]:
                last = index + 1 == len(steps) or not done[index + 1]
                if run.encoder(index).is_file() or last:
                    run.require_stamp(run.encoder(index), {**stamp, "task": str(index)})
                    encoder.load_state_dict(files.read_tensors(run.encoder(index)))
                state = files.read_tensors(run.method_state(index)) if run.method_state(index).exists() else {}
                # With keep_tasks=false the files of the last finished task say it all.
                if state or last or run.encoder(index).is_file() or not stateful(run, done):
                    method.restore(state, encoder, head, task.classes)
                record = run.record(index)
                if first:
                    run.checkpoint(index).unlink(missing_ok=True)  # of a process that came as far as to evaluate
            else:
                progress.start(index)
                if method.start == "base":
                    encoder.load_state_dict(base)
                encoder.train()
                optimizer, warmup, first_step = build(cfg.optimizer), cfg.schedule.warmup, sum(steps[:index])
                learner = Learner(
                    encoder, head, task.classes, optimizer, warmup, method, first_step, parts=(cfg.seed, index)
                )
                marks = {**stamp, "task": str(index), "parent": parent}
                label = f"task {index + 1} of {len(steps)}"
                health = Health(label)
                saving = Checkpointing(
                    run.checkpoint(index),
                    label,
                    **cfg.checkpoint,
                    timeout_minutes=cfg.launcher.timeout_minutes,
                    health=health,
                    check=lock.check if lock else None,
                )
                saved = run.checkpoint(index)
                if first and saved.exists() and files.read_metadata(saved).get("parent") != parent:
                    saved.unlink()  # a task before it was trained again, and has become another
                _barrier()
                fit(learner, training, cfg, epochs[index], saving, marks, [progress, health, method], logger)
                encoder.to(device).eval()
                head.to(device)
                seed_draws(key(cfg.seed, index, "consolidate", rank))  # an interruption leaves no trace in it
                method.consolidate(encoder, head, task.classes, _real_samples(training, device))
                written = {}
                if lock is not None:
                    lock.check()
                    weights = {name: tensor.float() for name, tensor in encoder.state_dict().items()}
                    written[run.encoder(index).name] = files.write_tensors(run.encoder(index), weights, marks)
                    if state := method.state():
                        require_finite(state, f"the state of method={cfg.method.id}", label)
                        path = run.method_state(index)
                        written[path.name] = files.write_tensors(path, state, marks)
                seconds, started = saving.seconds, time.monotonic()
                seen = len(stream) if method.data == "all" else index + 1
                counts = evaluate(encoder, head, stream, seen=seen, device=device)
                spent = {"training": seconds, "evaluation": time.monotonic() - started}
                if lock is not None:
                    lock.check()
                    files.write_json(
                        run.evaluation(index),
                        {**counts, "files": written, "spikes": health.spikes, "seconds": spent},
                    )
                    run.checkpoint(index).unlink(missing_ok=True)
                    progress.finished(sum(counts["agnostic"]) / sum(counts["total"]))
                _barrier()
                record = run.record(index)
            parent = record["files"][run.encoder(index).name] if method.start == "previous" else parent
            records.append(record)
            rows.append({name: record[name] for name in ("total", "agnostic", "aware", "seen_correct")})
            if follower:
                follower.follow(index, measure)
    if lock is not None:
        lock.check()
        seen_rows = [len(stream)] if method.data == "all" else list(range(1, len(rows) + 1))
        timing = {"setup": setup} | {
            stage: sum(record["seconds"][stage] for record in records) for stage in ("training", "evaluation")
        }
        timing["total"] = sum(timing.values())
        hashes = {key: stamp[key] for key in ("base_sha256", "data_sha256")}
        if follower:
            follower.finish(zero_shot, timing, world_size, hashes)
        metrics = assemble("train", cfg, zero_shot, rows, seen_rows, timing, world_size)
        metrics["method"] = method.facts()
        metrics["spikes"] = {name: [r["spikes"][name] for r in records] for name in ("loss", "gradient_norm")}
        metrics["provenance"] |= {"begun": run.base()["begun"], **hashes}
        files.write_json(run.metrics, metrics)
        loggers.close(logger)
        show(run, f"trained in {timing['total']:.1f} s")


def stateful(run: Run, done: Sequence[bool]) -> bool:
    """Whether the last of the finished tasks has left a state of its method."""
    finished = [index for index, is_done in enumerate(done) if is_done]
    return bool(finished) and run.method_state(finished[-1]).exists()


def _record(cfg: DictConfig, run: Run, stream: TaskStream, clip: Clip, base: dict[str, Tensor], devices: int) -> None:
    """Write what is known before training, or know that it is still what the run was begun with."""
    described = {"stream": cfg.stream.name, **stream.describe()}
    if (run.path / "stream.json").exists():
        run.require_data(described)
    else:
        files.write_json(run.path / "stream.json", described)
    _, sha256 = store_base(Path(cfg.root), base)
    if (run.path / "base.json").exists():
        if (begun := run.base()["sha256"]) != sha256:
            raise UserError(
                f"θ₀ must stay the one that {readable(run.path)} was begun with, sha256 {begun[:12]}…; the weights of "
                f"model={cfg.model.name} are now {sha256[:12]}…. Restore them, or write tag=NAME for a second run."
            )
    else:
        known = {"name": cfg.model.name, "source": clip.source, "sha256": sha256, "begun": circumstances(devices)}
        parameters = sum(p.numel() for p in clip.model.parameters())
        files.write_json(run.path / "base.json", {**known, "clip_parameters": parameters})
    if not (run.path / "config.yaml").exists():
        run.claim(cfg)


def show(run: Run, headline: str) -> None:
    """The table of a finished run, and where it lies."""
    metrics, stream = run.read(run.metrics, "accuracy", "summary", "zero_shot"), run.stream()
    tables.run_table(headline, [task["name"] for task in stream["tasks"]], metrics)
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

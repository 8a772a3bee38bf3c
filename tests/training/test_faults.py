"""What a run survives: kills, signals, full disks, damage, a second writer; all of it ends in the same bytes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Outcome, command, config, files_below, forked
from PIL import Image

from mergestream.compose.inputs import Inputs
from mergestream.compose.run import run_of as run_named_by
from mergestream.runs.directory import Run
from mergestream.runtime import files, interrupt, lock
from mergestream.runtime.errors import UserError
from mergestream.training.callbacks.checkpoint import Checkpointing, SafetensorsIO
from mergestream.training.callbacks.health import Health
from mergestream.training.callbacks.progress import StreamProgress
from mergestream.training.session import Session


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Two tasks of two classes, eleven batches in each of two epochs; validation, so that an epoch ends with it."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 8)):
        for label in ("one", "two", "three", "four"):
            for number in range(count):
                path = folder / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    words = ["dataset=folder", f"dataset.path={folder}", "model=tiny", "optimizer.lr=3e-4", "schedule=fraction"]
    return (*words, "tasks=2", "epochs=2", "batch_size=5", "stream.validation=0.1")


@pytest.fixture(scope="module")
def run_of(short):
    """The run of a root and overrides."""
    return lambda root, *overrides: run_named_by(config("train", f"root={root}", *short, *overrides))


def results(run: Run) -> dict[str, object]:
    """All that must not depend on what the run went through: every tensor file's bytes, and the metrics."""
    found: dict[str, object] = {str(p.relative_to(run.path)): p.read_bytes() for p in run.path.rglob("*.safetensors")}
    for path in [run.metrics, *run.path.glob("merges/*/metrics.json")]:
        metrics = files.read_json(path, own=True)
        names = ("zero_shot", "accuracy", "overall", "summary", "spikes", "method")
        found[str(path.relative_to(run.path))] = {key: metrics.get(key) for key in names}
    return found


@pytest.fixture(scope="module")
def train_until(short):
    """(event, arguments) → (exit code, stderr) of a training in a process of its own, with `event` prepared in it."""

    def train(event: Callable[[], None], *arguments: str) -> tuple[int, str]:
        def work() -> Outcome:
            event()
            return command("train.py", *short, "logger=none", *arguments)

        outcome = forked(work)
        return outcome.code, outcome.err

    return train


@pytest.fixture(scope="module")
def whole(tmp_path_factory, train_until, run_of):
    """Uninterrupted runs by their arguments."""
    root, done = tmp_path_factory.mktemp("whole"), {}

    def get(*arguments: str) -> Run:
        if arguments not in done:
            tag = f"tag=run{len(done)}"
            code, err = train_until(lambda: None, f"root={root}", tag, *arguments)
            assert code == 0, err
            done[arguments] = run_of(root, tag, *[a for a in arguments if a.startswith("method=")])
        return done[arguments]

    return get


def after_batch(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """Prepares `act` right after the training step `number` of this process, before it could be saved."""

    def prepare() -> None:
        original, count = Checkpointing.on_train_batch_end, [0]

        def hook(self, *arguments):
            count[0] += 1
            if count[0] == number:
                act()
            original(self, *arguments)

        Checkpointing.on_train_batch_end = hook  # type: ignore[method-assign]

    return prepare


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminated_after_the_look() -> None:
    """Prepare a SIGTERM when it was just looked whether one has arrived, or while a step is saved."""
    original, count = Checkpointing.on_train_batch_end, [0]

    def hook(self, *arguments):
        original(self, *arguments)
        count[0] += 1
        if count[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    Checkpointing.on_train_batch_end = hook  # type: ignore[method-assign]


def terminated_before_the_first_step() -> None:
    """Prepare a SIGTERM that Lightning receives, before anything else does."""
    original = Checkpointing.on_train_start

    def lightnings(self, trainer, learner):
        os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, learner)

    Checkpointing.on_train_start = lightnings  # type: ignore[method-assign]
    Checkpointing.on_train_batch_end = lambda *_: None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (terminated_after_the_look, "stopped by SIGTERM at task 1 of 2, epoch 1, step 3;"),
        (terminated_before_the_first_step, "stopped by SIGTERM; type the same command again"),
    ],
)
def test_a_signal_between_two_looks_is_no_success(whole, train_until, run_of, tmp_path, prepare, said):
    arguments = (f"root={tmp_path}", "tag=run", "method=seq")
    code, err = train_until(prepare, *arguments)
    assert code == 128 + signal.SIGTERM
    assert err.startswith(said)
    assert train_until(lambda: None, *arguments)[0] == 0
    assert results(run_of(tmp_path, "method=seq", "tag=run")) == results(whole("method=seq"))


@pytest.mark.parametrize(
    ("words", "step", "act", "code"),
    [
        (["method=seq"], 4, "SIGTERM", 143),  # inside the first epoch
        (["method=seq"], 33, "SIGINT", 130),  # the last step of an epoch, of the second task
        (["method=ewc"], 38, "SIGKILL", -9),  # from the last checkpoint of a few steps before
        (["method=ewc"], 22, "SIGTERM", 143),  # after the last step of a task, whose gradient EWC still needs
        (["method=lwf", "accumulate=2", "activation_checkpointing=true"], 39, "SIGTERM", 143),
        (["method=ind"], 27, "SIGKILL", -9),
        (["method=joint"], 30, "SIGUSR1", 138),
    ],
)
def test_stopped_in_a_task(whole, train_until, run_of, tmp_path, words, step, act, code):
    reference, method = whole(*words), words[0].removeprefix("method=")
    arguments = (f"root={tmp_path}", *words, "tag=run", "checkpoint.every_minutes=0.001")
    stop = after_batch(step, lambda: os.kill(os.getpid(), getattr(signal, act)))
    stopped, err = train_until(stop, *arguments)
    assert stopped == code, err
    if code > 0:
        assert f"stopped by {act} at task {1 + (step > 22 and method != 'joint')} of" in err
        assert "type the same command again" in err
    run = run_of(tmp_path, f"method={method}", "tag=run")
    assert list(run.path.glob("task-*/checkpoint.safetensors"))
    resumed, err = train_until(lambda: None, *arguments)
    assert resumed == 0, err
    assert results(run) == results(reference)


def test_killed_after_every_write(whole, train_until, run_of, tmp_path):
    """Each process dies right after the first file that it has added; the last finds nothing left to add."""
    arguments = (f"root={tmp_path}", "method=ewc", "tag=run")
    reference = whole("method=ewc")

    def die_after_a_new_file() -> None:
        original = Path.replace

        def replace(self, target):
            new = not target.exists()
            original(self, target)
            if new:
                kill()

        Path.replace = replace  # type: ignore[method-assign]

    codes = []
    while not codes or codes[-1] != 0:
        code, err = train_until(die_after_a_new_file, *arguments)
        assert code in (0, -9), err
        codes.append(code)
        assert len(codes) < 30
    assert len(codes) >= 13  # stream, base, θ₀, config, metrics; for each task a checkpoint, encoder, state, evaluation
    run = run_of(tmp_path, "method=ewc", "tag=run")
    assert results(run) == results(reference)
    assert not list(tmp_path.rglob(".partial-*"))
    assert not list(tmp_path.rglob(".lock*"))


def test_a_checkpoint_is_no_pickle_and_belongs_to_its_task(tmp_path):
    state = {"a": torch.ones(2), 3: [1.5, (None, True)], "nan": float("inf"), "nested": {"x": {0: torch.tensor(2)}}}
    io = SafetensorsIO({"task": "0"})
    io.save_checkpoint(state, tmp_path / "c.safetensors")
    back = io.load_checkpoint(tmp_path / "c.safetensors")
    assert torch.equal(back["a"], state["a"])
    assert back["nested"]["x"][0] == 2
    assert (back[3], back["nan"]) == (state[3], state["nan"])
    with pytest.raises(UserError, match="task differs"):
        SafetensorsIO({"task": "1"}).load_checkpoint(tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=r"state_dict\(\)"):
        io.save_checkpoint({"function": print}, tmp_path / "d.safetensors")


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """The file in which a `scontrol` notes what it was asked, within job 77."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return tmp_path / "asked"


@pytest.mark.parametrize("act", ["SIGUSR1", "SIGUSR2"])
def test_slurm_is_asked_to_start_the_job_again(train_until, tmp_path, monkeypatch, scontrol, act):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    stop = after_batch(2, lambda: os.kill(os.getpid(), getattr(signal, act)))
    code, err = train_until(stop, f"root={tmp_path}/runs", "method=seq")
    assert code == 128 + getattr(signal, act)
    assert "SLURM has requeued job 77" in err
    assert scontrol.read_text() == "requeue 77\n"
    assert list((tmp_path / "runs").rglob("checkpoint.safetensors"))


def signalled_before_the_training() -> None:
    Session.open = lambda *_: os.kill(os.getpid(), signal.SIGUSR1)  # type: ignore[method-assign]


def test_a_job_that_does_not_get_on_is_requeued_once(train_until, tmp_path, monkeypatch, scontrol):
    arguments = (signalled_before_the_training, f"root={tmp_path}/runs", "method=seq")
    assert "SLURM has requeued job 77" in train_until(*arguments)[1]
    scontrol.unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    code, err = train_until(*arguments)
    assert code == 138
    assert "error: nothing new was saved since SLURM started job 77 again, so it is not requeued. Give it" in err
    assert not scontrol.exists()


@pytest.mark.parametrize(("answer", "expected"), [("requeue", 3), ("no more", 1)])
def test_what_submitit_does_at_a_signal_follows_the_save(train_until, tmp_path, scontrol, answer, expected):
    def submitit(number, frame):
        assert list((tmp_path / "runs").rglob("checkpoint.safetensors"))
        if answer == "requeue":
            sys.exit(3)
        raise RuntimeError("Job not requeued because: timed-out too many times.")

    def prepare() -> None:
        signal.signal(signal.SIGUSR2, submitit)
        after_batch(2, lambda: os.kill(os.getpid(), signal.SIGUSR2))()

    code, err = train_until(prepare, f"root={tmp_path}/runs", "method=seq")
    assert code == expected
    assert err.startswith("stopped by SIGUSR2 at task 1 of 2")
    assert ("error: Job not requeued because: timed-out too many times." in err) == (expected == 1)
    assert "Traceback" not in err
    assert not scontrol.exists()


def test_a_full_disk_leaves_the_last_good_state(whole, train_until, run_of, tmp_path):
    reference = whole("method=seq")
    arguments = (f"root={tmp_path}", "tag=run", "method=seq", "checkpoint.every_minutes=0")

    def limit(size: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    # θ₀ has 3.3 MB and fits, a checkpoint with Adam's moments has 10 MB and does not.
    for size in (1 << 20, 5 << 20):
        code, err = train_until(limit(size), *arguments)
        assert code == 1
        assert len(err.strip().splitlines()) == 1
        assert "cannot write" in err
        assert not list(tmp_path.rglob(".partial-*"))
    assert train_until(lambda: None, *arguments)[0] == 0
    assert results(run_of(tmp_path, "method=seq", "tag=run")) == results(reference)


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))


@pytest.fixture(scope="module")
def finished(short, run_of, tmp_path_factory):
    """A finished EWC run with a merge, to be damaged and repaired; its arguments; and what must be in it."""
    root = tmp_path_factory.mktemp("damage")
    run = run_of(root, "method=ewc")
    arguments = (f"root={root}", *short, "method=ewc", "epochs=1")
    for script in ("train.py", "merge.py"):
        outcome = command(script, *arguments)
        assert outcome.code == 0, outcome.err
    return run, arguments, results(run)


DAMAGES = ("truncated", "flipped", "deleted")
FILES = ["config.yaml", "stream.json", "base.json", "metrics.json", "base"]
FILES += [f"task-0{t}/{name}" for t in (0, 1) for name in ("encoder.safetensors", "method.safetensors")]
FILES += ["task-00/evaluation.json"]


@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_repaired(finished, name):
    run, arguments, expected = finished
    path = run.base_file() if name == "base" else run.path / name
    sound = path.read_bytes()
    for how in DAMAGES:
        damaged(path, how)
        if (name, how) == ("metrics.json", "deleted"):  # nothing is lost: it is put together from the tasks
            continue
        before = {p: p.read_bytes() for p in files_below(run.root)}
        outcome = command("train.py", *arguments)
        assert outcome.code == 1, (name, how)
        assert len(outcome.err.strip().splitlines()) == 1
        assert path.name in outcome.err
        assert "repair=true" in outcome.err
        if name.startswith("task-") or name == "base":
            merged = command("merge.py", *arguments, "strategy=average")
            assert merged.code == (path.name != "method.safetensors"), merged.err  # which no merge reads
            shutil.rmtree(run.path / "merges/average-1", ignore_errors=True)
        assert before == {p: p.read_bytes() for p in files_below(run.root)}
        if how != DAMAGES[-1]:
            path.write_bytes(sound)
    outcome = command("train.py", *arguments, "repair=true")
    assert outcome.code == 0, outcome.err
    assert ("repair: " in outcome.out) == (name != "metrics.json")
    assert results(run) == expected


def test_a_repaired_task_that_comes_out_different_takes_later_ones_along(finished, monkeypatch):
    run, arguments, expected = finished
    damaged(run.encoder(0), "deleted")
    original = files.write_tensors

    def other_bits(path, tensors, metadata=None):  # as another machine would make them
        if path == run.encoder(0):
            tensors = {name: tensor + 1e-7 for name, tensor in tensors.items()}
        return original(path, tensors, metadata)

    bars = []
    monkeypatch.setattr(files, "write_tensors", other_bits)
    monkeypatch.setattr(StreamProgress, "__exit__", lambda self, *_: bars.append(self.bar.tasks[self.line]))
    assert command("train.py", *arguments, "repair=true").code == 0
    monkeypatch.undo()
    (bar,) = bars
    assert bar.completed == bar.total == 2 * 11  # the bar counts the task that had to be trained again
    assert run.parent(1) == files.verify(run.encoder(0))
    assert results(run)["task-00/encoder.safetensors"] != expected["task-00/encoder.safetensors"]
    for index in (0, 1):
        damaged(run.encoder(index), "deleted")
    assert command("train.py", *arguments, "repair=true").code == 0
    assert results(run) == expected


def test_a_damaged_merge_is_made_again(finished):
    run, arguments, expected = finished
    for name in ("merged.safetensors", "metrics.json"):
        assert "already merged" in command("merge.py", *arguments).out or name == "merged.safetensors"
        damaged(run.path / "merges/magmax-0.5" / name, "flipped")
        outcome = command("merge.py", *arguments)
        assert outcome.code == 0
        assert "merging again" in outcome.out
        assert results(run) == expected


def test_another_base_is_refused(train_until, run_of, tmp_path):
    def other_weights() -> None:  # as another download would have
        original = Inputs.clip

        def load(self):
            clip = original(self)
            with torch.no_grad():
                clip.encoder.proj.add_(1e-6)
            return clip

        Inputs.clip = load  # type: ignore[method-assign]

    arguments = (f"root={tmp_path}", "method=seq")
    code, _ = train_until(after_batch(30, lambda: os.kill(os.getpid(), signal.SIGTERM)), *arguments)
    assert code == 143
    code, err = train_until(other_weights, *arguments)
    assert code == 1
    assert "θ₀ must stay the one" in err


def test_one_writer(train_until, run_of, tmp_path):
    run = run_of(tmp_path, "method=seq")
    with lock.held(run.path):
        code, err = train_until(lambda: None, f"root={tmp_path}", "method=seq")
        assert code == 1
        assert f"is being written by process {os.getpid()} on" in err
        with pytest.raises(UserError, match="one writer"), lock.held(run.path):
            pass
    assert not run.path.exists()  # nothing was written, so nothing stays


def test_a_dead_writer_is_replaced(tmp_path):
    path = tmp_path / "run" / f"{lock.NAME}-0"
    pid = os.fork()
    if not pid:
        with lock.held(tmp_path / "run"):
            os._exit(0)  # as a kill would: nothing is released
    os.waitpid(pid, 0)
    left = json.loads(path.read_text())
    assert left["pid"] == pid
    with lock.held(path.parent):
        (now,) = path.parent.iterdir()
        assert json.loads(now.read_text())["pid"] == os.getpid()
    # One of another machine is dead when it has not been heard of for a minute.
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**left, "machine": "another", "host": "elsewhere"}))
    with pytest.raises(UserError, match="on elsewhere"), lock.held(path.parent):
        pass
    os.utime(path, (time.time() - lock.STALE - 1,) * 2)
    with lock.held(path.parent) as mine:
        mine.check()
        # And one that finds itself replaced writes nothing more.
        mine.path.write_text(json.dumps({**left, "host": "elsewhere"}))
        with pytest.raises(UserError, match="was taken over by process"):
            mine.check()


def test_a_job_that_was_started_again_waits_for_the_lock_of_its_killed_process(tmp_path, monkeypatch, capsys):
    path = tmp_path / f"{lock.NAME}-0"
    monkeypatch.setattr(lock, "STALE", 0.1)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    path.write_text(json.dumps({"machine": "another", "host": "n1", "pid": 5, "since": "ten", "job": 77, "start": 0}))
    with pytest.raises(UserError, match="on n1"), lock.held(tmp_path):  # the same start, from another node
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    path.touch()
    with lock.held(tmp_path) as mine:
        content = json.loads(mine.path.read_text())
        assert (content["job"], content["start"]) == (77, 1)
    assert (
        capsys.readouterr().err == "waiting for the lock of process 5 on n1 since ten, an earlier start of this job\n"
    )
    path.write_text(json.dumps({"machine": "another", "host": "n1", "job": 77, "start": 0}))
    monkeypatch.setattr(lock, "STALE", 100)
    monkeypatch.setattr(lock, "PATIENCE", 0)
    with pytest.raises(UserError, match="on n1"), lock.held(tmp_path):  # it goes on touching its lock
        pass


def test_only_one_of_many_takes_a_stale_lock_over(tmp_path):
    stale = json.dumps({"machine": lock._machine(), "pid": 1 << 30, "born": "1", "token": "old"})
    for _ in range(50):
        (tmp_path / f"{lock.NAME}-0").write_text(stale)
        won, start = [], threading.Barrier(8)

        def compete(won=won, start=start) -> None:
            start.wait()
            with suppress(UserError):
                won.append(lock._acquire(tmp_path))

        threads = [threading.Thread(target=compete) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].release()
    assert not files_below(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_task(short, tmp_path):
    outcome = command("train.py", f"root={tmp_path}", *short, "method=seq", "optimizer.lr=1e30")
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1
    for text in ("must be finite; it is nan at task 1 of 2, epoch 1, step", "optimizer.lr", "precision", "data.root"):
        assert text in outcome.err
    assert not list(tmp_path.rglob("encoder.safetensors"))
    for path in tmp_path.rglob("checkpoint.safetensors"):
        assert all(tensor.isfinite().all() for tensor in files.read_tensors(path).values())


def test_spikes_by_hand():
    health = Health("task 1 of 1")
    losses = [1.0] * 25 + [4.9, 6.0, 1.0, 60.0]  # the means before 4.9, 6 and 60 are 1, 1.078 and about 1.17
    norms = [100.0] + [1.0] * 28  # within the first 20 steps nothing counts
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        health.pending.append((0, step + 1, torch.tensor(loss), torch.tensor(norm)))
    health.check()
    assert health.spikes == {"loss": 2, "gradient_norm": 0}
    again = Health("task 1 of 1")
    again.load_state_dict(health.state_dict())
    assert again.state_dict() == health.state_dict()
    health.pending.append((1, 7, torch.tensor(1.0), torch.tensor(float("inf"))))
    with pytest.raises(UserError, match="gradient norm must be finite; it is inf at task 1 of 1, epoch 2, step 7"):
        health.check()
    health.scaled = True  # the scaler of 16-mixed leaves such a step out
    health.check()


def test_provenance(finished):
    run, _, _ = finished
    metrics = files.read_json(run.metrics)
    hashes = {"base_sha256", "data_sha256"}
    assert set(metrics["provenance"]) == {"command", "precision", "eval_precision", "begun", "finished", *hashes}
    begun = metrics["provenance"]["begun"]
    assert set(begun) == {"at", "command", "environment", "precision", "git"}
    assert begun["at"] <= metrics["provenance"]["finished"]
    assert begun["environment"] == metrics["environment"]
    assert metrics["provenance"]["base_sha256"] == run.base()["sha256"]
    assert {"packages", "cpu", "gpus", "processes"} <= set(metrics["environment"])
    merged = files.read_json(run.path / "merges/magmax-0.5/metrics.json")
    assert merged["provenance"]["data_sha256"] == metrics["provenance"]["data_sha256"]


@pytest.mark.parametrize(
    "target", ["os.system", "torch.os.system", "builtins.eval", "mergestream.runtime.files.os.remove", "torch.load"]
)
def test_configs_call_into_known_packages_only(tmp_path, target):
    for key in ("method", "optimizer", "schedule"):
        overrides = [f"{key}._target_={target}" if key != "schedule" else f"+method.id={{_target_:{target}}}"]
        outcome = command("train.py", f"root={tmp_path}", *overrides)
        assert outcome.code == 1
        assert len(outcome.err.strip().splitlines()) == 1
        assert not files_below(tmp_path)


def test_a_user_can_allow_a_package(short, tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text("from mergestream.methods.method import Method\nclass Mine(Method): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)  # of another test
    arguments = [f"root={tmp_path}/runs", *short, "method._target_=my_package.Mine", "method.id=mine"]
    outcome = command("train.py", *arguments)
    assert outcome.code == 1
    assert "allow_targets=[my_package]" in outcome.err
    assert command("train.py", *arguments, "allow_targets=[my_package]").code == 0
    sys.modules.pop("my_package", None)


def test_a_file_cannot_allow_a_package(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/theirs.yaml").write_text("# @package _global_\nallow_targets: [os]\n")
    arguments = [f"root={tmp_path}/runs", f"hydra.searchpath=[file://{tmp_path}]", "+experiment=theirs"]
    outcome = command("train.py", *arguments)
    assert outcome.code == 1
    assert "allow_targets=['os'] works on the command line only" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_method_that_breaks_down_saves_no_state(short, tmp_path, monkeypatch):
    from mergestream.methods.ewc import EWC

    monkeypatch.setattr(EWC, "state", lambda self: {"0/fisher/proj": torch.tensor([1.0, float("inf")])})
    outcome = command("train.py", f"root={tmp_path}", *short, "method=ewc")
    assert outcome.code == 1
    assert "state of method=ewc must be finite; it is not in 0/fisher/proj at the end of task 1 of 2" in outcome.err
    assert not list(tmp_path.rglob("method.safetensors"))


def test_an_archive_cannot_write_outside_its_folder(tmp_path):
    from mergestream.data.archive import archive_errors

    (tmp_path / "evil").write_text("x")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "evil", arcname="../../escaped")
    with (
        pytest.raises(UserError, match="outside the destination"),
        archive_errors("x", tmp_path / "into", str(tmp_path), files="a.tar", size="1 MB", website="somewhere"),
        tarfile.open(tmp_path / "a.tar") as archive,
    ):
        archive.extractall(tmp_path / "into/deep")
    assert not list(tmp_path.rglob("escaped"))


def test_a_path_in_metadata_is_not_followed(finished, monkeypatch):
    run, _, _ = finished
    base = files.read_json(run.path / "base.json")
    original = (run.path / "base.json").read_bytes()
    files.write_json(run.path / "base.json", {**base, "sha256": "../../../etc/passwd"})
    try:
        with pytest.raises(UserError, match="64 hexadecimal digits"):
            run.base_file()
    finally:
        (run.path / "base.json").write_bytes(original)


def test_signals_outside_training_stop_at_once():
    def work() -> None:
        with interrupt.watching():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    def deferred() -> None:
        with interrupt.watching() as signals, signals.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            asked.append(signals.requested)  # the block goes on to its end

    asked: list[int] = []
    for call, code in ((work, 143), (deferred, 130)):
        with pytest.raises(interrupt.Stopped) as stopped:
            call()
        assert stopped.value.code == code
    assert asked == [signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

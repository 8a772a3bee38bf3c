"""Tasks that arrive: the outcome is that of a run which had all tasks from the start."""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import save
from helpers import command, files_below, forked
from safetensors.torch import load_file

from mergestream.metrics import row, still_known
from mergestream.runtime import files
from mergestream.runtime.interrupt import Stopped
from mergestream.training import arrivals
from mergestream.training import run as training_run

TASKS = {
    "1": ("ant", "bee"),
    "2": ("cat", "dog"),
    "10": ("bee", "asp"),
    "11": ("fox", "elk"),
}  # asp sorts before the classes that are known
WORDS = ("dataset=folder", "stream=folders", "model=tiny", "epochs=1", "batch_size=8", "stream.validation=0.25")


def write(top: Path, *names: str) -> None:
    """Write the images of tasks: 8 of each class for training and validation, 2 for the test."""
    for name in names:
        for label, class_name in enumerate(TASKS[name]):
            for number in range(10):
                part = "test" if number < 2 else "train"
                save(top / name / part / class_name / f"{number}.png", 7 * int(name) + label, number)


def train(root: Path, data: Path, *words: str) -> Any:
    outcome = command("train.py", f"root={root}", f"dataset.path={data}", *WORDS, *words)
    assert outcome.code == 0, outcome.err
    return outcome


def refusal(root: Path, data: Path, *words: str) -> str:
    run = root / "folder"
    before = {path: path.read_bytes() for path in files_below(run)}
    outcome = command("train.py", f"root={root}", f"dataset.path={data}", *WORDS, *words)
    assert outcome.code == 1
    assert {path: path.read_bytes() for path in files_below(run)} == before
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    return line


def merge(root: Path, data: Path, *words: str) -> None:
    outcome = command("merge.py", f"root={root}", f"dataset.path={data}", *WORDS, *words)
    assert outcome.code == 0, outcome.err


def tensors(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in files_below(root) if p.suffix == ".safetensors"}


def results(root: Path) -> dict[str, Any]:
    """The numbers of every metrics.json, by its place."""
    found = {}
    for path in root.rglob("metrics.json"):
        content = files.read_json(path, own=True)
        hashes = {key: value for key, value in content["provenance"].items() if key.endswith("_sha256")}
        for key in ("timing", "environment", "git", "config"):
            del content[key]
        found[str(path.relative_to(root))] = {**content, "provenance": hashes}
    return found


def same_where_known(found: Any, expected: Any) -> bool:
    """Whether two values agree, up to what is None in the first."""
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(same_where_known(found[k], expected[k]) for k in found)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(same_where_known, found, expected))
    return found is None or found == expected


@pytest.mark.parametrize(
    "words",
    [
        ("method=seq",),
        ("method=ind", "evaluate=last"),
        ("method=ewc",),
        ("method=lwf", "merge_every_task=true"),
        ("method=zeroshot",),
        ("method=merged", "strategy=average"),
        ("method=seq", "merge_every_task=true", "keep_tasks=false"),
    ],
    ids=lambda words: "-".join(word.split("=")[-1] for word in words),
)
def test_what_comes_out_equals_a_run_that_had_all_tasks(words, tmp_path):
    data, grown, whole = (tmp_path / name for name in ("data", "grown", "whole"))
    kept = "keep_tasks=false" not in words
    with_merges = kept and words != ("method=zeroshot",)
    write(data, "1", "2")
    train(grown, data, *words)
    if with_merges:
        merge(grown, data, words[0], "lambda=select", "prefixes=true")
        merge(grown, data, words[0], "strategy=ties", "export=open_clip")
        merge(grown, data, words[0], "strategy=ties", "export=classifier")
    write(data, "10")
    if not kept:
        assert "repeat merge_every_task=true keep_tasks=false" in refusal(grown, data, "method=seq")
        assert "repeat merge_every_task=true keep_tasks=false" in refusal(grown, data, "merge_every_task=true")
    said = train(grown, data, *words)
    assert "already" not in said.out
    train(whole, data, *words)
    if with_merges:
        merge(whole, data, words[0], "lambda=select", "prefixes=true")
        merge(whole, data, words[0], "strategy=ties", "export=open_clip")
        merge(whole, data, words[0], "strategy=ties", "export=classifier")
    assert tensors(grown) == tensors(whole)
    found, expected = results(grown), results(whole)
    assert found.keys() == expected.keys()
    assert found == expected if kept else same_where_known(found, expected)
    again = train(grown, data, *words)
    assert "already finished, nothing to do" in again.out
    if not kept:  # classes have been added since the first encoder was measured and dropped
        (run,) = (content for place, content in found.items() if "merges" not in place)
        assert run["accuracy"]["task_agnostic"][0] == [None, None, None]
        assert run["accuracy"]["task_aware"][0][:1] == expected[min(found, key=len)]["accuracy"]["task_aware"][0][:1]
        assert None not in run["seen"] + run["accuracy"]["task_agnostic"][1]
        assert run["summary"]["average_incremental_accuracy"] is not None
        assert run["summary"]["forgetting"] is None
        report = command("report.py", f"root={grown}")
        assert report.code == 0, report.err
        assert "without forgetting" in report.out


def die_when(module: Any, name: str, wanted: str) -> None:
    """End this process like a power cut when `module.name` is called with an argument that ends in `wanted`."""
    real = getattr(module, name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        if str(arguments[0]).endswith(wanted) or (wanted == "third" and getattr(arguments[1], "index", 0) == 2):
            os._exit(137)
        return real(*arguments, **keywords)

    setattr(module, name, call)


@pytest.fixture(scope="module")
def arrived(tmp_path_factory) -> Path:
    """A folder where task 10 has just arrived: its data, a run of the tasks before, and a run of all tasks.

    Paths in it are relative, so that a copy of it goes on to the same bytes.
    """
    top = tmp_path_factory.mktemp("arrived")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        write(Path("data"), "1", "2")
        train(Path("grown"), Path("data"), "merge_every_task=true")
        write(Path("data"), "10")
        train(Path("whole"), Path("data"), "merge_every_task=true")
    return top


@pytest.fixture
def here(arrived, tmp_path, monkeypatch) -> Path:
    """A copy of `arrived`, in the working folder."""
    shutil.copytree(arrived, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path()


@pytest.mark.parametrize(
    ("module", "name", "wanted"),
    [
        (files, "write_json", "images.json"),
        (files, "write_json", "task-00/evaluation.json"),
        (files, "write_json", "magmax-0.5/metrics.json"),
        (training_run, "record", "third"),
    ],
    ids=["arriving", "measuring", "finishing", "recording"],
)
def test_a_kill_in_between_changes_nothing(module, name, wanted, here):
    def killed() -> Any:
        die_when(module, name, wanted)
        return train(here / "grown", here / "data", "merge_every_task=true")

    assert forked(killed).code == 137
    train(here / "grown", here / "data", "merge_every_task=true")
    assert tensors(here / "grown") == tensors(here / "whole")
    assert results(here / "grown") == results(here / "whole")


def test_two_processes_take_tasks_in_together(here):
    words = ("merge_every_task=true", "devices=2", "accelerator=cpu", "evaluate=last")
    outcome = forked(partial(train, here / "grown", here / "data", *words))
    assert outcome.code == 0, outcome.err
    found, expected = (
        {place: content["test_samples"] for place, content in results(here / name).items()}
        for name in ("grown", "whole")
    )
    assert found == expected


def test_data_of_trained_tasks_must_stay(tmp_path):
    data, root = tmp_path / "data", tmp_path / "runs"
    write(data, "1", "2")
    train(root, data)
    picture = data / "1/train/ant/5.png"
    content = picture.read_bytes()

    def task(name: str, *found: str) -> str:
        counts = f"task {name}, with 16 training and 4 test images: {', '.join(found)}. Restore them"
        return f"error: the images of a trained task must stay as they were; {counts}"

    picture.touch()  # another time, the same content
    assert "already finished" in train(root, data).out
    save(picture, 50, 5)
    shutil.rmtree(data / "1/test/bee")
    assert refusal(root, data) == task("1", "1 training images changed", "2 test images are gone")
    assert command("merge.py", f"root={root}", f"dataset.path={data}", *WORDS).err.strip() == task(
        "1", "1 training images changed", "2 test images are gone"
    )
    save(data / "1/test/bee/0.png", 8, 0)
    save(data / "1/test/bee/1.png", 8, 1)
    picture.unlink()
    forget = ", or write data.forget=true if you deleted them on purpose"
    assert refusal(root, data) == task("1", "1 training images are gone") + forget
    picture.write_bytes(content)
    save(data / "2/train/dog/new.png", 9, 9)
    assert "task 2 has 1 new ones, such as" in refusal(root, data)
    (data / "2/train/dog/new.png").unlink()
    (data / "0").mkdir()
    save(data / "0/ant/0.png", 1, 1)
    save(data / "0/ant/1.png", 1, 2)
    assert "must sort after the trained ones; 0 comes before 1, whose training has begun" in refusal(root, data)


def test_rows_are_measured_again_when_a_task_that_waits_has_changed(here):
    words = ("merge_every_task=true",)

    def killed() -> Any:
        die_when(training_run, "record", "third")
        return train(here / "grown", here / "data", *words)

    assert forked(killed).code == 137
    shutil.rmtree(next(Path("grown").rglob("task-02")))  # as if the training had been killed before its first save
    for number in range(2, 10):
        save(here / "data/10/test/bee" / f"{number}.png", 30, number)
    train(here / "grown", here / "data", *words)
    shutil.rmtree(here / "whole")
    train(here / "whole", here / "data", *words)
    assert results(here / "grown") == results(here / "whole")
    assert tensors(here / "grown") == tensors(here / "whole")


def test_what_was_trained_may_be_forgotten(tmp_path):
    data, root = tmp_path / "data", tmp_path / "runs"
    write(data, "1", "2")
    train(root, data)
    shutil.rmtree(data / "1")
    shutil.rmtree(data / "2/train")
    write(data, "10")
    assert "data.forget=true" in refusal(root, data)
    said = train(root, data, "data.forget=true")
    assert "task 1 has no test images any more, so its accuracies are unknown" in said.err
    (path,) = (p for p in root.rglob("metrics.json") if "merges" not in p.parts)
    found = files.read_json(path)
    assert found["test_samples"] == [0, 4, 4]
    assert [r[0] for r in found["accuracy"]["task_agnostic"]] == [None] * 3
    assert found["overall"][2] is not None
    merge(root, data, "data.forget=true")
    outcome = command("merge.py", f"root={root}", f"dataset.path={data}", *WORDS, "data.forget=true", "lambda=select")
    assert (outcome.code, "lambda=select needs validation data" in outcome.err) == (1, True)


def test_adjusted_merges_are_brought_up_to_date(tmp_path):
    """One with a weight for each task cannot be, and stays; so does a β when validation images are gone."""
    data, root = tmp_path / "data", tmp_path / "runs"
    write(data, "1", "2")
    train(root, data)
    merge(root, data, "calibration=lines", "candidates=[0.5,2]", "depth=[1,0.5]")
    merge(root, data, "weights=[1,2]")
    before = {Path(name).parent.name: content for name, content in tensors(root).items() if "merges" in name}
    shutil.rmtree(data / "1")
    write(data, "10")
    (path,) = (p for p in root.rglob("metrics.json") if "calibration=lines" in p.parent.name)
    chosen = files.read_json(path)["merge"]["calibration"]["beta"]
    said = train(root, data, "data.forget=true")
    assert f"calibration.beta = {chosen:g} stays as it was chosen, since validation images are gone" in said.out
    assert "magmax-weights=[1.0,2.0]-0.5 stays as it is: it has 2 weights for 3 tasks" in said.err
    assert files.read_json(path)["merge"]["calibration"]["beta"] == chosen
    assert len(files.read_json(path)["test_samples"]) == 3
    after = {Path(name).parent.name: content for name, content in tensors(root).items() if "merges" in name}
    assert [name for name in before if before[name] == after[name]] == ["magmax-weights=[1.0,2.0]-0.5"]


def test_rows_with_a_new_task_arrive_like_a_folder(here):
    """A table gives the same bytes as the folders that it lists; then the images of a trained task are deleted."""
    words = ("stream=folders", "model=tiny", "epochs=1", "batch_size=8", "stream.validation=0.25", "root=listed")
    words += ("dataset=table", "dataset.path=data/labels.csv", "data.forget=true")
    paths = sorted(path.relative_to("data") for path in Path("data").rglob("*.png"))
    rows = [f"{path},{path.parts[2]},{path.parts[0]},{path.parts[1]}" for path in paths]
    for tasks in ("12", "1210"):
        known = [row for row in rows if row.split(",")[2] in tasks]
        Path("data/labels.csv").write_text("\n".join(["path,label,task,split", *known]) + "\n")
        outcome = command("train.py", *words)
        assert outcome.code == 0, outcome.err
        if tasks == "12":
            wrong = [row.replace(",ant,", ",bee,") for row in known]
            Path("data/labels.csv").write_text("\n".join(["path,label,task,split", *wrong]) + "\n")
            assert "in task 1, 10 images have another label, such as" in command("train.py", *words).err
        shutil.rmtree("data/1", ignore_errors=True)
    (listed,) = Path("listed").rglob("task-02/encoder.safetensors")
    (whole,) = Path("whole").rglob("task-02/encoder.safetensors")
    found, expected = load_file(listed), load_file(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_domain_arrives_if_it_sorts_last(tmp_path):
    data, root = tmp_path / "data", tmp_path / "runs"
    words = ("dataset=folder", "stream=domain", f"dataset.path={data}", "model=tiny", "epochs=1", "method=ind")
    for domain in ("drawn", "photo"):
        for number in range(10):
            save(data / domain / "ant" / f"{number}.png", 1, number)
            save(data / domain / "bee" / f"{number}.png", 2, number)
    first = command("train.py", f"root={root}", *words)
    assert first.code == 0, first.err
    shutil.copytree(data / "photo", data / "sketch")
    again = command("train.py", f"root={root}", *words)
    assert again.code == 0, again.err
    assert "task 3/3" in again.out
    save(data / "toys/ant/0.png", 1, 0)
    save(data / "toys/ant/1.png", 1, 1)
    save(data / "toys/cat/0.png", 3, 0)
    save(data / "toys/cat/1.png", 3, 1)
    wider = command("train.py", f"root={root}", *words)
    assert "a task that arrives must leave the trained ones as they are; task drawn of" in wider.err


def test_joint_training_takes_no_tasks_later(tmp_path):
    data, root = tmp_path / "data", tmp_path / "runs"
    write(data, "1")
    train(root, data, "method=joint")
    write(data, "2")
    assert "method=joint trains on all tasks at once, so it takes no tasks later; 2 arrived" in refusal(
        root, data, "method=joint"
    )
    shutil.rmtree(data / "2")
    save(data / "1/train/ant/5.png", 50, 5)
    assert "4 test images: 1 training images changed" in refusal(root, data, "method=joint")


def test_it_waits_for_tasks(tmp_path, monkeypatch):
    data, root = tmp_path / "data", tmp_path / "runs"
    write(data, "1")
    events = [lambda: None, lambda: write(data, "2"), lambda: (data / "3").mkdir(), lambda: write(data, "10")]

    def sleep(seconds: float) -> None:
        if not events:
            raise Stopped(signal.SIGTERM)
        events.pop(0)()

    monkeypatch.setattr(arrivals.time, "sleep", sleep)
    outcome = command("train.py", f"root={root}", f"dataset.path={data}", *WORDS, "watch=0.000001")
    assert outcome.code == 128 + signal.SIGTERM
    assert outcome.err.count("error: ") == 2  # an empty folder, which is still there when task 10 comes
    assert outcome.out.count("waiting for tasks to arrive in") == 4
    (path,) = (p for p in root.rglob("metrics.json") if "merges" not in p.parts)
    assert files.read_json(path)["test_samples"] == [4, 4]
    assert "watch needs a stream that grows" in command("train.py", f"root={root}", "watch=60").err
    assert "watch is for a single run" in command("train.py", "-m", f"root={root}", "seed=1", "watch=60").err


def test_counts_of_an_encoder_that_is_gone():
    counts = {"total": [4, 6], "agnostic": [1, 3], "aware": [2, 4], "seen_correct": [2, 0]}
    found = row(still_known(counts, 1, 3), 1)
    assert json.dumps([found.task_agnostic, found.task_aware]) == "[[NaN, NaN, NaN], [0.5, NaN, NaN]]"
    assert (found.overall != found.overall, found.seen) == (True, 0.5)

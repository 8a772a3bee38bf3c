"""A folder of tasks, and that more of them change nothing of those that were there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from archives import codes, error_line, load, save
from helpers import command, config
from omegaconf import OmegaConf

from mergestream.compose.checks import check_training
from mergestream.compose.inputs import Inputs
from mergestream.compose.run import run_of
from mergestream.data.images import image_paths
from mergestream.data.parts import natural_key
from mergestream.data.source import Source
from mergestream.data.stream import describe
from mergestream.data.tasks import domain_incremental, folder_incremental
from mergestream.runs.identity import config_hash
from mergestream.runtime.files import read_json

# The classes of each task; b and c repeat classes of a, and c has one class alone. A code tells class and task.
TASKS = {"a": ("hen", "red_fox"), "b": ("cat", "hen"), "c": ("red_fox",)}
CODES = {"hen": 0, "red_fox": 1, "cat": 2, "owl": 3}


def write_tasks(top: Path, tasks: dict[str, tuple[str, ...]], divided: bool, files: int = 10) -> Path:
    """Write DIR/<task>/<class>/*, or DIR/<task>/{train,test}/<class>/* with a fifth of the images in test."""
    for task, names in tasks.items():
        for name in names:
            for number in range(files):
                part = ("test" if number < files // 5 else "train") if divided else ""
                save(top / task / part / name / f"{number}.png", CODES[name] + 10 * ord(task[0]), number)
    return top


def read(top: Path) -> Source:
    return load("folder", top, "dataset.layout=tasks", results=top.parent / "results")


def refusal(top: Path) -> str:
    return error_line("folder", top, "dataset.layout=tasks")


@pytest.mark.parametrize("divided", [False, True])
def test_a_class_has_one_id_in_all_tasks(tmp_path, divided):
    source = read(write_tasks(tmp_path / "data", TASKS, divided))
    assert source.class_names == ["hen", "red fox", "cat"]
    assert source.prompts[1] == ["a photo of a red fox."]
    assert source.domain_names == ["a", "b", "c"]
    assert source.domain_classes == [[0, 1], [0, 2], [1]]
    for split, count in ((source.train, 8), (source.test, 2)):
        assert np.bincount(split.domains).tolist() == [2 * count, 2 * count, count]
        found = [(label % 10, chr(label // 10)) for label, _ in codes(split)]
        assert found == [(label, "abc"[d]) for label, d in zip(split.labels, split.domains, strict=True)]
    tasks = folder_incremental(source, tasks=None, seed=5, validation=0.25)
    assert [(task.name, task.classes) for task in tasks] == [("a", [0, 1]), ("b", [0, 2]), ("c", [1])]
    assert [[len(task.train), len(task.validation), len(task.test)] for task in tasks] == [[12, 4, 4]] * 2 + [[6, 2, 2]]


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("divide", [folder_incremental, domain_incremental])
def test_another_task_leaves_the_others_as_they_were(tmp_path, divided, divide):
    how = {"tasks": None, "seed": 5, "validation": 0.25}
    how |= {"order": "natural"} if divide is domain_incremental else {}
    top, late = write_tasks(tmp_path / "data", TASKS, divided), {"d": ("cat", "hen", "red_fox")}
    if divide is folder_incremental:  # a domain-incremental head has all classes, so there it stays the same
        late = {"d": ("cat", "aardvark", "hen"), "e": ("owl",)}
    CODES.setdefault("aardvark", 4)
    before = read(top)
    described = describe(before, divide(before, **how))["tasks"]
    after = read(write_tasks(top, late, divided))
    assert describe(after, divide(after, **how))["tasks"][:3] == described
    assert list(after.class_names)[:3] == list(before.class_names)
    assert list(after.domain_classes)[:3] == list(before.domain_classes)
    assert {name: after.notes.get(name) for name in before.notes} == before.notes
    for old, new in ((before.train, after.train), (before.test, after.test)):
        assert len(new) > len(old)
        assert new.labels[: len(old)].tolist() == old.labels.tolist()
        assert new.domains[: len(old)].tolist() == old.domains.tolist()
        assert list(image_paths(new.images))[: len(old)] == list(image_paths(old.images))


def test_tasks_are_in_natural_order(tmp_path):
    assert sorted(["10", "a10", "9", "a9", "a09", "b"], key=natural_key) == ["9", "10", "a09", "a9", "a10", "b"]
    write_tasks(tmp_path / "data", {"step 10": ("cat",), "step 9": ("hen",)}, divided=False)
    assert read(tmp_path / "data").domain_names == ["step 9", "step 10"]


def test_a_test_class_may_be_one_that_another_task_trains(tmp_path):
    top = write_tasks(tmp_path / "data", {"a": ("hen", "cat"), "b": ("hen",)}, divided=True)
    for folder in ("b/test/cat", "a/test/owl", "b/train/owl"):
        save(top / folder / "0.png", 0, 0)
    source = read(top)
    assert source.class_names == ["cat", "hen", "owl"]
    assert source.domain_classes == [[0, 1, 2], [0, 1, 2]]
    save(top / "b/test/fox/0.png", 0, 0)
    assert refusal(top) == (
        f"a class must have training images in a task of {top}; fox has only test images, in task b"
    )


def test_errors_for_folders_that_are_no_tasks(tmp_path):
    assert refusal(tmp_path) == (
        f"dataset.path must hold a folder for each task, with a folder for each class; {tmp_path} has none"
    )
    top = write_tasks(tmp_path / "data", {"a": ("hen", "cat")}, divided=True)
    assert refusal(top / "a") == (
        f"dataset.path must hold a folder for each task, with a folder for each class; {top}/a has test, train, "
        "which are splits. Put them into a folder of their own, or write stream=class"
    )
    assert refusal(top / "a/train") == (
        f"{top}/a/train/cat must hold a folder of images for each class of its task; it has 2.png itself. Move its "
        "images into a folder, or write stream=class if the folders are classes"
    )
    (top / "b").mkdir()
    assert refusal(top) == f"dataset.path must hold a folder of images for each class; {top}/b has none"
    (top / "b/cat").mkdir()
    assert refusal(top) == f"dataset.path must hold images in every class; {top}/b/cat has none"


def test_error_for_classes_of_two_tasks_that_are_the_same_once_spoken(tmp_path):
    top = write_tasks(tmp_path / "data", {"a": ("hen", "red_fox"), "b": ("hen",)}, divided=False)
    save(top / "b/Red fox/0.png", 0, 0)
    assert refusal(top) == (
        "two classes must not share their prompts; 'a/red_fox' and 'b/Red fox' are the same to CLIP. Rename one of "
        "them, or merge them"
    )


def test_tasks_of_a_folder_train_and_merge(tmp_path):
    top = write_tasks(tmp_path / "data", TASKS, divided=False)
    words = [f"root={tmp_path}/runs", "dataset=folder", f"dataset.path={top}", "dataset.name=mine", "stream=folders"]
    words += ["model=tiny", "epochs=1"]
    outcome = command("train.py", *words, "tasks=2")
    assert outcome.code == 1
    assert outcome.err.endswith("error: tasks must be 3, one for each of a, b, c; got tasks=2\n")
    for script, more in (("train.py", ["tasks=3"]), ("train.py", []), ("merge.py", ["tasks=3"]), ("report.py", [])):
        outcome = command(script, *(words if script != "report.py" else words[:1]), *more)
        assert outcome.code == 0, outcome.err
    assert "mine, folder-incremental, 3 tasks, tiny" in outcome.out
    run = tmp_path / "runs/mine/folders/tiny/seq/seed-5"
    assert read_json(run / "metrics.json", "config")["config"]["tasks"] is None
    assert [task["classes"] for task in read_json(run / "stream.json", "tasks")["tasks"]] == [[0, 1], [0, 2], [1]]


def test_domains_of_a_folder_have_a_run_that_more_domains_may_join(tmp_path):
    top = write_tasks(tmp_path / "data", TASKS, divided=False)
    words = ["dataset=folder", f"dataset.path={top}", "stream=domain", "stream.order=shuffled", f"root={tmp_path}/runs"]
    cfg = config("train", *words)
    OmegaConf.resolve(cfg)
    check_training(cfg)
    assert run_of(cfg).path == tmp_path / "runs/folder/domain/vit_b_16/seq/seed-5"
    tasks = Inputs(cfg).description()["tasks"]
    assert {task["name"]: task["classes"] for task in tasks} == {name: [0, 1, 2] for name in "abc"}
    glyphs = config("train", "dataset=glyphs", "stream=domain")
    assert run_of(glyphs).path == Path("runs/glyphs/domain-6/tiny/seq/seed-5")
    before = OmegaConf.to_container(glyphs, resolve=True)
    del before["stream"]["layout"]
    assert config_hash(OmegaConf.to_container(glyphs, resolve=True)) == config_hash(before)


def test_errors_for_streams_that_the_data_cannot_have(tmp_path):
    for words, said in (
        (
            ["stream=folders"],
            "stream=folders needs data of your own, dataset=folder or dataset=table; got dataset=digits",
        ),
        (["tasks=null"], "tasks must be a whole number, 1 or more, with stream=class; got tasks=null"),
        (
            ["dataset=folder", "stream=folders", "epochs=[1,2]"],
            "epochs must be one number with stream=folders, whose data decide the number of tasks; got epochs=[1, 2]. "
            "Write for example epochs=10.",
        ),
        (
            ["dataset=folder", "stream=folders", f"dataset.path={tmp_path}", "dataset.layout=pile"],
            "dataset.layout must be one of classes, tasks; got dataset.layout=pile",
        ),
        (
            ["dataset=folder", "stream=folders", f"dataset.path={tmp_path}/d", "dataset.layout=classes", "model=tiny"],
            "stream=folders needs data with tasks: dataset.layout=tasks for a folder of them, or a column task in a "
            "table. Otherwise write stream=class",
        ),
    ):
        write_tasks(tmp_path / "d", {"a": ("hen",), "b": ("cat",)}, divided=False, files=2)
        outcome = command("train.py", f"root={tmp_path}/runs", *words)
        assert (outcome.code, outcome.err) == (1, f"error: {said}\n")

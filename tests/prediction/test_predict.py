"""predict.py: pictures of digits, classified by a merge, by other encoders, and by an exported classifier."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import save
from helpers import Outcome, command, config, files_below, forked
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from mergestream.compose.held_out import held_out_settings
from mergestream.compose.prediction import prediction_settings
from mergestream.data.images import ImageFiles
from mergestream.data.source import Source, Split
from mergestream.data.sources.digits import digits
from mergestream.models import tiny
from mergestream.models.clip import text_head
from mergestream.prediction import run as prediction
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.interrupt import Stopped

RUN = ("tasks=3", "epochs=1")


@pytest.fixture(scope="module")
def merged(trained, tmp_path_factory):
    """A root with a merged run and its classifier. Not to be changed."""
    root = tmp_path_factory.mktemp("merged")
    shutil.copytree(trained / "digits/class-3/tiny/seq", root / "digits/class-3/tiny/seq")
    shutil.copytree(trained / "_base", root / "_base")
    outcome = command("merge.py", f"root={root}", *RUN, "export=classifier")
    assert outcome.code == 0, outcome.err
    return root


@pytest.fixture(scope="module")
def folder(merged):
    """The folder of the merge."""
    return next(merged.rglob("merged.safetensors")).parent


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Nine digits in two folders, and files that are no pictures."""
    top, images = tmp_path_factory.mktemp("pictures"), load_digits().images
    for number in range(9):
        path = top / ("more" if number % 3 == 0 else "") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((images[number] * 15.9).astype(np.uint8)).save(path)
    (top / "notes.txt").write_text("no picture")
    (top / ".hidden.png").write_text("no picture")
    return top


@pytest.fixture
def predict(merged, monkeypatch, tmp_path):
    """Run predict.py in an empty folder for the run."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: command("predict.py", f"root={merged}", *RUN, *words)


def expected(paths, weights, prompts, names, temperature=1.0):
    """For each path the names and probabilities in a plain loop, best first."""
    clip = tiny.tiny()
    clip.encoder.load_state_dict(load_file(weights))
    found = []
    with torch.no_grad():
        head = text_head(clip, prompts)
        for path in paths:
            pixels = clip.transforms.eval(Image.open(path).convert("RGB"))
            p = (head(clip.encoder(pixels[None]))[0].double() / temperature).softmax(0).tolist()
            found.append(sorted(zip(names, p, strict=True), key=lambda pair: -pair[1]))
    return found


def require_near(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert [name for name, _ in one] == [name for name, _ in other[: len(one)]]
        assert [float(p) for _, p in one] == pytest.approx([p for _, p in other[: len(one)]], abs=1e-5)


def rows_of(path):
    return list(csv.reader(io.StringIO(path.read_text(errors="surrogateescape"))))


def of_csv(path):
    """The paths and the answers of a CSV file."""
    rows = rows_of(path)
    columns = range(1, len(rows[0]) - 1, 2)
    return [row[0] for row in rows[1:]], [[(row[c], row[c + 1]) for c in columns] for row in rows[1:]]


def test_a_folder_is_classified_by_the_merge(predict, pictures, folder, tmp_path):
    outcome = predict(f"images={pictures}", "out=answers.csv")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert (
        (tmp_path / "answers.csv")
        .read_text()
        .startswith("path,class,probability,class_2,probability_2,class_3,probability_3,error\n")
    )
    source = digits()
    paths, answers = of_csv(tmp_path / "answers.csv")
    assert paths == [
        *(f"{pictures}/{n}.png" for n in (1, 2, 4, 5, 7, 8)),
        *(f"{pictures}/more/{n}.png" for n in (0, 3, 6)),
    ]
    require_near(answers, expected(paths, folder / "merged.safetensors", source.prompts, source.class_names))
    title, header, *lines = outcome.out.splitlines()
    assert title.startswith("magmax-0.5 of ")
    assert " ".join(header.split()) == "path class probability class 2 probability class 3 probability"
    assert lines[0].split()[:2] == [paths[0], answers[0][0][0]]
    assert lines[0].split()[2] == f"{float(answers[0][0][1]):.3f}"


def test_an_exported_classifier_answers_the_same_without_the_run(pictures, merged, folder, tmp_path, monkeypatch):
    answers = []
    shutil.copytree(folder / "classifier", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for words in ([f"root={merged}", *RUN], ["classifier=elsewhere"]):
        outcome = command("predict.py", f"images={pictures}/*.png", "top=1", "out=a.jsonl", *words)
        assert outcome.code == 0, outcome.err
        answers.append([json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()])
    assert answers[0] == answers[1]
    assert [Path(answer["path"]).name for answer in answers[0]] == [f"{n}.png" for n in (1, 2, 4, 5, 7, 8)]
    assert set(answers[0][0]) == {"path", "classes"}
    assert [len(answer["classes"]) for answer in answers[0]] == [1] * 6


def test_any_texts_and_any_encoder(predict, pictures, merged, folder, tmp_path):
    texts = ["a red fox", "the digit four, or nearly"]
    outcome = predict(f"images={pictures}/more", "encoder=2", f"classes={json.dumps(texts)}", "top=9", "out=a.csv")
    assert outcome.code == 0, outcome.err
    paths, answers = of_csv(tmp_path / "a.csv")
    weights = folder.parents[1] / "task-01/encoder.safetensors"
    require_near(answers, expected(paths, weights, [[text] for text in texts], texts))


def test_standard_input_and_pictures_that_cannot_be_read(predict, pictures, tmp_path, monkeypatch):
    strange = tmp_path / "strange\x1b,\udcff.png"
    shutil.copy(pictures / "1.png", strange)
    (tmp_path / "broken.jpg").write_text("no")
    lines = [f"{pictures}/2.png", " ", "broken.jpg", "gone.png", str(strange), " a.png ", f"  {pictures}/1.png"]
    shutil.copy(pictures / "1.png", tmp_path / " a.png ")
    typed = "\n".join(lines).encode(errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    outcome = predict("images=-", "out=a.csv", "top=1")
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: images must be pictures that can be read; 2 of 6 cannot")
    rows = rows_of(tmp_path / "a.csv")[1:]
    assert [row[0] for row in rows] == [lines[0], *lines[2:6], f"{pictures}/1.png"]
    assert [bool(row[1]) for row in rows] == [True, False, False, True, True, True]
    assert rows[1][3].startswith("cannot identify image file")
    assert rows[2][3] == "No such file or directory"
    assert re.search(r"^gone.png +not readable: No such file or directory$", outcome.out, re.MULTILINE)
    assert "strange\\x1b,\\udcff.png" in outcome.out


def test_a_run_that_grows_needs_no_images_and_answers_while_a_task_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    for label, name in enumerate(("ant", "bee")):
        for number in range(10):
            save(data / "1" / ("test" if number < 2 else "train") / name / f"{number}.png", label, number)
    stream = (f"root={tmp_path}/runs", "dataset=folder", "stream=folders", f"dataset.path={data}", "model=tiny")
    outcome = command("train.py", *stream, "epochs=1", "batch_size=8", "merge_every_task=true")
    assert outcome.code == 0, outcome.err
    shutil.copytree(data / "1/test", tmp_path / "new")
    shutil.rmtree(data)
    words = (*stream, f"images={tmp_path}/new", "out=a.csv")
    before = command("predict.py", *words)
    assert before.code == 0, before.err
    answers = (tmp_path / "a.csv").read_bytes()

    (path,) = tmp_path.rglob("images.json")
    kept, begun = (files.read_json(file) for file in (path, path.with_name("stream.json")))
    later = {"name": "2", "classes": [1, 2], "class_names": ["bee", "cat"]}
    files.write_json(path.with_name("stream.json"), {**begun, "tasks": [*begun["tasks"], later]})
    texts = {"class_names": ["ant", "bee", "cat"], "prompts": [*kept["prompts"], ["a photo of a cat."]]}
    files.write_json(path, {**kept, **texts})
    for encoder in ("merge", "last"):
        during = command("predict.py", *words, f"encoder={encoder}")
        assert during.code == 0, during.err
        assert re.fullmatch(r"using the first 1 tasks of .*; not merged yet: 2\n", during.err)
        assert "2 classes" in during.out
        assert ((tmp_path / "a.csv").read_bytes() == answers) == (encoder == "merge")
    outcome = command("predict.py", *words, "encoder=2")
    assert "or a task of the run, from 1 to 1; got encoder=2" in outcome.err


@pytest.mark.parametrize(
    ("name", "words", "settings"),
    [
        ("predict", ["images=x"], lambda cfg: prediction_settings(cfg).source[0]),
        ("evaluate", ["on=[glyphs]"], lambda cfg: held_out_settings(cfg, {}).encoder),
    ],
)
def test_increments_name_the_run(name, words, settings, monkeypatch):
    monkeypatch.setattr("mergestream.compose.held_out.held_out_sets", lambda cfg: [])
    assert settings(config(name, "stream.increments=[4,3,3]", *words)).run.tasks == 3


BAD = [
    (["images=gone"], "images must be pictures, or folders with pictures; there is none in images=gone"),
    (["images=[gone,*.png]"], r"there is none in images=\[gone,\*.png\]"),
    (["images=[]"], r"images must be a folder, a picture, a list of them .*; got images=\[\]"),
    ([], "images must be a folder, a picture, .*; got images=None"),
    (["images=7"], "images must be the path of a file; got images=7, which was read as int"),
    (["images=HERE", "top=0"], "top must be a whole number, 1 or more; got top=0"),
    (["images=HERE", "out=a.txt"], "out must be a file that ends in .csv or .jsonl; got out=a.txt"),
    (["images=HERE", "classes=[]"], r"classes must be a list of texts, .*; got classes=\[\]"),
    (["images=HERE", "classes=wolf"], "classes must be a list of texts, .*; got classes=wolf"),
    (["images=HERE", "classes=['a fox','a  fox ']"], r"classes must be different texts; got classes="),
    (
        ["images=HERE", f"classes=[a,{'b' * 63}]"],
        "classes must be texts that the CLIP can read: a prompt for model=tiny",
    ),
    (["images=HERE", "encoder=4"], "encoder must be merge, base, last, or a task of the run, from 1 to 3; got enc"),
    (["images=HERE", "seed=6"], "a finished run is needed; .* Type: .*train.* seed=6"),
    (["images=HERE", "classifier=.", "classes=[a,b]"], "classes needs the text tower of a run"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda part: " ".join(part) if isinstance(part, list) else "")
def test_bad_input_is_refused(merged, pictures, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("HERE", str(pictures)) for word in words]
    with pytest.raises(UserError, match=message):
        prediction.predict(prediction_settings(config("predict", f"root={merged}", *RUN, "out=a.csv", *words)))
    assert not files_below(tmp_path)


def test_bad_input_ends_in_one_line(predict, pictures, tmp_path):
    for words, message in (
        (["strategy=ties", "lambda=0.3"], r"a merge is needed; .*/ties-0.3 .* Type: .* strategy=ties lambda=0.3\n"),
        (["classifier=."], "classifier is used without a run; got root=.* beside it. Leave out one of them\n"),
    ):
        outcome = predict(f"images={pictures}", "out=a.csv", *words)
        assert outcome.code == 1
        assert re.fullmatch(f"error: {message}", outcome.err), outcome.err
    assert not files_below(tmp_path)


def test_empty_input_and_folders_that_are_no_classifiers(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    outcome = command("predict.py", "images=-")
    assert outcome.err == "error: images=- must get a path on each line of standard input; there was none\n"
    outcome = command("predict.py", f"images={pictures}", "classifier=.")
    assert outcome.err.startswith(
        "error: classifier must be a folder that merge.py export=classifier has written; got ."
    )


def test_a_dataset_with_other_classes_is_refused(predict, pictures, monkeypatch):
    def classes(self):
        nothing = Split(ImageFiles([]), np.zeros(0, np.int64))
        return Source(["zero", "owl"], [["zero"], ["owl"]], nothing, nothing)

    monkeypatch.setattr("mergestream.compose.inputs.Inputs.classes", classes)
    outcome = predict(f"images={pictures}")
    assert outcome.code == 1
    assert "the dataset must have the 10 classes of" in outcome.err
    assert "now has 'owl' and has no longer 'one'. Restore it, or type: python train.py" in outcome.err


def test_a_signal_leaves_no_file(predict, pictures, tmp_path, monkeypatch):
    def stop(self, paths, top):
        raise Stopped(15)

    monkeypatch.setattr(prediction.Classifier, "answers", stop)
    outcome = predict(f"images={pictures}", "out=a.csv")
    assert outcome.code == 143
    assert outcome.err == "stopped by SIGTERM; nothing was written\n"
    assert not files_below(tmp_path)


def test_a_reader_that_has_seen_enough():
    read, write = os.pipe()
    os.close(read)

    def work():
        os.dup2(write, 1)
        with open(1, "w", closefd=False) as out:
            sys.stdout = out  # not the buffer that `command` would put there
            prediction._show("title", iter(["line"] * 10_000))
        return Outcome(0, "", "")

    outcome = forked(work)
    os.close(write)
    assert (outcome.code, outcome.err) == (0, "")

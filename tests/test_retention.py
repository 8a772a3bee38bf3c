"""evaluate.py: what it measures, what it shares and skips, and its errors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from archives import save
from helpers import accuracy_of, command, config, noise
from omegaconf import OmegaConf
from PIL import Image

from mergestream.compose.held_out import HeldOut, Listing, Loaded, held_out_sets
from mergestream.compose.inputs import Inputs
from mergestream.compose.run import run_of
from mergestream.data.images import ImageArray
from mergestream.data.source import Source, Split, prompts
from mergestream.runs import retention
from mergestream.runs.repair import damage
from mergestream.runtime.errors import UserError

NAMES = ["five", "four", "one", "six", "three", "two"]  # the classes of the noise, in the order of their ids


@pytest.fixture(scope="module")
def root(trained, tmp_path_factory) -> Path:
    """Runs of 3 tasks on the digits, and a merge of one; every test leaves them as they are, but for measurements."""
    copy = tmp_path_factory.mktemp("root")
    shutil.copytree(trained, copy, dirs_exist_ok=True)
    outcome = command("merge.py", "-m", f"root={copy}", "tasks=3", "epochs=1", "strategy=magmax,average")
    assert outcome.code == 0, outcome.err
    return copy


@pytest.fixture(scope="module")
def words(root) -> tuple[str, ...]:
    """What measures an encoder on the noise."""
    folder = noise()[1].removeprefix("dataset.path=")
    return f"root={root}", "tasks=3", "on=[folder]", f"+options.folder.path={folder}", "+options.folder.name=noise"


@pytest.fixture
def clean(root):
    """Nothing is measured yet."""
    for path in [*root.rglob("retention"), root / "_zero_shot"]:
        shutil.rmtree(path, ignore_errors=True)


def expected(words, weights: Path | None) -> float:
    """The accuracy on the noise, in a plain loop."""
    folder = Path(words[3].partition("=")[2]) / "test"
    found = [(Image.open(path).convert("RGB"), NAMES.index(path.parent.name)) for path in sorted(folder.rglob("*.png"))]
    images, labels = zip(*found, strict=True)
    return accuracy_of(weights, images, labels, prompts(NAMES, ["a photo of a {}."]))


@pytest.mark.usefixtures("clean")
def test_retention_is_the_accuracy_minus_that_of_the_base(root, words):
    run = run_of(config("train", f"root={root}", "tasks=3"))
    outcome = command("evaluate.py", *words)
    assert outcome.code == 0, outcome.err
    merged = run.path / "merges/magmax-0.5/merged.safetensors"
    found = retention.read(retention.path_beside(merged, "noise"))
    assert (found["test_samples"], found["num_classes"]) == (36, 6)
    assert found["accuracy"] == expected(words, merged)
    assert found["zero_shot"] == expected(words, None)
    assert found["retention"] == found["accuracy"] - found["zero_shot"]
    assert found["macro_accuracy"] == pytest.approx(found["accuracy"])  # six images of each class
    assert f"{100 * found['retention']:+.2f}" in outcome.out
    assert not damage(run)

    outcome = command("evaluate.py", *words, "encoder=2")
    assert outcome.code == 0, outcome.err
    of_task = retention.read(retention.path_beside(run.encoder(1), "noise"))
    assert of_task["accuracy"] == expected(words, run.encoder(1))
    assert of_task["zero_shot"] == found["zero_shot"]
    assert not damage(run)

    again = command("evaluate.py", *words, "encoder=base")
    assert "already measured, nothing to do" in again.out  # with the first of the two
    assert "+0.00" in again.out


@pytest.mark.usefixtures("clean")
def test_what_is_measured_is_skipped_unless_it_is_of_something_else(root, words, monkeypatch):
    loaded = []
    load = Inputs.evaluator_of_test
    monkeypatch.setattr(Inputs, "evaluator_of_test", lambda self, *a: loaded.append(a) or load(self, *a))
    arguments = ("-m", *words, "strategy=average", "encoder=merge,last")
    outcome = command("evaluate.py", *arguments)
    assert outcome.code == 0, outcome.err
    assert len(loaded) == 1  # the jobs share the images
    again = command("evaluate.py", *arguments)
    assert again.out.count("already measured, nothing to do") == 2
    assert len(loaded) == 1

    (path,) = root.rglob("average-1/retention/noise.json")
    before = path.read_bytes()
    for change, said in (
        (lambda content: content | {"encoder_sha256": "0" * 64}, ""),  # it was merged again since
        (lambda content: content | {"accuracy": 1.0}, "was altered (its checksum differs); measuring again"),
    ):
        content = json.loads(before)
        if said:
            path.write_text(json.dumps(change(content)))
        else:
            retention.files.write_json(path, {k: v for k, v in change(content).items() if k != "checksum"})
        outcome = command("evaluate.py", *words, "strategy=average")
        assert said in outcome.out
        assert "already measured" not in outcome.out
        assert json.loads(path.read_bytes())["accuracy"] == json.loads(before)["accuracy"]
    other = command("evaluate.py", *words, "strategy=average", "+options.folder.templates=['the word {}']")
    assert other.code == 0, other.err
    assert "already measured" not in other.out
    assert len(list(root.glob("_zero_shot/*/*.json"))) == 2


@pytest.mark.usefixtures("clean")
def test_pictures_that_changed_are_measured_again(root, words, tmp_path):
    shutil.copytree(words[3].partition("=")[2], tmp_path / "noise")
    arguments = (*words[:3], f"+options.folder.path={tmp_path}/noise", "+options.folder.name=other")
    assert command("evaluate.py", *arguments).code == 0
    paths = [*root.glob("**/magmax-0.5/retention/other.json"), *root.glob("_zero_shot/*/other-*.json")]
    before = [retention.read(path)["provenance"]["images"] for path in paths]
    one, two = (tmp_path / "noise/test" / name for name in ("one", "two"))
    shutil.rmtree(one)
    shutil.copytree(two, one)  # as many pictures, and other ones
    outcome = command("evaluate.py", *arguments)
    assert outcome.code == 0, outcome.err
    assert "already measured" not in outcome.out
    after = [retention.read(path)["provenance"]["images"] for path in paths]
    assert len(before) == len(after) == 2
    assert not set(before) & set(after)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of pictures, a link to it, and another one, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for part, number in (("train", 0), ("test", 1)):
        for name in ("ant", "bee"):
            save(tmp_path / "pictures" / part / name / f"{number}.png", 0, number)
            save(tmp_path / "others" / part / name / f"{number}.png", 0, number)
    Path("linked").symlink_to("pictures")


@pytest.mark.usefixtures("pictures")
def test_the_folder_of_the_run_is_not_held_out_by_another_name(monkeypatch):
    def sets(path):
        node = {"_target_": "mergestream.data.sources.folder.folder", "name": "other", "path": path}
        monkeypatch.setattr("mergestream.compose.held_out._node", lambda *_: OmegaConf.create(node))
        return held_out_sets(OmegaConf.merge(cfg, {"on": "folder"}))

    cfg = config("evaluate", "dataset=folder", "dataset.path=pictures")
    for path in ("./pictures", str(Path("pictures").absolute()), "linked", "pictures/train", "."):
        with pytest.raises(UserError, match="got folder, which is not held out: it is part of dataset=folder"):
            sets(path)
    assert sets("others")[0].inputs.image_files()[1] == ["others/test/ant/1.png", "others/test/bee/1.png"]


@pytest.mark.usefixtures("pictures")
def test_a_table_of_images_of_the_run_is_not_held_out():
    rows = [f"{top}/{part}/{name}/{n}.png,{name},{part}" for top in ("linked", "others") for name in ("ant", "bee")
            for n, part in enumerate(("train", "test"))]  # fmt: skip
    cfg = config("evaluate", "dataset=folder", "dataset.path=pictures")
    for listed, refused in ((rows, True), (rows[4:], False)):
        Path("labels.csv").write_text("\n".join(["path,label,split", *listed]) + "\n")
        inputs = Listing(config("evaluate", "dataset=table", "dataset.path=labels.csv"))
        loaded, held_out = Loaded(Listing(cfg), {}, "key"), HeldOut("table", "other", {}, inputs)
        if refused:
            with pytest.raises(
                UserError, match=r"4 of its images are part of dataset=folder, such as linked/train/ant"
            ):
                loaded.require_held_out(held_out, run_of(cfg))
        else:
            loaded.require_held_out(held_out, run_of(cfg))


@pytest.mark.parametrize(
    ("on", "options", "message"),
    [
        (3, {}, "on must be different data sets, at least one, such as on=[cifar10,dtd]; got on=3"),
        (["dtd", "dtd"], {}, "on must be different data sets"),
        (["dtd"], 1, "options must be keys of data sets, +options.dtd.KEY=VALUE; got options=1"),
        (["dtd"], {"cars": {"mirror": "a/b"}}, "such as +options.dtd.KEY=VALUE; got options.cars={'mirror': 'a/b'}"),
        (["dtd"], {"dtd": 1}, "such as +options.dtd.KEY=VALUE; got options.dtd=1"),
    ],
)
def test_what_cannot_be_a_list_of_data_sets(on, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        held_out_sets(OmegaConf.create({"on": on, "options": options}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["on=[]"], "on must be different data sets, at least one, such as on=[cifar10,dtd]; got on=[]"),
        (["on=[cifar11]"], "on must be options of the dataset group: aircraft, caltech101, cars, cifar10, "),
        (["on=[eight_datasets]"], "on takes single data sets; eight_datasets is several: write on=[cars,mnist,"),
        (["on=[digits]"], "got digits, which is not held out: it is part of dataset=digits. The run's metrics.json"),
        (["on=[dtd]"], "dataset=dtd needs "),
        (["on=[folder]"], "+options.folder.path must be a folder with one folder of images per class"),
        (["on=[dtd]", "+options.dtd.part=1"], "unexpected keyword argument 'part'"),
        (["on=[dtd]", "+options.dtd.name=a/b"], "options.dtd.name must be a valid folder name"),
        (["on=[glyphs]", "seed=6"], "a finished run is needed; "),
        (["on=[glyphs]", "encoder=4"], "encoder must be merge, base, last, or a task of the run, from 1 to 3; got enc"),
        (["on=[glyphs]", "strategy=ties"], "merges/ties-0.55 does not exist or is not whole. Type: python merge.py "),
        (["on=[glyphs]", "+option=1"], "unknown key: +option=1; did you mean options?"),
    ],
)
@pytest.mark.usefixtures("clean")
def test_bad_input_is_one_line(root, overrides, message):
    before = sorted(root.rglob("*"))
    outcome = command("evaluate.py", f"root={root}", f"data.root={root}/nothing", "tasks=3", *overrides)
    assert outcome.code == 1
    assert re.fullmatch(r"error: [^\n]*\n", outcome.err), outcome.err
    assert message in outcome.err
    assert "dataset." not in outcome.err
    assert sorted(root.rglob("*")) == before


def test_a_data_set_without_test_images(words, monkeypatch):
    one = Split(ImageArray(np.zeros((1, 8, 8), np.uint8)), np.zeros(1, np.int64))
    source = Source(["a"], [["a"]], one, one.subset(np.array([], np.int64)))
    monkeypatch.setattr(Inputs, "_read", lambda self: source)
    outcome = command("evaluate.py", *words, "encoder=1")
    assert outcome.err == "error: an evaluation needs test images; noise has none\n"


def test_the_data_sets_of_a_suite_are_not_held_out(root):
    suite = ("dataset=eight_datasets", "dataset.datasets=[dtd,mnist]", "dataset.domains=2")
    outcome = command("evaluate.py", f"root={root}", *suite, "on=[mnist]")
    assert "got mnist, which is not held out: it is part of dataset=eight_datasets" in outcome.err

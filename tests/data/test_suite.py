"""Several datasets as one."""

from __future__ import annotations

import numpy as np
import pytest
from archives import WRITERS, codes, error_line, load, truncate

from mergestream.data.sources.cars import cars
from mergestream.data.sources.digits import digits
from mergestream.data.sources.eurosat import eurosat
from mergestream.data.sources.suite import suite
from mergestream.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("any_checksum")


def test_suite_concatenates_datasets_and_keeps_their_prompts(archives, capsys):
    root = archives("mnist", "svhn", "cars", "eurosat")
    names = ["mnist", "eurosat", "cars", "svhn"]
    parts = {name: load(name, root) for name in names}
    values = [f"dataset.datasets=[{','.join(names)}]", "dataset.domains=4", "tasks=4"]
    capsys.readouterr()
    source = load("eight_datasets", root, *values)
    assert capsys.readouterr().err.splitlines()[0] == (
        "mnist and svhn have the same prompts for 10 classes, so among the classes of all data sets only those of "
        "mnist can be predicted"
    )
    assert source.num_classes == 10 + 10 + 196 + 10
    assert source.domain_names == names
    assert source.class_names == [name for part in parts.values() for name in part.class_names]
    assert source.prompts[0] == ['a photo of the number: "0".']
    assert source.prompts[20][3] == "i love my AM General Hummer SUV 2000!"
    assert len(source.prompts) == 226
    assert source.notes == {"eurosat": parts["eurosat"].notes}
    starts = dict(zip(names, (0, 10, 20, 216), strict=True))
    for which in ("train", "test"):
        joined = getattr(source, which)
        drawn = codes(joined)
        for domain, name in enumerate(names):
            split, (at,) = getattr(parts[name], which), np.nonzero(joined.domains == domain)
            assert [drawn[i] for i in at] == codes(split)
            assert (joined.labels[at] - starts[name]).tolist() == split.labels.tolist()
            assert at.tolist() == list(range(at[0], at[0] + len(split)))
    assert len(joined) == 10 + 10 + 196 + 10


def test_suite_takes_functions_by_dotted_path(archives):
    names = ["mnist", "mergestream.data.sources.digits.digits"]
    values = [f"dataset.datasets=[{','.join(names)}]", "dataset.domains=2"]
    source = load("eight_datasets", archives("mnist"), *values)
    assert source.domain_names == names
    assert source.num_classes == 20
    assert source.prompts[10:] == digits().prompts


def test_corrupt_images_of_a_suite_are_left_out(tmp_path, capsys):
    for name in ("eurosat", "mnist", "gtsrb"):
        WRITERS[name](tmp_path)
    bad = min(tmp_path.glob("eurosat/**/*.jpg"))
    truncate(bad)
    values = ["dataset.datasets=[mnist,eurosat,gtsrb]", "dataset.domains=3"]
    assert error_line("eight_datasets", tmp_path, *values).startswith(f"{bad} is not a readable image (")
    source = load("eight_datasets", tmp_path, *values, "data.skip_corrupt=true")
    # 100 + 86 files: the images of MNIST have none of their own.
    assert capsys.readouterr().err == "left out 1 corrupt image files of 186 (data.skip_corrupt=true)\n"
    assert len(source.train) + len(source.test) == 20 + 10 + 99 + 43 + 43
    starts = [0, 10, 20]
    for split in (source.train, source.test):
        assert [c + starts[d] for (c, _), d in zip(codes(split), split.domains, strict=True)] == split.labels.tolist()
    assert source.notes["left_out_as_corrupt"] == [str(bad)]
    assert source.notes["eurosat"]["test"] == 10


@pytest.mark.parametrize(
    "given",
    ["nothing", "images", "archive.archive_errors", "5", "mergestream.data.sources.glyphs.FONTS", "''", "os.system"],
)
def test_error_for_something_other_than_a_dataset(given, tmp_path):
    message = error_line("eight_datasets", tmp_path, f"dataset.datasets=[digits,{given}]")
    rule = "dataset.datasets must be names of the dataset group, or package.module.function; got "
    assert message.split(": ")[0] == rule + given.strip("'")


def test_errors_for_duplicates_and_for_datasets_that_need_more_than_a_root(tmp_path):
    rule = "dataset.datasets must be different datasets, at least one; got "
    for given, names in (("[digits,glyphs,digits]", ["digits", "glyphs", "digits"]), ("[]", [])):
        assert error_line("eight_datasets", tmp_path, f"dataset.datasets={given}") == f"{rule}{names}"
    message = error_line("eight_datasets", tmp_path, "dataset.datasets=[digits,folder]")
    rule = "invalid options for folder: missing a required argument: 'path'"
    assert message == f"{rule}. Type +dataset.options.folder.KEY=VALUE"
    message = error_line("eight_datasets", tmp_path, "dataset.datasets=[digits,mnist]")
    assert message.startswith(f"dataset=mnist needs {tmp_path}/MNIST/raw, which does not exist. ")


def test_options_for_one_dataset_of_a_suite(tmp_path):
    WRITERS["eurosat"](tmp_path)
    options = {"eurosat": {"test_fraction": 0.5}}
    datasets = {"eurosat": eurosat, "digits": digits}
    half, plain = suite(str(tmp_path), datasets, options=options), suite(str(tmp_path), datasets)
    assert half.notes["eurosat"]["test_fraction"] == 0.5
    assert len(half.test) > len(plain.test)
    with pytest.raises(UserError, match=r"write \+dataset.options.cars.mirror=USER/NAME to use a copy on the"):
        suite(str(tmp_path), {"eurosat": eurosat, "cars": cars})
    with pytest.raises(UserError, match="^dataset.options must name one of digits; got dataset.options.cars$"):
        suite(str(tmp_path), {"digits": digits}, options={"cars": {"mirror": "a/b"}})

"""calibration=align, through files and the engine: its reference, its gradient, invariances, what it is for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from references import CALIBRATIONS
from safetensors.torch import load_file, save_file

from mergestream.merging import merge_checkpoints
from mergestream.runtime.errors import UserError
from mergestream.strategies import calibrations
from mergestream.strategies.adjustments import Adjustments
from mergestream.strategies.calibrations.align import Gaussians, fit, gradient

WIDTH, OUT, TASKS = 6, 5, 3
TEXT = F.normalize(torch.randn(9, OUT, generator=torch.Generator().manual_seed(8)), dim=1)
OPTIONS = {"steps": 4, "rate": 0.05, "coefficient": 0.8, "seed": 3}


def statistics(classes, generator):
    """Class statistics of one task."""
    found = {"classes": torch.tensor(classes), "count": torch.randint(2, 40, (len(classes),), generator=generator)}
    found["text"] = TEXT[classes]
    found["scale"] = torch.tensor([20.0])
    for which in ("average", "encoder"):
        found[f"{which}.mean"] = torch.randn(len(classes), WIDTH, generator=generator)
        x = torch.randn(2 * WIDTH, WIDTH, generator=generator)
        found[f"{which}.scatter"] = x.T @ x / len(x)
    return found


@pytest.fixture
def tasks():
    """The class statistics of each task; the tasks share class 4."""
    generator = torch.Generator().manual_seed(0)
    return [statistics(classes, generator) for classes in ([7, 4], [1, 4], [0])]


@pytest.fixture
def paths(tmp_path, tasks):
    """θ₀ and the encoders, each with the class statistics of its task."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"proj": (WIDTH, OUT), "mlp.weight": (4, 3), "bias": (4,)}
    found = []
    for number in range(TASKS + 1):
        found.append(tmp_path / str(number) / "encoder.safetensors")
        found[-1].parent.mkdir()
        save_file({n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}, found[-1])
        if number:
            save_file(tasks[number - 1], found[-1].with_name("classes.safetensors"))
    return found


def aligned(paths, strategy="average", **options):
    """θ − θ₀ of a merge with the calibration."""
    out, bound = paths[0].with_name("out.safetensors"), calibrations.get("align").bind({**OPTIONS, **options})
    merge_checkpoints(paths[0], paths[1:], strategy, out, adjustments=Adjustments(calibration=bound))
    base = load_file(paths[0])
    return {name: tensor.double() - base[name].double() for name, tensor in load_file(out).items()}


@pytest.mark.parametrize("strategy", ["average", "magmax"])
@pytest.mark.parametrize("which", ["average", "encoder"])
def test_it_is_the_reference(paths, tasks, strategy, which):
    base = load_file(paths[0])
    taus = {n: torch.stack([load_file(p)[n] - base[n] for p in paths[1:]]).double() for n in base}
    of = {"average": lambda t: t.mean(0), "magmax": lambda t: t.gather(0, t.abs().argmax(0, keepdim=True))[0]}[strategy]
    merged = {n: of(tau) for n, tau in taus.items()}
    expected = CALIBRATIONS["align"](merged, base["proj"], tasks, which, 0.8, steps=4, rate=0.05, seed=3)
    found = aligned(paths, strategy, statistics=which)
    for name, tau in expected.items():
        torch.testing.assert_close(found[name], tau, rtol=0, atol=2e-6)
    assert (found["proj"] - 0.8 * merged["proj"]).abs().max() > 0.02  # it has moved


def test_the_gradient_is_that_of_autograd():
    generator = torch.Generator().manual_seed(0)
    projection, x, text = (torch.randn(n, generator=generator).double() for n in ((6, 5), (9, 6), (4, 5)))
    text, column = F.normalize(text, dim=1), torch.randint(4, (9,), generator=generator)
    projection.requires_grad_(True)
    F.cross_entropy(20 * F.normalize(x @ projection, dim=1) @ text.T, column).backward()
    torch.testing.assert_close(gradient(projection.detach(), x, column, text, 20.0), projection.grad)


def test_the_order_of_the_tasks_does_not_matter(paths):
    found, turned = aligned([paths[0], *paths[2:]]), aligned([paths[0], *paths[:1:-1]])
    for name, tau in found.items():
        torch.testing.assert_close(turned[name], tau, rtol=0, atol=1e-5)


def drawn_gaussians(unit=1.0, spread=1.0, classes=5):
    generator = torch.Generator().manual_seed(0)
    mean, text = (torch.randn(n, generator=generator).double() for n in ((classes, 8), (classes, 6)))
    factor = spread * unit * torch.eye(8, dtype=torch.float64)
    return Gaussians(unit * mean, factor, torch.arange(classes), F.normalize(text, dim=1), 10.0)


def test_the_units_of_features_and_projection_do_not_matter():
    start = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double()
    found = fit(start, drawn_gaussians(), steps=20, rate=0.02, seed=0)
    of_features = fit(start, drawn_gaussians(unit=1000.0), steps=20, rate=0.02, seed=0)
    of_projection = fit(1000 * start, drawn_gaussians(), steps=20, rate=0.02, seed=0)
    torch.testing.assert_close(of_features, found, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_projection / 1000, found, rtol=1e-2, atol=1e-2)


def test_features_come_to_lie_at_the_text_of_their_class():
    """A random projection of well separated classes guesses; the fitted one is nearly always right."""
    gaussians, generator = drawn_gaussians(spread=0.3), torch.Generator().manual_seed(2)
    x = gaussians.mean.repeat(200, 1) + torch.randn(1000, 8, generator=generator).double() @ gaussians.factor.T
    start = torch.randn(8, 6, generator=generator).double()

    def right(projection):
        answers = (F.normalize(x @ projection, dim=1) @ gaussians.text.T).argmax(1)
        return (answers == gaussians.column.repeat(200)).double().mean()

    fitted = fit(start, gaussians, steps=200, rate=0.05, seed=0)
    assert right(start) < 0.6
    assert right(fitted) > 0.95


def test_a_merge_without_class_statistics_names_the_command(paths):
    paths[2].with_name("classes.safetensors").unlink()
    expected = "needs the class statistics of every task; .* training with curvature.classes=true"
    with pytest.raises(UserError, match=expected):
        aligned(paths)
    assert not paths[0].with_name("out.safetensors").exists()


def test_class_statistics_of_another_head_are_refused(paths, tasks):
    for change in (lambda text: -text, lambda text: text[:, :-1].contiguous()):
        save_file({**tasks[1], "text": change(tasks[1]["text"])}, paths[2].with_name("classes.safetensors"))
        with pytest.raises(UserError, match="class statistics of one text head"):
            aligned(paths)


def test_one_image_for_each_class_is_enough(paths, tasks):
    for path, task in zip(paths[1:], tasks, strict=True):
        rounding = 1e-16 * torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
        save_file({**task, "average.scatter": rounding + rounding.T}, path.with_name("classes.safetensors"))
    assert aligned(paths)["proj"].isfinite().all()


@pytest.mark.parametrize(("scale", "depth"), [(0.5, None), ([1.0, 0.5], None), (None, [1, 0.5])])
def test_it_is_not_scaled(paths, scale, depth):
    bound = Adjustments(calibration=calibrations.get("align").bind(OPTIONS), depth=depth)
    with pytest.raises(UserError, match="calibration=align fits the merge as it is, with lambda=1 and no depth; got"):
        merge_checkpoints(
            paths[0], paths[1:], "average", paths[0].with_name("o.safetensors"), scale=scale, adjustments=bound
        )


def test_class_statistics_of_another_tower_are_refused(paths, tasks):
    for path, task in zip(paths[1:], tasks, strict=True):
        save_file({**task, "text": task["text"][:, :-1].contiguous()}, path.with_name("classes.safetensors"))
    with pytest.raises(UserError, match=r"proj is \[6, 5\], and they are of \[6, 4\]"):
        aligned(paths)


def test_the_projection_must_be_merged(paths):
    bound = Adjustments(calibration=calibrations.get("align").bind(OPTIONS), exclude=["proj"])
    with pytest.raises(UserError, match="the weights that are merged have none"):
        merge_checkpoints(paths[0], paths[1:], "average", paths[0].with_name("out.safetensors"), adjustments=bound)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"statistics": "mean"},
            "calibration.statistics must be one of average, encoder; got calibration.statistics=mean",
        ),
        ({"steps": 0}, "calibration.steps must be a whole number, 1 or more"),
        ({"rate": 0}, "calibration.rate must be a number, positive"),
        ({"coefficient": "much"}, "calibration.coefficient must be a number, null .* select"),
        ({"seed": -1}, "calibration.seed must be a whole number, 0 or more"),
    ],
)
def test_options(options, expected):
    with pytest.raises(UserError, match=expected):
        calibrations.get("align").bind(options)

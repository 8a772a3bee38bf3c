"""curvature: what is saved beside each encoder, and the merges that use it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import command, config, noise
from safetensors.torch import load_file, save_file

from mergestream.compose.run import run_of
from mergestream.merging import merge_checkpoints
from mergestream.merging.accumulate import Accumulation
from mergestream.merging.engine import AVERAGE
from mergestream.models.clip import TextHead
from mergestream.models.tiny import tiny
from mergestream.runs.directory import Run
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.strategies import calibrations
from mergestream.strategies.adjustments import Adjustments
from mergestream.training import task
from mergestream.training.class_statistics import class_statistics, require_projection
from mergestream.training.curvature import input_grams

WORDS = (*noise(), "epochs=1")
ALL = ("curvature.fisher=true", "curvature.gram=true", "curvature.classes=true")


def train(root: Path, *words: str) -> Run:
    outcome = command("train.py", f"root={root}", *WORDS, *words)
    assert outcome.code == 0, outcome.err
    return run_of(config("train", f"root={root}", *WORDS))


def contents(run: Run) -> dict[str, bytes]:
    return {str(p.relative_to(run.path)): p.read_bytes() for p in run.path.glob("task-*/*.safetensors")}


@pytest.fixture(scope="module")
def curved(tmp_path_factory):
    """A run with all curvature. Not to be changed."""
    return train(tmp_path_factory.mktemp("curved"), *ALL)


def test_gram_matrices_of_a_transformer_by_hand():
    encoder = tiny().encoder.double().eval()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = input_grams(encoder, [(images[:2], None), (images[2:], None)])
    seen: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda _module, inputs: seen.update({name: inputs[0].detach().reshape(-1, inputs[0].shape[-1])})

    for i, block in enumerate(encoder.transformer.resblocks):
        name = f"transformer.resblocks.{i}"
        block.mlp.c_fc.register_forward_pre_hook(keep(f"{name}.mlp.c_fc.weight"))
        block.mlp.c_proj.register_forward_pre_hook(keep(f"{name}.mlp.c_proj.weight"))
        block.ln_1.register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({f"{name}.attn.in_proj_weight": out.detach()})
        )
    encoder(images)
    for i, block in enumerate(encoder.transformer.resblocks):
        name = f"transformer.resblocks.{i}.attn"
        x, heads = seen[f"{name}.in_proj_weight"], block.attn.num_heads
        q, k, v = F.linear(x, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        attended = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        seen[f"{name}.out_proj.weight"] = attended.flatten(0, 1)
        seen[f"{name}.in_proj_weight"] = x.flatten(0, 1)
    assert found.keys() == seen.keys()
    for name, rows in seen.items():
        expected = (rows.T @ rows).float()
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_class_statistics_by_hand():
    clip = tiny()
    encoder, generator = clip.encoder.eval(), torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 3, 32, 32, generator=generator), torch.tensor([4, 1, 4, 4, 1, 4])
    head = TextHead(torch.randn(7, 128, generator=generator), 30.0)
    own = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    other = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in own.items()}
    batches = [[(images[:2], labels[:2]), (images[2:], labels[2:])]] * 2
    found = class_statistics(encoder, head, {"encoder": own, "average": other}, batches)
    assert all(torch.equal(tensor, own[name]) for name, tensor in encoder.state_dict().items())
    assert found["classes"].tolist() == [1, 4]
    assert found["count"].tolist() == [2, 4]
    assert torch.equal(found["text"], head.weight_CD[[1, 4]])
    assert found["scale"].tolist() == [30.0]
    for name, theta in (("encoder", own), ("average", other)):
        encoder.load_state_dict(theta)
        seen: list[torch.Tensor] = []
        handle = encoder.ln_post.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out[:, 0].double()))
        assert encoder(images).shape == (6, 128)
        handle.remove()
        (x,) = seen
        means = torch.stack([x[labels == c].mean(0) for c in (1, 4)])
        apart = x - means[[1, 0, 1, 1, 0, 1]]
        torch.testing.assert_close(found[f"{name}.mean"].double(), means, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[f"{name}.scatter"].double(), apart.T @ apart / 6, rtol=0, atol=1e-5)


def test_class_statistics_need_a_projection():
    with pytest.raises(UserError, match="ends in a matrix proj; this image tower, a Linear, has none"):
        require_projection(torch.nn.Linear(2, 2))


def test_class_statistics_are_also_of_the_mean_of_the_encoders_so_far(curved, monkeypatch):
    """The weights that they are taken with are the mean of the files."""
    seen = []
    monkeypatch.setattr(task, "class_statistics", lambda _encoder, _head, weights, _batches: seen.append(weights) or {})
    session = SimpleNamespace(
        run=curved, mean=Accumulation(AVERAGE), base=load_file(curved.base_file()), encoder=None, head=None
    )
    for index in range(3):
        task._class_statistics(session, SimpleNamespace(index=index))
        thetas = [load_file(curved.encoder(i)) for i in range(index + 1)]
        for name, mean in seen[-1]["average"].items():
            torch.testing.assert_close(mean, sum(theta[name] for theta in thetas) / len(thetas), rtol=0, atol=1e-6)
        assert all(torch.equal(tensor, thetas[-1][name]) for name, tensor in seen[-1]["encoder"].items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The words of a run on the digits with class statistics, and the accuracy of its merge."""
    root = tmp_path_factory.mktemp("trained")
    words = (f"root={root}", "tasks=5", "epochs=2", "stream.validation=0.1", "optimizer.lr=3e-4")
    for outcome in (command("train.py", *words, "curvature.classes=true"), command("merge.py", *words)):
        assert outcome.code == 0, outcome.err
    (plain,) = root.rglob("merges/magmax-0.5/metrics.json")
    return words, files.read_json(plain)["summary"]["final_accuracy"]


@pytest.mark.parametrize("options", [(), ("calibration.coefficient=select", "candidates=[0.5,1]"), ("prefixes=true",)])
def test_a_run_is_aligned(trained, options):
    words, plain = trained
    outcome = command("merge.py", *words, "calibration=align", *options)
    assert outcome.code == 0, outcome.err
    aligned = files.read_json(Path(outcome.out.split("results in ")[1].strip()) / "metrics.json")
    assert aligned["summary"]["final_accuracy"] > plain + 0.02
    assert aligned["merge"]["calibration"]["coefficient"] in (0.5, 1.0)
    assert aligned["merge"]["calibration"]["seed"] == aligned["config"]["seed"]


def test_curvature_of_encoders_that_are_gone(tmp_path):
    assert command("train.py", f"root={tmp_path}", *WORDS, "merge_every_task=true", "keep_tasks=false").code == 0
    outcome = command("train.py", f"root={tmp_path}", *WORDS, "merge_every_task=true", "curvature.classes=true")
    assert outcome.code == 1
    assert "curvature.classes=true needs the encoder of each task" in outcome.err


def test_encoders_do_not_depend_on_it(curved, tmp_path):
    plain = train(tmp_path)
    assert contents(plain).items() <= contents(curved).items()
    train(tmp_path, *ALL)  # of finished tasks
    assert contents(plain) == contents(curved)
    assert "already finished, nothing to do" in command("train.py", f"root={tmp_path}", *WORDS, *ALL).out


def test_a_lost_file_is_found_and_made_again(curved, tmp_path):
    run = train(tmp_path, *ALL)
    run.curvature(1, "fisher").unlink()
    outcome = command("train.py", f"root={tmp_path}", *WORDS, *ALL)
    assert outcome.code == 1
    assert "fisher.safetensors is missing" in outcome.err
    train(tmp_path, *ALL, "repair=true")
    assert contents(run) == contents(curved)


def test_two_processes_find_what_one_does(curved, tmp_path):
    uneven = ("batch_size=53", "curvature.samples=54", "accelerator=cpu")
    one, two = (train(tmp_path / str(n), *ALL, *uneven, f"devices={n}") for n in (1, 2))
    for run in (one, two):
        assert len(contents(run)) == 12
    for kind in ("fisher", "gram", "classes"):
        ours, theirs = (load_file(next(run.path.glob(f"task-00/{kind}*"))) for run in (one, two))
        assert ours.keys() == theirs.keys()
        apart = sum((ours[n] - theirs[n]).double().square().sum() for n in ours).sqrt()
        assert apart < 2e-2 * sum(tensor.double().square().sum() for tensor in ours.values()).sqrt()


@pytest.mark.parametrize("strategy", ["fisher", "laplace", "regmean"])
def test_merges_of_a_run(curved, strategy, tmp_path):
    shutil.copytree(curved.root, tmp_path / "runs")
    words = (f"root={tmp_path / 'runs'}", *WORDS, f"strategy={strategy}")
    outcome = command("merge.py", *words, "prefixes=true")
    assert outcome.code == 0, outcome.err
    (merged,) = (tmp_path / "runs").rglob("merges/*/merged.safetensors")
    merge_checkpoints(
        curved.base_file(), [curved.encoder(t) for t in range(3)], strategy, tmp_path / "out.safetensors", threads=1
    )
    ours, theirs = load_file(merged), load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    average = tmp_path / "average.safetensors"
    merge_checkpoints(curved.base_file(), [curved.encoder(t) for t in range(3)], "average", average)
    assert any(not torch.allclose(ours[n], t, atol=1e-5) for n, t in load_file(average).items())


@pytest.mark.parametrize("strategy", ["fisher", "laplace", "regmean"])
def test_one_task_is_that_task(curved, strategy, tmp_path):
    merge_checkpoints(curved.base_file(), [curved.encoder(1)], strategy, tmp_path / "out.safetensors")
    ours, theirs = load_file(tmp_path / "out.safetensors"), load_file(curved.encoder(1))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", ["fisher", "regmean"])
def test_the_order_of_the_tasks_does_not_matter(curved, strategy, tmp_path):
    paths = [curved.encoder(t) for t in range(3)]
    for name, order in (("one", paths), ("two", paths[::-1])):
        merge_checkpoints(curved.base_file(), order, strategy, tmp_path / f"{name}.safetensors")
    ours, theirs = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "two.safetensors")
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-6)


def test_missing_curvature_names_the_command(tmp_path):
    train(tmp_path)
    outcome = command("merge.py", f"root={tmp_path}", *WORDS, "strategy=regmean")
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert "needs the Gram matrices of every task" in line
    assert "with curvature.gram=true; it leaves finished encoders as they are" in line
    assert not list(tmp_path.rglob("merged.safetensors"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda fisher: {}, "must hold every weight; .* has no w"),
        (lambda fisher: {"w": fisher["w"][:1]}, r"w must be \[2, 3\] for a weight of \[2, 3\], and is \[1, 3\]"),
        (lambda fisher: {"w": -fisher["w"]}, "must be finite and not negative; w"),
        (lambda fisher: {"w": fisher["w"] / 0}, "must be finite and not negative; w"),
    ],
)
def test_fisher_information_that_does_not_fit(tmp_path, change, expected):
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.randn(2, 3)}, tmp_path / name / "model.safetensors")
        save_file({"w": torch.rand(2, 3)}, tmp_path / name / "fisher.safetensors")
    save_file(change({"w": torch.rand(2, 3)}), tmp_path / "b/fisher.safetensors")
    paths = [tmp_path / name / "model.safetensors" for name in ("base", "a", "b")]
    with pytest.raises(UserError, match=expected):
        merge_checkpoints(paths[0], paths[1:], "fisher", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_class_statistics_belong_to_the_encoders_so_far(curved, tmp_path):
    bound = Adjustments(calibration=calibrations.get("align").bind({"coefficient": 1.0, "steps": 1}))
    base, paths, out = curved.base_file(), [curved.encoder(t) for t in range(3)], tmp_path / "out.safetensors"
    merge_checkpoints(base, paths[:2], "average", out, adjustments=bound)
    out.unlink()
    with pytest.raises(UserError, match="of the mean of other encoders than the first 1 checkpoints. Merge the first"):
        merge_checkpoints(base, paths[1:], "average", out, adjustments=bound)
    assert not out.exists()
    of_tasks = calibrations.get("align").bind({"statistics": "encoder", "coefficient": 1.0, "steps": 1})
    merge_checkpoints(base, paths[::-1], "average", out, adjustments=Adjustments(calibration=of_tasks))


def test_checkpoints_must_not_share_a_file(tmp_path):
    for name in ("base", "a", "b"):
        save_file({"w": torch.randn(2, 3)}, tmp_path / f"{name}.safetensors")
    save_file({"w": torch.rand(2, 3)}, tmp_path / "fisher.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in ("a", "b")]
    with pytest.raises(UserError, match="in a folder of its own; got .*fisher.safetensors twice"):
        merge_checkpoints(tmp_path / "base.safetensors", paths, "fisher", tmp_path / "out.safetensors")


def test_fisher_information_of_another_encoder_is_refused(curved, tmp_path):
    shutil.copytree(curved.root, tmp_path / "runs")
    path = tmp_path / "runs" / curved.path.relative_to(curved.root)
    shutil.copy(path / "task-00/fisher.safetensors", path / "task-01/fisher.safetensors")
    with pytest.raises(UserError, match="was made from another encoder"):
        merge_checkpoints(
            curved.base_file(),
            [path / f"task-0{t}/encoder.safetensors" for t in range(2)],
            "fisher",
            tmp_path / "out.safetensors",
        )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("curvature.fisher=1",), "curvature.fisher must be true or false"),
        (("curvature.samples=0",), "curvature.samples must be a whole number, 1 or more"),
        ((*ALL, "merge_every_task=true", "keep_tasks=false"), "drops the curvature of a task with its encoder"),
    ],
)
def test_bad_input(tmp_path, words, expected):
    outcome = command("train.py", f"root={tmp_path}", *WORDS, *words)
    assert outcome.code == 1
    assert expected in outcome.err
    assert not list(tmp_path.rglob("*.safetensors"))

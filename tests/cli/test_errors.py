"""Bad input: one line that names the key, exit code 1, no traceback, nothing written."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from helpers import ROOT, command, files_below

from mergestream.runtime.errors import UserError

BAD = [
    ("train.py", ["dataset=digit"], r"dataset must be one of .*digits.*glyphs.*; got dataset=digit"),
    (
        "train.py",
        ["method=sequential"],
        r"method must be one of .*ind.*joint.*seq.*zeroshot; got method=sequential",
    ),
    ("train.py", ["model=huge"], "model must be one of open_clip, tiny, vit_b_16, .*; got model=huge"),
    ("merge.py", ["strategy=magmin"], "strategy must be one of average, .*, magmax, .*; got strategy=magmin"),
    ("train.py", ["tasks=0"], "tasks must be a whole number, 1 or more; got tasks=0"),
    ("train.py", ["dataset=imagenet", "dataset.version=1"], "dataset.version must stay as it is, .*=1"),
    ("train.py", ["data.num_workers=-1"], "data.num_workers must be auto or a whole number, 0 or more; got .*=-1"),
    ("train.py", ["data.cache=1"], "data.cache must be auto, true or false; got data.cache=1"),
    ("train.py", ["data.augment=gpu"], "data.augment must be one of auto, device, pil; got data.augment=gpu"),
    ("train.py", ["data.keep_mb=-1"], "data.keep_mb must be a number, 0 or more; got data.keep_mb=-1"),
    ("train.py", ["tasks=2.5"], "tasks must be a whole number, 1 or more; got tasks=2.5"),
    ("train.py", ["tasks=11"], "tasks must be between 1 and the number of classes, 10; got tasks=11"),
    ("train.py", ["seed=-1"], "seed must be a whole number, between 0 and 4294967295; got seed=-1"),
    ("train.py", ["epochs=0"], "epochs must be a whole number, 1 or more; got epochs=0"),
    ("train.py", ["batch_size=no"], "batch_size must be a whole number, 1 or more; got batch_size=no"),
    ("train.py", ["optimizer.lr=nan"], "optimizer.lr must be a number, positive; got optimizer.lr=nan"),
    ("train.py", ["schedule.warmup=-3"], r"schedule.warmup must be .*; got schedule.warmup=-3"),
    ("train.py", ["stream.order=random"], "stream.order must be one of natural, shuffled .*; got stream.order=random"),
    ("train.py", ["stream.validation=1"], "stream.validation must be a number, at least 0 and below 1; got"),
    ("train.py", ["dataset.name=_base"], "dataset.name must be a valid folder name: .*; got dataset.name=_base"),
    ("train.py", ["tag=a/b"], "tag must be a valid folder name: .*; got tag=a/b"),
    ("train.py", ["devices=999", "accelerator=cpu"], r"devices must be auto or between 1 and .*; got devices=999"),
    ("train.py", ["devices=0", "accelerator=cpu"], r"devices must be auto or between 1 and .*; got devices=0"),
    ("train.py", ["eval_precision=half"], "eval_precision must be one of auto, 32-true, bf16-mixed, 16-mixed; got"),
    ("train.py", ["accumulate=0"], "accumulate must be a whole number, 1 or more; got accumulate=0"),
    ("train.py", ["accumulate=9", "batch_size=8"], "accumulate must be at most batch_size=8, which it divides; got"),
    ("train.py", ["activation_checkpointing=1"], "activation_checkpointing must be true or false; got"),
    ("train.py", ["compile=yes please"], "compile must be auto, true or false; got compile=yes please"),
    ("train.py", ["threads=0"], "threads must be a whole number, 1 or more; got threads=0"),
    ("train.py", ["evaluate=never"], r"evaluate must be each \(after every task\), last, or a number n"),
    ("train.py", ["evaluate=0"], r"evaluate must be each \(after every task\), last, or a number n"),
    ("train.py", ["optimizer.fused=1"], "optimizer.fused must be true or false; got optimizer.fused=1"),
    ("train.py", ["precision=8"], "precision must be one of auto, 32-true, bf16-mixed, 16-mixed; got precision=8"),
    ("train.py", ["root=/proc/nowhere", "method=zeroshot"], "cannot read or write /proc/nowhere"),
    ("train.py", ["+optimizer.foo=1"], "torch.optim.AdamW does not fit its config: .*foo"),
    ("train.py", ["optimizer._target_=torch.optim.Nope"], "_target_=torch.optim.Nope must be importable"),
    ("train.py", ["+logger.foo=1"], "csv does not fit its config: .*foo"),
    ("train.py", ["method=null"], "Config group override must be a string"),
    ("train.py", [f"tag={'x' * 300}"], "cannot read or write"),
    ("merge.py", ["accelerator=abacus"], "accelerator must be one of auto, cpu, gpu; got accelerator=abacus"),
    ("merge.py", ["prefixes=banana"], "prefixes must be true or false; got prefixes=banana"),
    ("merge.py", ["strategy.scale=abc"], "strategy.scale must be a number, finite; got strategy.scale=abc"),
    ("merge.py", ["epochs=3", "stream.order=natural"], "Type: python train.py .* epochs=3 stream.order=natural$"),
    ("merge.py", ["base=b.pt", "checkpoints=a.pt", "out=m.safetensors"], "checkpoints must be a list of files"),
    ("merge.py", ["base=5", "checkpoints=[a.pt]", "out=m.safetensors"], "base must be the path of a file; got base=5"),
    ("train.py", ["accelerator=abacus"], "accelerator must be one of auto, cpu, gpu; got accelerator=abacus"),
    (
        "train.py",
        ["method.start=middle"],
        "method.start must be one of previous, base, merged; got method.start=middle",
    ),
    ("train.py", ["method=ewc", "method.strength=-1"], "method.strength must be a number, at least 0; got"),
    (
        "train.py",
        ["method=ewc", "method.estimator=best"],
        "method.estimator must be one of reference, reference_cleared, .*=best",
    ),
    ("train.py", ["method=lwf", "method.temperature=0"], "method.temperature must be a number, positive; got"),
    ("train.py", ["stream=domain"], "stream=domain needs a dataset with domains, such as .*; got dataset=digits"),
    ("train.py", ["stream=domain", "dataset=cifar100"], "stream=domain needs a dataset with domains, .*=cifar100"),
    ("train.py", ["stream=domain", "dataset=eight_datasets"], "stream=domain needs a dataset with domains, .*"),
    ("train.py", ["stream=dataset", "dataset=glyphs"], "stream=dataset needs several datasets, .*; got dataset=glyphs"),
    ("merge.py", ["stream=dataset"], "stream=dataset needs several datasets, such as dataset=eight_datasets; got"),
    ("train.py", ["stream=domain", "dataset=glyphs", "tasks=4"], "tasks must be 6, one for each of plain, .*=4"),
    ("train.py", ["stream=data", "tasks=500"], "every task needs training and test images; part 1 has no"),
    ("train.py", ["dataset=eight_datasets", "tasks=5"], "tasks must be 8, the number of dataset.datasets; got tasks=5"),
    (
        "train.py",
        ["dataset=eight_datasets", "dataset.datasets=[digits,mnist]"],
        "dataset.domains must be the number of dataset.datasets, 2; got dataset.domains=8",
    ),
    (
        "train.py",
        ["dataset=domainnet", "stream=domain", "dataset.mirror=a/b"],
        "needs the official files; dataset.mirror",
    ),
    ("train.py", ["epochs=[1,2]"], r"epochs must be a whole number, or a list with one for each of the 5 tasks; got"),
    ("train.py", ["epochs=[1,0,1,1,1]"], r"epochs must be a whole number, or a list .*; got epochs=\[1, 0, 1, 1, 1\]"),
    (
        "train.py",
        ["dataset=eight_datasets", "method=joint"],
        "method=joint trains one task, so epochs must be one number",
    ),
    ("train.py", ["data.skip_corrupt=maybe"], "data.skip_corrupt must be true or false; got data.skip_corrupt=maybe"),
    (
        "train.py",
        ["dataset=folder", "dataset.path=/none"],
        "dataset.path must be a folder .*; got dataset.path=/none",
    ),
    (
        "train.py",
        ["dataset=imagenet_r", "model=tiny", "stream=domain"],
        r"needs data/imagenet-r, which does not exist. Fetch imagenet-r.tar \(2.2 GB\) from .* \(data.root=data\)",
    ),
    (
        "train.py",
        ["dataset=eight_datasets", "dataset.datasets=[digits,nowhere]", "dataset.domains=2", "epochs=1", "model=tiny"],
        "dataset.datasets must be names of the dataset group, or package.module.function; got nowhere",
    ),
    ("train.py", ["epoch=3"], "epoch"),
    ("train.py", ["tasks=[1"], "tasks"),
    ("train.py", ["dataset.sizes=3"], "sizes"),
    ("train.py", ["+dataset.sizes=3"], r"mergestream.data.sources.digits.digits does not fit its config: .*sizes"),
    ("merge.py", ["lambda=nan"], "lambda must be a finite number, .*; got lambda=nan"),
    ("merge.py", ["lambda=inf"], "lambda must be a finite number, .*; got lambda=inf"),
    ("merge.py", ["lambda=big"], "lambda must be a finite number, .*; got lambda=big"),
    ("merge.py", [], r"does not exist. Type: python train.py dataset=digits tasks=5 method=seq model=tiny seed=5"),
    ("merge.py", ["strategy=ties", "+strategy.top=3"], "strategy=ties takes strategy.density, strategy.scope; got"),
    ("merge.py", ["base=b.safetensors"], "base, checkpoints and out go together; got base without checkpoints"),
    ("merge.py", ["base=b.safetensors", "checkpoints=[a.pt]", "out=m.safetensors"], "b.safetensors is not there"),
    ("report.py", [], "root must be a folder with runs"),
    (
        "train.py",
        ["dataset=cifar100", "model=tiny"],
        r"dataset=cifar100 needs .*which does not exist.*data.download=true",
    ),
]


@pytest.mark.parametrize(("script", "arguments", "message"), BAD, ids=lambda value: str(value)[:60])
def test_bad_input(script, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = command(script, f"root={tmp_path}/runs", *arguments)
    assert outcome.code == 1
    import re

    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert re.search(message, lines[0]), lines[0]
    assert not files_below(tmp_path)


@pytest.mark.parametrize("script", ["merge.py", "report.py", "analyze.py"])
def test_what_runs_in_one_process_is_not_started_twice(script, monkeypatch):
    started = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    for rank, said in (("0", f"error: python {script} runs in one process; srun started 2. Start one.\n"), ("1", "")):
        monkeypatch.setenv("SLURM_PROCID", rank)
        outcome = command(script)
        assert (outcome.code, outcome.err) == (1, said)


def test_damaged_data_root(tmp_path):
    folder = tmp_path / "data/cifar-100-python"
    folder.mkdir(parents=True)
    (folder / "train").write_bytes(b"not a pickle")
    outcome = command(
        "train.py", f"root={tmp_path}/runs", f"data.root={tmp_path}/data", "dataset=cifar100", "model=tiny"
    )
    assert outcome.code == 1
    assert "is unreadable or incomplete" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_weights_without_network(tmp_path, monkeypatch):
    from mergestream.models import pretrained

    def no_network(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pretrained, "_cached", lambda _: None)
    monkeypatch.setattr(pretrained, "_fetched", no_network)
    outcome = command("train.py", f"root={tmp_path}", "model=vit_b_16")
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert "model.pretrained=/path/to/open_clip_model.safetensors" in outcome.err
    assert "model=tiny needs no download" in outcome.err
    assert not files_below(tmp_path)


def test_directory_of_another_config(trained):
    outcome = command("train.py", f"root={trained}", "tasks=3", "epochs=2")
    assert outcome.code == 1
    assert "holds one config" in outcome.err
    assert "has epochs=1 where this command says epochs=2. Use the run's own value, or write tag=NAME" in outcome.err


def test_merge_of_an_unfinished_run_and_of_no_encoders(trained):
    (trained / "digits/class-3/tiny/seq/seed-9").mkdir()
    outcome = command("merge.py", f"root={trained}", "tasks=3", "seed=9")
    assert outcome.code == 1
    assert "has only 0 tasks. To continue it, type: python train.py" in outcome.err
    outcome = command("merge.py", f"root={trained}", "tasks=3", "method=zeroshot")
    assert outcome.code == 1
    assert "method=zeroshot trains none" in outcome.err


def test_a_sweep_goes_on_after_a_bad_job(tmp_path):
    arguments = ["-m", f"root={tmp_path}", "method=zeroshot", "tasks=5,99,2"]
    outcome = command("train.py", *arguments)
    assert outcome.code == 1
    assert outcome.err.count("error: job 1") == 1
    assert len(list(tmp_path.rglob("metrics.json"))) == 2


def test_full_error_raises_the_exception(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match="tasks must be a whole number"):
        command("train.py", f"root={tmp_path}", "tasks=0")


@pytest.mark.parametrize("script", ["train.py", "merge.py", "report.py"])
def test_help_imports_nothing_heavy(script):
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print([m for m in ('torch', 'open_clip', 'pytorch_lightning') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
    assert "is powered by Hydra" in done.stdout
    if script == "merge.py":
        assert re.search(r"^tsv +Task Singular Vectors: .* \(CVPR 2025\), https://", done.stdout, re.MULTILINE)

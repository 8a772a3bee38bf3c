"""What several test files use."""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import io
import itertools
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import omegaconf
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import load_file

from hydra_plugins import mergestream_jobs
from mergestream.models import tiny
from mergestream.models.clip import text_head

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def command(script: str, *arguments: str) -> Outcome:
    """Run an entry script as ``python script arguments`` would, in this process: imports are paid once."""
    out, err, argv, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = [str(ROOT / script), *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = argv
    return Outcome(code, out.getvalue(), err.getvalue())


def forked(work: Callable[[], Outcome]) -> Outcome:
    """Run `work` in a process of its own, which has imported all that this one has.

    For whatever hurts a process: kills, signals, limits of its resources, changes of code that nobody undoes. It costs
    milliseconds, where a new Python takes seconds to import torch. `work` is mostly ``command(…)`` with something
    before it, and may train with ``devices=2``. The code is minus the signal if one ended the process.
    """
    with tempfile.TemporaryFile() as said:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; see below
            pid = os.fork()
        if not pid:
            try:
                torch.set_num_threads(1)  # the threads of the parent are not here
                server = forkserver._forkserver
                if server._forkserver_pid is not None:  # not a child of this process, which can use it all the same
                    forkserver.ensure_running = server.ensure_running = lambda: None
                outcome = work()
                said.write(json.dumps([outcome.out, outcome.err]).encode())
                said.flush()
                os._exit(outcome.code)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        return Outcome(code, *json.loads(said.read() or '["", ""]'))


def config(name: str, *overrides: str) -> DictConfig:
    """A composed config. Hydra composes each choice of groups once; values are then set as Hydra would set them."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [o for o in parsed if o.type == OverrideType.CHANGE and not (CONFIGS / o.key_or_group).is_dir()]
    cfg = copy.deepcopy(_composed(name, *(o.input_line for o in parsed if o not in values)))
    for value in values:
        OmegaConf.update(cfg, value.key_or_group, value.value())
    return cfg


def accuracy_of(
    weights: Path | None, images: Iterable[Image.Image], labels: Iterable[int], prompts: list[list[str]]
) -> float:
    """The accuracy of the tiny CLIP among the classes of some prompts, in a plain loop; of θ₀ without weights."""
    clip = tiny.tiny()
    if weights is not None:
        clip.encoder.load_state_dict(load_file(weights))
    with torch.no_grad():
        head = text_head(clip, prompts)
        found = [head(clip.encoder(clip.transforms.eval(image)[None])).argmax().item() for image in images]
    return float(np.mean(np.equal(found, list(labels))))


@functools.cache
def shipped(group: str) -> list[str]:
    """The options of a config group that ship: those that git tracks, or all outside of a checkout.

    Only these need what a release needs: a row in the docs, an archive, a reference. An option that a user has just
    added is run like all others.
    """
    git = shutil.which("git")
    listed = subprocess.run([git, "-C", ROOT, "ls-files", f"configs/{group}"], capture_output=True) if git else None
    tracked = {Path(line).stem for line in listed.stdout.decode().splitlines()} if listed else set()
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml") if not tracked or p.stem in tracked)


def _mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> object:
    """Hydra composes a config twice, first for `hydra.mode`, which only experiments and the command line set."""
    sets_it = any("experiment" in word or "hydra" in word for word in overrides)
    return GET_MODE(hydra, config_name, overrides) if sets_it else None


GET_MODE = Hydra.get_mode
Hydra.get_mode = _mode  # type: ignore[method-assign]

# Side by side, jobs would run in processes that import torch anew, and that no monkeypatch reaches.
Plugins.instance()  # which loads the launcher again
ARE_SMALL = mergestream_jobs.are_small
mergestream_jobs.are_small = lambda config, jobs: False

# A quarter of composing is PyYAML's parser in Python; the one in C builds the same values.
SLOW = vars(omegaconf._utils.get_yaml_loader())
OWN = ("construct_mapping", "yaml_implicit_resolvers", "yaml_constructors")
Fast = type("Fast", (yaml.CSafeLoader,), {name: SLOW[name] for name in OWN})
omegaconf.omegaconf.get_yaml_loader = lambda: Fast


@functools.cache
def _composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, overrides=list(overrides))


@functools.cache
def noise() -> tuple[str, ...]:
    """Overrides for three tasks of two classes of noise, each with 54 training and 12 test images, for what is about
    bits and files rather than learning."""
    folder, draw = Path(tempfile.mkdtemp(prefix="noise-")), np.random.default_rng(0)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for split, count in (("train", 27), ("test", 6)):
        for label in ("one", "two", "three", "four", "five", "six"):
            for number in range(count):
                path = folder / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    words = ("dataset=folder", f"dataset.path={folder}", "model=tiny", "schedule=fraction", "optimizer.lr=3e-4")
    return (*words, "tasks=3", "batch_size=16")


class Cut(Exception):
    """Ends a training at a certain place."""


@contextlib.contextmanager
def cut_off_after(owner: object, name: str, calls: int) -> Iterator[None]:
    """Cut off what runs inside, right after it has called a function `calls` times; it must get that far."""
    original, made = getattr(owner, name), itertools.count(1)

    def cut(*arguments: object) -> None:
        original(*arguments)
        if next(made) == calls:
            raise Cut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, cut)
        with pytest.raises(Cut):
            yield


def apart(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> float:
    """How far two trained models are apart, as a share of how far the first came from the start.

    Of `noise` in one process and in two it is 3e-5 to 5e-4; with one image more in each batch it is 0.3.
    """

    def distance(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
        return sum((a[name] - b[name]).double().square().sum().item() for name in a) ** 0.5

    return distance(one, two) / distance(one, start)


def golden(name: str) -> dict[str, dict[str, torch.Tensor]]:
    """A golden safetensors file, by the first part of its keys."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(GOLDEN / name).items():
        group, _, rest = key.rpartition("/")
        groups.setdefault(group, {})[rest] = tensor
    return groups


def files_below(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_file()]

"""Override strings of every kind: each passes the checks, or ends in one line that names its key."""

from __future__ import annotations

import os
import re

import pytest
from helpers import ROOT, command, config
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from mergestream.training import launcher

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))  # of each script; `make fuzz` tries more
GROUPS = ("dataset", "method", "model", "stream", "schedule", "strategy", "calibration", "logger")
OPTIONS = {group: sorted(p.stem for p in (ROOT / "configs" / group).glob("*.yaml")) for group in GROUPS}


def keys_of(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Dotted keys of a config, of its inner nodes too."""
    found = []
    for key in cfg:
        path = f"{prefix}{key}"
        found.append(path)
        node = OmegaConf.to_container(cfg)[key]  # type: ignore[index]
        if isinstance(node, dict):
            found += keys_of(OmegaConf.create(node), f"{path}.")
    return found


KEYS = {script: sorted(keys_of(config(script[:-3]))) for script in ("train.py", "merge.py")}

plain = st.sampled_from(["null", "true", "false", "0", "1", "2", "-1", "1.5", "1e30", "nan", "inf", "-inf", "5", "100"])
WORDS = """'' [] {} [1,2] [a,b] [[1]] {a:1} [null] [nan] a a/b ../x ~ . é 💥 ${tasks} ${nope} ${oc.env:NOPE} ${ $
a=b a,b " ' ( [1 } os.system torch.os.system mergestream.nope 0x10 1_000 glob(*) select"""
odd = st.sampled_from([*WORDS.split(), "", "a b", "'a b'", "x" * 300, "9" * 40])
numbers = st.one_of(st.integers(-5, 10**12), st.floats()).map(str)
values = st.one_of(plain, odd, numbers, st.text(max_size=6).map(lambda t: t.replace("\0", "")))


def overrides(script: str) -> st.SearchStrategy[list[str]]:
    known = st.sampled_from(KEYS[script])
    groups = [g for g in GROUPS if g != ("calibration" if script == "train.py" else "logger")]
    changed = st.tuples(known, values).map("=".join)
    added = st.tuples(st.sampled_from(["+", "++", "~"]), known, values).map(lambda t: f"{t[0]}{t[1]}={t[2]}")
    removed = known.map(lambda key: f"~{key}")
    new = st.tuples(known, st.sampled_from(["foo", "_target_", "0"]), values).map(lambda t: f"+{t[0]}.{t[1]}={t[2]}")
    chosen = st.sampled_from(groups).flatmap(lambda g: st.sampled_from(OPTIONS[g]).map(lambda o: f"{g}={o}"))
    one = st.one_of(changed, changed, chosen, added, removed, new)
    return st.lists(one, min_size=1, max_size=4)


def names_an_override(message: str, words: list[str]) -> bool:
    """Whether a message has the whole dotted key of a typed override, or of the node or group that it is part of."""
    keys = [word.split("=")[0].lstrip("+~") for word in words]
    keys += [key.rpartition(".")[0] or key for key in keys]
    return any(re.search(rf"(?<![\w.]){re.escape(key)}(?![\w])", message) for key in keys)


@pytest.mark.parametrize("script", ["train.py", "merge.py"])
def test_any_override(script, tmp_path_factory, monkeypatch):
    here = tmp_path_factory.mktemp("fuzz")
    monkeypatch.chdir(here)
    monkeypatch.setattr(launcher, "launch", lambda *_, **__: None)  # what passes the checks would train now

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # shrinking would take minutes
        derandomize="FUZZ_EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(overrides(script))
    def check(words):
        outcome = command(script, *words)
        if outcome.code == 0:
            assert script == "train.py"
        else:
            assert outcome.code == 1, words
            lines = outcome.err.strip().splitlines()
            assert len(lines) == 1, (words, outcome.err)
            assert lines[0].startswith("error: "), (words, outcome.err)
            assert names_an_override(lines[0], words) or "Type: python train.py" in lines[0], (words, outcome.err)
        assert not list(here.iterdir()), (words, list(here.iterdir()))

    check()


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("train.py", ["+dataset.order.0=null"], "dataset.order must be the name of an order"),
        ("merge.py", ["++dataset.order=[nan]"], "dataset.order must be the name of an order"),
        ("train.py", ["stream.order=[nan]"], "stream.order must be the name of an order"),
        ("train.py", ["+method.foo=false"], "got an unexpected keyword argument 'foo'; got method.foo=False"),
        ("train.py", ["+dataset.foo=3"], "got an unexpected keyword argument 'foo'; got dataset.foo=3"),
        ("train.py", ["+cluster.name._target_=x"], "cluster.name must be one of local, slurm, ray; got cluster.name="),
        ("train.py", ["-m", "seed=1,2", "+cluster.name._target_=x"], "cluster.name must be one of local, slurm, ray"),
        (
            "train.py",
            ["method._target_=builtins.dict", "allow_targets=[builtins]"],
            "_target_=builtins.dict must say which arguments it takes, and does not. Wrap it in a function",
        ),
    ],
)
def test_messages_name_the_key_that_was_typed(script, words, message, tmp_path):
    outcome = command(script, *words, f"root={tmp_path}")
    assert outcome.code == 1
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.safetensors"))

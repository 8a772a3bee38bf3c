"""Choose the hyper-parameters of the embedded benchmark on validation data: python benchmarks/tune.py

It uses three seeds that the benchmark does not, each with its own class order, and holds out a fifth of each class's
training samples for validation. The test split is never used. Every method has the same budget: six configurations on
the first seed, and the best two on all three (for seq, ewc and lwf, the best two with a merge and the best two
without). A configuration is a learning rate and, for ewc and lwf, a strength. swa is seq with the average of the
weights along each task, lora is seq with adapters. Every merge uses the λ (with LiNeS β, with align what λ is
elsewhere) of fifteen candidates with the best mean over the three seeds, and published values for the rest, unless
`VARIANTS` names others.

- Training is tuned on digits/5, glyphs/10 and glyphs by domain; glyphs/5 and /20 use the values of glyphs/10.
- seq and ind serve many merges, so they get the learning rate with the best mean over `JUDGES`, each at its best λ;
  ewc and lwf get the configuration with the best mean of two accuracies: without a merge, and merged by magmax;
  swa and lora that with the best mean of magmax and average; merged gets the one that is best as it is meant, deployed
  as the merge that tasks start from.
- If another configuration is best without a merge, it gets a separate row with the tag `ALONE`.
- Then λ of every strategy is chosen on each of the five streams.

It writes the experiments ``beyond`` and ``confirmation``, the parts of ``embedded``, one for each stream, and
docs/tuning.csv, which holds every accuracy that was compared, with a column for each λ or β. What that file holds
already is not measured again, except with --afresh. Finished runs under --root are skipped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mergestream import strategies
from mergestream.runs.directory import CURVATURES
from mergestream.runtime import files
from mergestream.runtime.processes import cores

REPOSITORY = Path(__file__).parent.parent
STREAMS = {
    "digits_5": "dataset=digits tasks=5",
    "glyphs_10": "dataset=glyphs tasks=10 epochs=3",
    "glyphs_domain": "dataset=glyphs stream=domain epochs=3",
    "glyphs_5": "dataset=glyphs tasks=5 epochs=3",
    "glyphs_20": "dataset=glyphs tasks=20 epochs=3",
}
TUNED_ON = {"glyphs_5": "glyphs_10", "glyphs_20": "glyphs_10"}  # the others on themselves
# Numbers as Python prints them, so that they name the same folder wherever they come from.
RATES = {"optimizer.lr": ["3e-05", "0.0001", "0.0002", "0.0003", "0.0006", "0.001"]}
PAIR = ["0.0001", "0.0003"]
SEEDS = [0, 6, 7]
FINALISTS = 2
BUDGET = {
    "seq": RATES,
    "ind": RATES,
    "joint": {"optimizer.lr": ["0.0001", "0.0002", "0.0003", "0.0006", "0.001", "0.002"]},
    "ewc": {"optimizer.lr": PAIR, "method.strength": ["100000.0", "1000000.0", "10000000.0"]},
    "lwf": {"optimizer.lr": PAIR, "method.strength": ["0.3", "1.0", "3.0"]},
    "merged": RATES,
    "swa": RATES,
    "lora": {"optimizer.lr": ["0.0003", "0.001", "0.002", "0.003", "0.006", "0.01"]},
}
CLEARED = "ewc cleared"  # ewc, and its values, with the estimator that clears the gradient before the Fisher pass
WORDS = {  # how the training of a method is named, where it is not by its name alone
    "merged": "method: merged, strategy: ema",
    "swa": "method: seq, method.average: swa",
    "lora": "method: seq, model.adapter: lora",
    CLEARED: "method: ewc, method.estimator: reference_cleared, tag: cleared",
}
TAGGED = ("swa", "lora")  # a tag, which is the name here, tells them apart from seq
# weighted_average without weights is average; core_space merges adapters alone; dop, as published, would take longer
# than all other merges together, so its closed form stands for it; the published null_rank of nufilt is all that a tiny
# CLIP has.
LEFT_OUT = {"weighted_average", "core_space", "dop", "nufilt"}
STRATEGIES = sorted({path.stem for path in (REPOSITORY / "configs/strategy").glob("*.yaml")} - LEFT_OUT)
LATER = ["consensus", "fisher", "laplace", "metagpt", "regmean"]  # than the benchmark, or than the paper
OF_ENCODER = ["calibration: align", "calibration.statistics: encoder"]
NARROW = ["strategy.null_rank: 21"]  # of 128 directions, as the published 128 are of ViT-B's 768
# What a merge may have beside its strategy, with the words for it, and the key that is chosen like λ.
VARIANTS = {
    "": ([], "lambda"),
    "align": (["calibration: align"], "calibration.coefficient"),
    "align encoder": (OF_ENCODER, "calibration.coefficient"),
    "last": (["strategy.decay: 0"], "lambda"),  # of ema: the last encoder, between θ₀ and itself
    "last align encoder": (["strategy.decay: 0", *OF_ENCODER], "calibration.coefficient"),
    "lines": (["calibration: lines"], "calibration.beta"),
    "svc": (["calibration: svc"], "lambda"),
    "closed": (["strategy.solver: closed"], "lambda"),
    "closed corrected": (["strategy.solver: closed", "strategy.variant: corrected"], "lambda"),
    "narrow": (NARROW, "lambda"),
    "narrow corrected": ([*NARROW, "strategy.variant: corrected"], "lambda"),
    "low": (["strategy.threshold: 0.2"], "lambda"),
    "ties": (["strategy.rule: ties"], "lambda"),
}
# Where the paper and its code disagree, both.
DIVIDED = ["dop closed", "dop closed corrected", "nufilt narrow", "nufilt narrow corrected"]
# Of align: without the mean of statistics, without a merge, and without either.
PARTS = ["average align encoder", "ema last align encoder", "ema last"]
CALIBRATED = [f"{strategy} {name}" for strategy in ("average", "magmax") for name in ("align", "lines", "svc")]


@dataclass(frozen=True)
class Experiment:
    """What is trained and merged with the values that were chosen.

    Args:
        says: its first comment.
        seeds: none of `SEEDS`.
        streams: of `STREAMS`.
        merges: the merges of each method.
        others: what is trained and not merged; `ALONE` is a second training of a method.
    """

    says: str
    seeds: str
    streams: list[str]
    merges: dict[str, list[str]]
    others: list[str]


ALONE = "tuned-alone"
OTHERS = ["zeroshot", "joint", *(f"{method} {ALONE}" for method in ("seq", "ewc", "lwf"))]
PAPER = [name for name in STRATEGIES if name not in LATER]
EMBEDDED = {"seq": PAPER, "ind": PAPER, "ewc": ["magmax"], "lwf": ["magmax"]}
BEYOND = {
    "seq": ["magmax", "average", *LATER, "consensus low", *DIVIDED, *CALIBRATED, *PARTS],
    "lwf": ["magmax", "ema", "ema align", "ema align encoder"],  # ema is near the last encoder
    "merged": ["ema", "average", "magmax"],
    "swa": ["magmax", "average"],
    "lora": ["magmax", "average", "knots", "core_space", "core_space ties"],
}
CONFIRMED = {"seq": ["magmax", "average", "magmax align", "average align"], "lwf": ["ema", "ema align encoder"]}
EXPERIMENTS = {
    **{
        f"embedded_{s}": Experiment("A part of the embedded benchmark", "1,2,3,4,5", [s], EMBEDDED, OTHERS)
        for s in STREAMS
    },
    "beyond": Experiment("What came after the paper", "1,2,3,4,5", [*STREAMS], BEYOND, ["zeroshot", CLEARED]),
    "confirmation": Experiment(
        "What leads by class, on new class orders",
        "8,9,10,11,12",
        [stream for stream in STREAMS if not stream.endswith("domain")],
        CONFIRMED,
        [],
    ),
}
MERGED = {
    method: list(dict.fromkeys(name for part in (EMBEDDED, BEYOND) for name in part.get(method, [])))
    for method in ("seq", "ind", "ewc", "lwf", "merged", "swa", "lora")
}
MERGES = {name for names in MERGED.values() for name in names}
JUDGES = {
    **{method: ["magmax", "average", "ties", "task_arithmetic"] for method in ("seq", "ind")},
    **{method: ["", "magmax"] for method in ("ewc", "lwf")},
    "joint": [""],
    "merged": ["ema"],
    **{method: ["magmax", "average"] for method in TAGGED},
}
LAST = "ema last"  # with λ = 1, the last encoder itself
# Every λ, since `LAST` is one of the merges of seq.
NOT_MERGED = ["strategy=ema", "strategy.decay=0", "lambda=select"]
CONFIGURATION = ["optimizer.lr", "method.strength"]
ROUNDING = 1e-5  # a thousand validation images have no smaller differences than 1/3000 between means of three seeds
TRAINED = [*BUDGET, *(f"{method} {ALONE}" for method in ("seq", "ewc", "lwf"))]
PUBLISHED = REPOSITORY / "docs/tuning.csv"
COLUMNS = ["stream", "method", *CONFIGURATION, "strategy", "seed", "value", "accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=REPOSITORY / "runs/tuning")
    parser.add_argument("--afresh", action="store_true", help="measure again what docs/tuning.csv holds")
    words = parser.parse_args()
    search = Search(words.root.resolve(), pd.DataFrame(columns=COLUMNS) if words.afresh else published())
    with ThreadPoolExecutor(cores()) as pool:  # one thread each: a tiny CLIP cannot use more
        list(pool.map(search.training, [stream for stream in STREAMS if stream not in TUNED_ON]))
        chosen = choose_training(search.results())
        list(pool.map(lambda stream: search.scales(stream, chosen), STREAMS))
    write(search.results())


def write(results: pd.DataFrame) -> None:
    """The experiments and the table of what they were chosen from."""
    chosen = choose_training(results)
    keys = ["stream", "method", *CONFIGURATION, "strategy", "seed"]
    table = compared(results, chosen).pivot(index=keys, columns="value", values="accuracy")
    texts = {"docs/tuning.csv": table.round(6).to_csv()}
    for name in EXPERIMENTS:
        texts[f"configs/experiment/{name}.yaml"] = experiment(name, chosen, results)
    for path, text in texts.items():
        with files.whole(REPOSITORY / path) as partial:
            partial.write_text(text)


def published() -> pd.DataFrame:
    """The accuracies in docs/tuning.csv, as `Search.results` has them."""
    table = pd.read_csv(PUBLISHED, dtype=dict.fromkeys(("method", *CONFIGURATION, "strategy"), str))
    keys = [column for column in table if column in COLUMNS]
    lines = table.fillna(dict.fromkeys((*CONFIGURATION, "strategy"), ""))
    lines = lines.melt(keys, var_name="value", value_name="accuracy").dropna(subset="accuracy")
    return lines.assign(value=lines["value"].astype(float))[COLUMNS]


@dataclass(frozen=True)
class Search:
    """Measures what is not known yet.

    Args:
        root: of the runs.
        known: accuracies that were measured before, as `results` returns them.
    """

    root: Path
    known: pd.DataFrame

    def results(self) -> pd.DataFrame:
        """Every validation accuracy that there is, with the columns `COLUMNS`."""
        found = pd.concat([validated(self.root), self.known])
        return found.drop_duplicates(COLUMNS[:-1], ignore_index=True)

    def training(self, stream: str) -> None:
        """What validation data says of the configurations of every method on one stream."""
        for method, grid in BUDGET.items():
            if ((self.known["stream"] == stream) & (self.known["method"] == method)).any():
                continue
            self.measure(stream, method, {key: ",".join(values) for key, values in grid.items()}, SEEDS[:1])
            first = scores(self.results(), SEEDS[:1]).loc[stream]
            for name in [name for name in TRAINED if name.split()[0] == method]:
                for _, values in first.loc[[name]].nlargest(FINALISTS, "accuracy").iterrows():
                    self.measure(stream, method, values[list(grid)].to_dict(), SEEDS[1:])

    def measure(self, stream: str, method: str, values: Mapping[str, str], seeds: list[int]) -> None:
        """Train with `values` of the configuration, several of each with commas, and evaluate on validation data."""
        words = [*named(method, values), tag(method)]
        self.run("train.py", stream, [*words, "logger=none"], seeds)
        words = shared(words)
        if method == "joint":  # one encoder, of which the average is itself
            self.run("merge.py", stream, [*words, "strategy=average", "candidates=[1.0]", "lambda=select"], seeds)
        elif "" in JUDGES[method] or f"{method} {ALONE}" in TRAINED:
            self.run("merge.py", stream, [*words, *NOT_MERGED], seeds)
        if judges := [name for name in JUDGES[method] if name]:
            self.run("merge.py", stream, [*words, f"strategy={','.join(judges)}", "lambda=select"], seeds)

    def scales(self, stream: str, chosen: pd.DataFrame) -> None:
        """λ of every merge on one stream, of the encoders that were trained as chosen."""
        for method, merges in MERGED.items():
            values = chosen.loc[(TUNED_ON.get(stream, stream), method)]
            mine = (self.known[["stream", "method"]] == [stream, method]).all(axis=1)
            mine &= (self.known[CONFIGURATION] == values[CONFIGURATION]).all(axis=1)
            if not (missing := [name for name in merges if name not in set(self.known.loc[mine, "strategy"])]):
                continue
            words = [*named(method, {key: values[key] for key in BUDGET[method]}), tag(method)]
            self.run("train.py", stream, [*words, "logger=none"], SEEDS)
            words = shared(words)
            for variant, (adjustments, key) in VARIANTS.items():
                if names := [name.split()[0] for name in missing if name.partition(" ")[2] == variant]:
                    adjusted = [word.replace(": ", "=") for word in adjustments] + [f"{key}=select"]
                    self.run("merge.py", stream, [*words, f"strategy={','.join(names)}", *adjusted], SEEDS)

    def run(self, script: str, stream: str, words: list[str], seeds: list[int]) -> None:
        """One sweep, in a process with one thread."""
        protocol = ["stream.validation=0.2", *STREAMS[stream].split()]
        seeded = f"seed={','.join(map(str, seeds))}"
        # Several sweeps run at a time, so the jobs of one need no processes of their own.
        command = [
            sys.executable,
            script,
            "-m",
            f"root={self.root}",
            "cluster.jobs_per_node=1",
            seeded,
            *protocol,
            *words,
        ]
        print(" ".join(command[1:]), flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=REPOSITORY, check=True, env=environment, stdout=subprocess.DEVNULL)


def named(method: str, values: Mapping[str, str]) -> list[str]:
    """The words that name the training of a method."""
    words = WORDS.get(method, f"method: {method}").split(", ") + curvature_of(MERGED.get(method, []))
    return [*(word.replace(": ", "=") for word in words), *(f"{key}={value}" for key, value in values.items())]


def shared(words: list[str]) -> list[str]:
    """Those words of a training that its merges need too; they have a strategy of their own."""
    return [word for word in words if not word.startswith(("curvature.", "strategy", "logger"))]


def curvature_of(merges: Iterable[str]) -> list[str]:
    """The words for what a training must save for some merges, as YAML has them."""
    merges = list(merges)
    kinds = {strategies.get(name.split()[0]).needs for name in merges} | {
        "classes" for name in merges if "align" in name
    }
    return [f"curvature.{kind}: true" for kind in CURVATURES if kind in kinds]


def tag(method: str) -> str:
    """A folder for each configuration."""
    return "tag=" + "_".join([method] * (method in TAGGED) + [f"${{{key}}}" for key in BUDGET[method]])


def validated(root: Path) -> pd.DataFrame:
    """Every validation accuracy in a root, with the columns `COLUMNS`; the last encoder has the strategy ``""``."""
    lines = []
    for path in sorted(root.glob("*/*/*/*/*/merges/*/metrics.json")):
        content = files.read_json(path)
        config, merge, changed = content["config"], content["merge"], content["merge"]["changed"]
        method, stream = method_of(config), config["stream"]["name"]
        line = {"stream": f"{config['dataset']['name']}_{stream if stream == 'domain' else config['tasks']}"}
        line |= {"method": method, "seed": config["seed"], "optimizer.lr": repr(float(config["optimizer"]["lr"]))}
        strength = config["method"].get("strength")
        line["method.strength"] = "" if strength is None else repr(float(strength))
        within = method in BUDGET and all(line[key] in values for key, values in BUDGET[method].items())
        if not within or config["seed"] not in SEEDS or config["stream"]["validation"] != 0.2:
            continue
        variant = variant_of(changed)
        name = f"{merge['strategy']} {variant}".strip()
        if variant is None or name not in MERGES:
            continue
        for tried in merge.get("validation", []):
            value = next(value for key, value in tried.items() if key != "accuracy")
            names = [""] if method == "joint" else [name, ""] if (name, value) == (LAST, 1) else [name]
            lines += [line | {"strategy": of, "value": value, "accuracy": tried["accuracy"]} for of in names]
    return pd.DataFrame(lines, columns=COLUMNS)


def variant_of(changed: Mapping[str, Any]) -> str | None:
    """Which of `VARIANTS` has changed these options of a strategy or calibration; None if none has."""
    changed = {key: value for key, value in changed.items() if value != "select"}
    for variant, (adjustments, _) in VARIANTS.items():
        values = yaml.safe_load("\n".join(adjustments)) or {}
        if changed == {key.removeprefix("strategy."): value for key, value in values.items()}:
            return variant
    return None


def method_of(config: Mapping[str, Any]) -> str:
    """The name of a training's method here; with an average or adapter that is not tuned here, none of `BUDGET`."""
    parts = [config["method"]["id"], config["method"].get("average"), config["model"].get("adapter")]
    return "_".join(part for part in parts if part).removeprefix("seq_")


def over_seeds(results: pd.DataFrame, seeds: list[int]) -> pd.DataFrame:
    """Mean accuracy over `seeds` of what was measured with all of them."""
    keys = ["stream", "method", *CONFIGURATION, "strategy", "value"]
    means = results[results["seed"].isin(seeds)].groupby(keys)["accuracy"].agg(["mean", "count"])
    return means.loc[means["count"] == len(seeds), "mean"].rename("accuracy").reset_index()


def scores(results: pd.DataFrame, seeds: list[int]) -> pd.DataFrame:
    """(stream, one of `TRAINED`) → the values of `CONFIGURATION` and how good each is, in ``accuracy``."""
    keys = ["stream", "method", *CONFIGURATION, "strategy"]
    best = over_seeds(results, seeds).groupby(keys, as_index=False)["accuracy"].max()
    alone = best[(best["strategy"] == "") & (best["method"] + f" {ALONE}").isin(TRAINED)]
    # The accuracy of seq without a merge says little about its accuracy with one.
    judged = best[[name in JUDGES[method] for name, method in zip(best["strategy"], best["method"], strict=True)]]
    judged = pd.concat([judged, alone.assign(method=alone["method"] + f" {ALONE}")])
    return judged.groupby(keys[:-1], as_index=False)["accuracy"].mean().set_index(["stream", "method"])


def choose_training(results: pd.DataFrame) -> pd.DataFrame:
    """(stream, one of `TRAINED`) → the best values of `CONFIGURATION`."""
    found = scores(results, SEEDS).sort_values("accuracy", ascending=False, kind="stable")
    return found[~found.index.duplicated()].sort_index()


def compared(results: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Of `results` those that decided something: every configuration where training was tuned, with the merges that
    judged it, and every merge of what was chosen. A root may hold more, such as of an earlier choice."""

    best = {where: tuple(line) for where, *line in chosen[CONFIGURATION].itertuples(name=None)}

    def decided(stream: str, method: str, strategy: str, *values: str) -> bool:
        source = TUNED_ON.get(stream, stream)
        if stream == source and strategy in ("", *JUDGES[method]):
            return True
        return strategy in MERGED.get(method, []) and values == best[source, method]

    lines = results[["stream", "method", "strategy", *CONFIGURATION]].itertuples(index=False, name=None)
    return results[[decided(*line) for line in lines]]


def choose_scales(results: pd.DataFrame, stream: str, method: str, values: pd.Series) -> dict[str, float]:
    """merge → the λ or β with the best accuracy, the smallest of equals, of the encoders that `values` name.

    It has the merges that were measured.
    """
    found = over_seeds(results, SEEDS)
    mine = found[(found["stream"] == stream) & (found["method"] == method)]
    mine = mine[(mine[CONFIGURATION] == values[CONFIGURATION]).all(axis=1)].sort_values("value")
    measured = [name for name in MERGED[method] if name in set(mine["strategy"])]
    accuracies = {name: mine[mine["strategy"] == name].set_index("value")["accuracy"] for name in measured}
    # Means of equal sums can differ in their last digits.
    return {name: float(of.index[of > of.max() - ROUNDING][0]) for name, of in accuracies.items()}


def experiment(name: str, chosen: pd.DataFrame, results: pd.DataFrame) -> str:
    """The text of ``configs/experiment/<name>.yaml``: strategies that have one λ share a grid."""
    of, train, merge = EXPERIMENTS[name], [], []
    for stream in of.streams:
        trained, merged = grids_of(stream, of, chosen, results)
        train, merge = [*train, *trained], [*merge, *merged]
    parts = ["    train:", *(f"      {line}" for line in train), "    merge:", *(f"      {line}" for line in merge)]
    return "\n".join([HEAD.format(name=name, says=of.says, seeds=of.seeds, root=name.partition("_")[0]), *parts]) + "\n"


def grids_of(stream: str, of: Experiment, chosen: pd.DataFrame, results: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The grids of one stream: of the trainings, and of the merges."""
    data = ", ".join(word.replace("=", ": ") for word in STREAMS[stream].split())
    train = [f"{stream}_zeroshot: {{ {data}, method: zeroshot }}"] if "zeroshot" in of.others else []
    merge: list[str] = []
    best = chosen.loc[TUNED_ON.get(stream, stream)]
    for name in [*TRAINED, CLEARED]:
        method, _, alone = name.partition(" ")
        source = method if name == CLEARED else name
        if source not in best.index or name not in (*of.merges, *of.others):  # the first was not measured
            continue
        values = best.loc[source]
        lent = method == "joint" and stream in TUNED_ON  # which does not depend on T: a report lends it
        same = source != method and bool((values[CONFIGURATION] == best.loc[method, CONFIGURATION]).all())
        if lent or same:
            continue
        scales = choose_scales(results, stream, method, values) if method in MERGED and not alone else {}
        scales = {merge: scales[merge] for merge in of.merges.get(name, []) if merge in scales}
        words = WORDS.get(name, f"method: {method}, tag: {alone}" if alone else f"method: {method}")
        words += f", tag: {name}" if name in TAGGED else ""
        words += "".join(f", {word}" for word in curvature_of(scales))
        words += "".join(f", {key}: {values[key]}" for key in CONFIGURATION if values[key])
        train.append(f"{stream}_{name.replace(' ', '_')}: {{ {data}, {words} }}")
        if scales:
            merge += grids(f"{stream}_{method}", f"{data}, {', '.join(shared(words.split(', ')))}", scales)
    return train, merge


def grids(name: str, words: str, scales: Mapping[str, float]) -> list[str]:
    """The grids of the merges of one training; ``words`` name it, and `scales` are of `choose_scales`."""
    lines = []
    for variant, (adjustments, key) in VARIANTS.items():
        of = {merge.split()[0]: value for merge, value in scales.items() if merge.partition(" ")[2] == variant}
        named = "_".join([name, *variant.split()])
        adjusted = "".join(f", {word}" for word in adjustments)
        for value in sorted({value for merge, value in of.items() if variant or merge != "magmax"}):
            these = [merge for merge in of if of[merge] == value and (variant or merge != "magmax")]
            strategies = f'strategy: "{",".join(these)}"{adjusted}, {key}: {value:g}'
            lines.append(f"{named}_{value:g}: {{ {words}, {strategies} }}")
    if "magmax" not in scales:
        return lines
    # After every task, for the curves.
    last = f"strategy: magmax, lambda: {scales['magmax']:g}, prefixes: true"
    return [*lines, f"{name}_magmax: {{ {words}, {last} }}"]


HEAD = """\
# @package _global_
# {says}. The values are those with the best accuracy on validation data of other
# seeds; docs/tuning.csv has all values that were compared. Written by benchmarks/tune.py.
# python pipeline.py +experiment={name}
root: runs/{root}
logger: {{ _target_: mergestream.training.loggers.none }}
cluster: {{ gpus: 0, cpus: 8, minutes: 240 }} # on SLURM: the tiny CLIP needs no GPU
hydra:
  mode: MULTIRUN
  sweeper:
    params: {{ seed: "{seeds}" }}"""


if __name__ == "__main__":
    main()

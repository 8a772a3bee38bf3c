"""Choose the hyper-parameters of the embedded benchmark on validation data: python benchmarks/tune.py

It uses three seeds that the benchmark does not, each with its own class order, and holds out a fifth of each class's
training samples for validation. The test split is never used. Every method has the same budget: six configurations on
the first seed, and the best two on all three (for seq, ewc and lwf, the best two with a merge and the best two
without). A configuration is a learning rate for seq, ind and joint, and a learning rate and a strength for ewc and lwf.
Every merge uses the λ of fifteen candidates with the best mean over the three seeds, and published values for the rest.

- Training is tuned on digits/5, glyphs/10 and glyphs by domain; glyphs/5 and /20 use the values of glyphs/10.
- seq and ind serve many merges, so they get the learning rate with the best mean over `JUDGES`, each at its best λ;
  ewc and lwf get the configuration with the best mean of two accuracies: without a merge, and merged by magmax.
- If another configuration is best without a merge, it gets a separate row with the tag `ALONE`.
- Then λ of every strategy is chosen on each of the five streams.

It writes the parts of ``+experiment=embedded``, one for each stream, and docs/tuning.csv, which holds every accuracy
that was compared, with a column for each λ. Finished runs under --root are skipped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

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
}
# weighted_average without weights is average; the others came after the values of the experiments were chosen.
LEFT_OUT = {"weighted_average", "consensus", "core_space", "dop", "fisher", "laplace", "metagpt", "nufilt", "regmean"}
STRATEGIES = sorted({path.stem for path in (REPOSITORY / "configs/strategy").glob("*.yaml")} - LEFT_OUT)
MERGED = {"seq": STRATEGIES, "ind": STRATEGIES, "ewc": ["magmax"], "lwf": ["magmax"]}
JUDGES = ["magmax", "average", "ties", "task_arithmetic"]
NOT_MERGED = ["strategy=ema", "strategy.decay=0", "candidates=[1.0]"]  # the last encoder itself
CONFIGURATION = ["optimizer.lr", "method.strength"]
ALONE = "tuned-alone"
ROUNDING = 1e-5  # a thousand validation images have no smaller differences than 1/3000 between means of three seeds
TRAINED = [*BUDGET, *(f"{method} {ALONE}" for method in MERGED if method != "ind")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=REPOSITORY / "runs/tuning")
    root = parser.parse_args().root.resolve()
    with ThreadPoolExecutor(cores()) as pool:  # one thread each: a tiny CLIP cannot use more
        list(pool.map(lambda stream: search_training(root, stream), [s for s in STREAMS if s not in TUNED_ON]))
        chosen = choose_training(validated(root))
        list(pool.map(lambda stream: search_scales(root, stream, chosen), STREAMS))
    write(validated(root))


def write(results: pd.DataFrame) -> None:
    """The experiments and the table of what they were chosen from."""
    chosen = choose_training(results)
    keys = ["stream", "method", *CONFIGURATION, "strategy", "seed"]
    table = compared(results, chosen).pivot(index=keys, columns="lambda", values="accuracy")
    texts = {"docs/tuning.csv": table.round(6).to_csv()}
    for stream in STREAMS:
        texts[f"configs/experiment/embedded_{stream}.yaml"] = experiment(stream, chosen, results)
    for path, text in texts.items():
        with files.whole(REPOSITORY / path) as partial:
            partial.write_text(text)


def search_training(root: Path, stream: str) -> None:
    """What validation data says of the configurations of every method on one stream."""
    for method, grid in BUDGET.items():
        measure(root, stream, method, {key: ",".join(values) for key, values in grid.items()}, SEEDS[:1])
        first = scores(validated(root), SEEDS[:1]).loc[stream]
        for name in [name for name in TRAINED if name.split()[0] == method]:
            for _, values in first.loc[[name]].nlargest(FINALISTS, "accuracy").iterrows():
                measure(root, stream, method, values[list(grid)].to_dict(), SEEDS[1:])


def measure(root: Path, stream: str, method: str, values: Mapping[str, str], seeds: list[int]) -> None:
    """Train with `values` of the configuration, several of each with commas, and evaluate on validation data."""
    words = [f"method={method}", *(f"{key}={value}" for key, value in values.items()), tag(method)]
    run(root, "train.py", stream, words, seeds)
    if method == "joint":  # one encoder, of which the average is itself
        run(root, "merge.py", stream, [*words, "strategy=average", "candidates=[1.0]"], seeds)
    elif method != "ind":
        run(root, "merge.py", stream, [*words, *NOT_MERGED], seeds)
    if judges := [name for name in JUDGES if name in MERGED.get(method, [])]:
        run(root, "merge.py", stream, [*words, f"strategy={','.join(judges)}"], seeds)


def search_scales(root: Path, stream: str, chosen: pd.DataFrame) -> None:
    """λ of every merge on one stream, of the encoders that were trained as chosen."""
    for method, strategies in MERGED.items():
        values = chosen.loc[(TUNED_ON.get(stream, stream), method)]
        words = [f"method={method}", *(f"{key}={values[key]}" for key in BUDGET[method]), tag(method)]
        run(root, "train.py", stream, words, SEEDS)
        run(root, "merge.py", stream, [*words, f"strategy={','.join(strategies)}"], SEEDS)


def tag(method: str) -> str:
    """A folder for each configuration."""
    return "tag=" + "_".join(f"${{{key}}}" for key in BUDGET[method])


def run(root: Path, script: str, stream: str, words: list[str], seeds: list[int]) -> None:
    """One sweep, in a process with one thread."""
    command = [
        sys.executable,
        script,
        "-m",
        f"root={root}",
        f"seed={','.join(map(str, seeds))}",
        "stream.validation=0.2",
        *STREAMS[stream].split(),
    ]
    command += [*words, *(["lambda=select"] if script == "merge.py" else ["logger=none"])]
    print(" ".join(command[1:]), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=REPOSITORY, check=True, env=environment, stdout=subprocess.DEVNULL)


def validated(root: Path) -> pd.DataFrame:
    """Every validation accuracy that there is: stream, method, learning rate, strength, seed, strategy, λ, accuracy."""
    lines = []
    for path in sorted(root.glob("*/*/*/*/*/merges/*/metrics.json")):
        content = files.read_json(path)
        config, merge = content["config"], content["merge"]
        method, strength = config["method"]["id"], config["method"].get("strength")
        stream = "domain" if config["stream"]["name"] == "domain" else config["tasks"]
        line = {"stream": f"{config['dataset']['name']}_{stream}", "method": method, "seed": config["seed"]}
        line["optimizer.lr"] = repr(float(config["optimizer"]["lr"]))
        line["method.strength"] = "" if strength is None else repr(float(strength))
        within = method in BUDGET and all(line[key] in values for key, values in BUDGET[method].items())
        if not within or config["seed"] not in SEEDS or config["stream"]["validation"] != 0.2:
            continue
        not_merged = method == "joint" or (merge["strategy"], merge["changed"]) == ("ema", {"decay": 0})
        line["strategy"] = "" if not_merged else merge["strategy"]
        if line["strategy"] not in ("", *STRATEGIES) or (merge["changed"] and not not_merged):
            continue
        lines += [line | {"lambda": tried["lambda"], "accuracy": tried["accuracy"]} for tried in merge["validation"]]
    return pd.DataFrame(lines)


def over_seeds(results: pd.DataFrame, seeds: list[int]) -> pd.DataFrame:
    """Mean accuracy over `seeds` of what was measured with all of them."""
    keys = ["stream", "method", *CONFIGURATION, "strategy", "lambda"]
    means = results[results["seed"].isin(seeds)].groupby(keys)["accuracy"].agg(["mean", "count"])
    return means.loc[means["count"] == len(seeds), "mean"].rename("accuracy").reset_index()


def scores(results: pd.DataFrame, seeds: list[int]) -> pd.DataFrame:
    """(stream, one of `TRAINED`) → the values of `CONFIGURATION` and how good each is, in ``accuracy``."""
    keys = ["stream", "method", *CONFIGURATION, "strategy"]
    best = over_seeds(results, seeds).groupby(keys, as_index=False)["accuracy"].max()
    alone = best[(best["strategy"] == "") & best["method"].isin(MERGED)]
    # The accuracy of seq without a merge says little about its accuracy with one.
    judged = best[best["strategy"].isin(JUDGES) | ((best["strategy"] == "") & (best["method"] != "seq"))]
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
        if stream == source and strategy in ("", *JUDGES):
            return True
        return method in MERGED and strategy != "" and values == best[source, method]

    lines = results[["stream", "method", "strategy", *CONFIGURATION]].itertuples(index=False, name=None)
    return results[[decided(*line) for line in lines]]


def choose_scales(results: pd.DataFrame, stream: str, method: str, values: pd.Series) -> dict[str, float]:
    """strategy → the λ with the best accuracy, the smallest of equals, of the encoders that `values` name."""
    found = over_seeds(results, SEEDS)
    mine = found[(found["stream"] == stream) & (found["method"] == method)]
    mine = mine[(mine[CONFIGURATION] == values[CONFIGURATION]).all(axis=1)].sort_values("lambda")
    accuracies = {name: mine[mine["strategy"] == name].set_index("lambda")["accuracy"] for name in MERGED[method]}
    # Means of equal sums can differ in their last digits.
    return {name: float(of.index[of > of.max() - ROUNDING][0]) for name, of in accuracies.items()}


def experiment(stream: str, chosen: pd.DataFrame, results: pd.DataFrame) -> str:
    """The text of ``configs/experiment/embedded_<stream>.yaml``: strategies that have one λ share a grid."""
    named = ", ".join(word.replace("=", ": ") for word in STREAMS[stream].split())
    train, merge = [f"{stream}_zeroshot: {{ {named}, method: zeroshot }}"], []
    best = chosen.loc[TUNED_ON.get(stream, stream)]
    for method in TRAINED:
        values = best.loc[method]
        lent = method == "joint" and stream in TUNED_ON  # which does not depend on T: a report lends it
        merged_too = best.loc[method.split()[0], CONFIGURATION]
        same = method.endswith(ALONE) and bool((values[CONFIGURATION] == merged_too).all())
        if lent or same:
            continue
        grid = f"{named}, method: {method.replace(' ', ', tag: ')}"
        grid += "".join(f", {key}: {values[key]}" for key in CONFIGURATION if values[key])
        train.append(f"{stream}_{method.replace(' ', '_')}: {{ {grid} }}")
        scales = choose_scales(results, stream, method, values) if method in MERGED else {}
        for scale in sorted({value for name, value in scales.items() if name != "magmax"}):
            these = ",".join(name for name, value in scales.items() if value == scale and name != "magmax")
            merge.append(f'{stream}_{method}_{scale:g}: {{ {grid}, strategy: "{these}", lambda: {scale:g} }}')
        if scales:  # after every task, for the curves
            of_magmax = f"strategy: magmax, lambda: {scales['magmax']:g}, prefixes: true"
            merge.append(f"{stream}_{method}_magmax: {{ {grid}, {of_magmax} }}")
    parts = ["    train:", *(f"      {line}" for line in train), "    merge:", *(f"      {line}" for line in merge)]
    return "\n".join([HEAD.format(stream=stream), *parts]) + "\n"


HEAD = """\
# @package _global_
# A part of the embedded benchmark; its values are those with the best accuracy on validation data of other seeds, and
# docs/tuning.csv has all values that were compared. Written by benchmarks/tune.py.
# python train.py +experiment=embedded_{stream} && python merge.py +experiment=embedded_{stream}
root: runs/embedded
logger: {{ _target_: mergestream.training.loggers.none }}
hydra:
  mode: MULTIRUN
  sweeper:
    params: {{ seed: "1,2,3,4,5" }}"""


if __name__ == "__main__":
    main()

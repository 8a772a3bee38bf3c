"""The published results of the embedded benchmark: what README and docs/results.md say is in docs/results."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from helpers import ROOT
from omegaconf import OmegaConf
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mergestream.reporting.rows import is_bound

PUBLISHED = ROOT / "docs/results"
CONFIGURATION = ["optimizer.lr", "method.strength"]
BENCHMARK = ["dataset", "stream", "tasks"]
TITLES = {
    "digits, 5 tasks": ("digits", "class", 5),
    "glyphs, 5 tasks": ("glyphs", "class", 5),
    "glyphs, 10 tasks": ("glyphs", "class", 10),
    "glyphs, 20 tasks": ("glyphs", "class", 20),
    "glyphs, 6 domains": ("glyphs", "domain", 6),
}
DIGITS, FIVE, TEN, TWENTY, DOMAINS = TITLES
AVERAGE, MAGMAX = "seq + average, align", "MagMax, align"
ADAPTERS = ["MagMax [lora]", "seq + average [lora]"]
NUFILT = "nufilt, null_rank = 21"
EMA, EMA_ALIGNED = "lwf + ema", "lwf + ema, align, calibration.statistics = encoder"
AHEAD_OF = ["MaxAbs", "Avg", "RandMix", "EWC", "LwF", "EWC + MagMax", "LwF + MagMax", "seq + average"]
AHEAD_OF += ["sequential, last task", "Zero-shot"]
FORGETTING = ["MagMax", "EWC", "LwF", "sequential, last task"]


def test_figures_are_small():
    figures = list(PUBLISHED.glob("*.png"))
    assert figures
    assert all(path.stat().st_size < 200_000 for path in figures)


@pytest.fixture(scope="module")
def report():
    return published("report")


def published(name):
    """The report of an experiment."""
    texts = dict.fromkeys(("strategy", "options", "scale", "tag"), str)
    return pd.read_csv(PUBLISHED / f"{name}.csv", dtype=texts).fillna(dict.fromkeys(texts, ""))


def only(lines, **values):
    """The one row with these values."""
    (row,) = lines[(lines[list(values)] == pd.Series(values)).all(axis=1)].to_dict("records")
    return row


def table(page, corner, titles=tuple(TITLES)):
    """The cells of the table of a page with `corner` at its left top and these columns: (row, column) → text."""
    found = re.search(rf"^\| {re.escape(corner)} \|.*?(?=\n\n|\Z)", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    head, _, *lines = ([cell.strip(" *") for cell in line.strip("|").split("|")] for line in found[0].splitlines())
    assert head[1:] == list(titles)
    return {(name, title): cell for name, *cells in lines for title, cell in zip(head[1:], cells, strict=True)}


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_accuracies_are_those_of_the_report(page, report):
    cells = table(page, "accuracy (%)")
    for (name, title), cell in cells.items():
        found = report[(report["name"] == name) & (report[BENCHMARK] == list(TITLES[title])).all(axis=1)]
        shown = [f"{100 * r.final_accuracy:.1f} ± {100 * r.final_accuracy_std:.1f}" for r in found.itertuples()]
        assert [cell] == (shown or [""])
        assert found["n"].isin([5]).all()
    assert sum(cell != "" for cell in cells.values()) > 60


def test_retention_is_that_of_the_report(report):
    cells = table("docs/results.md", "retention (points)")
    for (name, title), cell in cells.items():
        found = report[(report["name"] == name) & (report[BENCHMARK] == list(TITLES[title])).all(axis=1)]
        found = found[found["retention"].notna()]
        shown = [f"{100 * r.retention + 0:+.1f} ± {100 * r.retention_std:.1f}" for r in found.itertuples()]
        assert [cell.replace("−", "-")] == (shown or [""])
    assert sum(cell != "" for cell in cells.values()) > 60


def chance(p):
    return "< 0.001" if p < 0.001 else f"= {p:.2f}" if p >= 0.1 else f"= {p:.3f}"


def accuracy(row):
    return f"{100 * row['final_accuracy']:.1f} ± {100 * row['final_accuracy_std']:.1f}"


def apart(row):
    """How far a row is from MagMax, as the pages write it."""
    return f"{100 * row['minus_baseline']:+.1f} (p {chance(row['p'])})".replace("-", "−")


@pytest.mark.parametrize(
    ("name", "corner", "shown"),
    [
        ("beyond", "beyond the paper, accuracy (%)", accuracy),
        ("beyond", "the parts of align, accuracy (%)", accuracy),
        ("beyond", "beyond the paper, minus MagMax", apart),
        ("confirmation", "five new orders, minus MagMax", apart),
    ],
)
def test_what_came_later_is_what_its_report_says(name, corner, shown):
    found = published(name)
    titles = [title for title, where in TITLES.items() if (found[BENCHMARK] == list(where)).all(axis=1).any()]
    cells = table("docs/results.md", corner, titles)
    for (row, title), cell in cells.items():
        assert [cell] == [shown(r) for r in rows(found, title, row)], (row, title)
    assert len(cells) >= 5 * len(titles)
    assert (found["n"] == 5).all()


def value(found, title, name):
    (row,) = rows(found, title, name)
    return row["final_accuracy"]


def ahead(found, title, name):
    """Points by which a row is ahead of MagMax, as the pages write them."""
    (row,) = rows(found, title, name)
    return f"{100 * row['minus_baseline']:.1f}"


def gain(found, title, name, other, than=None):
    """Points by which a row is ahead of another, which may be in another report."""
    return f"{100 * (value(found, title, name) - value(found if than is None else than, title, other)):.1f}"


def test_what_is_said_of_magmax_and_what_came_later():
    beyond, confirmed = published("beyond"), published("confirmation")
    new = [ahead(confirmed, title, name) for name in (AVERAGE, MAGMAX) for title in (DIGITS, TWENTY)]
    new += [ahead(confirmed, TEN, name) for name in (AVERAGE, MAGMAX)]
    new += [f"{rows(confirmed, TEN, name)[0]['p']:.3f}" for name in (AVERAGE, MAGMAX)]
    new += [ahead(confirmed, FIVE, name) for name in (AVERAGE, MAGMAX)]
    plain = [ahead(beyond, FIVE, EMA), ahead(beyond, FIVE, f"{EMA}, align"), ahead(beyond, TEN, EMA)]
    plain += [ahead(confirmed, title, EMA) for title in (FIVE, TEN)]
    assert numbers_of("Is anything significantly") == [*new, *plain]


def test_what_is_said_of_where_align_helps():
    beyond = published("beyond")
    helped = [gain(beyond, title, AVERAGE, "seq + average") for title in (FIVE, TEN, TWENTY)]
    helped += [ahead(beyond, title, MAGMAX) for title in (FIVE, TEN, TWENTY)]
    assert numbers_of("`align` helps") == helped


def test_what_the_parts_of_align_add():
    """Holm's method for the five streams of each line."""
    found, own = published("beyond"), "calibration.statistics = encoder"
    lines = {
        "align, for the average": (AVERAGE, "seq + average"),
        "… with the mean of the statistics instead of each task's": (AVERAGE, f"{AVERAGE}, {own}"),
        "align with each task's, for the last encoder": (f"seq + ema, align, {own}, decay = 0", "seq + ema, decay = 0"),
        "align with each task's, for the moving average of LwF": (EMA_ALIGNED, EMA),
        "… with the mean of the statistics instead of each task's, LwF": (f"{EMA}, align", EMA_ALIGNED),
    }
    cells, found_of = table("docs/results.md", "what the parts of align add"), {}
    for line, names in lines.items():
        tests = [paired(*(rows(found, title, name)[0] for name in names)) for title in TITLES]
        p = multipletests([p for _, p in tests], method="holm")[1]
        shown = [f"{by:+.1f} (p {chance(p)})".replace("-", "−") for (by, _), p in zip(tests, p, strict=True)]
        assert [cells[line, title] for title in TITLES] == shown
        found_of[line] = [by for by, _ in tests], p
    assert len(cells) == len(lines) * len(TITLES)
    whole, mean, last, _, mean_of_lwf = found_of.values()
    assert (whole[1] < 0.05).all()
    assert not (mean[1] < 0.05).any()
    assert not (last[1] < 0.05).any()
    assert numbers_of("What its parts add") == [f"{end(of):.1f}" for of in (last[0], mean[0]) for end in (min, max)]
    assert [by < 0 for by in mean_of_lwf[0]] == [True, False, True, True, False]
    assert (mean_of_lwf[1] < 0.05).tolist() == [title == TEN for title in TITLES]


def validated(method, *merges):
    """(stream, merge) → the best mean validation accuracy over the seeds, with the values that were chosen."""
    table = pd.read_csv(ROOT / "docs/tuning.csv")
    of = table[(table["method"] == method) & table["strategy"].isin(merges)]
    values = list(of.columns[of.columns.get_loc("seed") + 1 :])
    return of.groupby(["stream", *CONFIGURATION, "strategy"], dropna=False)[values].mean().max(axis=1)


def test_what_is_said_of_rules_for_sequential_adapters():
    """In docs/merging.md."""
    found = validated("lora", "core_space", "core_space ties", "magmax").loc["digits_5", 0.003]
    accuracies = [f"{100 * found.xs(name, level='strategy').item():.1f} %" for name in found.index.unique("strategy")]
    text = " ".join((ROOT / "docs/merging.md").read_text().split())
    core, ties, magmax = accuracies
    assert f"is {core} with `rule=iso_c`, {ties} with `rule=ties`, and {magmax} with `strategy=magmax`" in text


def test_which_statistics_validation_data_prefer():
    """For LwF's moving average."""
    best = validated("lwf", "ema align", "ema align encoder").groupby(["stream", "strategy"]).max().unstack()
    ahead = best["ema align encoder"] - best["ema align"]
    assert (ahead[[f"glyphs_{tasks}" for tasks in (5, 10, 20)]] > 0).all()
    assert ahead["digits_5"] < 0
    assert ahead["glyphs_domain"] == pytest.approx(0, abs=5e-4)


def test_what_is_said_of_what_does_not_help():
    beyond = published("beyond")
    start = [ahead(beyond, title, "merged + ema, λ = 1") for title in (FIVE, TEN, TWENTY)]
    said = [max(start, key=float), min(start, key=float)]
    for calibration in ("svc", "lines"):
        gains = [
            gain(beyond, title, f"{of}, {calibration}", of)
            for title in (DIGITS, FIVE, TEN, TWENTY)
            for of in ("MagMax", "seq + average")
        ]
        said.append(max(gains, key=float))
    said.append(ahead(beyond, TEN, "MagMax, svc"))
    said += [ahead(beyond, title, f"seq + {NUFILT}") for title in (FIVE, TEN)]
    said.append(ahead(beyond, FIVE, "seq + average, lines"))
    said += [gain(beyond, title, "seq + regmean", "seq + average") for title in (DIGITS, DOMAINS)]
    assert numbers_of("What does not help") == [number.removeprefix("-") for number in said]


def test_what_is_said_of_the_threshold_of_consensus():
    beyond, low = published("beyond"), "seq + consensus, threshold = 0.2"
    plain, lowered = (
        [f"{-float(ahead(beyond, title, name)):.1f}" for title in (FIVE, TEN)] for name in ("seq + consensus", low)
    )
    above = [gain(beyond, TWENTY, name, "Zero-shot") for name in ("seq + consensus", low)]
    said = [*plain, "0.4", *lowered, "0.2", lowered[0], "0.4", "0.2", *above]
    assert numbers_of("Consensus needs") == said


def test_what_is_said_of_papers_and_their_codes():
    """Holm's method for the five streams of each strategy."""
    beyond, said = published("beyond"), []
    for name in ("seq + dop, solver = closed", f"seq + {NUFILT}"):
        of = [paired(*(rows(beyond, title, n)[0] for n in (f"{name}, variant = corrected", name))) for title in TITLES]
        said.append(" to ".join(f"{end(by for by, _ in of):+.1f}" for end in (min, max)).replace("-", "−"))
        assert not multipletests([p for _, p in of], method="holm")[0].any()
    text = " ".join((ROOT / "docs/results.md").read_text().split())
    assert f"of `dop` by {said[0]} points and that of `nufilt` by {said[1]}, never" in text


def test_what_is_said_of_the_estimator_of_ewc(report):
    """In docs/training.md."""
    text = " ".join((ROOT / "docs/training.md").read_text().split())
    for title in (DIGITS, TEN):
        (plain,), (cleared,) = rows(report, title, "EWC"), rows(published("beyond"), title, "EWC [cleared]")
        assert f"{accuracy(plain)} % become {accuracy(cleared)} %" in text


def test_what_is_said_of_adapters_and_of_averages_along_a_task():
    beyond = published("beyond")

    def apart_of(*names):
        return sorted((ahead(beyond, title, name) for title in TITLES for name in names), key=float)

    level, last, knots = apart_of(*ADAPTERS), apart_of("sequential, last task [lora]"), apart_of("seq + knots [lora]")
    core, ties = apart_of("seq + core space [lora]"), apart_of("seq + core space, rule = ties [lora]")
    averages = [gain(beyond, title, "seq + average [lora]", "seq + average") for title in TITLES]
    said = [level[0], level[-1], *averages, last[-1], last[0], knots[-1], knots[0], core[-1], core[0]]
    said += [ties[-1], ties[0]]
    assert numbers_of("Adapters merge") == [number.removeprefix("-") for number in said]
    last = "sequential, last task"
    averaged = apart_of("MagMax [swa]")
    said = [gain(beyond, DIGITS, f"{last} [swa]", last), gain(beyond, DOMAINS, f"{last} [swa]", last)]
    said += [averaged[0], averaged[-1], ahead(beyond, FIVE, "seq + average [swa]")]
    assert numbers_of("An average along") == [number.removeprefix("-") for number in said]


def paired(row, other):
    """The paired t-test of two rows, of one report or two: the difference in points, and p."""
    assert row["seeds"] == other["seeds"]
    ours, theirs = ([float(a) for a in of["final_accuracies"].split()] for of in (row, other))
    return 100 * (sum(ours) - sum(theirs)) / len(ours), float(stats.ttest_rel(ours, theirs).pvalue)


def test_the_best_rows_are_compared(report):
    beyond = published("beyond")
    cells = table("docs/results.md", "the best of both")
    found = []
    for title, where in TITLES.items():
        old, late = (lines[(lines[BENCHMARK] == list(where)).all(axis=1)] for lines in (report, beyond))
        shared = old.merge(late, on="name", suffixes=("", "_later"))
        assert len(shared) >= 5  # rows that both reports have, measured twice
        assert (shared["final_accuracies"] == shared["final_accuracies_later"]).all()
        bests = []
        for lines in (old[~is_bound(old)], late[~late["name"].isin(old["name"])]):
            bests.append(lines.loc[lines["final_accuracy"].idxmax()])
        assert cells["the paper's methods", title] == bests[0]["name"]
        assert cells["what came later", title] == bests[1]["name"]
        found.append(paired(bests[1], bests[0]))
    p = multipletests([p for _, p in found], method="holm")[1]
    shown = [f"{by:+.1f} (p {chance(p)})".replace("-", "−") for (by, _), p in zip(found, p, strict=True)]
    assert [cells["difference", title] for title in TITLES] == shown


def test_which_differences_are_called_significant():
    """On the first five orders, and those that align does not help."""
    found = published("beyond")
    behind = ["seq + consensus", f"seq + {NUFILT}", "seq + average, lines", "seq + average [swa]"]
    better = [(FIVE, EMA), (FIVE, f"{EMA}, align"), (FIVE, "LwF"), (DIGITS, AVERAGE), (DIGITS, EMA_ALIGNED)]
    better.append((TWENTY, MAGMAX))
    ahead_of_all = found[(found["p"] < 0.05) & (found["minus_baseline"] > 0) & (found["name"] != "Joint")]
    titles = {benchmark: title for title, benchmark in TITLES.items()}
    places = {(titles[tuple(line[key] for key in BENCHMARK)], line["name"]) for _, line in ahead_of_all.iterrows()}
    assert places == set(better)
    worse = [(TEN, name) for name in ("MagMax, svc", f"seq + {NUFILT}", "seq + consensus")]
    worse.append((TEN, "seq + consensus, threshold = 0.2"))
    for sign, places in ((1, better), (-1, [*worse, *((FIVE, name) for name in behind)])):
        for title, name in places:
            (row,) = rows(found, title, name)
            assert row["p"] < 0.05, name
            assert sign * row["minus_baseline"] > 0, name
    merged = found[(found["method"] == "merged") & (found["stream"] == "class")]
    assert not ((merged["p"] < 0.05) & (merged["minus_baseline"] > 0)).any()
    level = found[found["name"].isin([*ADAPTERS, "MagMax [swa]"]) | ((found["name"] == EMA) & (found["tasks"] == 10))]
    assert not (level["p"] < 0.05).any()
    gains = [gain(found, title, name, EMA) for title in (FIVE, DOMAINS) for name in (f"{EMA}, align", EMA_ALIGNED)]
    assert numbers_of("What `align` does not do") == [max(gains, key=float)]
    for title in TITLES:
        for name in ("seq + fisher", "seq + laplace"):
            assert value(found, title, name) <= value(found, title, "seq + average")


def rows(found, title, name):
    where = (found["name"] == name) & (found[BENCHMARK] == list(TITLES[title])).all(axis=1)
    return found[where].to_dict("records")


def facts(lines, conflicts):
    """What the second table of docs/results.md says of one benchmark: row → text."""
    values = {name: 100 * value for name, value in zip(lines["name"], lines["final_accuracy"], strict=True)}
    p = dict(zip(lines["name"], lines["p"], strict=True))
    forgetting = {name: 100 * value for name, value in zip(lines["name"], lines["forgetting"], strict=True)}

    def ahead_of(name):
        return f"{values['MagMax'] - values[name]:+.1f} (p {chance(p[name])})".replace("-", "−")

    competing = lines[~is_bound(lines)]
    best = competing.loc[competing["final_accuracy"].idxmax(), "name"]
    rank = 1 + (competing["final_accuracy"].round(4) > round(values["MagMax"] / 100, 4)).sum()
    plain = (lines["strategy"] != "") & (lines["tag"] == "") & (lines["options"] == "")
    merged = lines[plain & lines["method"].isin(("seq", "ind"))].pivot(
        index="strategy", columns="method", values="final_accuracy"
    )
    gain = 100 * (merged["seq"] - merged["ind"])
    after_all = conflicts[conflicts["tasks"] == conflicts["tasks"].max()]
    share = {m: 100 * after_all.loc[after_all["method"].str.startswith(m), "share"] for m in ("ind", "seq")}
    assert [len(of) for of in share.values()] == [5, 5]
    return {
        "rank of MagMax": f"{rank} of {len(competing)}",
        "the best row": best,
        "MagMax minus the best row": ahead_of(best) if best != "MagMax" else "",
        **{f"… minus {name}": ahead_of(name) for name in AHEAD_OF},
        "strategies that seq is better for than ind": f"{(gain > 0).sum()} of {len(gain)}",
        "… by, on average": f"{gain.mean():+.1f}".replace("-", "−"),
        **{f"forgetting, {name}": f"{round(forgetting[name], 1) + 0:.1f}".replace("-", "−") for name in FORGETTING},
        "sign conflicts, ind (%)": f"{share['ind'].mean():.1f} ± {share['ind'].std():.1f}",
        "sign conflicts, seq (%)": f"{share['seq'].mean():.1f} ± {share['seq'].std():.1f}",
    }


def test_facts_are_those_of_the_report(report):
    cells = table("docs/results.md", "what the claims rest on")
    for title, benchmark in TITLES.items():
        name = "-".join(map(str, benchmark))
        conflicts = pd.read_csv(PUBLISHED / f"{name}-sign_conflicts.csv")
        expected = facts(report[(report[BENCHMARK] == list(benchmark)).all(axis=1)], conflicts)
        assert {row: cell for (row, of), cell in cells.items() if of == title} == expected


def numbers_of(claim):
    """The numbers with a decimal point in the paragraph of docs/results.md that begins with `claim`, in order."""
    text = (ROOT / "docs/results.md").read_text()
    return re.findall(r"\d+\.\d+", re.search(rf"^- \*\*{claim}.*?(?=\n- |\n\n)", text, re.DOTALL | re.MULTILINE)[0])


def test_what_is_said_of_pruning():
    frame = pd.read_csv(PUBLISHED / "glyphs-class-10-pruning.csv")
    mean = 100 * frame.groupby(["order", "kept"])["task_aware"].mean()
    said = [mean["highest", 0.4], mean["highest", 1.0], mean["lowest", 0.4], mean["highest", 0.0]]
    assert numbers_of("The largest values") == [f"{value:.1f}" for value in said]


def test_what_is_said_of_consistency():
    frame = pd.read_csv(PUBLISHED / "glyphs-class-10-consistency.csv")
    of = {m: frame[frame["method"].str.startswith(m)].set_index("consistent")["mean_magnitude"] for m in ("ind", "seq")}
    said = [of["seq"][5], of["seq"][9], of["seq"][10], of["ind"][5], of["ind"][10]]
    assert numbers_of("In sequential fine-tuning") == [f"{value:.4f}" for value in said]


def test_what_is_said_of_magmax(report):
    """The ranges in "What holds" and "What does not hold"."""
    of = {title: report[(report[BENCHMARK] == list(where)).all(axis=1)] for title, where in TITLES.items()}
    points = {title: 100 * lines.set_index("name")["final_accuracy"] for title, lines in of.items()}
    by_class = [title for title in TITLES if title != DOMAINS]

    def behind(title, *names):
        """Points by which rows are behind MagMax."""
        return (points[title]["MagMax"] - points[title][list(names)]).tolist()

    def ends(values):
        return [f"{end:.1f}" for end in (min(values), max(values))]

    merges = {t: lines.loc[(lines["method"] == "ind") & (lines["strategy"] != ""), "name"] for t, lines in of.items()}
    of_ind = [value for title in (FIVE, TEN) for value in behind(title, *merges[title])]
    max_abs = [value for title in (DIGITS, TWENTY, DOMAINS) for value in behind(title, "MaxAbs")]
    assert numbers_of("MagMax is ahead of every merge") == [*ends(of_ind), "0.01", *ends(max_abs)]
    (least,) = {sum(value < 0 for value in behind(DOMAINS, *merges[DOMAINS]))}
    text = (ROOT / "docs/results.md").read_text()
    assert f"{least} of its {len(merges[DOMAINS])} merges are ahead of MagMax" in text
    assert [sum(value < 0 for value in behind(title, *merges[title])) for title in by_class] == [1, 0, 0, 0]
    average = [value for title in TITLES for value in behind(title, "seq + average")]
    assert numbers_of("Averaging the same encoders") == [f"{max(average):.1f}", f"{-min(average):.1f}"]
    seeds = {
        name: [100 * float(a) for a in only(of[DOMAINS], name=name)["final_accuracies"].split()]
        for name in ("sequential, last task", "MagMax", "seq + average")
    }
    inverted = [f"{values[3]:.1f}" for values in seeds.values()]  # seed 4
    others = [f"{(sum(seeds[name]) - seeds[name][3]) / 4:.1f}" for name in ("MagMax", "seq + average")]
    assert numbers_of("The largest magnitude follows") == [*inverted, *others]
    joint = [-value for title in TITLES for value in behind(title, "Joint")]
    best = points[TWENTY].drop("Joint").max() - points[TWENTY]["Zero-shot"]
    assert numbers_of("Everything is far from") == [*ends(joint), f"{best:.1f}"]


def test_what_the_readme_says_of_the_results(report):
    """Its sentences below the table."""
    text = " ".join((ROOT / "README.md").read_text().split())
    beyond, confirmed = published("beyond"), published("confirmation")
    gained = [float(ahead(beyond, title, AVERAGE)) for title in TITLES]
    assert f"the average is ahead of MagMax on all five, by {min(gained)} to {max(gained)} points" in text
    significant = [
        sum(rows(found, title, AVERAGE)[0]["p"] < 0.05 for title in titles)
        for found, titles in ((beyond, TITLES), (confirmed, [DIGITS, FIVE, TEN, TWENTY]))
    ]
    assert significant == [1, 2]
    assert "significantly on one, and on new class orders on two of four" in text
    facts_of = table("docs/results.md", "what the claims rest on")
    counts = [int(facts_of["strategies that seq is better for than ind", title].split()[0]) for title in TITLES]
    assert f"for {min(counts)} to {max(counts)} of 19 strategies" in text
    shares = [
        [float(facts_of[f"sign conflicts, {method} (%)", title].split()[0]) for title in TITLES]
        for method in ("ind", "seq")
    ]
    fewer = [ind / seq for ind, seq in zip(*shares, strict=True)]
    assert 14 < min(fewer) < max(fewer) < 51
    assert "15 to 50 times fewer sign conflicts" in text


CHOSEN = ("lambda", "calibration.beta", "calibration.coefficient")


def merges_of(experiment):
    """(title, strategy, grid) of every merge of an experiment."""
    grids = OmegaConf.to_container(OmegaConf.load(experiment))["hydra"]["sweeper"]["merge"].values()
    title_of = {benchmark: title for title, benchmark in TITLES.items()}
    for grid in grids:
        benchmark = (grid["dataset"], grid.get("stream", "class"), grid.get("tasks", 6))
        yield from ((title_of[benchmark], strategy, grid) for strategy in grid["strategy"].split(","))


def test_results_have_the_values_of_the_experiments(report):
    """λ of every merge; a report of other values would have other rows."""
    seen = set()
    experiments = dict.fromkeys(ROOT.glob("configs/experiment/embedded_*.yaml"), report)
    experiments |= {ROOT / f"configs/experiment/{name}.yaml": published(name) for name in ("beyond", "confirmation")}
    for part, report in experiments.items():
        for title, strategy, grid in merges_of(part):
            seen.add(title)
            named = {key: grid[key] for key in grid if key.startswith("calibration") and key not in CHOSEN}
            named |= {key.removeprefix("strategy."): grid[key] for key in grid if key.startswith("strategy.")}
            where = dict(zip(BENCHMARK, TITLES[title], strict=True)) | {"method": grid["method"], "strategy": strategy}
            (chosen,) = (grid[key] for key in CHOSEN if key in grid)
            found = report[(report[list(where)] == pd.Series(where)).all(axis=1)]
            found = found[(found["tag"] == grid.get("tag", "")) & (found["scale"] == f"{chosen:g}")]
            options = [dict(part.split(" = ") for part in text.split(", ") if part) for text in found["options"]]
            assert options.count({key: str(value) for key, value in named.items()}) == 1, (title, strategy, named)
    assert seen == set(TITLES)


def test_what_is_said_of_values_at_the_edge_of_their_grid():
    """λ of every merge of the paper's methods and of what came later, and β."""
    found = {}
    for part in [*ROOT.glob("configs/experiment/embedded_*.yaml"), ROOT / "configs/experiment/beyond.yaml"]:
        for title, strategy, grid in merges_of(part):
            (key,) = (key for key in CHOSEN if key in grid)
            if grid[key] in (0.025, 2):
                found.setdefault((key, grid[key], title, grid.get("tag", grid["method"])), set()).add(strategy)
    few = {where: names for where, names in found.items() if where[2:] not in {(DIGITS, "ind"), (TWENTY, "ind")}}
    text = " ".join((ROOT / "docs/results.md").read_text().split())
    assert "highest, 2: eight merges of independent fine-tuning on digits, and its `model_stock` by domain." in text
    assert (
        "lowest, 0.025: twelve merges of independent fine-tuning on glyphs in 20 tasks, MaxAbs among them, and" in text
    )
    assert "four of sequential fine-tuning (`breadcrumbs`, `dare`, `task_arithmetic` and `wudi`); `dare` of" in text
    assert "`dare` of independent fine-tuning and `core_space` in 10 tasks; `model_stock` of independent" in text
    assert "β of `lines` at its lowest, 0.025: the average on glyphs in 10 and in 20 tasks." in text
    assert len(found["lambda", 2, DIGITS, "ind"]) == 8
    assert len(found["lambda", 0.025, TWENTY, "ind"]) == 12
    assert "magmax" in found["lambda", 0.025, TWENTY, "ind"]  # MaxAbs
    assert found["lambda", 0.025, DIGITS, "ind"] == {"model_stock"}
    assert few == {
        ("lambda", 2, DOMAINS, "ind"): {"model_stock"},
        ("lambda", 0.025, TWENTY, "seq"): {"breadcrumbs", "dare", "task_arithmetic", "wudi"},
        ("lambda", 0.025, TEN, "ind"): {"dare"},
        ("lambda", 0.025, TEN, "lora"): {"core_space"},
        ("calibration.beta", 0.025, TEN, "seq"): {"average"},
        ("calibration.beta", 0.025, TWENTY, "seq"): {"average"},
    }

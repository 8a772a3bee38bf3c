"""Sweeps elsewhere, with made-up programs of SLURM; tests/slurm has real ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest
from helpers import ROOT, command, noise
from omegaconf import OmegaConf

from mergestream.cli import pipeline, slurm
from mergestream.runtime import interrupt, lock

TRAIN = (*[word for word in noise() if not word.startswith("tasks=")], "epochs=1", "logger=none")
SINFO = (
    "work|work*|8|16000|gpu:a100:2(S:0-1)|infinite\ncpus|cpus|16|32000+|(null)|2-00:00:00\n"
    "2080|2080|12|8000|gpu:4|1-12:00:00\n"
)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """(name, script): put a program of SLURM on the PATH, which has no others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(slurm.shutil, "which", lambda name: str(folder / name) if (folder / name).exists() else None)

    def put(**scripts):
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    return put


def test_without_slurm(tmp_path, programs):
    outcome = command("train.py", "-m", "seed=1", f"root={tmp_path}", "cluster=slurm")
    rule = "error: cluster=slurm needs sbatch on the PATH, and there is none. Log in where jobs are submitted.\n"
    assert (outcome.code, outcome.err) == (1, rule)


def test_a_single_run_is_not_run_on_the_login_node(tmp_path):
    outcome = command("train.py", f"root={tmp_path}/runs", "cluster=slurm")
    assert outcome.code == 1
    assert outcome.err == "error: cluster=slurm is for sweeps, and for experiments; write -m for a single run, too\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"mem": "8000M", "gres": "gpu:1", "cpus-per-task": "4", "time": "1440"}),
        ({"gpus": 2, "cpus": 3}, {"mem": "16000M", "gres": "gpu:2", "cpus-per-task": "3", "time": "1440"}),
        ({"gpus": 0, "partition": "cpus"}, {"partition": "cpus", "cpus-per-task": "1", "time": "1440"}),
        ({"gpus": 0, "cpus": 6}, {"cpus-per-task": "6", "time": "1440"}),
        ({"gpus": 0, "jobs_per_node": 3, "memory": "9G"}, {"mem": "9G", "cpus-per-task": "3", "time": "1440"}),
        (
            {"partition": 2080},
            {"partition": "2080", "mem": "2000M", "gres": "gpu:1", "cpus-per-task": "3", "time": "1440"},
        ),
        (
            {"partition": "work,2080", "gpus": 2},
            {"partition": "work,2080", "mem": "4000M", "gres": "gpu:2", "cpus-per-task": "6", "time": "1440"},
        ),
        (
            {"partition": "2080,work", "minutes": 9999},
            {"partition": "2080,work", "mem": "2000M", "gres": "gpu:1", "cpus-per-task": "3", "time": "9999"},
        ),
        ({"partition": "none"}, "must be a partition of SLURM, one of 2080, cpus, work; got cluster.partition=none"),
        ({"partition": "work,none"}, "one of 2080, cpus, work; got cluster.partition=work,none"),
        ({"partition": "2080,work", "gpus": 3}, "at most 2, which a node of partition work has; got cluster.gpus=3"),
        ({"gpus": 3}, "cluster.gpus must be at most 2, which a node of partition work has; got cluster.gpus=3"),
        ({"partition": "cpus"}, "must be at most 0, which .* Write cluster.gpus=0 to run on CPUs"),
        ({"minutes": "soon"}, "cluster.minutes must be a whole number, 5 or more; got cluster.minutes=soon"),
        ({"minutes": 2161, "partition": 2080}, "at most 2160, the time limit of partition 2080; got .*minutes=2161"),
        ({"minutes": 2881, "gpus": 0, "partition": "2080,cpus"}, "at most 2880, the time limit of partition cpus"),
        (
            {"partition": 2080, "minutes": 9999, "options": {"qos": "long"}},
            {"partition": "2080", "mem": "2000M", "gres": "gpu:1", "cpus-per-task": "3", "time": "9999", "qos": "long"},
        ),
        ({"minutes": 4}, "cluster.minutes must be a whole number, 5 or more; got cluster.minutes=4"),
        ({"cpus": 0}, "cluster.cpus must be a whole number, 1 or more, or auto; got cluster.cpus=0"),
        ({"account": ["a"]}, r"cluster.account must be a name or a number, or null; got cluster.account=\['a'\]"),
        ({"setup": "module"}, r"cluster.setup must be a list of lines, such as .*; got cluster.setup=module"),
        ({"options": 5}, "cluster.options must hold names and numbers, such as .*; got cluster.options=5"),
        ({"options": {"nice": None}}, "cluster.options must hold names and numbers"),
        ({"options": {"time": 5}}, "cluster.options must not have time, which is the key cluster.minutes"),
        ({"options": {"dependency": "afterok:4"}}, "must not have dependency, which is the key cluster.after"),
        ({"options": {"kill-on-invalid-dep": "no"}}, "kill-on-invalid-dep, which is set with the key cluster.after"),
        ({"options": {"nodes": 2}}, "must not have nodes, which is 1 for all jobs; cluster.gpus sets their GPUs"),
        ({"options": {"ntasks": 2}}, "must not have ntasks, which is 1 for all jobs"),
        ({"options": {"output": "x"}}, "cluster.options must not have output, which is set for all jobs"),
    ],
)
def test_what_a_job_asks_for(values, expected, programs):
    programs(sbatch="", squeue="", sinfo=f"printf '{SINFO}'")
    cluster = {"partition": None, "account": None, "gpus": 1, "cpus": "auto", "memory": "auto", "minutes": 1440}
    cluster |= {"timeouts": 8, "jobs_per_node": "auto", "options": {}, "setup": [], "after": None}
    cluster |= {"wait": True, "dry_run": False, **values}
    if isinstance(expected, dict):
        asked = slurm.asked(cluster, small=True)
        assert asked.options == expected
        assert (
            asked.each == {"6": 6, "3": 3}.get(expected["cpus-per-task"], 1)
            if "gres" not in expected
            else asked.each == 1
        )
    else:
        with pytest.raises(slurm.UserError, match=expected):
            slurm.asked(cluster, small=True)


def test_errors_of_jobs_are_shown_and_slurm_may_forget_them(tmp_path, programs):
    """Job 0 says why it failed, 1 completes, 2 is cancelled before it starts, 3 has no log, and SLURM forgets 4."""
    log = 'f=$(sed -n "s/.*folder=//p" $2); echo "error: job 0 (seed=1): no" > $f/0.log; touch $f/4.log; echo 42'
    shown = "42|0|FAILED|None\\n42|1|COMPLETED|None\\n42|2|CANCELLED|None\\n42|3|FAILED|None\\n"
    programs(sbatch=log, squeue=f"printf '{shown}'", sinfo=f"printf '{SINFO}'")
    outcome = command(
        "train.py", "-m", "seed=1,2,3,4,5", f"root={tmp_path}/runs", "cluster=slurm", "cluster.timeouts=2"
    )
    (folder,) = tmp_path.glob("runs/_sweeps/*/train")
    assert outcome.code == 1
    assert f"submitted 5 jobs of train as 42; logs in {folder}" in outcome.out
    assert outcome.err.splitlines() == [
        "error: job 0 (seed=1): no",
        f"error: job 2: cancelled; it did not start; there is no {folder}/2.log",
        f"error: job 3: failed; it wrote no {folder}/3.log; root must be a folder that all nodes share",
        f"error: job 4: of unknown end; its log is {folder}/4.log",
    ]
    assert json.loads((folder / "3.json").read_text()) == {"first": 3, "jobs": [["seed=4", f"root={tmp_path}/runs"]]}
    script = (folder / "array.sh").read_text()
    assert "#SBATCH --signal=B:USR1@120" in script
    assert 'export MERGESTREAM_TIMEOUTS="2 $(($(date +%s) - SECONDS + 86400)) ""$folder/$number.timeouts"\n' in script


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("infinite", float("inf")), ("30:00", 30), ("1:30", 1.5), ("8:00:00", 480), ("7-01:00:00", 10140)],
)
def test_time_limits_as_sinfo_writes_them(limit, minutes):
    assert slurm._minutes(limit) == minutes


def test_why_jobs_wait_is_told_once_if_they_may_wait_for_ever(tmp_path, programs):
    lines = ["42|0|PENDING|Resources\\n", "42|0|PENDING|QOSMaxWallDurationPerJobLimit\\n", "42|0|COMPLETED|None\\n"]
    turns = f"n=$(cat {tmp_path}/n 2>/dev/null || echo 0); echo $((n + 1)) > {tmp_path}/n"
    cases = f"0) printf '{lines[0]}';; 1|2) printf '{lines[1]}';; *) printf '{lines[2]}';;"
    programs(sbatch="echo 42", squeue=f"{turns}; case $n in {cases} esac", sinfo=f"printf '{SINFO}'")
    outcome = command("train.py", "-m", "seed=1", f"root={tmp_path}/runs", "cluster=slurm")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count(" wait: ") == outcome.out.count("jobs of 42 wait: QOSMaxWallDurationPerJobLimit\n") == 1


def test_a_second_array_that_slurm_refuses(tmp_path, programs, monkeypatch):
    monkeypatch.setattr(slurm, "LARGEST", 2)
    refuse = 'case $2 in *-2.sh) echo "sbatch: error: too many jobs" >&2; exit 1;; *) echo 42;; esac'
    programs(sbatch=refuse, squeue="", sinfo=f"printf '{SINFO}'")
    outcome = command("train.py", "-m", "seed=1,2,3", f"root={tmp_path}/runs", "cluster=slurm")
    assert outcome.code == 1
    assert outcome.err == (
        "error: SLURM refuses: sbatch: error: too many jobs; but it has taken the first 2 jobs of 3, as 42. Wait for "
        "their end, or type scancel 42, before you type the command again\n"
    )


def test_the_time_of_a_job_begins_before_the_lines_of_setup(tmp_path):
    asked = slurm.Asked({"time": "10"}, 1, ["SECONDS=1000"], 3)  # as if they took so long
    words = [sys.executable, "-c", f"import os; print(os.environ['{interrupt.TIMEOUTS}'])"]
    (tmp_path / "job.sh").write_text(slurm._script("train", asked, tmp_path, words, 0, 1))
    began = int(time.time())
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "0"}
    said = subprocess.check_output(["bash", tmp_path / "job.sh"], text=True, env=environment)
    allowed, end, file = said.split()
    assert (allowed, file) == ("3", f"{tmp_path}/0.timeouts")
    assert -400 <= int(end) - began < 0


def test_slurm_that_does_not_answer(tmp_path, programs, monkeypatch):
    programs(sbatch="echo 42", squeue="echo no controller >&2; exit 1", sinfo=f"printf '{SINFO}'")
    monkeypatch.setattr(slurm, "PATIENCE", 0.0)
    outcome = command("train.py", "-m", "seed=1", f"root={tmp_path}/runs", "cluster=slurm")
    assert outcome.code == 1
    assert outcome.err.startswith(
        "error: SLURM has not answered for 0 minutes (no controller); the jobs may go on: squeue"
    )


def test_a_listed_job_is_that_of_the_sweep(tmp_path):
    """What a job of the array runs."""
    listed = {"first": 7, "jobs": [["tasks=0", f"root={tmp_path}/runs"], ["method=nope"]]}
    (tmp_path / "0.json").write_text(json.dumps({**listed, "jobs": listed["jobs"][:1]}))
    words = [f"hydra.sweep.dir={tmp_path}", f"hydra.sweeper.listed={tmp_path}/0.json", "cluster.jobs_per_node=1"]
    outcome = command("train.py", "--multirun", *words)
    assert outcome.code == 1
    assert outcome.err.startswith("error: job 7 (")
    assert outcome.err.endswith("tasks must be a whole number, 1 or more; got tasks=0\n")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "slurm_load_partitions: Unable to contact slurm controller (connect failure)",
            "SLURM does not answer; type the same command again later: ",
        ),
        ("sinfo: error: no such option", "SLURM refuses: "),
    ],
)
def test_slurm_that_fails(said, expected, tmp_path, programs):
    programs(sbatch="", squeue="", sinfo=f"echo '{said}' >&2; exit 1")
    outcome = command("train.py", "-m", "seed=1", f"root={tmp_path}/runs", "cluster=slurm")
    assert (outcome.code, outcome.err) == (1, f"error: {expected}{said}\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("cluster=slurm", "cluster.partition=work,2080"),
            "cluster.partition must be the same for all jobs of a sweep; got 2080 and work. "
            "For a list, write \"cluster.partition='2080,work'\"",
        ),
        (("cluster.jobs_per_node=1,2",), "cluster.jobs_per_node must be the same for all jobs of a sweep; got 1 and 2"),
        (("cluster=slurm,local",), "cluster must be the same for all jobs of a sweep; got local and slurm"),
    ],
)
def test_jobs_of_a_sweep_have_one_cluster(words, expected, tmp_path, programs):
    programs(sbatch="echo 42", squeue="", sinfo=f"printf '{SINFO}'")
    outcome = command("train.py", "-m", f"root={tmp_path}", "seed=1,2", *words)
    assert (outcome.code, outcome.err) == (1, f"error: {expected}\n")
    assert not list(tmp_path.rglob("train"))


def test_several_partitions_are_a_list_in_quotes(tmp_path, programs):
    programs(sbatch="echo 42", squeue="", sinfo=f"printf '{SINFO}'")
    words = ("seed=1,2", "cluster=slurm", "cluster.wait=false", "cluster.partition='work,2080'")
    outcome = command("train.py", "-m", f"root={tmp_path}", *words)
    assert outcome.code == 0, outcome.err
    (script,) = tmp_path.rglob("array.sh")
    assert "#SBATCH --partition=work,2080\n" in script.read_text()
    assert "--array=0-1" in script.read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("devices=1,2",), "devices must be at most cluster.gpus; got devices=2 and cluster.gpus=1"),
        (("devices=3", "cluster.gpus=2"), "devices must be at most cluster.gpus; got devices=3 and cluster.gpus=2"),
        (
            ("accelerator=gpu", "cluster.gpus=0"),
            "accelerator=gpu needs a GPU, and jobs ask for none; got cluster.gpus=0",
        ),
        (("devices=2", "cluster.gpus=2"), ""),
        (
            ("devices=2", "cluster.gpus=0"),
            "devices must be at most the CPU cores of a job, here 1; got devices=2. Write cluster.cpus=2",
        ),
        (
            ("devices=2", "cluster.gpus=0", "cluster.cpus=3", "cluster.jobs_per_node=2", "seed=1,2"),
            "devices must be at most the CPU cores of a job, here 1; got devices=2. Write cluster.cpus=4",
        ),
        (("devices=2", "cluster.gpus=0", "cluster.cpus=2"), ""),
        (
            ("devices=5", "accelerator=cpu"),
            "devices must be at most the CPU cores of a job, here 4; got devices=5. Write cluster.cpus=5",
        ),
        (("devices=2", "accelerator=cpu"), ""),
    ],
)
def test_jobs_need_no_more_devices_than_they_ask_for(words, expected, tmp_path, programs):
    programs(sbatch="echo 42", squeue="", sinfo=f"printf '{SINFO}'")
    outcome = command("train.py", "-m", f"root={tmp_path}", "cluster=slurm", "cluster.wait=false", *words)
    assert outcome.err == (f"error: {expected}\n" if expected else "")


def test_time_outs_are_counted_and_other_restarts_are_not(tmp_path, monkeypatch, programs):
    """Two are allowed, after which the job is pre-empted as often as SLURM likes."""
    programs(scontrol=f"echo $@ >> {tmp_path}/asked")
    file = tmp_path / "a folder" / "3.timeouts"
    file.parent.mkdir()
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "5"}.items():
        monkeypatch.setenv(name, value)
    end = int(time.time())
    for early, lines in ((100, 1), (3600, 1), (100, 2), (3600, 2)):
        monkeypatch.setenv(interrupt.TIMEOUTS, f"2 {end + early} {file}")
        assert interrupt.requeue(True) == "SLURM has requeued job 7"
        assert len(file.read_text().splitlines()) == lines
    monkeypatch.setenv(interrupt.TIMEOUTS, f"2 {end + 100} {file}")
    assert interrupt.requeue(True).startswith(
        "error: the time of job 7 was up 3 times, and cluster.timeouts=2 allows no more; type the same command again"
    )
    assert (tmp_path / "asked").read_text() == "requeue 7\n" * 4
    monkeypatch.setenv(interrupt.TIMEOUTS, f"0 {end + 100} {file}.none")
    assert "the time of job 7 was up once, and" in interrupt.requeue(True)


def test_only_a_job_whose_time_is_up_needs_to_have_saved_something(tmp_path, monkeypatch, programs):
    programs(scontrol="")
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(interrupt.TIMEOUTS, f"8 {int(time.time()) + 3600} {tmp_path}/7.timeouts")
    assert interrupt.requeue(False) == "SLURM has requeued job 7"  # pre-empted
    monkeypatch.setenv(interrupt.TIMEOUTS, f"8 {int(time.time()) + 100} {tmp_path}/7.timeouts")
    assert "so it is not requeued. Give it more time (cluster.minutes), or" in interrupt.requeue(False)


def test_a_dry_run_knows_what_is_finished_and_what_the_rest_may_cost(trained):
    words = ["tasks=3", "epochs=1", f"root={trained}", "cluster.dry_run=true"]
    outcome = command("train.py", "-m", *words, "method=seq,ewc", "seed=5,6")
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if line.startswith(("job", "4"))]
    states = [line.split(": ")[1] for line in lines]
    assert states[0] == "finished"
    assert states[1].startswith("to run, about ")
    assert states[2:4] == ["to run, cost unknown"] * 2
    assert "4 jobs, 3 to run: about 0.0 hours; 2 more of unknown cost, since none like them has finished." in lines[4]
    merges = command("merge.py", "-m", *words, "method=seq", "seed=5,0.5")
    assert "job 1: error: seed must be a whole number" in merges.out


@pytest.fixture
def stages(monkeypatch):
    """The commands that the pipeline runs; their exit codes and what they print are set by the test."""
    ran, ends = [], {}

    def call(words):
        ran.append([os.path.basename(words[1]), *words[2:]])
        return ends.get(ran[-1][0], (0, ""))

    monkeypatch.setattr(pipeline, "_call", call)
    return ran, ends


def test_each_stage_gets_the_words_that_it_knows(stages, tmp_path):
    words = ["seed=1,2", f"root={tmp_path}", "strategy=magmax,average", "devices=1", "prefixes=true"]
    outcome = command("pipeline.py", *words)
    assert (outcome.code, outcome.err) == (0, "")
    assert stages[0] == [
        ["train.py", "--multirun", "seed=1,2", f"root={tmp_path}", "devices=1"],
        ["merge.py", "--multirun", "seed=1,2", f"root={tmp_path}", "strategy=magmax,average", "prefixes=true"],
        ["report.py", f"root='{tmp_path}'"],
    ]


def test_either_key_makes_a_dry_run_which_reports_nothing(stages, tmp_path):
    for word in ("dry_run=true", "cluster.dry_run=true"):
        stages[0].clear()
        assert command("pipeline.py", f"root={tmp_path}", word).code == 0
        assert [(words[0], words[-1]) for words in stages[0]] == [
            ("train.py", "cluster.dry_run=true"),
            ("merge.py", "cluster.dry_run=true"),
        ]


def test_the_error_of_a_stage_is_one_line(monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(pipeline, "_call", lambda words: shown.append(os.environ["HYDRA_FULL_ERROR"]) or (0, ""))
    for asked, passed_on in (("", "0"), ("1", "1")):
        monkeypatch.setenv("HYDRA_FULL_ERROR", asked)
        shown.clear()
        assert command("pipeline.py", f"root={tmp_path}").code == 0
        assert set(shown) == {passed_on}


def test_a_stage_that_fails_ends_the_pipeline(stages):
    ran, ends = stages
    ends["train.py"] = (1, "")
    assert command("pipeline.py", "+experiment=smoke").code == 1
    assert len(ran) == 1


def test_stages_depend_on_each_other(stages, programs, tmp_path):
    ran, ends = stages
    programs(sbatch="cp $2 $2.seen; echo 44", squeue="", sinfo=f"printf '{SINFO}'")
    ends |= {
        "train.py": (0, "submitted 3 jobs of train as 42; logs in x\n"),
        "merge.py": (0, "submitted 1 job of merge as 43; x"),
    }
    outcome = command("pipeline.py", f"root={tmp_path}", "cluster=slurm")
    assert outcome.code == 0, outcome.err
    assert ran[0][-1] == "cluster.wait=false"
    assert ran[1][-2:] == ["cluster.wait=false", "cluster.after='42'"]
    (script,) = tmp_path.glob("_sweeps/report-*.sh")
    assert "#SBATCH --dependency=afterok:43" in script.read_text()
    assert "#SBATCH --kill-on-invalid-dep=yes" in script.read_text()


def test_what_starts_in_the_same_second_has_files_of_its_own(programs, tmp_path):
    programs(sbatch="echo 44", squeue="", sinfo=f"printf '{SINFO}'")
    cluster = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/cluster/slurm.yaml"))
    logs = {slurm.submit_command("report", ["true"], slurm.asked(cluster, False), tmp_path)[1] for _ in range(2)}
    assert len(logs) == 2
    words = ("seed=1,2", f"root={tmp_path}/runs", "cluster=slurm", "cluster.wait=false")
    assert command("train.py", "-m", *words).code == 0
    (folder,) = (tmp_path / "runs/_sweeps").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", folder.name)


def test_a_stage_that_cannot_be_submitted(stages, tmp_path):
    _, ends = stages
    ends |= {"train.py": (0, "submitted 3 jobs of train as 42; logs in x\n"), "merge.py": (1, "")}
    outcome = command("pipeline.py", f"root={tmp_path}", "cluster=slurm")
    assert (outcome.code, outcome.err) == (1, "merge was not submitted; the jobs before it go on: scancel 42\n")


@pytest.mark.parametrize("words", ["stages=[report,train]", "stages=[]", "stages=[bake]", "dry_run=maybe", "seeed=1"])
def test_a_wrong_pipeline_is_one_line(words):
    outcome = command("pipeline.py", words)
    assert outcome.code == 1
    assert outcome.err.startswith(
        (
            "error: stages must be some of train, merge, report",
            "error: dry_run",
            "error: unknown key: seeed; did you mean seed?",
        )
    )
    assert outcome.err.count("\n") == 1


def test_fetch_loads_each_data_set_and_model_once(tmp_path):
    outcome = command("fetch.py", "+experiment=embedded", f"root={tmp_path}", "seed=1")
    assert outcome.code == 0, outcome.err
    found = [line for line in outcome.out.splitlines() if line.endswith("is here")]
    assert found == ["dataset=digits is here", "model=tiny is here", "dataset=glyphs is here"]


def test_one_process_at_a_time_fetches(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lock, "MOMENT", 0)
    holder = "import sys, time; from pathlib import Path; from mergestream.runtime.lock import turn\n"
    holder += (
        "with turn(Path(sys.argv[1]), 'x'): print('mine', flush=True); sys.stdin.read(); Path(sys.argv[2]).touch()"
    )
    words = [sys.executable, "-c", holder, tmp_path / "lock", tmp_path / "done"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as first:
        first.stdout.readline()
        monkeypatch.setattr(lock.time, "sleep", lambda seconds: first.stdin.close())
        with lock.turn(tmp_path / "lock", "fetches dataset=cars"):
            assert (tmp_path / "done").exists()
    assert capsys.readouterr().err == "waiting for another process, which fetches dataset=cars\n"
    assert not (tmp_path / "lock").exists()

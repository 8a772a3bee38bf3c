"""What a run survives: python benchmarks/faults.py [--kills 50] [--seed 0]

Starts the real commands as processes, hurts them, starts them again until they finish, and compares every byte of every
tensor file, and the metrics, with a run that nothing happened to. Prints a table: faults tried, survived (the commands
ended well, or said in one line what to type, and that worked), bytes of finished tasks that were lost, wrong results.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from mergestream.runtime import files

REPOSITORY = Path(__file__).parent.parent
METHODS = ("seq", "ind", "ewc", "lwf", "joint")
IMAGES = Path(tempfile.mkdtemp(prefix="faults-images-"))
SHORT = ["dataset=folder", f"dataset.path={IMAGES}", "model=tiny", "schedule=fraction", "optimizer.lr=3e-4", "tasks=2"]
SHORT += ["epochs=3", "batch_size=5", "accelerator=cpu"]
TRAIN = ["logger=none", "checkpoint.every_minutes=0.005"]
AIMS = ("training", "training", "saving", "evaluation", "training", "start-up")
METRICS = ("zero_shot", "accuracy", "overall", "summary", "spikes", "method")


class Table:
    """Rows of the report, in the order in which they were first counted."""

    def __init__(self) -> None:
        self.rows: dict[str, Counter] = {}

    def count(self, fault: str, survived: bool, lost: int, wrong: bool) -> None:
        row = self.rows.setdefault(fault, Counter())
        row.update(tried=1, survived=int(survived), lost=lost, wrong=int(wrong))
        print(f"{fault}: {'survived' if survived else 'NOT SURVIVED'}, {lost} bytes lost, wrong: {wrong}", flush=True)

    def show(self) -> None:
        print("\n| fault | tried | survived | bytes lost | wrong results |\n|---|---|---|---|---|")
        for fault, row in [*self.rows.items(), ("all", sum(self.rows.values(), Counter()))]:
            print(f"| {fault} | " + " | ".join(str(row[key]) for key in ("tried", "survived", "lost", "wrong")) + " |")


def write_images() -> None:
    """A small dataset, so that the time goes into faults."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for label in ("one", "two", "three", "four"):
            folder = IMAGES / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def words(script: str, root: Path, method: str, *more: str) -> list[str]:
    extra = TRAIN if script == "train.py" else []
    return [sys.executable, script, *SHORT, *extra, f"method={method}", f"root={root}", *more]


def start(command: list[str], **options) -> subprocess.Popen:
    """The command in a session of its own, so that a kill takes all of its processes."""
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "CI": "1"},
        **options,
    )


def finish(command: list[str]) -> tuple[int, str, str]:
    process = start(command)
    out, err = process.communicate()
    return process.returncode, out, err


def results(root: Path) -> dict[str, str]:
    """Hash of every tensor file, and of what metrics.json says of the result."""
    found = {}
    for path in sorted(root.rglob("*.safetensors")):
        if not path.name.startswith(".partial-"):  # what is half-written is not there
            found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(root.rglob("metrics.json")):
        metrics = files.read_json(path, own=True)
        found[str(path.relative_to(root))] = json.dumps({key: metrics.get(key) for key in METRICS}, sort_keys=True)
    return found


def finished_files(root: Path) -> dict[Path, int]:
    """Files of the tasks that are finished, and when they were written."""
    done = [path.parent for path in root.rglob("task-*/evaluation.json")]
    return {
        path: path.stat().st_mtime_ns for folder in done for path in folder.iterdir() if "checkpoint" not in path.name
    }


def lost_bytes(before: dict[Path, int]) -> int:
    """Bytes of files that are gone or were written again."""
    gone = [path for path, written in before.items() if not path.exists() or path.stat().st_mtime_ns != written]
    return sum(path.stat().st_size if path.exists() else 1 for path in gone)


def phase(script: str, root: Path) -> str:
    """What a process that is killed now was doing."""
    if list(root.rglob(".partial-*")):
        return "saving"
    if script == "merge.py":
        return "merging"
    if not list(root.rglob(".lock-*")):
        return "start-up"
    folders = list(root.rglob("task-*"))
    waiting = any((f / "encoder.safetensors").exists() and not (f / "evaluation.json").exists() for f in folders)
    return "evaluation" if waiting else "training"


def kills(table: Table, work: Path, references: dict[str, dict], draw: random.Random, wanted: int, took: dict) -> None:
    """SIGKILL at random instants of training and merging, until there were `wanted`."""
    done = 0
    for number in itertools.count():
        if done >= wanted:
            return
        method, root = METHODS[number % len(METHODS)], work / f"kill-{number}"
        seen: list[tuple[str, int]] = []
        for script, most in (("train.py", 4), ("merge.py", 1)):
            left = most
            while True:
                process = start(words(script, root, method))
                if left and done + len(seen) < wanted:
                    left -= 1
                    if script == "merge.py":
                        time.sleep(draw.uniform(0, took[script]))
                    else:
                        aim(draw, AIMS[(number + left) % len(AIMS)], root, process, took)
                    if process.poll() is None:
                        before, doing = finished_files(root), phase(script, root)
                        os.killpg(process.pid, signal.SIGKILL)
                        process.communicate()
                        seen.append((doing, lost_bytes(before)))
                        continue
                _, err = process.communicate()
                if process.returncode == 0:
                    break
                raise SystemExit(f"{script} of {root} was killed and cannot go on: {err}")
        wrong = results(root) != references[method]
        for doing, lost in seen:
            table.count(f"SIGKILL during {doing}", not wrong, lost, wrong)
        done += len(seen)
        shutil.rmtree(root)


def aim(draw: random.Random, at: str, root: Path, process: subprocess.Popen, took: dict[str, float]) -> None:
    """Wait for a random instant of a training: of all of it, or of a part that is too short to be hit by chance."""
    if at == "start-up":
        time.sleep(draw.uniform(0, took["imports"]))
        return
    wait_for(root, ".lock-*", process)
    time.sleep(draw.uniform(0, took["train.py"] * (1 if at == "training" else 0.5)))
    if at != "training":
        while process.poll() is None and phase("train.py", root) != at:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05 if at == "evaluation" else 0.002))


def stops(table: Table, work: Path, references: dict[str, dict], draw: random.Random, took: dict) -> None:
    """SIGTERM and SIGINT: the work is saved, and the process says how to go on."""
    for index, name in enumerate(("SIGTERM", "SIGINT") * 3):
        method, root = METHODS[index % len(METHODS)], work / f"stop-{index}"
        process = start(words("train.py", root, method))
        wait_for(root, "checkpoint.safetensors", process)
        time.sleep(draw.uniform(0, 1))
        os.kill(process.pid, getattr(signal, name))
        _, err = process.communicate()
        said = process.returncode == 0 or "type the same command again" in err
        before = finished_files(root)
        code, _, _ = finish(words("train.py", root, method))
        lost = lost_bytes(before)
        merged, _, _ = finish(words("merge.py", root, method))
        table.count(name, said and code == merged == 0, lost, results(root) != references[method])
        shutil.rmtree(root)


def wait_for(root: Path, pattern: str, process: subprocess.Popen) -> None:
    while process.poll() is None and not list(root.rglob(pattern)):
        time.sleep(0.05)


def workers(parent: int) -> list[int]:
    """The processes that a launcher has started, in the order of their ranks."""
    listed = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in listed if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def ranks(table: Table, work: Path) -> None:
    """A process of two dies, or hangs: all are started again."""
    two = ("devices=2", "launcher.timeout_minutes=0.5")
    for method in ("seq", "ewc"):
        whole = work / f"two-{method}"
        code, _, err = finish(words("train.py", whole, method, *two))
        assert code == 0, err
        reference = results(whole)
        cases = [("a killed process of several", 0, signal.SIGKILL), ("a killed process of several", 1, signal.SIGKILL)]
        cases += [("a hung process of several", 1, signal.SIGSTOP)] * (method == "seq")
        for fault, rank, number in cases:
            root = work / "two"
            process = start(words("train.py", root, method, *two))
            wait_for(root, "checkpoint.safetensors", process)
            before = finished_files(root)
            os.kill(workers(process.pid)[rank], number)
            _, err = process.communicate()
            said = "starting all 2 again (1 of 3)" in err
            table.count(fault, process.returncode == 0 and said, lost_bytes(before), results(root) != reference)
            shutil.rmtree(root)


def full_disks(table: Table, work: Path, references: dict[str, dict]) -> None:
    """Files may not grow beyond a size: one line, nothing half-written, and with room again the run goes on."""
    for size in (100, 1 << 16, 1 << 20, 5 << 20):

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        root = work / f"disk-{size}"
        process = start(words("train.py", root, "ewc"), preexec_fn=limit)
        _, err = process.communicate()
        one_line = process.returncode == 1 and len(err.strip().splitlines()) == 1
        clean = not list(root.rglob(".partial-*"))
        before = finished_files(root)
        code, _, _ = finish(words("train.py", root, "ewc"))
        lost = lost_bytes(before)
        merged, _, _ = finish(words("merge.py", root, "ewc"))
        survived = one_line and clean and code == merged == 0
        table.count("disk full", survived, lost, results(root) != references["ewc"])
        shutil.rmtree(root)


def damages(table: Table, work: Path, references: dict[str, dict]) -> None:
    """Every file of a finished run, and its θ₀, truncated, one bit of it flipped, or deleted."""
    root = work / "damage"
    for script in ("train.py", "merge.py"):
        assert finish(words(script, root, "ewc"))[0] == 0
    for path in sorted(p for p in root.rglob("*") if p.is_file() and "_data" not in p.parts):
        for how in ("truncated", "bit flipped", "deleted"):
            content = path.read_bytes()
            middle = len(content) // 2
            if how == "deleted":
                path.unlink()
            else:
                flipped = content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]
                path.write_bytes(content[:middle] if how == "truncated" else flipped)
            code, _, err = finish(words("train.py", root, "ewc"))
            survived = code == 0 or (path.name in err and len(err.strip().splitlines()) == 1 and "repair=true" in err)
            if code:
                survived &= finish(words("train.py", root, "ewc", "repair=true"))[0] == 0
            if "merges" in path.parts:
                survived &= finish(words("merge.py", root, "ewc"))[0] == 0
            wrong = results(root) != references["ewc"]
            name = "a bit flipped in a file" if how == "bit flipped" else f"a {how} file"
            table.count(name, survived, 0 if path.exists() else len(content), wrong)
            if not survived or wrong:
                print(path, how, code, err, file=sys.stderr)


def two_at_once(table: Table, work: Path, references: dict[str, dict], draw: random.Random) -> None:
    """The same command started twice: one works, the other is told who does."""
    for index in range(5):
        root = work / f"once-{index}"
        first = start(words("train.py", root, "seq"))
        time.sleep(draw.uniform(0, 0.3))
        second = start(words("train.py", root, "seq"))
        errors = [process.communicate()[1] for process in (first, second)]
        codes = sorted(process.returncode for process in (first, second))
        told = any("being written by process" in err for err in errors)
        merged, _, _ = finish(words("merge.py", root, "seq"))
        survived = merged == 0 and (codes == [0, 0] or (codes == [0, 1] and told))
        table.count("two processes at once", survived, 0, results(root) != references["seq"])
        shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs at random instants")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    arguments = parser.parse_args()
    draw, table, began = random.Random(arguments.seed), Table(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        work, references, took = Path(folder), {}, {}
        write_images()
        started = time.monotonic()
        finish([sys.executable, "-c", "import mergestream.training.run"])
        took["imports"] = time.monotonic() - started
        for method in METHODS:
            root = work / f"reference-{method}"
            for script in ("train.py", "merge.py"):
                started = time.monotonic()
                code, _, err = finish(words(script, root, method))
                assert code == 0, err
                # A training is hit from its lock on, a merge from its start.
                took[script] = time.monotonic() - started - (took["imports"] if script == "train.py" else 0)
            references[method] = results(root)
        kills(table, work, references, draw, arguments.kills, took)
        stops(table, work, references, draw, took)
        full_disks(table, work, references)
        two_at_once(table, work, references, draw)
        damages(table, work, references)
        ranks(table, work)
    shutil.rmtree(IMAGES)
    table.show()
    print(f"\n{(time.monotonic() - began) / 60:.0f} minutes, seed {arguments.seed}")


if __name__ == "__main__":
    main()

"""Measure the cost of checkpoints: python benchmarks/checkpoint.py [--repeats 5]

Trains the default run in turn with checkpoints, as by default, and without any, in the same process. Prints the median
seconds of both, the median and the spread of their paired ratios, and the share of the time spent on deciding whether
to save, and on saving; noise affects this share less.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

from hydra import compose, initialize_config_dir

from mergestream.compose.training import training_settings
from mergestream.runtime import interrupt
from mergestream.training.callbacks.checkpoint import Checkpointing
from mergestream.training.run import train

CONFIGS = Path(__file__).parent.parent / "configs"
OFF = ("checkpoint.every_epochs=null", "checkpoint.every_minutes=null")


def seconds(*overrides: str) -> tuple[float, float]:
    """Return the time of one default run in a new directory: all of it, and the part in `Checkpointing._save_if`."""
    original, inside = Checkpointing._save_if, 0.0

    def timed(self, *arguments) -> None:
        nonlocal inside
        began = time.perf_counter()
        original(self, *arguments)
        inside += time.perf_counter() - began

    with tempfile.TemporaryDirectory() as root, initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=[f"root={root}", *overrides])
        began = time.perf_counter()
        Checkpointing._save_if = timed
        try:
            with contextlib.redirect_stdout(io.StringIO()), interrupt.watching() as signals:
                train(training_settings(cfg), signals)
        finally:
            Checkpointing._save_if = original
        return time.perf_counter() - began, inside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    seconds("epochs=1")  # what only the first run pays
    pairs, shares = [], []
    for index in range(arguments.repeats):
        order = [(), OFF] if index % 2 else [OFF, ()]
        took = {overrides: seconds(*overrides) for overrides in order}
        pairs.append((took[()][0], took[OFF][0]))
        shares.append(took[()][1] / took[()][0])
        print(f"with {pairs[-1][0]:.1f} s, without {pairs[-1][1]:.1f} s, saving {shares[-1]:.1%}", flush=True)
    ratios = sorted(saved / plain for saved, plain in pairs)
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    print(f"median with {medians[0]:.1f} s, without {medians[1]:.1f} s")
    print(f"ratio {statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}")
    print(f"share of saving {statistics.median(shares):.1%}, from {min(shares):.1%} to {max(shares):.1%}")


if __name__ == "__main__":
    main()

"""Memory of the analyses of task vectors: python benchmarks/analyze.py [--tasks 2,10]

Fine-tunes a ViT-B/32 of random weights on a few random pictures, sequentially and independently, on streams of so many
tasks, and prints for each analysis that measures no accuracy the seconds and the peak memory of the whole command.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parent.parent
# In a process of its own: the peak of a process counts what its parent held when it was made.
WEIGHTS = """
import logging, sys, open_clip
from safetensors.torch import save_model
logging.disable()
save_model(open_clip.create_model("ViT-B-32"), sys.argv[1])
"""
ANALYSES = ["sign_conflicts", "consistency", "layers", "distribution", "contribution", "cosine"]


def run(script: str, *words: str) -> tuple[float, float]:
    """Seconds, and peak MB, of one command."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, script, *words], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, words
    return time.monotonic() - began, used.ru_maxrss / 1024


def pictures(folder: Path, classes: int) -> None:
    """Five pictures of noise of each class."""
    draw = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"{label:02}").mkdir(parents=True)
        for number in range(5):
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{label:02}/{number}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="2,10", help="of the streams, with commas")
    counts = [int(count) for count in parser.parse_args().tasks.split(",")]
    with tempfile.TemporaryDirectory(prefix="analyze-") as folder:
        root = Path(folder)
        pictures(root / "pictures", 2 * max(counts))
        subprocess.run([sys.executable, "-W", "ignore", "-c", WEIGHTS, str(root / "weights.safetensors")], check=True)
        words = [f"root={root}/runs", "dataset=folder", "dataset.name=noise", f"dataset.path={root}/pictures"]
        words += ["model=open_clip", "model.architecture=ViT-B-32", f"model.pretrained={root}/weights.safetensors"]
        print(f"{'':16}" + "".join(f"  {f'T = {count}':>18}" for count in counts))
        found = {name: [] for name in ANALYSES}
        for count in counts:
            for method in ("seq", "ind"):
                run(
                    "train.py", *words, f"tasks={count}", f"method={method}", "epochs=1", "checkpoint.every_epochs=null"
                )
            for name in ANALYSES:
                found[name].append(run("analyze.py", *words, f"tasks={count}", f"analysis={name}"))
        for name, cells in found.items():
            print(f"{name:16}" + "".join(f"  {seconds:6.1f} s  {peak:5.0f} MB" for seconds, peak in cells))
        files = sum(path.stat().st_size for path in root.glob("runs/noise/*/*/seq/*/task-00/encoder.safetensors"))
        print(f"one encoder: {files / len(counts) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

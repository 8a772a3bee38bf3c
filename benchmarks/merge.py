"""How long a merge takes against `cat` of the same files, and how much memory it needs.

    python benchmarks/merge.py [--tasks 20] [--repeats 5] [--folder /tmp/merge_benchmark]

Makes T fine-tunes of the size of ViT-B/16's image tower (86 M parameters, float32, random) in `--folder`, reads them
once so that they lie in the page cache, and prints for every strategy the median seconds, the ratio to `cat`, and the
peak memory of a fresh process above that of one that has imported the same modules.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from mergestream import strategies
from mergestream.merging import merge_checkpoints

WIDTH, LAYERS = 768, 12


def tower(seed: int) -> dict[str, torch.Tensor]:
    """Random tensors with the shapes that make up ViT-B/16's image tower."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (WIDTH, 3, 16, 16), "positional_embedding": (197, WIDTH)}
    for layer in range(LAYERS):
        block = f"transformer.resblocks.{layer}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{block}.attn.in_proj_bias": (3 * WIDTH,),
            f"{block}.attn.out_proj.weight": (WIDTH, WIDTH),
            f"{block}.mlp.c_fc.weight": (4 * WIDTH, WIDTH),
            f"{block}.mlp.c_proj.weight": (WIDTH, 4 * WIDTH),
            f"{block}.ln_1.weight": (WIDTH,),
            f"{block}.ln_2.weight": (WIDTH,),
        }
    shapes["proj"] = (WIDTH, 512)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def cat(paths: list[Path]) -> float:
    began = time.perf_counter()
    subprocess.run(["sh", "-c", 'cat "$@" > /dev/null', "sh", *map(str, paths)], check=True)
    return time.perf_counter() - began


def peak_of(arguments: dict[str, object] | None) -> int:
    """Peak resident bytes of a fresh process that imports everything and makes one merge, or none."""
    code = (
        "import json, resource, sys; from mergestream.merging import merge_checkpoints\n"
        "arguments = json.loads(sys.argv[1])\n"
        "if arguments: merge_checkpoints(**arguments)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], check=True, capture_output=True, text=True
    )
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/merge_benchmark"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    paths = [args.folder / f"{index}.safetensors" for index in range(args.tasks + 1)]
    for index, path in enumerate(paths):
        if not path.exists():
            save_file(tower(index), path)
    base, *checkpoints = paths
    out = args.folder / "out.safetensors"
    idle = peak_of(None)
    print(f"T = {args.tasks}, {sum(p.stat().st_size for p in paths) / 1e9:.1f} GB, {torch.__version__}")
    print("| strategy | seconds | `cat` | ratio | MB above the interpreter |\n|---|---|---|---|---|")
    for name in strategies.names():
        merges, cats = [], []
        for _ in range(args.repeats + 1):  # the first one warms up
            cats.append(cat(checkpoints))
            began = time.perf_counter()
            merge_checkpoints(base, checkpoints, name, out)
            merges.append(time.perf_counter() - began)
        ratio = statistics.median(m / c for m, c in zip(merges[1:], cats[1:], strict=True))
        arguments = {"base": str(base), "checkpoints": [str(c) for c in checkpoints], "strategy": name, "out": str(out)}
        memory = (peak_of(arguments) - idle) / 1e6
        seconds, plain = statistics.median(merges[1:]), statistics.median(cats[1:])
        print(f"| {name} | {seconds:.2f} | {plain:.2f} | {ratio:.1f} | {memory:.0f} |", flush=True)
    out.unlink()


if __name__ == "__main__":
    main()

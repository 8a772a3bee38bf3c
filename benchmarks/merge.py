"""Time and memory of a merge, compared with `cat` of the same files.

    python benchmarks/merge.py [--tasks 20] [--repeats 5] [--strategies magmax,ties] [--folder /tmp/merge_benchmark]
    python benchmarks/merge.py --tasks 8 --strategies average,magmax --calibrations none,align,svc,lines
    python benchmarks/merge.py --growth 5,50
    python benchmarks/merge.py --growth 8 --layers 12
    python benchmarks/merge.py --billions 7

The first command writes a base of the size of ViT-B/16's image tower (86 M parameters, float32) and T fine-tunes of it
to `--folder`: random weights of deviation 0.02, changed by 0.0002, about as much as fine-tuning CLIP changes them. So
the task vectors have as many bits, and as many equal magnitudes, as real ones. It then alternates `cat` of the
fine-tunes and a merge of them, with all files in the page cache, and prints median seconds, the median ratio, and the
memory that a fresh process needs on top of its imports.

The second command alternates merges with and without calibrations, and prints median seconds of each, the median
ratio to the merge without, and memory.

The third command merges T = 5 and T = 50 fine-tunes of one block of ViT-B/16 and its projection (7.5 M parameters) with
every strategy, and prints seconds and memory of both, each once and in a fresh process. The fourth merges eight
fine-tunes of the whole tower in the same way.

The fifth command writes a sharded bfloat16 checkpoint with the shapes of a 7-billion-parameter Llama and a fine-tune
of it, with as many layers as fit into the free disk space, and merges the pair into a folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Set
from pathlib import Path

import torch
from safetensors.torch import save_file

from mergestream import strategies
from mergestream.merging import merge_checkpoints
from mergestream.strategies import calibrations
from mergestream.strategies.adjustments import Adjustments

WIDTH, LAYERS = 768, 12
# Minutes; merged only if they are named.
SLOW = ("core_space", "della", "dop", "iso_c", "iso_cts", "knots", "nufilt", "opcm", "regmean", "tsv", "wudi")
OPTIONS = {"lines": {"beta": 0.5}}  # of calibrations that have no default for files
SOLVERS = {"dop": {"solver": "closed"}}  # on a tiny CLIP, thirty times as fast as the descent

Shapes = dict[str, tuple[int, ...]]


def tower(layers: int = LAYERS) -> Shapes:
    """Return the shapes of ViT-B/16's image tower; of one block and the projection with ``layers=1``."""
    shapes: Shapes = {"conv1.weight": (WIDTH, 3, 16, 16), "positional_embedding": (197, WIDTH)} if layers > 1 else {}
    for layer in range(layers):
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
    return {**shapes, "proj": (WIDTH, 512)}


def llama(layers: int) -> list[Shapes]:
    """Return the shapes of Llama-2-7B as shards: one for each layer, and one for the weights outside of the layers."""
    shards: list[Shapes] = [{"model.embed_tokens.weight": (32000, 4096), "lm_head.weight": (32000, 4096)}]
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes: Shapes = {f"{block}.self_attn.{letter}_proj.weight": (4096, 4096) for letter in "qkvo"}
        shapes |= {f"{block}.mlp.{name}_proj.weight": (11008, 4096) for name in ("gate", "up")}
        shards.append({**shapes, f"{block}.mlp.down_proj.weight": (4096, 11008), f"{block}.norm.weight": (4096,)})
    return shards


def weights(shapes: Shapes, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return random weights, slightly changed if the seed is not 0."""
    generator, change = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        value = 0.02 * torch.randn(shape, generator=generator)
        made[name] = (value + 0.0002 * torch.randn(shape, generator=change) if seed else value).to(dtype)
    return made


def cat(paths: list[Path]) -> float:
    """Return the seconds that `cat` takes."""
    began = time.perf_counter()
    subprocess.run(["sh", "-c", 'cat "$@" > /dev/null', "sh", *map(str, paths)], check=True)
    return time.perf_counter() - began


def fresh(**arguments: object) -> tuple[float, float]:
    """Return the seconds of one merge in a fresh process, and the MB that it needs on top of torch and mergestream."""
    code = (
        "import json, sys, time; from pathlib import Path; from mergestream.merging import merge_checkpoints\n"
        "import mergestream.strategies as s; arguments = json.loads(sys.argv[1]); s.get(arguments['strategy'])\n"
        "from mergestream.strategies import adjustments, calibrations; made = arguments.pop('calibration', None)\n"
        "bound = calibrations.get(made[0]).bind(made[1]) if made else None\n"
        "arguments['adjustments'] = adjustments.Adjustments(calibration=bound)\n"
        "def of(key): return int(Path('/proc/self/status').read_text().split(key)[1].split()[0])\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"  # Linux: the peak starts anew
        "before, began = of('VmRSS:'), time.perf_counter(); merge_checkpoints(**arguments)\n"
        "print(json.dumps([time.perf_counter() - began, (of('VmHWM:') - before) / 1000]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], check=True, capture_output=True, text=True
    )
    seconds, above = json.loads(done.stdout)
    return seconds, above


def _written(tasks: int, folder: Path, kinds: Set[str] = frozenset(), layers: int = LAYERS) -> list[Path]:
    """Write θ₀ and T fine-tunes, with the kinds of curvature, unless they are there; return their paths."""
    shapes = tower(layers)
    paths = [folder / str(index) / "encoder.safetensors" for index in range(tasks + 1)]
    for index, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            save_file(weights(shapes, index), path)
        for kind in kinds if index else ():
            if not (saved := path.with_name(f"{kind}.safetensors")).exists():
                save_file(curvature(kind, shapes, index), saved)
    return paths


def curvature(kind: str, shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    """Return made-up curvature of a task with ten classes."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "fisher":
        return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    if kind == "gram":
        widths = {name: shape[1] for name, shape in shapes.items() if len(shape) == 2 and name != "proj"}
        inputs = {name: torch.randn(width, width, generator=generator) for name, width in widths.items()}
        return {name: x.T @ x for name, x in inputs.items()}
    width, out = shapes["proj"]
    x = torch.randn(10 + 2 * width, width, generator=generator)
    text = torch.nn.functional.normalize(torch.randn(10, out, generator=generator), dim=1)
    found = {"classes": torch.arange(10) + 10 * seed, "count": torch.full((10,), 100), "text": text}
    moments = {"average.mean": x[:10].clone(), "average.scatter": x.T @ x / len(x)}
    return {**found, **moments, "scale": torch.tensor([100.0])}


def needs(names: list[str]) -> set[str]:
    """Return the kinds of curvature that some of the strategies need."""
    return {kind for name in names if (kind := strategies.get(name).needs)}


def compare(names: list[str], tasks: int, repeats: int, folder: Path) -> None:
    """Print the table of the strategies `names`."""
    base, *checkpoints = _written(tasks, folder, needs(names))
    out = folder / "out.safetensors"
    print(f"T = {tasks}, {sum(p.stat().st_size for p in checkpoints) / 1e9:.1f} GB, torch {torch.__version__}")
    print("| strategy | seconds | `cat` | ratio | MB above the interpreter |\n|---|---|---|---|---|")
    for name in names:
        merges, cats = [], []
        for _ in range(repeats + 1):  # the first one is a warm-up
            cats.append(cat(checkpoints))
            out.unlink(missing_ok=True)
            began = time.perf_counter()
            merge_checkpoints(base, checkpoints, name, out)
            merges.append(time.perf_counter() - began)
        ratio = statistics.median(m / c for m, c in zip(merges[1:], cats[1:], strict=True))
        _, above = fresh(base=str(base), checkpoints=[str(c) for c in checkpoints], strategy=name, out=str(out))
        seconds, plain = statistics.median(merges[1:]), statistics.median(cats[1:])
        print(f"| `{name}` | {seconds:.2f} | {plain:.2f} | {ratio:.1f} | {above:.0f} |", flush=True)
    out.unlink()


def calibrated(names: list[str], kinds: list[str], tasks: int, repeats: int, folder: Path) -> None:
    """Print the table of the strategies `names` with each of the calibrations `kinds`."""
    base, *checkpoints = _written(tasks, folder, needs(names) | {"classes" for kind in kinds if kind == "align"})
    out = folder / "out.safetensors"
    print(f"T = {tasks}, torch {torch.__version__}")
    print("| strategy | calibration | seconds | ratio | MB above the interpreter |\n|---|---|---|---|---|")
    for name in names:
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(repeats + 1):  # the first one is a warm-up
            for kind in kinds:
                bound = None if kind == "none" else calibrations.get(kind).bind(OPTIONS.get(kind, {}))
                out.unlink(missing_ok=True)
                began = time.perf_counter()
                merge_checkpoints(base, checkpoints, name, out, adjustments=Adjustments(calibration=bound))
                seconds[kind].append(time.perf_counter() - began)
        for kind in kinds:
            ratio = statistics.median(s / p for s, p in zip(seconds[kind][1:], seconds[kinds[0]][1:], strict=True))
            made = {} if kind == "none" else {"calibration": (kind, OPTIONS.get(kind, {}))}
            paths = {"base": str(base), "checkpoints": [str(c) for c in checkpoints], "out": str(out)}
            (_, above), median = fresh(strategy=name, **paths, **made), statistics.median(seconds[kind][1:])
            print(f"| `{name}` | `{kind}` | {median:.2f} | {ratio:.1f} | {above:.0f} |", flush=True)
    out.unlink()


def growth(names: list[str], counts: list[int], layers: int, folder: Path) -> None:
    """Print the table of the strategies `names` for each T of `counts`."""
    if layers != LAYERS:
        folder = folder / f"{layers}_layers"
    base, *checkpoints = map(str, _written(max(counts), folder, needs(names), layers))
    out = folder / "out.safetensors"
    print(f"torch {torch.__version__}\n| strategy |", *(f"T = {t}, s | MB |" for t in counts))
    print("|---" * (1 + 2 * len(counts)) + "|")
    for name in names:
        cells = []
        for tasks in counts:
            out.unlink(missing_ok=True)
            given = {"base": base, "checkpoints": checkpoints[:tasks], "strategy": name, "out": str(out)}
            seconds, above = fresh(**given, **SOLVERS.get(name, {}))
            cells += [f"{seconds:.2f}", f"{above:.0f}"]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)
    out.unlink()


def large(names: list[str], billions: float, folder: Path) -> None:
    """Merge a pair of sharded bfloat16 checkpoints of up to `billions` of parameters."""
    free = shutil.disk_usage(folder).free
    for layers in range(32, 0, -1):  # base, fine-tune and output must fit, with a tenth of the disk to spare
        shards = llama(layers)
        count = sum(torch.Size(shape).numel() for shapes in shards for shape in shapes.values())
        if count <= billions * 1e9 and 3 * 2 * count < 0.9 * free:
            break
    for seed, name in enumerate(("base", "tuned")):
        (folder / name).mkdir(exist_ok=True)
        mapping = {}
        for index, shapes in enumerate(shards):
            shard = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
            if not (folder / name / shard).exists():
                save_file(weights(shapes, seed, torch.bfloat16), folder / name / shard)
            mapping |= dict.fromkeys(shapes, shard)
        (folder / name / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
    print(
        f"{count / 1e9:.2f} billion parameters, {layers} layers, 2 × {2 * count / 1e9:.1f} GB in {len(shards)} shards"
    )
    print("| strategy | seconds | MB above the interpreter |\n|---|---|---|")
    for name in names:
        began = time.perf_counter()
        arguments = {
            "base": str(folder / "base"),
            "checkpoints": [str(folder / "tuned")],
            "out": str(folder / "merged"),
        }
        _, above = fresh(strategy=name, **arguments)
        print(f"| `{name}` | {time.perf_counter() - began:.1f} | {above:.0f} |", flush=True)
        shutil.rmtree(folder / "merged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--strategies", help="all that are quick; with --growth all")
    parser.add_argument("--calibrations", help="compare these, the first with each of the others; none is none")
    parser.add_argument("--growth", help="numbers of tasks, such as 5,50: merge one block with every strategy instead")
    parser.add_argument("--layers", type=int, default=1, help="of what --growth merges")
    parser.add_argument("--billions", type=float, help="merge a sharded pair of so many billion parameters instead")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/merge_benchmark"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    quick = [name for name in strategies.names() if args.growth or name not in SLOW]
    names = args.strategies.split(",") if args.strategies else quick
    if args.billions:
        large(names, args.billions, args.folder)
    elif args.growth:
        growth(names, [int(count) for count in args.growth.split(",")], args.layers, args.folder)
    elif args.calibrations:
        calibrated(names, args.calibrations.split(","), args.tasks, args.repeats, args.folder)
    else:
        compare(names, args.tasks, args.repeats, args.folder)


if __name__ == "__main__":
    main()

"""The diagonal Fisher of the tiny CLIP on all training digits, in micro-batches against one sample at a time.

    python benchmarks/fisher.py [--repeats 3] [--estimators empirical,max_pred]

Prints the median seconds of both and their ratio, measured in turn in the same process.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergestream.data.sources.digits import digits
from mergestream.methods.ewc import fisher_diagonal
from mergestream.models import tiny
from mergestream.models.clip import text_head


def loop(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The empirical Fisher by one backward pass for each sample."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
    count = 0
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            loss = F.cross_entropy(model(image[None]), label[None])
            for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                totals[name] += gradient.square()
            count += 1
    return {name: total / count for name, total in totals.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--estimators", default="empirical")
    args = parser.parse_args()
    clip, source = tiny.tiny(), digits()
    model = nn.Sequential(clip.encoder, text_head(clip, source.prompts)).eval()
    images = torch.stack([clip.transforms.eval(source.train.images[i]) for i in range(len(source.train))])
    batches = list(zip(images.split(64), torch.from_numpy(source.train.labels).split(64), strict=True))
    threads = torch.get_num_threads()
    print(f"{len(images)} digits, torch {torch.__version__}, {threads} threads, median of {args.repeats}")
    print("| estimator | seconds | one sample at a time | ratio |\n|---|---|---|---|")
    for estimator in args.estimators.split(","):
        ours, theirs = [], []
        for _ in range(args.repeats):
            began = time.perf_counter()
            fisher = fisher_diagonal(model, batches, estimator=estimator)
            middle = time.perf_counter()
            plain = loop(model, batches)
            ours.append(middle - began)
            theirs.append(time.perf_counter() - middle)
        if estimator == "empirical":
            for name, expected in plain.items():
                torch.testing.assert_close(fisher[name], expected, rtol=1e-3, atol=1e-7)
        fast, slow = statistics.median(ours), statistics.median(theirs)
        print(f"| `{estimator}` | {fast:.1f} | {slow:.1f} | {slow / fast:.1f} |")


if __name__ == "__main__":
    main()

"""Pre-trains the tiny CLIP contrastively on drawn glyphs and captions, and writes its weights.

    python scripts/pretrain_tiny.py --out src/mergestream/models/tiny.safetensors

The run is seeded and uses no real images. Each step draws CLASSES characters, with IMAGES images and one caption of
each, and minimises the cross-entropy from each image to the captions and from each caption to its images.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save_file

from mergestream.data.sources import glyphs
from mergestream.models import tiny
from mergestream.training.schedule import warmup_cosine

CLASSES, IMAGES = 40, 6
# Milder than the domains of the glyphs dataset, never inverted or outlined: a stream must have something to teach.
DISTORTIONS = (
    glyphs.Distortion(degrees=12, shear=0.3, scale=(1.0, 1.8), stretch=0.3, elastic=0.09, pixels=(8, 12)),
    glyphs.Distortion(degrees=12, shear=0.3, scale=(1.0, 1.8), stretch=0.3, elastic=0.09, pixels=(12, 32)),
)


def draw_batch(rng: np.random.Generator, generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
    """Return normalised images [CLASSES * IMAGES, 3, 32, 32], class by class, and one caption for each class."""
    others = rng.permutation(np.arange(10, len(glyphs.CHARACTERS)))[: CLASSES - 10]
    classes = [*range(10), *others.tolist()]  # every step has every digit, because digits are the default dataset
    fonts = rng.integers(len(glyphs.FONTS), size=(CLASSES, IMAGES))
    strokes = rng.integers(0, 5, size=(CLASSES, IMAGES))
    rendered = np.stack(
        [
            glyphs.render(glyphs.CHARACTERS[c], glyphs.FONTS[fonts[i, j]], int(strokes[i, j]))
            for i, c in enumerate(classes)
            for j in range(IMAGES)
        ]
    )
    distortion = DISTORTIONS[rng.integers(len(DISTORTIONS))]
    images = glyphs.distort(torch.from_numpy(rendered), distortion, generator)
    templates = rng.choice(glyphs.TEMPLATES, size=CLASSES)
    captions = [t.format(glyphs.class_name(glyphs.CHARACTERS[c])) for t, c in zip(templates, classes, strict=True)]
    return ((images - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1), captions


def contrastive_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean of both cross-entropies: each image over the captions, each caption over its images.

    Args:
        logits: [CLASSES * IMAGES, CLASSES].
        targets: caption of each image, [CLASSES * IMAGES].
    """
    # A caption fits all images of its class, so its term is the mean log-probability over them.
    to_image = -F.log_softmax(logits, dim=0)[torch.arange(len(targets)), targets].mean()
    return (F.cross_entropy(logits, targets) + to_image - math.log(IMAGES)) / 2


def train(steps: int, seed: int) -> CLIP:
    """Return a tiny CLIP trained for a number of steps."""
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    model = tiny.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    targets = torch.arange(CLASSES).repeat_interleave(IMAGES)
    started = time.monotonic()
    for step in range(steps):
        rate = warmup_cosine(step, base_lr=1e-3, warmup_steps=200, total_steps=steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, captions = draw_batch(rng, generator)
        image_features, text_features, logit_scale = model(images, tiny.tokenize(captions))
        logits = logit_scale * image_features @ text_features.T
        loss = contrastive_loss(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 100 == 0 or step == steps - 1:
            accuracy = (logits.argmax(1) == targets).float().mean()
            seconds = time.monotonic() - started
            print(f"step {step:5d}  loss {loss:.3f}  accuracy {accuracy:.3f}  {seconds:5.0f} s", flush=True)
    return model


def main() -> None:
    """Parse the arguments, train, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=tiny.WEIGHTS)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    model = train(args.steps, args.seed)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, args.out)
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()

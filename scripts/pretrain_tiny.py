"""Makes tiny.safetensors: contrastive pre-training of the tiny CLIP on drawn glyphs and captions.

    python scripts/pretrain_tiny.py --out src/mergestream/models/tiny.safetensors

Seeded; no real image is seen. One step draws CLASSES characters, IMAGES pictures and one caption of each, and
minimises the cross-entropy of picture → caption over the captions of the step, and of caption → its pictures.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mergestream.data.sources import glyphs
from mergestream.models import tiny
from mergestream.training.schedule import warmup_cosine

CLASSES, IMAGES = 40, 6
# Milder than the domains of the glyphs dataset, and never inverted or outlined: the stream has something to teach.
LOOKS = (
    glyphs.Look(degrees=12, shear=0.3, scale=(1.0, 1.8), stretch=0.3, elastic=0.09, pixels=(8, 12)),
    glyphs.Look(degrees=12, shear=0.3, scale=(1.0, 1.8), stretch=0.3, elastic=0.09, pixels=(12, 32)),
)


def draw_batch(rng: np.random.Generator, generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
    """Normalised pictures [CLASSES * IMAGES, 3, 32, 32], class by class, and one caption for each class."""
    others = rng.permutation(np.arange(10, len(glyphs.CHARACTERS)))[: CLASSES - 10]
    classes = [*range(10), *others.tolist()]  # every digit in every step: they are the default dataset
    fonts = rng.integers(len(glyphs.FONTS), size=(CLASSES, IMAGES))
    strokes = rng.integers(0, 5, size=(CLASSES, IMAGES))
    masters = np.stack(
        [
            glyphs.master(glyphs.CHARACTERS[c], glyphs.FONTS[fonts[i, j]], int(strokes[i, j]))
            for i, c in enumerate(classes)
            for j in range(IMAGES)
        ]
    )
    look = LOOKS[rng.integers(len(LOOKS))]
    pictures = glyphs.disturb(torch.from_numpy(masters), look, generator)
    templates = rng.choice(glyphs.TEMPLATES, size=CLASSES)
    captions = [t.format(glyphs.name(glyphs.CHARACTERS[c])) for t, c in zip(templates, classes, strict=True)]
    return ((pictures - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1), captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=tiny.WEIGHTS)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    rng, generator = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    model = tiny.build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    targets = torch.arange(CLASSES).repeat_interleave(IMAGES)
    began = time.monotonic()
    for step in range(args.steps):
        rate = warmup_cosine(step, base_lr=1e-3, warmup_steps=200, total_steps=args.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, captions = draw_batch(rng, generator)
        image_features, text_features, logit_scale = model(images, tiny.tokenize(captions))
        logits = logit_scale * image_features @ text_features.T
        # A caption fits all pictures of its class: the mean log-probability over them is its term.
        to_image = -F.log_softmax(logits, dim=0)[torch.arange(len(targets)), targets].mean()
        loss = (F.cross_entropy(logits, targets) + to_image - math.log(IMAGES)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 100 == 0 or step == args.steps - 1:
            accuracy = (logits.argmax(1) == targets).float().mean()
            seconds = time.monotonic() - began
            print(f"step {step:5d}  loss {loss:.3f}  accuracy {accuracy:.3f}  {seconds:5.0f} s", flush=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, args.out)
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()

"""The real ViT-B/16, randomly initialised in a local file: two optimizer steps, merge and evaluation."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from helpers import command, config
from PIL import Image
from safetensors.torch import load_file, save_file

from mergestream.runs.directory import Run
from mergestream.runtime.files import read_json


@pytest.mark.filterwarnings("ignore:No pretrained weights:UserWarning")
def test_vit_b_16_from_a_file(tmp_path):
    torch.manual_seed(0)
    weights = open_clip.create_model("ViT-B-16-quickgelu", load_weights=False).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "clip.safetensors")
    del weights
    for part, images in (("train", 2), ("test", 1)):
        for number, name in enumerate(("red", "green", "blue", "grey")):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(images):
                pixels = np.full((60, 50, 3), 40 * number + 20 * i, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    what = [
        f"root={tmp_path}/runs",
        "dataset=folder",
        "dataset.name=colours",
        f"dataset.path={tmp_path}/images",
        "tasks=2",
        "epochs=1",
        "batch_size=4",
        "optimizer.lr=1e-4",
        "schedule.warmup=0",
        f"model.pretrained={tmp_path}/clip.safetensors",
    ]
    outcome = command("train.py", *what, "accelerator=cpu", "devices=1")
    assert outcome.code == 0, outcome.err
    run = Run.of(config("train", *what))
    base, (first, second) = load_file(run.base_file()), map(load_file, run.encoders())
    assert first.keys() == base.keys()
    assert sum(tensor.numel() for tensor in base.values()) == 86_192_640
    assert not torch.equal(first["conv1.weight"], base["conv1.weight"])
    assert not torch.equal(second["conv1.weight"], first["conv1.weight"])

    outcome = command("merge.py", *what, "accelerator=cpu")
    assert outcome.code == 0, outcome.err
    merged = load_file(run.path / "merges/magmax-0.5/merged.safetensors")
    name = "transformer.resblocks.3.mlp.c_fc.weight"
    taus = torch.stack([first[name] - base[name], second[name] - base[name]])
    largest = taus.gather(0, taus.flip(0).abs().argmax(0, keepdim=True).neg().add(1))[0]
    torch.testing.assert_close(merged[name], base[name] + 0.5 * largest, rtol=0, atol=1e-7)
    metrics = read_json(run.path / "merges/magmax-0.5/metrics.json", "summary", "test_samples")
    assert metrics["test_samples"] == [2, 2]
    assert 0 <= metrics["summary"]["final_accuracy"] <= 1

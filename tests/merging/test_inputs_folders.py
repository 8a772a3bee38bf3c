"""What comes along from the folder of the base."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from weights import draw

from mergestream.merging import merge_checkpoints
from mergestream.runtime.errors import UserError

COMES = ["config.json", "modules.json", "tokenizer/vocab.txt", "1_Pooling/config.json", "assets/a b/ü.txt"]
STAYS = [
    *("pytorch_model.bin", "model.h5", "optimizer.pt", "2_Dense/model.safetensors", "onnx/model.onnx", "old/rng.pth"),
    *(".gitattributes", ".git/config", ".cache/huggingface/x.json", "1_Pooling/.hidden", "earlier/merge.json"),
    *("earlier/config.json", "merge.json"),
]


def base_folder(folder):
    """The folder of a sentence-transformers model, with much that does not belong to a merge."""
    for name in (*COMES, *STAYS):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"name": name}))
    save_file({"w": draw(3)}, folder / "model.safetensors")
    (folder / "pytorch_model.bin").unlink()  # a second checkpoint would be refused
    return folder


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def base(tmp_path):
    return base_folder(tmp_path / "base")


def test_sub_folders_of_the_base_come_along(base, tmp_path):
    said = []
    for _ in range(2):  # the second time it replaces what it wrote
        merge_checkpoints(base, [base], "average", tmp_path / "out", say=said.append)
    assert files_in(tmp_path / "out") == {*COMES, "model.safetensors", "merge.json"}
    assert all(json.loads((tmp_path / "out" / name).read_text())["name"] == name for name in COMES)
    assert len(said) == 2
    assert said[0].endswith("neither merged nor copied: 2_Dense/model.safetensors, old/rng.pth, onnx/model.onnx")
    assert not any(path.name.startswith(".partial") for path in tmp_path.rglob("*"))


def test_a_file_that_somebody_put_into_a_sub_folder_is_not_deleted(base, tmp_path):
    merge_checkpoints(base, [base], "average", tmp_path / "out", say=lambda _: None)
    (tmp_path / "out" / "1_Pooling" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds 1_Pooling/thesis.tex"):
        merge_checkpoints(base, [base], "average", tmp_path / "out", say=lambda _: None)


@pytest.mark.parametrize("shards", [False, True])
def test_snapshots_of_links_are_read(shards, base, tmp_path):
    """As the cache of the Hugging Face Hub keeps them: each file is a link to a blob. A link may also lead back."""
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshot"
    if shards:
        index = {"weight_map": {"w": "model-1.safetensors"}}
        (base / "model.safetensors").rename(base / "model-1.safetensors")
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
    for number, name in enumerate(sorted(files_in(base))):
        shutil.copy(base / name, tmp_path / "blobs" / str(number))
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(tmp_path / "blobs" / str(number))
    (snapshot / "1_Pooling" / "up").symlink_to(snapshot)
    (snapshot / "linked").symlink_to(base / "tokenizer")
    (snapshot / "broken.json").symlink_to(tmp_path / "nowhere")
    merge_checkpoints(snapshot, [snapshot], "average", tmp_path / "out", say=lambda _: None)
    weights = {"model-1.safetensors", "model.safetensors.index.json"} if shards else {"model.safetensors"}
    assert files_in(tmp_path / "out") == {*COMES, *weights, "merge.json", "linked/vocab.txt"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert torch.equal(load_file(tmp_path / "out" / sorted(weights)[0])["w"], draw(3))


def test_nothing_comes_along_from_beside_a_single_file(base, tmp_path):
    merge_checkpoints(base / "model.safetensors", [base], "average", tmp_path / "out")
    assert files_in(tmp_path / "out") == {"model.safetensors", "merge.json"}


def test_an_output_inside_the_base_does_not_hold_itself(base, tmp_path):
    for _ in range(2):
        out = base / "merged"
        merge_checkpoints(base, [base], "average", out, overwrite=True, say=lambda _: None)
        assert files_in(out) == {*COMES, "model.safetensors", "merge.json"}

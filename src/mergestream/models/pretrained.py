"""Any CLIP that open_clip builds, with published weights or weights from a file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import get_session
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

from mergestream.models.clip import Clip, clip_transforms
from mergestream.runtime.errors import UserError
from mergestream.runtime.files import read_tensors

HINT = "model=tiny needs no download."


def pretrained(architecture: str, pretrained: str) -> Clip:
    """An open_clip model with weights by tag (downloaded once) or from a local file.

    Args:
        architecture: a name of open_clip, such as ViT-B-16.
        pretrained: one of its tags, or the path of a .safetensors or tensors-only .pt file with the whole CLIP.

    Raises:
        UserError: if the name or tag is unknown, the weights cannot be had, or they do not fit.
    """
    if open_clip.get_model_config(architecture) is None:
        raise UserError(f"model.architecture must be a name from open_clip.list_models(); got {architecture}. {HINT}")
    path = Path(pretrained)
    if path.suffix not in (".safetensors", ".pt", ".bin", ".pth"):
        path = _download(architecture, pretrained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.create_model(architecture, load_weights=False, pretrained_text=False)
    state = {name.removeprefix("module."): tensor.float() for name, tensor in read_tensors(path).items()}
    wanted = model.state_dict()
    for scalar in ("input_resolution", "context_length", "vocab_size"):  # OpenAI's archives carry these as tensors
        state.pop(scalar, None)
    if wrong := sorted(state.keys() ^ wanted.keys()) or [k for k in wanted if state[k].shape != wanted[k].shape]:
        raise UserError(
            f"model.pretrained={path} must hold the weights of model.architecture={architecture}; "
            f"{len(wrong)} tensors do not fit, the first is {wrong[0]}"
        )
    model.load_state_dict(state)
    image = open_clip.get_model_preprocess_cfg(model)
    # A tag may prescribe its own normalisation; a file is taken to have been trained with the architecture's.
    tag = open_clip.get_pretrained_cfg(architecture, pretrained) or {}
    mean, std = tag.get("mean", image["mean"]), tag.get("std", image["std"])
    size = model.visual.image_size  # a number in residual networks, (height, width) in transformers
    transforms = clip_transforms(size if isinstance(size, int) else size[0], mean, std)
    return Clip(model.eval(), open_clip.get_tokenizer(architecture), transforms, f"{architecture}/{pretrained}")


def _download(architecture: str, tag: str) -> Path:
    tags = list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise UserError(
            f"model.pretrained must be one of {', '.join(tags) or 'no tag'} for {architecture}, or the path of a "
            f".safetensors or .pt file; got model.pretrained={tag}"
        )
    config = get_pretrained_cfg(architecture, tag)
    try:
        return _cached(config) or _fetched(config)
    except Exception as error:  # the hub's client raises whatever its HTTP library raises
        raise UserError(
            f"the weights {tag} of {architecture} must be downloaded once, and that failed ({type(error).__name__}). "
            f"Fetch {config.get('hf_hub', '')}{HF_SAFE_WEIGHTS_NAME} from the Hugging Face Hub on a machine with "
            f"network, copy it here, and write model.pretrained=/path/to/{HF_SAFE_WEIGHTS_NAME}. {HINT}"
        ) from error


def _cached(config: dict[str, Any]) -> Path | None:
    """The file that an earlier download left, found without a word to the network."""
    repository = config.get("hf_hub", "")
    if not repository.endswith("/"):  # a tag that names a single file, or none of the hub
        return None
    found = try_to_load_from_cache(repository.strip("/"), HF_SAFE_WEIGHTS_NAME)
    return Path(found) if isinstance(found, str) else None


def _fetched(config: dict[str, Any]) -> Path:
    # One quick question first: without network the hub's client retries for the better part of a minute.
    get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    return Path(download_pretrained(config))

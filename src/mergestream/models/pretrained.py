"""Any CLIP architecture of open_clip, with published weights or weights from a file."""

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
    """Return an open_clip model with weights from a tag, downloaded once, or from a local file.

    Args:
        architecture: a name from ``open_clip.list_models()``, such as ViT-B-16.
        pretrained: a tag of the architecture, or the path of a .safetensors or tensors-only .pt file of the whole CLIP.

    Raises:
        UserError: if the architecture or tag is unknown, or the weights cannot be downloaded, cannot be read or do not
            fit.
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
    for scalar in ("input_resolution", "context_length", "vocab_size"):  # tensors in OpenAI's archives
        state.pop(scalar, None)
    if wrong := sorted(state.keys() ^ wanted.keys()) or [k for k in wanted if state[k].shape != wanted[k].shape]:
        raise UserError(
            f"model.pretrained={path} must hold the weights of model.architecture={architecture}; "
            f"{len(wrong)} tensors do not fit, the first is {wrong[0]}"
        )
    model.load_state_dict(state)
    image = open_clip.get_model_preprocess_cfg(model)
    # Some tags have a normalisation of their own; weights from a file get that of the architecture.
    tag = open_clip.get_pretrained_cfg(architecture, pretrained) or {}
    mean, std = tag.get("mean", image["mean"]), tag.get("std", image["std"])
    size = model.visual.image_size  # a number for residual networks, (height, width) for transformers
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
    except Exception as error:  # the client of the Hub passes on whatever its HTTP library raises
        raise UserError(
            f"the weights {tag} of {architecture} must be downloaded once, which failed ({type(error).__name__}). "
            f"Fetch {config.get('hf_hub', '')}{HF_SAFE_WEIGHTS_NAME} from the Hugging Face Hub on a machine with "
            f"network access, copy it here, and write model.pretrained=/path/to/{HF_SAFE_WEIGHTS_NAME}. {HINT}"
        ) from error


def _cached(config: dict[str, Any]) -> Path | None:
    """The file of an earlier download, found without network access."""
    repository = config.get("hf_hub", "")
    if not repository.endswith("/"):  # a tag that names a single file, or is not on the Hub
        return None
    found = try_to_load_from_cache(repository.strip("/"), HF_SAFE_WEIGHTS_NAME)
    return Path(found) if isinstance(found, str) else None


def _fetched(config: dict[str, Any]) -> Path:
    # A quick request first: without network, the client of the Hub would retry for almost a minute.
    get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    return Path(download_pretrained(config))

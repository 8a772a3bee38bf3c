"""Any CLIP architecture of open_clip, with published weights or weights from a file."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import get_session
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from open_clip.convert import convert_state_dict
from open_clip.model import CLIP, CLIPVisionCfg, _build_vision_tower, convert_to_custom_text_state_dict
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import Tensor, nn

from mergestream.models.clip import Clip
from mergestream.models.transforms import clip_transforms
from mergestream.runtime.errors import UserError, first_line
from mergestream.runtime.files import read_tensors
from mergestream.runtime.processes import say

HINT = "model=tiny needs no download."
WEIGHTS = (".safetensors", ".pt", ".bin", ".pth")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def pretrained(architecture: str, pretrained: str, preprocess: str | None = None) -> Clip:
    """Return an open_clip model with weights from a tag, downloaded once, or from a local file.

    Images are preprocessed as open_clip does for the tag, and the activation is the one that the tag was trained with.

    Args:
        architecture: a name from ``open_clip.list_models()``, such as ViT-B-16.
        pretrained: a tag of the architecture, or the path of a .safetensors or tensors-only .pt file of the whole CLIP.
        preprocess: for weights from a file, the tag whose preprocessing and activation they need; None is OpenAI's
            preprocessing and the activation of the architecture.

    Raises:
        UserError: if the architecture or tag is unknown, or the weights or the tokenizer cannot be downloaded, cannot
            be read or do not fit.
    """
    if open_clip.get_model_config(architecture) is None:
        raise UserError(f"model.architecture must be a name from open_clip.list_models(); got {architecture}. {HINT}")
    path = Path(pretrained)
    if path.suffix in WEIGHTS:
        tag = _require_preprocess(architecture, pretrained, preprocess)
        _refuse_torchscript(architecture, path)
    elif preprocess is not None:
        raise UserError(
            f"model.preprocess is for weights from a file, and model.pretrained={pretrained} is a tag, which has its "
            f"own; got model.preprocess={preprocess}. Write model.preprocess=null"
        )
    else:
        path = _download(architecture, pretrained)
        tag = get_pretrained_cfg(architecture, pretrained)
    tensors = read_tensors(path)
    tokenize = _online(open_clip.get_tokenizer, architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _online(_create, architecture, tag)
    _load(model, tensors, path, architecture)
    values = preprocessing(architecture, tag, model.visual.image_size)
    transforms = clip_transforms(values["size"], **{key: values[key] for key in PREPROCESSING})
    node = {"_target_": f"{__name__}.{tower.__name__}", **_image_config(architecture, values["quick_gelu"])}
    return Clip(model.eval(), tokenize, transforms, f"{architecture}/{pretrained}", values, node)


def tower(embed_dim: int, vision_cfg: Mapping[str, Any], quick_gelu: bool) -> nn.Module:
    """Return an image tower of open_clip with random weights. Nothing is downloaded.

    Args:
        embed_dim: length of an embedding.
        vision_cfg: the tower, as open_clip's config of the architecture describes it.
        quick_gelu: whether its activation is QuickGELU.
    """
    visual = _build_vision_tower(embed_dim, CLIPVisionCfg(**vision_cfg), quick_gelu)
    return _with_one_output(visual).eval()


def preprocessing(architecture: str, tag: dict[str, Any], size: int | Sequence[int]) -> dict[str, Any]:
    """Return the values behind the transforms of a tag, as open_clip uses them, and whether it changes the activation.

    Args:
        architecture: the name of the architecture.
        tag: open_clip's config of the tag; without entries, the values are OpenAI's.
        size: image size of the architecture: a number for residual networks, (height, width) for transformers.
    """
    values = merge_preprocess_dict(PreprocessCfg(), tag)
    quick_gelu = _needs_quick_gelu(architecture, tag)
    return {
        "size": size if isinstance(size, int) else size[0],
        "mean": list(values["mean"]),
        "std": list(values["std"]),
        **{key: values[key] for key in ("interpolation", "resize_mode")},
        "quick_gelu": quick_gelu,
    }


def _needs_quick_gelu(architecture: str, tag: dict[str, Any]) -> bool:
    """Return whether the tag was trained with QuickGELU and the architecture has another activation."""
    return bool(tag.get("quick_gelu")) and not open_clip.get_model_config(architecture).get("quick_gelu", False)


def _create(architecture: str, tag: dict[str, Any]) -> CLIP:
    """Return the architecture with the activation of the tag, whose image tower returns one tensor."""
    quick_gelu = _needs_quick_gelu(architecture, tag)
    model = open_clip.create_model(architecture, load_weights=False, pretrained_text=False, force_quick_gelu=quick_gelu)
    _with_one_output(model.visual)
    return model


def _image_config(architecture: str, quick_gelu: bool) -> dict[str, Any]:
    """Return the arguments of `tower` for an architecture whose tag may want another activation."""
    config = open_clip.get_model_config(architecture)
    vision = {**config["vision_cfg"]}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    return {
        "embed_dim": config["embed_dim"],
        "vision_cfg": vision,
        "quick_gelu": quick_gelu or config.get("quick_gelu", False),
    }


def _with_one_output(visual: nn.Module) -> nn.Module:
    if getattr(visual, "output_tokens", False):  # CoCa's also returns tokens, for captions
        setattr(visual, "output_tokens", False)  # noqa: B010 - to mypy, a module has tensors and modules alone
    return visual


def _load(model: CLIP, tensors: dict[str, Tensor], path: Path, architecture: str) -> None:
    """Load weights in any layout that open_clip reads."""
    state = {name.removeprefix("module."): tensor.float() for name, tensor in tensors.items()}
    for scalar in ("input_resolution", "context_length", "vocab_size"):  # tensors in OpenAI's archives
        state.pop(scalar, None)
    state = convert_state_dict(model, state)
    wanted = model.state_dict()
    if "positional_embedding" in state and "positional_embedding" not in wanted:
        state = convert_to_custom_text_state_dict(state)
    for scalar in ("logit_scale", "logit_bias"):  # of one element, in some files without a dimension
        if scalar in state and scalar in wanted and state[scalar].numel() == 1:
            state[scalar] = state[scalar].reshape(wanted[scalar].shape)
    if wrong := sorted(state.keys() ^ wanted.keys()) or [k for k in wanted if state[k].shape != wanted[k].shape]:
        raise UserError(
            f"model.pretrained={path} must hold the weights of model.architecture={architecture}; "
            f"{len(wrong)} tensors do not fit, the first is {wrong[0]}"
        )
    model.load_state_dict(state)


def _require_preprocess(architecture: str, file: str, preprocess: str | None) -> dict[str, Any]:
    """Return open_clip's config of the tag ``model.preprocess``; empty if it is None."""
    tags = list_pretrained_tags_by_model(architecture)
    if preprocess is not None:
        if not (isinstance(preprocess, str) and get_pretrained_cfg(architecture, preprocess)):
            raise UserError(
                f"model.preprocess must be one of {', '.join(tags) or 'no tag'} for {architecture}, or null; "
                f"got model.preprocess={preprocess}"
            )
        return get_pretrained_cfg(architecture, preprocess)
    default = preprocessing(architecture, {}, 0)
    others = [t for t in tags if preprocessing(architecture, get_pretrained_cfg(architecture, t), 0) != default]
    if others:
        say(
            f"model.pretrained={file} is a file, so images get OpenAI's preprocessing; if it holds the weights of "
            f"{', '.join(others)}, write model.preprocess=TAG",
        )
    return {}


def _refuse_torchscript(architecture: str, path: Path) -> None:
    """Refuse an archive of TorchScript, as OpenAI publishes it.

    Raises:
        UserError: if it is one; says which file to fetch instead.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return
    config = get_pretrained_cfg(architecture, "openai")
    where = f"Fetch {_address(config)}" if config else "Fetch its open_clip_model.safetensors"
    use = " model.preprocess=openai" if config else ""
    raise UserError(
        f"model.pretrained must be a file of tensors; {path} is a TorchScript archive, which holds code. {where} from "
        f"the Hugging Face Hub instead, and write model.pretrained=/path/to/{HF_SAFE_WEIGHTS_NAME}{use}"
    )


def _online(make: Callable[..., Any], architecture: str, *arguments: Any) -> Any:
    """Call what may need a tokenizer or a config from the Hub.

    Raises:
        UserError: if it is not in the cache and cannot be downloaded.
    """
    try:
        return make(architecture, *arguments)
    except (OSError, ImportError) as error:
        text = open_clip.get_model_config(architecture)["text_cfg"]
        name = text.get("hf_tokenizer_name") or text.get("hf_model_name") or architecture
        raise UserError(
            f"model.architecture={architecture} needs the tokenizer {name} from the Hugging Face Hub, which is not in "
            f"the cache and cannot be loaded ({first_line(error)}). On a machine with network access, type: "
            f"hf download {name}; then copy its folder of ~/.cache/huggingface/hub here. {HINT}"
        ) from error


def _download(architecture: str, tag: str) -> Path:
    tags = list_pretrained_tags_by_model(architecture)
    config = get_pretrained_cfg(architecture, tag)
    if not config:
        raise UserError(
            f"model.pretrained must be one of {', '.join(tags) or 'no tag'} for {architecture}, or the path of a "
            f".safetensors or .pt file; got model.pretrained={tag}"
        )
    try:
        return _cached(config) or _fetched(config)
    except Exception as error:  # the client of the Hub passes on whatever its HTTP library raises
        address = _address(config)
        raise UserError(
            f"the weights {tag} of {architecture} must be downloaded once, which failed ({type(error).__name__}). "
            f"Fetch {address} from the Hugging Face Hub on a machine with network access, copy it here, and write "
            f"model.pretrained=/path/to/{Path(address).name} model.preprocess={tag}. {HINT}"
        ) from error


def _address(config: dict[str, Any]) -> str:
    """Return the file of a tag on the Hub."""
    name = config.get("hf_hub", "")
    return f"{name}{HF_SAFE_WEIGHTS_NAME}" if name.endswith("/") else name


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

"""Export: a merged CLIP in the formats of open_clip and transformers, or as a classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_clip.model import CLIP
from torch import Tensor, nn

from mergestream.classifier.classifier import Classifier
from mergestream.classifier.folder import write_classifier
from mergestream.classifier.onnx import write_onnx
from mergestream.compose.keys import EXPORTS
from mergestream.compose.merging import RunMerge
from mergestream.models.clip import Clip, TextHead, text_head
from mergestream.runs.directory import readable
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

CLASSIFIERS = ("classifier", "onnx")  # formats that hold the encoder and the head alone


@dataclass(frozen=True)
class Labels:
    """The classes of an exported merge.

    Args:
        names, prompts: of the classes.
        head: over the classes; None if the format has no head.
    """

    names: Sequence[str]
    prompts: Sequence[Sequence[str]]
    head: TextHead | None


def labels_of_run(settings: RunMerge, form: str, clip: Clip) -> Labels:
    """Return the classes of a finished run; its data set is opened only for their prompts.

    Args:
        settings: of the merge.
        form: one of `EXPORTS`.
        clip: the model of the run.

    Raises:
        UserError: if the dataset has other classes now.
    """
    if form not in CLASSIFIERS:
        return Labels(settings.run.class_names(), (), None)
    source = settings.inputs.classes()
    settings.run.require_classes(source.class_names)
    head = text_head(clip, source.prompts, source.class_groups)
    return Labels(source.class_names, source.prompts, head)


def export_merge(
    form: str,
    clip: Clip,
    labels: Labels,
    theta: Mapping[str, Tensor],
    metrics: Mapping[str, Any],
    folder: Path,
) -> None:
    """Export a merge of a run with the names of its classes, and with its head if the format has one.

    Args:
        form: one of `EXPORTS`.
        clip: the model of the run.
        labels: the classes.
        theta: the merged weights, named as in the image tower.
        metrics: of the merge.
        folder: where to write.
    """
    if labels.head is None or form not in CLASSIFIERS:
        path = export(clip, theta, form, folder, labels.names)
    else:
        clip.encoder.load_state_dict(theta)
        facts = {key: metrics["provenance"].get(key) for key in ("base_sha256", "data_sha256", "command")}
        facts |= {"model": metrics["config"]["model"], "weights": clip.source, "merge": metrics["merge"]}
        temperature = (metrics.get("calibration") or {}).get("temperature") or 1.0
        model = metrics["config"]["model"]
        classifier = Classifier.of(clip, labels.head, labels.names, labels.prompts, model, temperature, facts)
        path = export_classifier(classifier, theta, form, folder)
    print(f"exported to {readable(path)}")


def export_classifier(classifier: Classifier, theta: Mapping[str, Tensor], to: str, folder: Path) -> Path:
    """Write a classifier; return the path.

    Args:
        classifier: with the weights `theta` in its encoder.
        theta: the merged weights.
        to: classifier, a folder, or onnx, a file.
        folder: where to write.
    """
    if to == "onnx":
        return write_onnx(classifier, folder / EXPORTS[to])
    return write_classifier(classifier, theta, folder / EXPORTS[to])


def export(clip: Clip, encoder: Mapping[str, Tensor], to: str, folder: Path, class_names: Sequence[str] = ()) -> Path:
    """Write the whole CLIP with the weights `encoder` in its image tower; return the path.

    ``open_clip`` writes ``open_clip.safetensors`` for ``open_clip.create_model(name, pretrained=FILE)``;
    ``huggingface`` writes a folder ``huggingface`` for ``transformers.CLIPModel.from_pretrained(FOLDER)``. Class names
    go into its config.json, and into ``open_clip.json`` beside the former.

    Args:
        clip: the model of the image tower.
        encoder: the merged weights, named as in the image tower or as in the whole model.
        to: open_clip or huggingface.
        folder: where to write.
        class_names: of the data set that the merge is for, if it is known.

    Raises:
        UserError: if the weights do not belong to the model, or the format cannot hold it.
    """
    state = dict(clip.model.state_dict())
    given = dict(encoder)
    if given.keys() != state.keys():
        given = {f"visual.{name}": tensor for name, tensor in given.items()}
    if wrong := sorted(given.keys() - state.keys()) or [n for n, t in given.items() if t.shape != state[n].shape]:
        raise UserError(f"export: {wrong[0]} does not match model={clip.source}; choose the model that was trained")
    state = {name: tensor.detach().cpu() for name, tensor in {**state, **given}.items()}
    if to == "open_clip":
        path = folder / EXPORTS[to]
        files.write_tensors(path, state, {"format": "pt"})
        if class_names:
            _write_json(path.with_suffix(".json"), _id2label(class_names))
        return path
    config, tensors = huggingface(clip.model, state)
    config |= _id2label(class_names)
    path = folder / EXPORTS[to]
    files.write_tensors(path / "model.safetensors", tensors, {"format": "pt"})
    _write_json(path / "config.json", config)
    _write_json(path / "preprocessor_config.json", _preprocessor(clip))
    return path


def _id2label(class_names: Sequence[str]) -> dict[str, Any]:
    """Return the names of the classes as transformers keeps them; nothing without names."""
    named = {"id2label": dict(enumerate(class_names)), "label2id": {name: c for c, name in enumerate(class_names)}}
    return named if class_names else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with files.whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def huggingface(model: CLIP, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and the tensors of ``transformers.CLIPModel``.

    Args:
        model: a CLIP of open_clip whose towers are transformers.
        state: its weights.

    Raises:
        UserError: if transformers' CLIP has no such architecture or weight.
    """
    visual = model.visual
    if not _fits_transformers(model):
        raise UserError(
            "export=huggingface needs a CLIP as OpenAI built it: a vision transformer with a class token, and a causal "
            f"text transformer; model={type(model).__name__} with {type(visual).__name__} has no such form in "
            "transformers' CLIPModel. Write export=open_clip"
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensors |= _renamed(name, tensor)
    text = _tower(model.transformer, model.token_embedding.weight.shape[1])
    last = model.vocab_size - 1  # open_clip pools the text at the largest id, the end-of-text token
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": visual.proj.shape[1],
        "logit_scale_init_value": float(state["logit_scale"]),
        "text_config": {
            **text,
            "vocab_size": model.vocab_size,
            "max_position_embeddings": model.context_length,
            "projection_dim": visual.proj.shape[1],
            "bos_token_id": last - 1,
            "eos_token_id": last,
            "pad_token_id": 0,
        },
        "vision_config": {
            **_tower(visual.transformer, visual.conv1.out_channels),
            "image_size": visual.image_size[0],
            "patch_size": visual.conv1.kernel_size[0],
            "projection_dim": visual.proj.shape[1],
        },
    }
    return config, tensors


def _fits_transformers(model: CLIP) -> bool:
    """Return whether both towers compute what those of ``transformers.CLIPModel`` do."""
    visual = model.visual
    return (
        type(model) is CLIP
        and getattr(visual, "pool_type", None) == "tok"
        and hasattr(visual, "class_embedding")
        and getattr(visual, "attn_pool", None) is None
        and not isinstance(visual.ln_pre, nn.Identity)
        and model.text_pool_type == "argmax"
        and model.attn_mask is not None
        and all(isinstance(projection, Tensor) for projection in (visual.proj, model.text_projection))
    )


def _tower(transformer: Any, width: int) -> dict[str, Any]:
    """Return the part of config.json that both towers have."""
    block = transformer.resblocks[0]
    activation = next(module for name, module in block.mlp.named_children() if name == "gelu")
    return {
        "hidden_size": width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": "gelu" if isinstance(activation, nn.GELU) else "quick_gelu",
        "layer_norm_eps": block.ln_1.eps,
    }


RESAMPLE = {"bilinear": 2, "bicubic": 3}  # as Pillow numbers them
PLAIN = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",  # their spelling
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
LAYERS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
LAYERS |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor of open_clip under its name in transformers, or in three parts under three names."""
    if name in PLAIN:
        return {PLAIN[name]: tensor}
    if name in PROJECTIONS:
        return {PROJECTIONS[name]: tensor.T}
    module, _, kind = name.rpartition(".")
    if module in NORMS:
        return {f"{NORMS[module]}.{kind}": tensor}
    tower, _, rest = name.partition("transformer.resblocks.")
    layer, _, part = rest.partition(".")
    prefix = f"{'vision_model' if tower else 'text_model'}.encoder.layers.{layer}"
    if part.startswith("attn.in_proj_"):
        kind = part.removeprefix("attn.in_proj_")
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}.self_attn.{letter}_proj.{kind}": third for letter, third in thirds}
    module, _, kind = part.rpartition(".")
    if module not in LAYERS:
        raise UserError(f"export=huggingface cannot hold {name}; transformers' CLIP has no such weight")
    return {f"{prefix}.{LAYERS[module]}.{kind}": tensor}


def _preprocessor(clip: Clip) -> dict[str, Any]:
    """Return preprocessor_config.json, the evaluation transform."""
    evaluation: Any = clip.transforms.eval
    resize, normalize, size = evaluation.transforms[0], evaluation.transforms[-1], clip.model.visual.image_size[0]
    square, cropped = {"height": size, "width": size}, isinstance(resize.size, int)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size} if cropped else square,
        "resample": RESAMPLE[resize.interpolation.value],
        "do_center_crop": cropped,
        "crop_size": square,
        "do_normalize": True,
        "image_mean": list(normalize.mean),
        "image_std": list(normalize.std),
        "do_convert_rgb": True,
    }

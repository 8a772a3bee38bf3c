"""A classifier in a folder: safetensors and JSON, complete or not there at all.

classifier.json  encoder.safetensors  head.safetensors
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mergestream import __version__
from mergestream.classifier.classifier import Classifier
from mergestream.compose.build import ADAPTER, build
from mergestream.models.clip import Clip, TextHead
from mergestream.models.transforms import Transforms, clip_transforms
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

FORMAT = 1  # of the folder
FACTS, ENCODER, HEAD = "classifier.json", "encoder.safetensors", "head.safetensors"
KEYS = ("classes", "prompts", "logit_scale", "logit_bias", "temperature", "transform", "encoder", "provenance", "files")
AGAIN = "Write it again with merge.py export=classifier"


def write_classifier(classifier: Classifier, theta: Mapping[str, Tensor], folder: Path) -> Path:
    """Write a classifier; a folder that is there is replaced. Only one process may do so at a time.

    Args:
        classifier: all but the weights of its encoder.
        theta: the weights of its encoder.
        folder: where to write.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".partial-*-{folder.name}"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial, former = (folder.with_name(f".partial-{uuid.uuid4().hex[:12]}-{folder.name}") for _ in range(2))
    try:
        checksums = {
            ENCODER: files.write_tensors(partial / ENCODER, theta, {"format": "pt"}),
            HEAD: files.write_tensors(partial / HEAD, {"weight": classifier.head.weight_CD}, {"format": "pt"}),
        }
        files.write_json(partial / FACTS, {**_facts(classifier), "files": checksums})
        with suppress(FileNotFoundError):
            folder.rename(former)
        partial.rename(folder)
    finally:
        for left in (partial, former):
            shutil.rmtree(left, ignore_errors=True)
    return folder


def _facts(classifier: Classifier) -> dict[str, Any]:
    recipe = classifier.transforms.recipe
    return {
        "format": FORMAT,
        "version": __version__,
        "classes": list(classifier.class_names),
        "prompts": [list(texts) for texts in classifier.prompts],
        "logit_scale": classifier.head.scale,
        "logit_bias": classifier.head.bias,
        "temperature": classifier.temperature,
        "transform": None if recipe is None else asdict(recipe),
        "encoder": dict(classifier.tower),
        "provenance": dict(classifier.facts),
    }


def read_classifier(folder: Path, allowed: Sequence[str] = ()) -> Classifier:
    """Return the classifier in a folder.

    Args:
        folder: what `write_classifier` has written.
        allowed: packages that its model may come from, besides the known ones.

    Raises:
        UserError: if it is no such folder, of another version of the format, damaged or incomplete.
    """
    if not (folder / FACTS).is_file():
        raise UserError(f"classifier must be a folder that merge.py export=classifier has written; got {folder}")
    try:
        _require_format(folder)
        facts = files.read_json(folder / FACTS, *KEYS, own=True)
        tensors = {name: _verified(folder / name, facts["files"].get(name)) for name in (ENCODER, HEAD)}
    except UserError as error:
        raise UserError(f"{error}. {AGAIN}") from error
    encoder, transforms = _built(facts, allowed)
    try:
        encoder.load_state_dict(tensors[ENCODER])
    except RuntimeError as error:  # it names each tensor on a line of its own
        raise UserError(
            f"{folder / ENCODER} must hold the weights of {facts['encoder'].get('_target_')}, which has other ones "
            f"today. {AGAIN}"
        ) from error
    head = TextHead(tensors[HEAD]["weight"], facts["logit_scale"], facts["logit_bias"])
    return Classifier(
        encoder=encoder.eval(),
        head=head,
        class_names=facts["classes"],
        transforms=transforms,
        temperature=facts["temperature"],
        facts=facts["provenance"],
        tower=facts["encoder"],
        prompts=facts["prompts"],
    )


def _require_format(folder: Path) -> None:
    """Check the format before the checksum, which another version may compute in another way."""
    try:
        facts = json.loads((folder / FACTS).read_bytes())
    except (ValueError, RecursionError):
        return  # whoever reads it says so
    if isinstance(facts, dict) and facts.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"classifier must have format {FORMAT}, which mergestream {__version__} reads; {folder} has format "
            f"{facts['format']}, of mergestream {facts.get('version')}"
        )


def _verified(path: Path, checksum: str | None) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        found = files.verify(path)
    except UserError as error:  # safetensors says what it makes of the bytes
        raise UserError(f"{path} is damaged (its checksum differs)") from error
    if found != checksum:
        raise UserError(f"{path} is not the file that was written with {FACTS}")
    return files.read_tensors(path)


def _built(facts: Mapping[str, Any], allowed: Sequence[str]) -> tuple[nn.Module, Transforms]:
    """Return the encoder, with any weights, and its transforms."""
    made = build(facts["encoder"], allowed, without=("name", *ADAPTER))
    if isinstance(made, Clip):  # of a model that cannot build its image tower alone
        return made.encoder, made.transforms
    return made, clip_transforms(**facts["transform"])

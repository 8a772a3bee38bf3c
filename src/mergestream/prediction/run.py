"""predict.py: classify pictures with an encoder of a run, or with an exported classifier."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from mergestream.classifier.classifier import Answer, Classifier
from mergestream.compose.encoder import EncoderSettings
from mergestream.compose.inputs import Inputs
from mergestream.compose.prediction import PredictionSettings
from mergestream.merging.chosen import chosen_encoder
from mergestream.models.clip import text_head
from mergestream.prediction.answers import table, writer
from mergestream.prediction.paths import picture_paths
from mergestream.runs.directory import readable
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.interrupt import Stopped


def predict(settings: PredictionSettings) -> None:
    """Classify pictures, print what they show, and write it to a file if one is given.

    Raises:
        UserError: if there is no picture or no classifier; or, after all others are answered, if a picture cannot be
            read.
        Stopped: if a signal arrived; nothing was written.
    """
    paths = picture_paths(settings.images)
    name, classifier = _classifier(settings)
    top = min(settings.top, len(classifier.class_names))
    try:
        with _file(settings.out, top) as write:
            rows = list(_answered(classifier, paths, top, write))
    except Stopped as stopped:
        raise Stopped(stopped.signum, f"stopped by {stopped.signum.name}; nothing was written") from None
    _show(f"{name}, {len(classifier.class_names)} classes", table(rows, top))
    if settings.out is not None:
        print(f"answers in {readable(settings.out)}")
    if unreadable := sum(answer.reason is not None for _, answer in rows):
        raise UserError(
            f"images must be pictures that can be read; {unreadable} of {len(rows)} cannot, and are listed with the "
            "reason. The others are answered"
        )


def _classifier(settings: PredictionSettings) -> tuple[str, Classifier]:
    """Return the classifier that is meant, and what to call it."""
    if isinstance(settings.source, Path):
        loaded = Classifier.load(settings.source, str(settings.device), settings.allowed)
        return readable(settings.source), loaded
    encoder, inputs = settings.source
    return _of_run(encoder, inputs, settings.classes, settings.device)


def _of_run(
    settings: EncoderSettings, inputs: Inputs, texts: Sequence[str] | None, device: torch.device
) -> tuple[str, Classifier]:
    chosen = chosen_encoder(settings)
    if texts is None:
        source = inputs.classes()
        names, prompts = source.class_names, source.prompts
        if settings.run.grows:  # these are the run's own, with those of tasks that are not merged yet
            names, prompts = names[: chosen.num_classes], prompts[: chosen.num_classes]
        else:
            settings.run.require_classes(names)
        temperature = (chosen.metrics.get("calibration") or {}).get("temperature") or 1.0
    else:  # a temperature is for the classes that it was chosen with
        names, prompts, temperature = texts, [[text] for text in texts], 1.0
    clip = inputs.clip()
    settings.run.require_preprocessing(clip.preprocessing)
    clip.model.to(device)
    try:
        head = text_head(clip, prompts)
    except ValueError as error:  # of the tokenizer of the tiny CLIP
        raise UserError(f"classes must be texts that the CLIP can read: {error}") from error
    clip.encoder.load_state_dict(chosen.weights())
    model: dict[str, Any] = settings.config["model"]
    return f"{chosen.name} of {readable(settings.run.path)}", Classifier.of(
        clip, head, names, prompts, model, temperature
    ).to(device)


def _answered(
    classifier: Classifier, paths: Sequence[str], top: int, write: Callable[[str, Answer], Any]
) -> Iterator[tuple[str, Answer]]:
    """Yield path and answer of each picture, after writing it; a terminal shows how far this is."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        line = progress.add_task("pictures", total=len(paths))
        for path, answer in zip(paths, classifier.answers(paths, top), strict=True):
            write(path, answer)
            progress.advance(line)
            yield path, answer


@contextmanager
def _file(path: Path | None, top: int) -> Iterator[Callable[[str, Answer], Any]]:
    """Yield what writes an answer into a file, which appears when the block succeeds; without a path, nothing does."""
    if path is None:
        yield lambda path, answer: None
        return
    with (
        files.whole(path) as partial,
        # A file name need not be text.
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield writer(path, file, top)


def _show(title: str, lines: Iterator[str]) -> None:
    try:
        print(title)
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as in: python predict.py … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

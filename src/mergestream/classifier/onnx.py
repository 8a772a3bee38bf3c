"""A classifier as one ONNX graph: pixels in, logits and probabilities out."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergestream.classifier.classifier import Classifier
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

LIMIT = 2_000_000_000  # bytes of an ONNX file; larger ones need a second file for their weights


class _Graph(nn.Module):
    """Encoder, head and softmax of a classifier."""

    weight_CD: Tensor

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.encoder, self.temperature = classifier.encoder, classifier.temperature
        self.register_buffer("weight_CD", classifier.head.weight_CD)
        self.scale, self.bias = classifier.head.scale, classifier.head.bias

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = F.normalize(self.encoder(pixels), dim=-1)
        logits = (self.scale * features @ self.weight_CD.T + self.bias) / self.temperature
        return logits, logits.softmax(-1)


def write_onnx(classifier: Classifier, path: Path) -> Path:
    """Write a classifier as one ONNX file.

    Its input ``pixels`` is float32 [batch, 3, H, W], transformed as the metadata ``transform`` says. Its outputs are
    ``logits``, divided by the temperature, and ``probabilities``, both [batch, C]. The metadata ``classes`` holds the
    names of the C classes as JSON.

    Raises:
        UserError: if torch cannot translate the encoder, or it is too large.
    """
    if (weights := sum(tensor.nbytes for tensor in classifier.encoder.state_dict().values())) > LIMIT:
        raise UserError(
            f"export=onnx writes one file, of 2 GB at most; the encoder has {weights / 1e9:.1f} GB. Write "
            "export=classifier"
        )
    recipe = classifier.transforms.recipe
    size = classifier.encoder.image_size[0] if recipe is None else recipe.size  # type: ignore[index]
    example = torch.zeros(2, 3, int(size), int(size))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of torch's exporter about itself
            program = torch.onnx.export(
                _Graph(classifier).cpu().eval(),
                (example,),
                input_names=["pixels"],
                output_names=["logits", "probabilities"],
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
                dynamo=True,
                optimize=False,  # onnxruntime does it when it loads the file, in less time
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"export=onnx: torch cannot translate {type(classifier.encoder).__name__} ({str(error).splitlines()[0]}). "
            "Write export=classifier"
        ) from error
    assert program is not None
    program.model.metadata_props.update(
        classes=json.dumps(list(classifier.class_names)),
        transform=json.dumps(None if recipe is None else asdict(recipe)),
        provenance=json.dumps(dict(classifier.facts)),
    )
    with files.whole(path) as partial:
        program.save(str(partial))
    return path

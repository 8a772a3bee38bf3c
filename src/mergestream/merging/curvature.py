"""What the training saved of each task beside its encoder: Fisher information, Gram matrices, class statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mergestream.merging.checkpoints import Checkpoint, Source
from mergestream.merging.tensors import bytes_of, is_finite
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

WHAT = {"fisher": "the Fisher information", "gram": "the Gram matrices", "classes": "the class statistics"}


def made_with(checksums: Iterable[str]) -> str:
    """Return what class statistics record of the encoders so far: the start of each checksum."""
    return " ".join(checksum[:16] for checksum in checksums)


class CurvatureFiles:
    """``fisher.safetensors``, ``gram.safetensors`` or ``classes.safetensors`` of every task, beside its encoder.

    Args:
        kind: ``fisher``, ``gram`` or ``classes``.
        base: θ₀.
        checkpoints: the encoders.
        device: where the values are put.

    Raises:
        UserError: if a file is missing or damaged, does not fit the weights, or was made from another encoder.
    """

    def __init__(self, kind: str, base: Checkpoint, checkpoints: Sequence[Source], device: torch.device):
        self.kind, self.base, self.device = kind, base, device
        self.files: list[Checkpoint] = []
        try:
            for checkpoint in checkpoints:
                self._open(checkpoint)
        except BaseException:
            self.close()
            raise

    def __contains__(self, name: str) -> bool:
        return all(name in file.entries for file in self.files)

    def rows(self, name: str, start: int, shape: Sequence[int]) -> Iterator[Tensor]:
        """Yield the values of each task, float32 of `shape`, from element `start` of the tensor `name`.

        Raises:
            UserError: if one is missing, or is NaN, infinite or negative where it must not be.
        """
        return (self._values(file, name, start, shape) for file in self.files)

    def tensors(self, name: str) -> Iterator[Tensor]:
        """Yield the tensor `name` of each task, float32; its shape may differ between tasks.

        Raises:
            UserError: if one is missing, or is NaN or infinite.
        """
        return (self._values(file, name, 0, None) for file in self.files)

    def _values(self, file: Checkpoint, name: str, start: int, shape: Sequence[int] | None) -> Tensor:
        if name not in file.entries:
            whole = "every weight" if self.kind != "classes" else name
            raise UserError(f"{WHAT[self.kind]} must hold {whole}; {file.path} has no {name}")
        entry = file.entries[name]
        raw = torch.empty(tuple(entry.shape if shape is None else shape), dtype=entry.dtype)
        file.read(name, start, bytes_of(raw))
        values = raw.float()
        if not is_finite(values) or (self.kind == "fisher" and bool((values < 0).any())):
            rule = "finite and not negative" if self.kind == "fisher" else "finite"
            raise UserError(f"{WHAT[self.kind]} must be {rule}; {name} in {file.path} is not")
        return values.to(self.device)

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()

    def _open(self, checkpoint: Source) -> None:
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        path = folder / f"{self.kind}.safetensors"
        if not isinstance(checkpoint, Checkpoint):
            raise UserError(
                f"this merge needs {WHAT[self.kind]} of every task, which adapters do not have; {folder} holds one. "
                "Train all weights (model.adapter=null), or choose another strategy or calibration"
            )
        if not path.is_file():
            raise UserError(
                f"this merge needs {WHAT[self.kind]} of every task; {path} is missing. Repeat the command of the "
                f"training with curvature.{self.kind}=true; it leaves finished encoders as they are"
            )
        if any(file.path == path for file in self.files):
            raise UserError(f"each checkpoint needs {WHAT[self.kind]} in a folder of its own; got {path} twice")
        file = Checkpoint(path)
        self.files.append(file)
        of_weights = file.entries.keys() & self.base.entries.keys() if self.kind != "classes" else ()
        for name in of_weights:
            found, weight = file.entries[name], tuple(self.base.entries[name].shape)
            expected = weight if self.kind == "fisher" else 2 * weight[-1:]
            if tuple(found.shape) != expected or not found.dtype.is_floating_point:
                raise UserError(
                    f"{WHAT[self.kind]} must fit the weights; {name} must be {list(expected)} for a weight of "
                    f"{list(weight)}, and is {list(found.shape)} {found.dtype} in {path}"
                )
        if "encoder" in file.metadata:  # mergestream wrote it
            files.verify(path)
            if file.metadata["encoder"] != checkpoint.metadata.get(files.CHECKSUM):
                raise UserError(f"{path} was made from another encoder than {checkpoint.path}. {self._again()}")

    def require_past(self) -> None:
        """Check that the statistics of each task are of the mean of the checkpoints up to it, where a file says so.

        Raises:
            UserError: if they are of the mean of others.
        """
        so_far: list[str] = []
        for number, file in enumerate(self.files, 1):
            so_far.append(file.metadata.get("encoder", ""))
            if file.metadata.get("encoders") not in (None, made_with(so_far)):
                raise UserError(
                    f"{file.path} is of the mean of other encoders than the first {number} checkpoints. Merge the "
                    "first tasks of a run in their order, or write calibration.statistics=encoder; or, if a task was "
                    f"trained again since: {self._again()}"
                )

    def _again(self) -> str:
        return f"Delete it, and repeat the command of the training with curvature.{self.kind}=true repair=true"

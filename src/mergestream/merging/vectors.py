"""Task vectors, made weight by weight from the checkpoints of a base."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from mergestream.errors import UserError
from mergestream.files import read_tensors

VISUAL = "visual."  # where a whole CLIP keeps its image tower


class TaskVectors:
    """τ_t = θ_t − θ₀ of T checkpoints, in float32.

    Args:
        base: file of θ₀.
        checkpoints: files of θ_1 … θ_T.
        clip_parameters: number of parameters of the whole CLIP where the files hold its image tower only.

    Raises:
        UserError: if names or shapes of the files differ, an integer meets a float, or a value is not finite.
    """

    def __init__(self, base: Path, checkpoints: Sequence[Path], clip_parameters: int | None = None):
        self.base = read_tensors(base)
        self.checkpoints = [read_tensors(path) for path in checkpoints]
        for name, tensor in self.base.items():
            if not bool(tensor.isfinite().all()):
                raise UserError(f"checkpoints must be finite; {name} in {base} has NaN or infinite values")
        for path, checkpoint in zip(checkpoints, self.checkpoints, strict=True):
            for name in sorted(self.base.keys() | checkpoint.keys()):
                for holder, missing in ((checkpoint, path), (self.base, base)):
                    if name not in holder:
                        raise UserError(f"checkpoints must hold the tensors of their base; {missing} has no {name}")
                ours, theirs = self.base[name], checkpoint[name]
                if ours.dtype.is_floating_point != theirs.dtype.is_floating_point:
                    raise UserError(f"{name} is {ours.dtype} in {base} and {theirs.dtype} in {path}")
                if ours.shape != theirs.shape:
                    raise UserError(
                        f"checkpoints must have the shapes of their base; {name} is {list(ours.shape)} in {base} "
                        f"and {list(theirs.shape)} in {path}"
                    )
                if not bool(theirs.isfinite().all()):
                    raise UserError(f"checkpoints must be finite; {name} in {path} has NaN or infinite values")
        if not self.names:
            raise UserError(f"a merge needs weights; {base} has no floating-point tensor")
        here = sum(tensor.numel() for tensor in self.base.values())
        self.frozen = max(0, (clip_parameters or here) - here)

    def __len__(self) -> int:
        return len(self.checkpoints)

    @cached_property
    def names(self) -> list[str]:
        """Weights that are merged; integer buffers are not."""
        return sorted(name for name, tensor in self.base.items() if tensor.is_floating_point())

    @property
    def encoder_names(self) -> list[str]:
        """Those of the image tower; all of them where the files hold nothing else."""
        return [name for name in self.names if name.startswith(VISUAL)] or self.names

    def tau(self, task: int, name: str) -> Tensor:
        """τ of one task and weight."""
        return self.checkpoints[task][name].float() - self.base[name].float()

    def taus(self, name: str) -> list[Tensor]:
        """τ of all tasks, of one weight."""
        return [self.tau(task, name) for task in range(len(self))]

"""What strategies see: the task vectors of one block, and, in a survey, those of all weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 17  # elements; sums and hashes run over chunks, so that no block size changes them
CPU = torch.device("cpu")

Result = TypeVar("Result")


class Block(NamedTuple):
    """A part of one weight: `size` elements from `start`, as a tensor of `shape`."""

    name: str
    start: int
    size: int
    shape: tuple[int, ...]


class Rows(Protocol):
    """The task vectors of one block, read one after the other; stands in for the stack [T, *shape].

    Iterating yields τ_1 … τ_T, float32 of the block's shape. Each may be a buffer that the next one overwrites.
    """

    @property
    def shape(self) -> torch.Size:
        """[T, *shape]."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Tensor]: ...

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Return (max_t τ_t, min_t τ_t), elementwise; the caller may change both."""

    def at(self, positions: Tensor) -> Tensor:
        """Return the elements [T, n] at `positions`, int64 [n], of the flattened block."""


class StackedRows:
    """`Rows` of a stack [T, *shape] in memory."""

    def __init__(self, stack: Tensor):
        self.stack = stack
        self.shape = stack.shape

    def __len__(self) -> int:
        return len(self.stack)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.stack)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """See `Rows`."""
        return extremes(self.stack)

    def at(self, positions: Tensor) -> Tensor:
        """See `Rows`."""
        return torch.stack([tau.reshape(-1)[positions] for tau in self.stack])


def extremes(taus: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return (max_t τ_t, min_t τ_t), NaN where a τ_t is NaN; the caller may change both."""
    rows = iter(taus)
    largest = next(rows).clone()
    smallest = largest.clone()
    if largest.device.type == "cpu":  # numpy takes four fifths of torch's time
        high, low = largest.numpy(), smallest.numpy()
        for tau in rows:
            row = tau.numpy()
            np.maximum(high, row, out=high)
            np.minimum(low, row, out=low)
        return largest, smallest
    for tau in rows:
        torch.maximum(largest, tau, out=largest)
        torch.minimum(smallest, tau, out=smallest)
    return largest, smallest


@dataclass(frozen=True)
class Reading:
    """How the values of a block are read.

    Args:
        device: where the tensors are put; None is the device of the merge.
        hashing: whether their content is hashed for the record of the merge.
        finite: whether a value that is NaN or infinite is an error.
    """

    device: torch.device | None = None
    hashing: bool = False
    finite: bool = False


PLAIN = Reading()


class Curvature(Protocol):
    """The Fisher information, the Gram matrices or the class statistics of all tasks."""

    def __contains__(self, name: str) -> bool:
        """Return whether every task has values for the weight."""

    def rows(self, name: str, start: int, shape: Sequence[int]) -> Iterator[Tensor]:
        """Yield the values of each task, float32 of `shape`, from element `start` of the tensor `name`."""

    def tensors(self, name: str) -> Iterator[Tensor]:
        """Yield the tensor `name` of each task, float32; its shape may differ between tasks."""

    def require_past(self) -> None:
        """Check that class statistics of a mean of encoders are of the task vectors up to the task.

        Raises:
            UserError: if they are not.
        """


class SurveyedVectors(Protocol):
    """The task vectors of all weights, read block by block."""

    @property
    def names(self) -> list[str]:
        """The weights that are merged."""

    @property
    def tensors(self) -> list[str]:
        """All names of θ₀, merged or not."""

    @property
    def encoder_names(self) -> list[str]:
        """Those of the image tower; all of them if the files hold nothing else."""

    @property
    def frozen(self) -> int:
        """The number of parameters of the whole CLIP that the files do not hold."""

    def say(self, message: str) -> None:
        """Tell the user what may surprise in how the task vectors are read or merged."""

    def __len__(self) -> int:
        """Return T."""

    def numel(self, name: str) -> int:
        """Return the number of elements of a weight."""

    def curvature(self, kind: str) -> Curvature:
        """Return what was saved beside the encoders: ``fisher``, ``gram`` or ``classes``.

        Raises:
            UserError: if that of a task is missing or damaged, or was made from another encoder.
        """

    def factors(self, name: str) -> Sequence[tuple[Tensor, Tensor]] | None:
        """Return B_t [m, r_t] and A_t [r_t, n] of each task, with τ_t = B_t A_t; None if a task is no adapter."""

    def blocks(self, names: Sequence[str], *, streamed: bool = False, whole: bool = False) -> list[Block]:
        """Return the blocks of `names`, in order.

        Args:
            names: weights.
            streamed: for `map_rows`.
            whole: make each weight one block of its own shape.
        """

    def map(
        self, function: Callable[[Block, Tensor, Tensor], Result], blocks: Sequence[Block], reading: Reading = PLAIN
    ) -> list[Result]:
        """Return ``function(block, base, taus)`` of every block, in order; several blocks are worked on at a time.

        Args:
            function: gets θ₀'s block, float32 of the block's shape, and the task vectors, the stack [T, *shape]. Both
                are buffers that the next block overwrites; the function may change them.
            blocks: see `blocks`.
            reading: see `Reading`.
        """

    def map_rows(
        self,
        function: Callable[[Block, Tensor, Rows], Result],
        blocks: Sequence[Block],
        reading: Reading = PLAIN,
        *,
        tasks: Sequence[int] | None = None,
    ) -> list[Result]:
        """Like `map`, but stream the rows: `function` gets `Rows` instead of a stack, of all tasks or of some."""

    def check(self) -> None:
        """Read everything once to find the file that a NaN or an infinite value comes from.

        Raises:
            UserError: naming the weight and the file, if there is one.
        """

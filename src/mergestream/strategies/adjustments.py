"""What a merge takes and gives besides its strategy: which weights, how much of each task and layer, a calibration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from mergestream.runtime.errors import UserError
from mergestream.strategies.calibrations.calibration import BoundCalibration
from mergestream.strategies.depth import depths, interpolated


@dataclass(frozen=True)
class Adjustments:
    """Adjustments of a merge, which go with any strategy; without one, a merge is what its strategy makes of it.

    Args:
        calibration: rescales the merged task vector; None is none.
        weights: w_1 … w_T; the strategy gets w_t · τ_t. They are not normalised. None is 1 for all.
        depth: factors of the merged task vector along the depth of the network, linear between neighbours: [1, 0.5] is
            1 in the first block and before it, 0.5 in the last one and after it, as in mergekit. None is 1 everywhere.
        include, exclude: patterns of names, as the shell has them; a weight is merged if one of `include` matches,
            where there are any, and none of `exclude`. All others stay θ₀, and the strategy does not see them.
    """

    calibration: BoundCalibration | None = None
    weights: Sequence[float] | None = None
    depth: Sequence[float] | None = None
    include: Sequence[str] | None = None
    exclude: Sequence[str] | None = None

    @property
    def changed(self) -> dict[str, Any]:
        """Those that differ from none, by config key; of a calibration its changed options too."""
        lists = {key: getattr(self, key) for key in ("weights", "depth", "include", "exclude")}
        found: dict[str, Any] = {key: list(value) for key, value in lists.items() if value is not None}
        return {**(self.calibration.changed if self.calibration else {}), **found}

    @property
    def metadata(self) -> dict[str, str]:
        """Those that differ from none as the metadata of a file hold them."""
        found = {key: value for key, value in self.changed.items() if not key.startswith("calibration")}
        if self.calibration is not None:
            found["calibration"] = self.calibration.record
        return {key: json.dumps(value, sort_keys=True) for key, value in found.items()}

    def require_tasks(self, tasks: int) -> None:
        """Check that there is a weight for each task.

        Raises:
            UserError: if there is not.
        """
        if self.weights is not None and len(self.weights) != tasks:
            raise UserError(
                f"weights must be {tasks} numbers, one for each task; got {len(self.weights)}, "
                f"weights={list(self.weights)}"
            )

    def of_first(self, tasks: int) -> Adjustments:
        """Return those of a merge of the first tasks."""
        return self if self.weights is None else replace(self, weights=self.weights[:tasks])

    def merges(self, names: Iterable[str]) -> bool:
        """Return whether the weight with these names, of which tied weights have several, is merged."""
        names = list(names)
        kept = self.include is None or _match(names, self.include)
        return kept and not (self.exclude is not None and _match(names, self.exclude))

    def require_matches(self, weights: Sequence[Sequence[str]]) -> None:
        """Check that each pattern matches a weight, and that some remain.

        Args:
            weights: the names of each weight, of which tied weights have several.

        Raises:
            UserError: if one matches none, or none remains.
        """
        names = [name for tied in weights for name in tied]
        for key, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns or ():
                if not _match(names, [pattern]):
                    raise UserError(
                        f"{key} must match names of weights, such as {names[0] if names else '*'}; got "
                        f"{key}=[{pattern}], which matches none. A * stands for any part of a name"
                    )
        if weights and not any(self.merges(tied) for tied in weights):
            raise UserError(
                f"include and exclude must leave a weight to merge; got include={_shown(self.include)} and "
                f"exclude={_shown(self.exclude)}, which leave none"
            )

    def require_blocks(self, names: Iterable[str]) -> None:
        """Check that the weights are in numbered blocks, if it matters how deep they lie.

        Args:
            names: all weights of the model.

        Raises:
            UserError: if they are not.
        """
        if self.calibration is not None and self.calibration.calibration.layered:
            depths(names, f"calibration={self.calibration.calibration.name}")
        if self.depth is not None:
            depths(names, "depth")

    def factors(self, names: Iterable[str]) -> Mapping[str, float]:
        """Return the factor of each weight by its depth.

        Args:
            names: all weights of the model, in blocks.
        """
        assert self.depth is not None
        return {name: interpolated(self.depth, where.fraction) for name, where in depths(names, "depth").items()}


PLAIN = Adjustments()


def _match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _shown(patterns: Sequence[str] | None) -> str:
    return "null" if patterns is None else f"[{','.join(patterns)}]"

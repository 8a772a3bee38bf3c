"""A Hydra sweeper over several grids, so that a table whose rows differ in more than one key is one experiment.

Hydra accepts sweepers from this namespace only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class Grids(BasicSweeper):
    """Hydra's own sweeper, run once for each grid that the config has for the entry script; once if it has none.

    Args:
        max_batch_size, params: as of Hydra's sweeper; `params` belong to every grid.
        train, merge: grids of train.py and merge.py by name, each a dict of overrides such as ``tasks: 5,10,20``.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        train: Mapping[str, Mapping[str, Any]] | None = None,
        merge: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        super().__init__(max_batch_size, params)
        self.grids = {"train": train or {}, "merge": merge or {}}

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the jobs of every grid; what is typed on the command line wins over all of them."""
        assert self.config is not None  # Hydra calls `setup` first
        common, results = dict(self.params), []
        for grid in self.grids.get(self.config.hydra.job.config_name, {}).values() or [{}]:
            self.params, self.batch_index = {**common, **grid}, 0
            results += super().sweep(arguments)
        return results

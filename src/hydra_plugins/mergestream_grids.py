"""A Hydra sweeper over several grids, so that one experiment can hold a table whose rows differ in several keys.

Hydra loads sweepers only from this namespace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

KEPT = 200  # configs of jobs that wait


class Grids(BasicSweeper):
    """Hydra's basic sweeper, over all grids that the config has for the command.

    Args:
        max_batch_size, params: as in Hydra's sweeper; `params` apply to every grid.
        train, merge: grids of train.py and merge.py by name, each a dict of overrides such as ``tasks: 5,10,20``.
        listed: a file with jobs to run instead, their overrides and the number of the first.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        train: Mapping[str, Mapping[str, Any]] | None = None,
        merge: Mapping[str, Mapping[str, Any]] | None = None,
        listed: str | None = None,
    ):
        super().__init__(max_batch_size, params)
        self.listed = listed
        self.grids = {"train": train or {}, "merge": merge or {}}

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs of all grids at once. Overrides on the command line win over all grids."""
        assert self.config is not None  # Hydra calls `setup` first
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        if self.listed is None:
            OmegaConf.save(self.config, folder / "multirun.yaml")
        results: list[Any] = []
        with self._composed_once():
            listed = json.loads(Path(self.listed).read_text()) if self.listed is not None else {}
            jobs, first = listed.get("jobs") or self._jobs(arguments), listed.get("first", 0)
            self.validate_batch_is_legal(jobs)
            for batch in self.split_overrides_to_chunks(jobs, self.max_batch_size):
                results += self.launcher.launch(batch, initial_job_idx=first + len(results))
                for result in results:
                    _ = result.return_value  # raises the error of a job that met a bug
        return results

    def _jobs(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of the jobs of all grids. Jobs that what was typed makes equal are one."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        jobs: dict[frozenset[str], list[str]] = {}
        for grid in self._grids(arguments) or [{}]:
            words = [f"{key}={value}" for key, value in {**self.params, **grid}.items()]
            (batch,) = self.split_arguments(parser.parse_overrides([*words, *arguments]), None)
            for job in batch:
                jobs.setdefault(frozenset(job), job)
        return list(jobs.values())

    def _grids(self, arguments: list[str]) -> list[Mapping[str, Any]]:
        """Return the grids of the command; evaluate.py has those of merge.py, or of train.py if an encoder is typed.

        fetch.py has the data sets and models of train.py.
        """
        assert self.config is not None
        command = self.config.hydra.job.config_name
        if command == "fetch":
            parts = ("dataset", "model", "data")
            return [
                {k: v for k, v in grid.items() if k.split(".")[0] in parts} for grid in self.grids["train"].values()
            ]
        if command != "evaluate":
            return list(self.grids.get(command, {}).values())
        unmerged = any(word.startswith("encoder=") and word != "encoder=merge" for word in arguments)
        grids = self.grids["train" if unmerged else "merge"].values()
        return [{k: value for k, value in grid.items() if k.split(".")[0] in self.config} for grid in grids]

    @contextmanager
    def _composed_once(self) -> Iterator[None]:
        """Within the block, give each job the config that Hydra composed to check the sweep before it starts.

        Composing takes a third of the time of a merge of the tiny CLIP.
        """
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        kept: dict[tuple[str, ...], DictConfig] = {}
        compose = loader.load_sweep_config

        def load(master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
            job = tuple(sweep_overrides)
            if job in kept:
                return kept.pop(job)
            config = compose(master_config, sweep_overrides)
            if len(kept) < KEPT:
                kept[job] = config
            return config

        loader.load_sweep_config = load  # type: ignore[method-assign]
        try:
            yield
        finally:
            del loader.load_sweep_config

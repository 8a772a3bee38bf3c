"""A Hydra sweeper over several grids, so that one experiment can hold a table whose rows differ in several keys.

Hydra loads sweepers only from this namespace.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

KEPT = 10_000  # configs of jobs that wait, of about 20 kB
GRIDS = ("params", "train", "merge")


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

        Composing takes a third of the time of a merge of the tiny CLIP. Jobs get no grids: those of a large experiment
        would be merged and copied several times for each, which takes twice as long as all the rest.
        """
        assert self.hydra_context is not None
        assert self.config is not None
        loader: Any = self.hydra_context.config_loader
        master = copy.deepcopy(self.config)
        typed = master.hydra.overrides.hydra
        master.hydra.overrides.hydra = [word for word in typed if not word.lstrip("+~").startswith("hydra.sweeper.")]
        kept: dict[tuple[str, ...], bytes] = {}  # objects would take eight times the memory
        compose, repository = loader.load_sweep_config, loader.repository

        def load(master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
            job = tuple(sweep_overrides)
            if job in kept:
                return pickle.loads(kept.pop(job))
            config = compose(master, sweep_overrides)
            if len(kept) < KEPT:
                kept[job] = pickle.dumps(config)
            return config

        loader.load_sweep_config, loader.repository = load, ParsedOnce(repository.sources, {})
        try:
            yield
        finally:
            del loader.load_sweep_config
            loader.repository = repository


class ParsedOnce(ConfigRepository):
    """Hydra's repository of config files, for the jobs of a sweep: reads each file once, and leaves its grids out.

    Args:
        sources: where the files are.
        parsed: what has been read, by the folders that were searched and the name of the file. Pickled, since composing
            changes what it gets.
    """

    def __init__(self, sources: Sequence[ConfigSource], parsed: dict[tuple[str, ...], bytes]):
        self.sources, self.parsed = list(sources), parsed

    def __deepcopy__(self, memo: dict[int, Any]) -> ParsedOnce:
        """Hydra copies the repository for each job, which may search other folders but reads the same files."""
        return ParsedOnce(self.sources, self.parsed)

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return the content of a file; None if it is in no folder."""
        key = (*(source.full_path() for source in self.sources), config_path)
        if key not in self.parsed:
            self.parsed[key] = pickle.dumps(_without_grids(super().load_config(config_path)))
        return pickle.loads(self.parsed[key])


def _without_grids(loaded: ConfigResult | None) -> ConfigResult | None:
    if loaded is not None and isinstance(loaded.config, DictConfig):
        sweeper = OmegaConf.select(loaded.config, "hydra.sweeper")
        if isinstance(sweeper, DictConfig):
            for name in GRIDS:
                sweeper.pop(name, None)
    return loaded

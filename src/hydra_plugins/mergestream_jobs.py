"""A Hydra launcher that runs the jobs of a sweep where the config group `cluster` says.

Hydra loads launchers only from this namespace, at every start: what takes long is imported when it is needed.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

log = logging.getLogger(__name__)
GPUS = ("/dev/nvidiactl", "/dev/kfd")  # exist where there is one of NVIDIA's or AMD's
SMALL = "tiny"  # the model that a core trains as fast as two


class Jobs(BasicLauncher):
    """Runs jobs one after the other in this process, or side by side in processes of their own."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs. One that fails is shown on a line; the others run all the same."""
        from mergestream.cli.command import place_of

        assert self.config is not None  # Hydra calls `setup` first
        place = place_of(self.config)
        require_one_cluster(job_overrides)
        cluster: dict[str, Any] = OmegaConf.to_container(self.config.cluster, resolve=True)  # type: ignore[assignment]
        jobs = list(enumerate(job_overrides, start=initial_job_idx))
        if place == "slurm":
            self._slurm(jobs, cluster)
        elif place == "ray":
            self._ray(jobs, cluster)
        elif cluster["dry_run"]:
            self._look(jobs, "They run here, one after the other or side by side.", 0)
        elif (count := jobs_at_once(self.config, job_overrides)) > 1:
            self._side_by_side(jobs, count)
        else:
            return super().launch(job_overrides, initial_job_idx)
        return [_done()] * len(job_overrides)

    def _parts(self, jobs: Sequence[tuple[int, Sequence[str]]]) -> tuple[list[list[str]], list[str], Path]:
        """Return the overrides of each job, those of Hydra's own for all, and a folder, for parts of the sweep."""
        assert self.config is not None
        words = [[word for word in job if not _is_of_cluster(word)] for _, job in jobs]
        own = ("hydra.mode", "hydra.sweep.", "hydra.sweeper.", "hydra/launcher", "hydra/sweeper")
        common = [word for word in self.config.hydra.overrides.hydra if not word.lstrip("+~").startswith(own)]
        return words, common, Path(self.config.hydra.sweep.dir) / self.command.name

    def _ray(self, jobs: Sequence[tuple[int, Sequence[str]]], cluster: dict[str, Any]) -> None:
        from mergestream.cli import on_ray
        from mergestream.cli.command import print_error

        assert self.config is not None
        words, common, folder = self._parts(jobs)
        with on_ray.started(cluster) as ray:
            asked = on_ray.asked(ray, cluster, are_small(self.config, words))
            if cluster["dry_run"]:
                self._look(jobs, f"Each task of Ray runs {asked.each} and asks for {asked}.", int(asked.gpus))
                return
            for line in on_ray.run(ray, words, common, asked, folder):
                print_error(line)
                self.command.failed.append(line)

    def _slurm(self, jobs: Sequence[tuple[int, Sequence[str]]], cluster: dict[str, Any]) -> None:
        from mergestream.cli import slurm
        from mergestream.cli.command import print_error
        from mergestream.cli.listed import counted

        assert self.config is not None
        words, common, folder = self._parts(jobs)
        asked = slurm.asked(cluster, are_small(self.config, words))
        together, cpus = min(asked.each, len(jobs)), int(asked.options["cpus-per-task"])
        require_devices(self.config, words, cluster["gpus"], cpus, together)
        if cluster["dry_run"]:
            named = ", ".join(f"{key}={value}" for key, value in asked.options.items())
            self._look(jobs, f"Each job of SLURM runs {asked.each} and asks for {named}.", cluster["gpus"])
            return
        submitted = slurm.submit(self.command.name, words, common, asked, folder)
        said = f"submitted {counted(len(jobs), 'job')} of {self.command.name} as {submitted.ids}"
        print(f"{said}; logs in {submitted.parts.folder}")
        if not cluster["wait"]:
            return
        for lines in slurm.wait(submitted).values():
            for line in lines:
                print_error(line)
                self.command.failed.append(line)

    def _look(self, jobs: Sequence[tuple[int, Sequence[str]]], asked: str, gpus: int) -> None:
        """Show what the jobs would do."""
        from mergestream.cli.dry_run import Look, show
        from mergestream.runtime.errors import UserError

        looks: dict[int, Look | str] = {}
        for number, overrides in jobs:
            config = self._composed(number, overrides)
            if self.command.look is None:
                looks[number] = Look(None, ())
                continue
            assert self.hydra_context is not None
            job = run_job(self.command.look, config, "hydra.sweep.dir", "hydra.sweep.subdir", self.hydra_context)
            if isinstance(job._return_value, UserError):
                looks[number] = str(job._return_value)
            else:
                looks[number] = job.return_value
        show(dict(jobs), looks, asked, gpus)

    @property
    def command(self) -> Any:
        """The command whose sweep this is."""
        return self.task_function.__self__  # type: ignore[union-attr]

    def _side_by_side(self, jobs: Sequence[tuple[int, Sequence[str]]], count: int) -> None:
        from mergestream.cli.command import print_error
        from mergestream.runtime.side_by_side import SideBySide

        command, words = self.command, dict(jobs)
        pool = SideBySide(partial(run_here, command.guest()), count, command.modules)
        for ended in pool.run((number, self._composed(number, overrides)) for number, overrides in jobs):
            if ended.lost:
                print_error(f"job {ended.number} ({','.join(words[ended.number])}): {ended.lost}")
            failed, saved = ended.result or (True, False)
            command.saved |= saved
            if failed:
                command.failed.append(str(ended.number))

    def _composed(self, number: int, overrides: Sequence[str]) -> DictConfig:
        assert self.hydra_context is not None
        assert self.config is not None
        log.info(f"job {number}: {' '.join(overrides)}")
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
            config.hydra.sweep.dir = str(self.config.hydra.sweep.dir)  # with the time of the sweep
        return config


def require_one_cluster(jobs: Sequence[Sequence[str]]) -> None:
    """Require that all jobs have the same overrides of the config group `cluster`: it says how the sweep runs.

    Raises:
        UserError: if they differ, for example in a list of partitions without quotes.
    """
    from mergestream.runtime.errors import UserError

    asked = {frozenset(word for word in job if _is_of_cluster(word)) for job in jobs}
    if varied := sorted({word for job in asked for word in job if not all(word in other for other in asked)}):
        key = varied[0].partition("=")[0].lstrip("+~")
        values = [word.partition("=")[2] for word in varied if word.partition("=")[0].lstrip("+~") == key]
        rule = f"{key} must be the same for all jobs of a sweep; got {' and '.join(values)}"
        hint = f". For a list, write \"{key}='{','.join(values)}'\"" if key == "cluster.partition" else ""
        raise UserError(rule + hint)


def _is_of_cluster(word: str) -> bool:
    """Return whether an override is of the config group `cluster`."""
    return re.match(r"[+~]*cluster\b", word) is not None


def jobs_at_once(config: DictConfig, jobs: Sequence[Sequence[str]]) -> int:
    """Return how many jobs run side by side on this machine."""
    from mergestream.runtime.errors import UserError
    from mergestream.runtime.processes import cores, placement
    from mergestream.runtime.rules import is_whole

    wanted = config.cluster.jobs_per_node
    if placement().size > 1:
        return 1
    if wanted == "auto":
        wanted = cores() if are_small(config, jobs) else 1
    elif not is_whole(wanted) or wanted < 1:
        raise UserError(f"cluster.jobs_per_node must be a whole number, 1 or more, or auto; got {wanted}")
    return min(wanted, len(jobs))


def are_small(config: DictConfig, jobs: Sequence[Sequence[str]]) -> bool:
    """Return whether all jobs are small models on a CPU, of which several side by side are faster."""
    typed = [_typed(job) for job in jobs]
    models = {words.get("model", OmegaConf.select(config, "model.name")) for words in typed}
    devices = {str(words.get("devices", OmegaConf.select(config, "devices", default=1))) for words in typed}
    on_cpu = all(words.get("accelerator", config.accelerator) == "cpu" for words in typed)
    return models == {SMALL} and devices <= {"auto", "1"} and (on_cpu or not any(Path(path).exists() for path in GPUS))


def require_devices(config: DictConfig, jobs: Sequence[Sequence[str]], gpus: int, cpus: int, together: int) -> None:
    """Require that the jobs train on as many GPUs or CPU cores as each asks for, before they wait for them.

    Args:
        config: the config of the sweep.
        jobs: the overrides of each job.
        gpus, cpus: of a job of SLURM.
        together: jobs of the sweep that share one.

    Raises:
        UserError: if one of them needs more.
    """
    from mergestream.runtime.errors import UserError

    for words in map(_typed, jobs):
        accelerator = words.get("accelerator", config.accelerator)
        devices = words.get("devices", OmegaConf.select(config, "devices", default="auto"))
        wanted = int(devices) if str(devices).isdecimal() else 1
        if accelerator == "gpu" and not gpus:
            raise UserError("accelerator=gpu needs a GPU, and jobs ask for none; got cluster.gpus=0")
        if gpus and accelerator != "cpu" and wanted > gpus:
            raise UserError(f"devices must be at most cluster.gpus; got devices={devices} and cluster.gpus={gpus}")
        if (not gpus or accelerator == "cpu") and wanted > (cores := max(cpus // together, 1)):
            rule = f"devices must be at most the CPU cores of a job, here {cores}; got devices={devices}"
            raise UserError(f"{rule}. Write cluster.cpus={wanted * together}")


def _typed(job: Sequence[str]) -> dict[str, str]:
    """Return the values of the overrides of a job."""
    return dict(word.lstrip("+").split("=", 1) for word in job if "=" in word)


def run_here(command: Any, config: DictConfig) -> tuple[bool, bool]:
    """Run one job in a process that runs jobs of a sweep.

    Returns:
        Whether it failed, which it has said by then, and whether it has saved something new.
    """
    from mergestream.cli.command import config_dir

    if not GlobalHydra.instance().is_initialized():
        initialize_config_dir(str(config_dir()), job_name=config.hydra.job.name, version_base="1.3")
    context = HydraContext(config_loader=None, callbacks=Callbacks(config))  # type: ignore[arg-type]
    command.failed, command.saved = [], False
    job = run_job(
        hydra_context=context,
        task_function=command.run_job,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    if job.status == JobStatus.FAILED:  # a bug
        error: BaseException = job._return_value
        traceback.print_exception(type(error), error, error.__traceback__)
    return job.status == JobStatus.FAILED or bool(command.failed), command.saved


def _done() -> JobReturn:
    done = JobReturn()
    done.status, done.return_value = JobStatus.COMPLETED, None
    return done

"""How `scripts/run.py -m` and studies hand their jobs to Hydra's launchers. Hydra finds plugins in this namespace."""

import hashlib
import logging
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.types import HydraContext, TaskFunction
from omegaconf import OmegaConf, open_dict

if TYPE_CHECKING:  # Hydra loads its plugins for --help too: what takes long is imported where it is used
    from cyclical_lr.training.sweep import Job

log = logging.getLogger(__name__)

POLL_SECONDS = 5


class RunsSweeper(BasicSweeper):
    """Hydra's sweeper, which leaves out what is done, lets no job end the others, and reports a line per run.

    The process exits with 1 if a run failed or is missing at the end.
    """

    def sweep(self, arguments: list[str]) -> None:
        from cyclical_lr.command_line import INPUT_ERRORS, explained
        from cyclical_lr.records import ConfigError
        from cyclical_lr.training import config, snapshot, sweep

        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        configure_log(self.config.hydra.job_logging, self.config.hydra.verbose)
        config.check_hydra(self.config.hydra)
        runs_dir = self.config.runs_dir
        if runs_dir and isinstance(runs_dir, str):  # else each job is refused
            config.check_writable("runs_dir", Path(runs_dir))
            if self.config.cluster.snapshot is True:
                snapshot.go_on_from_copy(Path(runs_dir))
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        jobs, problems = [], {}
        combinations = self.split_arguments(overrides, max_batch_size=None)[0]
        if not combinations:
            raise ConfigError(f"{' '.join(arguments)}: expected a run or more, got none; a range or a glob is empty")
        for one, title in zip(combinations, _titles(combinations), strict=True):
            try:
                cfg = loader.load_sweep_config(self.config, one)
                config.check_hydra(cfg.hydra)
                with open_dict(cfg):
                    del cfg["hydra"]
                jobs.append(sweep.plan_job(cfg, Path(sys.argv[0]).resolve().parent.parent / "conf", one))
            except INPUT_ERRORS as error:
                problems[title] = explained(error)
        if started := sweep.missing(jobs):
            problems |= _launched(self.launcher, started)
        if not sweep.report(jobs, problems):
            sys.exit(1)


def launch(conf: Path, overrides: Sequence[str], task: TaskFunction, jobs: Sequence["Job"]) -> dict[str, str]:
    """Run jobs that are no sweep of each other by the launcher of a config.

    Args:
        conf: the folder of config files.
        overrides: what all jobs have in common, the cluster among it.
        task: run in each job, with its config.
    Returns:
        by a job's title, why it failed.
    """
    from cyclical_lr.training import config

    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        cfg = compose("run", overrides=[*overrides, "hydra.mode=MULTIRUN"], return_hydra_config=True)
        config.check_hydra(cfg.hydra)
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks(cfg))
        return _launched(Plugins.instance().instantiate_launcher(context, task, cfg), jobs)


def _titles(jobs: Sequence[Sequence[str]]) -> list[str]:
    """What each job is called: its overrides without those that all of them have."""
    common = set(jobs[0]).intersection(*jobs[1:]) if len(jobs) > 1 else set()
    return [" ".join(override for override in job if override not in common) for job in jobs]


def _launched(launcher: Any, jobs: Sequence["Job"]) -> dict[str, str]:
    """By a job's title, why it failed."""
    from cyclical_lr.command_line import INPUT_ERRORS

    launcher.planned = jobs  # Hydra hands on overrides alone; SlurmLauncher asks which runs they are
    try:
        returns = launcher.launch([job.overrides for job in jobs], initial_job_idx=0)
    except INPUT_ERRORS:
        raise
    except Exception as error:  # other launchers end all for one job that was killed
        log.exception("the launcher failed")
        return {job.title: f"{type(error).__name__}: {' '.join(str(error).split())}" for job in jobs}
    ended = [(job.title, returned._return_value) for job, returned in zip(jobs, returns, strict=True)]
    return {title: f"{type(error).__name__}: {error}" for title, error in ended if isinstance(error, Exception)}


try:
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as SubmititLauncher
except ImportError:  # the extra `slurm` is not installed
    pass
else:

    class SlurmLauncher(SubmititLauncher):
        """Hydra's launcher for Slurm, which waits until all jobs have left the queue, however they did.

        The original stops waiting at the first job that left no result, and never notices one that was cancelled where
        Slurm keeps no accounts. What an earlier command has in the queue is waited for and not submitted again.
        """

        planned: Sequence["Job"] = ()

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            import submitit

            from cyclical_lr.records import ConfigError

            parameters = dict(self.params)
            folder, timeouts = parameters.pop("submitit_folder"), parameters.pop("max_num_timeout")
            parameters["setup"] = [*(parameters["setup"] or ()), *_exports()]
            shared = OmegaConf.structured(BaseQueueConf).keys()
            try:
                executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=timeouts)
            except RuntimeError as error:
                raise ConfigError(
                    f"cluster: expected Slurm's commands on the PATH ({error}); submit from a login node, or use "
                    "cluster=local"
                ) from error
            if cpus := parameters["cpus_per_task"]:  # srun takes it from sbatch in some versions only: threads would
                theirs = parameters.get("srun_args") or ()  # share one core
                parameters["srun_args"] = [f"--cpus-per-task={cpus}", *theirs]
            executor.update_parameters(
                **{key if key in shared else f"slurm_{key}": value for key, value in parameters.items()}
            )
            notes, self.planned = [Path(folder).parent / "queued" / _key(job) for job in self.planned], ()
            jobs: list[Any] = _queued(folder, notes) or [None] * len(job_overrides)
            new = [number for number, job in enumerate(jobs) if job is None]
            numbers = [initial_job_idx + number for number in new]
            try:
                submitted = executor.map_array(
                    self,
                    [list(job_overrides[number]) for number in new],
                    ["hydra.sweep.dir" for _ in numbers],
                    numbers,
                    [f"job_id_for_{number}" for number in numbers],
                    [Singleton.get_state() for _ in numbers],
                )
            except submitit.core.utils.FailedJobError as error:
                said = " ".join(str(error).split())
                raise ConfigError(
                    f"cluster: Slurm refused the jobs ({said}); see conf/cluster/slurm.yaml for the keys"
                ) from error
            for number, job in zip(new, submitted, strict=True):
                jobs[number] = job
                if notes:
                    notes[number].parent.mkdir(parents=True, exist_ok=True)
                    notes[number].write_text(job.job_id)
            for number, (job, title) in enumerate(zip(jobs, _titles(job_overrides), strict=True)):
                already = "" if number in new else " (in the queue already)"
                log.info("Slurm job %s%s: %s\n  log in %s", job.job_id, already, title, job.paths.stdout)
            log.info("waiting for %d jobs; they go on if this command is stopped, and it may be repeated", len(jobs))
            _wait({job.job_id for job in jobs})
            return [_returned(job) for job in jobs]


def _key(job: "Job") -> str:
    """A name for what a job runs, whatever overrides it is asked for by."""
    from cyclical_lr import records

    where = (str(job.results_dir), *map(records.run_id, job.configs))
    return hashlib.sha256("\n".join(where).encode()).hexdigest()[:16]


def _queued(folder: str, notes: Sequence[Path]) -> list[Any]:
    """For each note the job that an earlier command wrote down there, if it is still in the queue; else None."""
    import submitit

    noted = [note.read_text() if note.exists() else "" for note in notes]
    try:
        queue = _queue() if any(noted) else set()
    except OSError:  # a job too many ends at once
        queue = set()
    return [submitit.SlurmJob(folder=folder, job_id=job) if job in queue else None for job in noted]


def _queue() -> set[str]:
    """The ids of this user's jobs that are pending, running or requeued.

    Raises:
        OSError: squeue does not answer.
    """
    shown = subprocess.run(["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True)
    if shown.returncode:
        raise OSError(shown.stderr.strip() or f"squeue ended with {shown.returncode}")
    return set(shown.stdout.split())


def _exports() -> list[str]:
    """Shell lines that give a job what this process has, whatever the site's sbatch hands on."""
    lines = [
        f"export {key}={shlex.quote(value)}" for key, value in os.environ.items() if key.startswith("CYCLICAL_LR_")
    ]
    if path := os.environ.get("PYTHONPATH"):
        lines.append(f"export PYTHONPATH={shlex.quote(path)}${{PYTHONPATH:+:$PYTHONPATH}}")
    return lines


def _wait(job_ids: Collection[str]) -> None:
    """Return when none of the jobs is in the queue."""
    told = -math.inf
    while True:
        try:
            if not _queue() & set(job_ids):
                return
        except OSError as error:
            if time.monotonic() - told > 60:
                told = time.monotonic()
                log.warning("waiting for an answer from Slurm (%s); the jobs go on if this command is stopped", error)
        time.sleep(POLL_SECONDS)


def _returned(job: Any) -> JobReturn:
    from submitit.core.utils import pickle_load

    try:
        outcome, value = pickle_load(job.paths.result_pickle)
    except FileNotFoundError:
        outcome, value = "error", f"Slurm job {job.job_id} was cancelled or killed; its log is {job.paths.stderr}"
    if outcome == "success":
        return value
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = RuntimeError(value)
    return returned

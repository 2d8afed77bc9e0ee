"""How `scripts/run.py -m` and studies hand their jobs to Hydra's launchers. Hydra finds plugins in this namespace."""

import logging
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
        from cyclical_lr.records import ConfigError
        from cyclical_lr.training import config, snapshot, sweep

        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        configure_log(self.config.hydra.job_logging, self.config.hydra.verbose)
        runs_dir = Path(str(self.config.runs_dir))
        config.check_writable("runs_dir", runs_dir)
        if self.config.cluster.snapshot:
            snapshot.go_on_from_copy(runs_dir)
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        jobs, problems = [], {}
        combinations = self.split_arguments(overrides, max_batch_size=None)[0]
        for one, title in zip(combinations, _titles(combinations), strict=True):
            cfg = loader.load_sweep_config(self.config, one)
            with open_dict(cfg):
                del cfg["hydra"]
            try:
                jobs.append(sweep.plan_job(cfg, Path(sys.argv[0]).resolve().parent.parent / "conf", one))
            except ConfigError as error:
                problems[title] = str(error)
        started = sweep.missing(jobs)
        if started:
            problems |= _problems(started, self.launcher.launch([job.overrides for job in started], initial_job_idx=0))
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
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        cfg = compose("run", overrides=[*overrides, "hydra.mode=MULTIRUN"], return_hydra_config=True)
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks(cfg))
        launcher = Plugins.instance().instantiate_launcher(context, task, cfg)
        return _problems(jobs, launcher.launch([job.overrides for job in jobs], initial_job_idx=0))


def _titles(jobs: Sequence[Sequence[str]]) -> list[str]:
    """What each job is called: its overrides without those that all of them have."""
    common = set(jobs[0]).intersection(*jobs[1:]) if len(jobs) > 1 else set()
    return [" ".join(override for override in job if override not in common) for job in jobs]


def _problems(jobs: Sequence["Job"], returns: Sequence[JobReturn]) -> dict[str, str]:
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
        Slurm keeps no accounts.
        """

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            import submitit

            from cyclical_lr.records import ConfigError

            parameters = dict(self.params)
            folder, timeouts = parameters.pop("submitit_folder"), parameters.pop("max_num_timeout")
            parameters["setup"] = [*(parameters["setup"] or ()), *_exports()]
            shared = OmegaConf.structured(BaseQueueConf).keys()
            executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=timeouts)
            executor.update_parameters(
                **{key if key in shared else f"slurm_{key}": value for key, value in parameters.items()}
            )
            numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
            try:
                jobs = executor.map_array(
                    self,
                    [list(overrides) for overrides in job_overrides],
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
            for job, title in zip(jobs, _titles(job_overrides), strict=True):
                log.info("Slurm job %s: %s\n  log in %s", job.job_id, title, job.paths.stdout)
            log.info("waiting for %d jobs; they go on if this command is stopped, and it may be repeated", len(jobs))
            _wait({job.job_id for job in jobs})
            return [_returned(job) for job in jobs]


def _exports() -> list[str]:
    """Shell lines that give a job what this process has, whatever the site's sbatch hands on."""
    lines = [
        f"export {key}={shlex.quote(value)}" for key, value in os.environ.items() if key.startswith("CYCLICAL_LR_")
    ]
    if path := os.environ.get("PYTHONPATH"):
        lines.append(f"export PYTHONPATH={shlex.quote(path)}${{PYTHONPATH:+:$PYTHONPATH}}")
    return lines


def _wait(job_ids: Collection[str]) -> None:
    """Return when none of the jobs is in the queue: neither pending, nor running, nor requeued."""
    while True:
        queue = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True
        )
        if queue.returncode == 0 and not set(queue.stdout.split()) & set(job_ids):
            return
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

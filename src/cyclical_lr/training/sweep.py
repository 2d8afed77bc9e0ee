"""Sweeps and studies: what each job is to run, and how all of it ended. The records decide, not exit codes."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from cyclical_lr import records
from cyclical_lr.training import config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What one process is asked for: a run, or the runs of `seed=[0,1,2]`."""

    overrides: list[str]
    label: str
    configs: list[dict[str, Any]]  # one per seed
    results_dir: Path
    runs_dir: Path

    @property
    def title(self) -> str:
        return f"{self.label} seed {','.join(str(one['seed']) for one in self.configs)}"

    @property
    def missing(self) -> list[dict[str, Any]]:
        """The configs of runs without a record that is final; one that cannot be read is none."""
        return [one for one in self.configs if not self.is_over(records.run_id(one))]

    def is_over(self, run_id: str) -> bool:
        """Whether the run has a record that is final."""
        try:
            return records.is_over(self.results_dir, run_id)
        except records.ConfigError:  # the run will say so
            return False


def plan_job(cfg: DictConfig, conf: Path, overrides: Sequence[str]) -> Job:
    """The job that `overrides` gave the config `cfg` for; `conf` is the folder of config files.

    Raises:
        ConfigError: something in `cfg` cannot be used.
    """
    plan = config.plain(cfg)
    config.check(plan)
    if plan["trainer"].get("strategy") == "ddp" and plan["cluster"]["kind"] == "local":
        raise records.ConfigError(
            "trainer.strategy=ddp: expected one run, got a sweep or a study in one process: Lightning would start the "
            "other ranks by the same command line, and each of them would run the whole sweep again. Start the ranks "
            "for one run at a time, with torchrun --nproc_per_node 2 scripts/run.py ..., or give each run a Slurm job "
            "of as many tasks, with cluster=slurm hydra.launcher.tasks_per_node=2"
        )
    cluster, on_gpu = plan["cluster"], plan["trainer"]["accelerator"] == "gpu"
    asked = cluster.get("gpus") or any("gpu" in option or option == "gres" for option in cluster.get("sbatch", ()))
    if on_gpu and cluster["kind"] == "slurm" and not asked:
        raise records.ConfigError(
            "cluster.gpus: expected how many GPUs a run gets, since trainer.accelerator is gpu, got None; give "
            "cluster.gpus=1, or what your site has for it, such as +cluster.sbatch.gres=gpu:a100:1"
        )
    configs = [config.describe(plan, seed) for seed in config.seeds(plan["seed"])]
    records.learning_rates(configs[0])  # what cannot be built is refused now, not in a queue
    config.check_parts(plan)
    where = Path(plan["results_dir"]), Path(plan["runs_dir"])
    return Job(list(overrides), config.label(plan, conf), configs, *where)


def missing(jobs: Sequence[Job]) -> list[Job]:
    """The jobs of which something is missing. Says how many runs that are."""
    runs = sum(len(job.configs) for job in jobs)
    left = sum(len(job.missing) for job in jobs)
    if runs:
        log.info("%d of %d runs are done, %d are missing", runs - left, runs, left)
    return [job for job in jobs if job.missing]


def report(jobs: Sequence[Job], problems: Mapping[str, str]) -> bool:
    """Print a line per run, and whether all of them are done, diverged or in the hands of another process.

    Args:
        jobs: all of the sweep, those that were not started too.
        problems: by a job's title or overrides, why it ended without a record, or could not start.
    """
    rows = [(f"{job.label} seed {one['seed']}", *_status(job, one, problems)) for job in jobs for one in job.configs]
    planned = {job.title for job in jobs}
    rows += [(title, "refused", why) for title, why in problems.items() if title not in planned]
    width = max((len(title) for title, _, _ in rows), default=0)
    log.info("%d of %d runs are done", sum(status == "done" for _, status, _ in rows), len(rows))
    for title, status, detail in rows:
        log.info("  %-8s %-*s  %s", status, width, title, detail)
    ended = {status for _, status, _ in rows}
    if ended & {"failed", "missing"}:
        log.info("the same command again runs what failed or is missing")
    return not ended & {"failed", "missing", "refused"}


def lock_of(folder: Path) -> FileLock:
    """The lock on a run's folder, which goes with its owner; where there is no flock, taking it is an OSError.

    What FileLock would take there outlives its owner: a run whose node died could never be continued.
    """
    return FileLock(folder / "lock", fallback_to_soft=False)


def is_held(folder: Path) -> bool:
    """Whether a process works in that folder of a run.

    Raises:
        OSError: this one may not look.
    """
    lock = lock_of(folder)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def _status(job: Job, one: dict[str, Any], problems: Mapping[str, str]) -> tuple[str, str]:
    run_id = records.run_id(one)
    path, folder = records.record_path(job.results_dir, run_id), job.runs_dir / run_id
    with suppress(OSError):  # the lock is another user's
        if not job.is_over(run_id) and is_held(folder):
            return "running", f"another process is working on it ({folder})"
    try:  # after the look at the lock: whoever held it may have written the record since
        record = records.read_record(path) if path.exists() else None
        is_over = records.is_over(job.results_dir, run_id)
    except records.ConfigError as error:
        return "failed", str(error)
    if record is not None and is_over:
        accuracy = "" if record.test_accuracy is None else f"{record.test_accuracy:.2f} %"
        elsewhere = "" if record.label == job.label else f"recorded as {record.label}"
        return record.status, ", ".join(filter(None, [record.message or accuracy, elsewhere]))
    if job.title in problems:
        return "failed", problems[job.title]
    if record is not None and record.status == "failed":
        return record.status, record.message
    return "missing", f"ended without a {'record' if record is None else 'curve'}"

#!/usr/bin/env python
"""Run what is missing of a study: every experiment that it lists, for every seed.

    python scripts/study.py +study=NAME [seeds=N] [jobs=N] [--config-dir FOLDER] [KEY=VALUE ...]

NAME is a file in conf/study/, or the path of one of your own; seeds=N means seeds 0 to N - 1; every other override goes
to each run, as in scripts/run.py (trainer=gpu, logger=none, results_dir=..., cluster=slurm). FOLDER holds experiment/,
schedule/ and so on of your own.

All experiments of a seed come before the next seed, so that intervals narrow evenly: one run after another, or jobs=N
at a time in processes of their own, each with its share of the cores (threads=). cluster=slurm submits them instead,
and waits. Finished runs are left alone and interrupted ones go on: stop it with Ctrl-C, and start it again, whenever
you like. A run that fails does not stop the others.
Exit codes: 0 all done, 1 some failed, 2 unusable input, 130 stopped.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from omegaconf import DictConfig, OmegaConf

from cyclical_lr import command_line
from cyclical_lr.command_line import STOPPED, refuse
from cyclical_lr.records import ConfigError

if TYPE_CHECKING:
    from cyclical_lr.training.sweep import Job

CODE = Path(__file__).resolve().parent.parent
REPOSITORY = Path(os.environ.get("CYCLICAL_LR_REPOSITORY") or CODE)  # CODE may be a snapshot of it
CONF = CODE / "conf"
OWN = ("study", "seeds", "jobs")
DIVERGED = 3
log = logging.getLogger("study")


def main(arguments: list[str]) -> int:
    files = {file.stem: file for file in sorted((CONF / "study").glob("*.yaml"))}
    if not arguments or {"-h", "--help"} & set(arguments):
        about = (f"  {name:<18} {file.read_text().splitlines()[0].lstrip('# ')}" for name, file in files.items())
        print(__doc__, "Studies", *about, sep="\n")
        return 0

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    options, arguments = parser.parse_known_args(arguments)
    if options.config_dir is not None:
        if not options.config_dir.is_dir():
            return refuse(f"--config-dir: expected a folder, got {options.config_dir}")
        os.environ["CYCLICAL_LR_CONF"] = str(options.config_dir.resolve())  # for other processes too
    given = {key.lstrip("+"): value for key, _, value in (a.partition("=") for a in arguments)}
    common = [a for a in arguments if a.partition("=")[0].lstrip("+") not in OWN]
    name, seeds, at_once = given.get("study", ""), given.get("seeds", "1"), given.get("jobs", "1")
    file = files.get(name, Path(name))
    if not file.is_file():
        return refuse(f"+study: there is no {name!r}; expected a file or one of {', '.join(files)}")
    if not seeds.isdecimal() or int(seeds) < 1 or "seed" in given:
        got = f"seeds={seeds}" + (f" and seed={given['seed']}" if "seed" in given else "")
        return refuse(f"seeds: expected seeds=N with a whole number N >= 1 and no seed=, got {got}")
    if not at_once.isdecimal() or int(at_once) < 1:
        return refuse(f"jobs: expected jobs=N with a whole number N >= 1, got {at_once!r}")

    from cyclical_lr.training import snapshot, sweep  # imported here: what is above stays quick
    from cyclical_lr.training.config import compose_config

    jobs = []
    try:
        cluster = compose_config(CONF, common).cluster
        if cluster.kind != "local" and "jobs" in given:
            return refuse(f"jobs: expected cluster=local, got cluster.kind={cluster.kind}; use cluster.parallel=N")
        for seed in range(int(seeds)):
            for arm in arms(file):
                overrides = [*f"+experiment={arm}".split(), *common, f"seed={seed}"]
                jobs.append(sweep.plan_job(compose_config(CONF, overrides), CONF, overrides))
    except command_line.INPUT_ERRORS as error:
        return refuse(command_line.explained(error))

    missing = sweep.missing(jobs)
    if missing and cluster.snapshot:
        snapshot.go_on_from_copy(jobs[0].runs_dir)
    share = max(1, cores() // int(at_once))
    try:
        if missing and cluster.kind != "local":
            from hydra_plugins.cyclical_lr import launch

            problems = launch(CONF, common, train, missing)
        elif int(at_once) == 1:
            problems = one_by_one(missing)
        else:
            problems = in_processes(missing, int(at_once), [] if "threads" in given else [f"threads={share}"])
    except KeyboardInterrupt:
        log.info("stopped; the same command continues")
        return STOPPED
    except ConfigError as error:  # Slurm refuses the jobs
        return refuse(str(error))
    return 0 if sweep.report(jobs, problems) else 1


def arms(file: Path) -> list[str]:
    """What a study's file lists.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"study: {file} is no YAML file ({' '.join(str(error).split())})") from error
    listed = content.get("experiments") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(listed, list) or not listed or not all(isinstance(arm, str) and arm.strip() for arm in listed):
        example = "experiments: [cifar10_tri2, cifar10_tri2 model.lrn=none]"
        raise ConfigError(f"study: expected {file} to have one key with the runs, such as `{example}`, got {content!r}")
    if twice := sorted({arm for arm in listed if listed.count(arm) > 1}):
        raise ConfigError(f"study: {file} lists {', '.join(twice)} twice; seeds=N is for more seeds")
    return listed


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train(cfg: DictConfig) -> None:
    """What is done in each job: a run, and what a person reads of it."""
    from cyclical_lr.training.run import run, summary

    for outcome in run(cfg, CONF):
        if outcome.fresh and outcome.record is not None:
            log.info(summary(outcome.record, CONF, Path(cfg.results_dir)))


# On this machine ------------------------------------------------------------------------------------------------------


class Progress:
    """Says which run begins, and how long all of them will take, from what the finished ones took."""

    def __init__(self, jobs: Sequence["Job"], at_once: int) -> None:
        self.iterations = {job.title: sum(one["iterations"] for one in job.missing) for job in jobs}
        self.left, self.at_once = sum(self.iterations.values()), at_once
        self.begun, self.trained, self.seconds = 0, 0, 0.0
        self.lock = threading.Lock()

    @contextmanager
    def of(self, job: "Job") -> Iterator[None]:
        started = time.monotonic()
        with self.lock:
            self.begun += 1
            hours = self.left / self.trained * self.seconds / self.at_once / 3600 if self.trained else None
            left = f", about {hours:.1f} h left in all" if hours is not None else ""
            log.info("[%d/%d] %s%s", self.begun, len(self.iterations), job.title, left)
        try:
            yield
            with self.lock:
                self.trained += self.iterations[job.title]
                self.seconds += time.monotonic() - started
        finally:
            with self.lock:
                self.left -= self.iterations[job.title]


def one_by_one(jobs: Sequence["Job"]) -> dict[str, str]:
    """Run the jobs in this process; by a job's title, why it failed."""
    from cyclical_lr.training.config import compose_config

    problems, progress = {}, Progress(jobs, 1)
    for job in jobs:
        try:
            with progress.of(job):
                train(compose_config(CONF, job.overrides))
        except ConfigError as error:
            problems[job.title] = str(error)
            log.error("%s: %s", job.title, error)
        except Exception as error:  # the other runs of a study do not depend on this one
            problems[job.title] = f"{type(error).__name__}: {error}"
            log.exception("%s failed", job.title)
    return problems


def in_processes(jobs: Sequence["Job"], at_once: int, overrides: Sequence[str]) -> dict[str, str]:
    """Run each job as `scripts/run.py` with more overrides, some at a time; by a job's title, why it failed.

    Whatever ends this process, but for SIGKILL, ends the others first.
    """
    progress = Progress(jobs, at_once)
    children: list[subprocess.Popen[str]] = []
    stopping = False

    def work(job: "Job") -> None:
        command = [sys.executable, str(CODE / "scripts" / "run.py"), *job.overrides, *overrides]
        with progress.of(job):
            with progress.lock:
                if stopping:
                    raise RuntimeError("stopped")
                child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                children.append(child)
            last = ""
            for line in child.stdout or ():
                last = line.rstrip()
                log.info(last)
            if child.wait() not in (0, DIVERGED):
                raise RuntimeError(f"exit code {child.returncode} after {last!r}")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    problems = {}
    pool = ThreadPoolExecutor(at_once)
    try:
        futures = {pool.submit(work, job): job.title for job in jobs}
        running = set(futures)
        while running:
            # Python handles a signal in its main thread, which must not sleep on where the kernel gave it to another.
            ended, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in ended:
                if error := future.exception():
                    problems[futures[future]] = str(error)
                    log.error("%s failed: %s", futures[future], error)
    finally:
        with progress.lock:
            stopping = True
            for child in children:
                child.terminate()
        pool.shutdown(cancel_futures=True)
    return problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

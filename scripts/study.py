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
Exit codes: 0 all done, 1 some failed, 2 unusable input, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

import argparse
import logging
import os
import sys
import textwrap
from difflib import get_close_matches
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from cyclical_lr import command_line, processes
from cyclical_lr.command_line import refuse
from cyclical_lr.records import ConfigError

CODE = Path(__file__).resolve().parent.parent
REPOSITORY = Path(os.environ.get("CYCLICAL_LR_REPOSITORY") or CODE)  # CODE may be a snapshot of it
CONF = CODE / "conf"
OWN = ("study", "seeds", "jobs")
LAUNCHERS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweep")
"""How the keys begin by which Hydra starts jobs."""
log = logging.getLogger("study")


def main(arguments: list[str]) -> int:
    files = {file.stem: file for file in sorted((CONF / "study").glob("*.yaml"))}
    if not arguments or {"-h", "--help"} & set(arguments):
        about = (f"  {name:<18} {command_line.about(file)}" for name, file in files.items())
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
    if bare := next((a for a in arguments if "=" not in a and not a.startswith("~")), None):
        meant = f"+study={bare}" if bare in files else "+study=NAME"
        return refuse(f"{bare}: expected KEY=VALUE, such as {meant}")
    given = {key.lstrip("+"): value for key, _, value in (a.partition("=") for a in arguments)}
    for key in given.keys() - {*OWN, "seed"}:
        if close := get_close_matches(key, OWN, 1, 0.8):
            return refuse(f"{key}: there is no such key; did you mean {close[0]}?")
    if "experiment" in given:
        return refuse(
            f"experiment: a study's file lists its own, got {given['experiment']}; add it there, or use run.py"
        )
    keys = [a.partition("=")[0].lstrip("+") for a in arguments]
    if twice := [key for key in OWN if keys.count(key) > 1]:
        return refuse(
            f"{twice[0]}: expected it once, got it {keys.count(twice[0])} times; start one study after another"
        )
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

    with processes.loading():  # imported here: what is above stays quick
        from cyclical_lr.training import local, snapshot, sweep
        from cyclical_lr.training.config import check_writable, compose_config

    cluster = compose_config(CONF, common).cluster
    if cluster.kind != "local" and "jobs" in given:
        return refuse(f"jobs: expected cluster=local, got cluster.kind={cluster.kind}; use cluster.parallel=N")
    if cluster.kind == "local" and (launchers := [a for a in common if a.lstrip("+~").startswith(LAUNCHERS)]):
        return refuse(f"{launchers[0]}: Hydra launches nothing here; use jobs=N for N runs at once, or cluster=slurm")
    given_arms = [(arm, [*f"+experiment={arm}".split(), *common]) for arm in arms(file)]
    composed = [(arm, overrides, compose_config(CONF, overrides)) for arm, overrides in given_arms]
    jobs: list[sweep.Job] = []
    for seed in range(int(seeds)):
        for arm, overrides, cfg in composed:
            cfg.seed = seed
            job = sweep.plan_job(cfg, CONF, [*overrides, f"seed={seed}"])
            if job.title in {other.title for other in jobs}:
                return refuse(f"study: {file} has {arm!r} twice, as {job.title}; seeds=N is for more seeds")
            jobs.append(job)

    check_writable("runs_dir", jobs[0].runs_dir)
    missing = sweep.missing(jobs)
    if missing and cluster.snapshot:
        snapshot.go_on_from_copy(jobs[0].runs_dir)
    share = max(1, processes.cores() // int(at_once))
    if missing and cluster.kind != "local":
        from hydra_plugins.cyclical_lr import launch

        problems = launch(CONF, common, train, missing)
    elif int(at_once) == 1:
        problems = local.one_by_one(missing, lambda job: train(compose_config(CONF, job.overrides)))
    else:
        command = [sys.executable, str(CODE / "scripts" / "run.py")]
        threads = [] if "threads" in given else [f"threads={share}"]
        problems = local.in_processes(missing, int(at_once), command, threads)
    return 0 if sweep.report(jobs, problems) else 1


def arms(file: Path) -> list[str]:
    """What a study's file lists.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"study: {file} is no YAML file ({' '.join(str(error).split())})") from error
    listed = content.get("experiments") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(listed, list) or not listed or not all(isinstance(arm, str) and arm.strip() for arm in listed):
        got = textwrap.shorten(repr(content), 120)
        example = "experiments: [cifar10_tri2, cifar10_tri2 model.lrn=none]"
        raise ConfigError(f"study: expected {file} to have one key with the runs, such as `{example}`, got {got}")
    if seeded := [arm for arm in listed if any(part.lstrip("+").startswith("seed=") for part in arm.split())]:
        raise ConfigError(f"study: expected arms without seed= in {file}, got {', '.join(seeded)}; give seeds=N")
    return listed


def train(cfg: DictConfig) -> None:
    """What is done in each job: a run, and what a person reads of it."""
    with processes.loading():
        from cyclical_lr.report.ending import summary
        from cyclical_lr.training.run import run

    for outcome in run(cfg, CONF):
        if outcome.fresh and outcome.record is not None:
            log.info(summary(outcome.record, CONF, Path(cfg.results_dir)))


if __name__ == "__main__":
    sys.exit(command_line.guarded(main, sys.argv[1:]))

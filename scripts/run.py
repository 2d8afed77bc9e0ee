#!/usr/bin/env python
"""Train one experiment, or a sweep of them.

    python scripts/run.py +experiment=cifar10_tri2
    python scripts/run.py -m +experiment=cifar10_fixed,cifar10_tri2 'seed=range(5)'
    python scripts/run.py -m +experiment=cifar10_fixed,cifar10_tri2 'seed=range(5)' cluster=slurm

Exit codes: 0 done (now, before, or another process is at it), 1 failed, 2 unusable input, 3 diverged (0 in a range
test), 130 stopped by Ctrl-C, 143 by SIGTERM. A sweep reports how each of its runs ended, and exits with 0 or 1.
"""

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cyclical_lr import command_line, processes

CODE = Path(__file__).resolve().parent.parent
REPOSITORY = Path(os.environ.get("CYCLICAL_LR_REPOSITORY") or CODE)  # CODE may be a snapshot of it
CONF = CODE / "conf"


def experiments() -> str:
    """Every lab card with its one-line summary, for --help."""
    lines = []
    for card in sorted((CONF / "experiment").glob("*.yaml")):
        lines.append(f"  {card.stem:<30} {command_line.about(card)}")
    return "\n".join(lines)


def groups() -> str:
    """Every group of choices, for --help."""
    names = ("data", "model", "solver", "schedule", "trainer", "logger", "cluster")
    choices = {name: sorted(file.stem for file in (CONF / name).glob("*.yaml")) for name in names}
    return "\n".join(f"  {name + '=':<10} {', '.join(files)}" for name, files in choices.items())


OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)
OmegaConf.register_new_resolver("experiments", experiments, replace=True)
OmegaConf.register_new_resolver("groups", groups, replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")
def main(cfg: DictConfig) -> None:
    with processes.loading():  # imported here: --help and --cfg stay quick
        from cyclical_lr.records import ConfigError, is_range_test
        from cyclical_lr.report.ending import bounds, summary
        from cyclical_lr.training.config import check_hydra
        from cyclical_lr.training.run import NotWritten, run

    alone = HydraConfig.get().mode == RunMode.RUN
    try:
        check_hydra(HydraConfig.get())
        outcomes = run(cfg, CONF)
    except Exception as error:
        if not isinstance(error, (ConfigError, NotWritten)):  # whose messages say all
            traceback.print_exc()
        if not alone:  # an exception lets the rest of a sweep go on, an exit would not
            raise
        if isinstance(error, ConfigError):
            sys.exit(command_line.refuse(str(error)))
        sys.exit(f"error: {error.strerror}" if isinstance(error, NotWritten) else processes.FAILED)
    results = Path(cfg.results_dir)
    for outcome in outcomes:
        if outcome.record is not None and (outcome.fresh or alone):
            print(summary(outcome.record, CONF, results, outcome.fresh))
    if alone and any(outcome.record and not outcome.fresh for outcome in outcomes):
        print("to train again what is done, give it folders of its own: results_dir=FOLDER runs_dir=FOLDER")
    range_test = is_range_test(cfg.schedule)
    if range_test and outcomes:  # of several ranks, the first has them
        finished = [outcome.record for outcome in outcomes if outcome.record]
        sources = HydraConfig.get().runtime.config_sources
        own = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
        given = [*own, *HydraConfig.get().overrides.task]
        print(bounds(finished, CONF, results, Path(cfg.runs_dir), given))
    diverged = any(outcome.record and outcome.record.status == "diverged" for outcome in outcomes)
    if alone and diverged and not range_test:  # in a range test, divergence is an outcome
        sys.exit(processes.DIVERGED)


if __name__ == "__main__":
    sys.argv[1:] = command_line.overrides_first(sys.argv[1:])
    sys.exit(command_line.guarded(main))

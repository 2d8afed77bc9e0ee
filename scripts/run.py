#!/usr/bin/env python
"""Train one experiment, or a sweep of them.

    python scripts/run.py +experiment=cifar10_tri2
    python scripts/run.py -m +experiment=cifar10_fixed,cifar10_tri2 'seed=range(5)'
    python scripts/run.py -m +experiment=cifar10_fixed,cifar10_tri2 'seed=range(5)' cluster=slurm

Exit codes: 0 done (or done before), 1 failed, 2 unusable input, 3 diverged, 130 stopped by Ctrl-C, 143 by
SIGTERM. A sweep reports how each of its runs ended, and exits with 0 or 1.
"""

import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cyclical_lr import command_line

if TYPE_CHECKING:
    from cyclical_lr.records import Record

CODE = Path(__file__).resolve().parent.parent
REPOSITORY = Path(os.environ.get("CYCLICAL_LR_REPOSITORY") or CODE)  # CODE may be a snapshot of it
CONF = CODE / "conf"


def experiments() -> str:
    """Every lab card with its one-line summary, for --help."""
    lines = []
    for card in sorted((CONF / "experiment").glob("*.yaml")):
        about = card.read_text().splitlines()[1].lstrip("# ")
        lines.append(f"  {card.stem:<30} {about}")
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
    from cyclical_lr.records import ConfigError  # imported here: --help and --cfg stay quick
    from cyclical_lr.training.run import NotWritten, run, summary

    alone = HydraConfig.get().mode == RunMode.RUN
    try:
        outcomes = run(cfg, CONF)
    except Exception as error:
        if not isinstance(error, (ConfigError, NotWritten)):  # whose messages say all
            traceback.print_exc()
        if not alone:  # an exception lets the rest of a sweep go on, an exit would not
            raise
        if isinstance(error, ConfigError):
            sys.exit(command_line.refuse(str(error)))
        sys.exit(f"error: {error.strerror}" if isinstance(error, NotWritten) else command_line.FAILED)
    for outcome in outcomes:
        if outcome.fresh and outcome.record is not None:
            print(summary(outcome.record, CONF, Path(cfg.results_dir)))
    range_test = cfg.schedule._target_ == "cyclical_lr.schedules.RangeTest"
    if range_test and outcomes:  # of several ranks, the first has them
        given = HydraConfig.get().overrides.task
        print(bounds(cfg, [outcome.record for outcome in outcomes if outcome.record], given))
    diverged = any(outcome.record and outcome.record.status == "diverged" for outcome in outcomes)
    if alone and diverged and not range_test:  # in a range test, divergence is an outcome
        sys.exit(command_line.DIVERGED)


def bounds(cfg: DictConfig, finished: "list[Record]", given: Sequence[str]) -> str:
    """What a range test says: bounds, overrides and a command to paste, and where the figure is.

    The command has what was `given` to the test, but for its ramp.
    """
    from cyclical_lr import range_test, records
    from cyclical_lr.report import figures

    results = Path(cfg.results_dir)
    usable = [record for record in finished if record.status != "failed"]
    if not usable:
        return "no curve to read bounds from"
    try:
        rows = [records.read_curve(records.curve_path(results, record.run_id)) for record in usable]
        curves = [range_test.curve_of(record, curve) for record, curve in zip(usable, rows, strict=True)]
    except (ValueError, OSError) as error:
        return f"no curve to read bounds from: {error}"
    found, stepsize = range_test.find_bounds(curves), suggested_stepsize(cfg)
    lines = [range_test.report(curves, stepsize)]
    if found.usable and cfg.experiment:  # four cycles, of which Section 3.2 says that they are enough
        ramp = re.compile(r"[+~]*(schedule\b|seed=|iterations=|eval_every=|compress=)")
        kept = shlex.join(override for override in given if not ramp.match(override))
        between = f"{range_test.overrides(found, stepsize)} iterations={8 * stepsize}"
        lines.append(f"  a run between them: python scripts/run.py {kept} {between}")
    figure = figures.range_test(curves, found, usable[0].label)
    try:
        written = figures.save(figure, Path(cfg.runs_dir) / usable[0].run_id, "range_test")
    except OSError as error:
        return "\n".join([*lines, f"  no figure: cannot write to {error.filename or cfg.runs_dir} ({error.strerror})"])
    return "\n".join([*lines, *(f"  wrote  {path}" for path in written)])


def suggested_stepsize(cfg: DictConfig) -> int:
    """Half a cycle for training after a range test: the paper's for its network, or else half of the test's ramp.

    Figure 1 uses half of Figure 3's ramp, four epochs.
    """
    import yaml

    stated = yaml.safe_load((CONF / "paper" / "text.yaml").read_text())["bounds"]
    paper = {row["experiment"]: row["stepsize"] for row in stated if "stepsize" in row}
    return int(paper.get(cfg.experiment, cfg.schedule.stepsize // 2))


if __name__ == "__main__":
    sys.exit(command_line.guarded(main))

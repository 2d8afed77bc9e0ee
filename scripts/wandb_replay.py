#!/usr/bin/env python
"""Make W&B runs from records and curves: each clean and whole, with the id, name and config of the run itself.

    python scripts/wandb_replay.py [RUN_ID ...] [KEY=VALUE ...]

For runs on a cluster without a network, runs that were requeued, and runs that were not logged. Without a RUN_ID: every
record in results/. Keys, as in scripts/run.py: results_dir, runs_dir, logger.project, logger.entity, logger.mode.

Offline, W&B's files go into outputs/wandb-replay/, and the command that uploads them is printed; logger.mode=online
uploads at once. Either way, what W&B has under a run's id is overwritten, so a replay can be repeated.

Exit codes: 0 all replayed, 1 a record or curve cannot be used, or W&B broke off, 2 unusable input.
"""

import sys
from pathlib import Path

from cyclical_lr import command_line, processes
from cyclical_lr.command_line import refuse

CONF = Path(__file__).resolve().parent.parent / "conf"
KEYS = ("results_dir", "runs_dir", "logger.project", "logger.entity", "logger.mode")


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    if options := [argument for argument in arguments if argument.startswith("-")]:
        return refuse(f"{options[0]}: there is no such option; --help shows what there is")
    overrides = [argument for argument in arguments if "=" in argument]
    for override in overrides:
        if override.partition("=")[0] not in KEYS:
            return refuse(f"{override}: there is no such key here; expected one of {', '.join(KEYS)}")

    with processes.loading():  # imported here: --help stays quick
        from cyclical_lr import records
        from cyclical_lr.training.config import compose_config
        from cyclical_lr.training.sweep import is_held
        from cyclical_lr.training.tracking import replay

    cfg = compose_config(CONF, overrides)
    if not all(isinstance(folder, str) and folder for folder in (cfg.results_dir, cfg.runs_dir)):
        return refuse(f"results_dir, runs_dir: expected folders, got {cfg.results_dir!r} and {cfg.runs_dir!r}")
    results, runs = Path(cfg.results_dir), Path(cfg.runs_dir)
    paths = [records.record_path(results, argument) for argument in arguments if argument not in overrides]
    if missing := [str(path) for path in paths if not path.is_file()]:
        return refuse(f"RUN_ID: there is no {', '.join(missing)}; a run has a record once it has ended")
    paths = paths or sorted(records.record_path(results, "any").parent.glob("*.json"))
    if not paths:
        return refuse(f"results_dir: expected a folder with records in runs/, got {results}")

    folder, replayed, problems = runs / "wandb-replay", 0, 0
    for path in paths:
        try:
            record = records.read_record(path)
            file = records.curve_path(results, record.run_id)
            curve = records.read_curve(file)
            records.check_curve(file, record, curve)
        except (ValueError, OSError) as error:
            print(f"skipped: {error}", file=sys.stderr)
            problems += 1
            continue
        title = f"{record.label} seed {record.seed}"
        try:
            if is_held(runs / record.run_id):  # a run that failed may be on its second try
                print(f"skipped: {title} is being worked on by another process")
                continue
        except OSError as error:
            print(f"skipped: {title}: cannot see whether a process works on it ({error})", file=sys.stderr)
            problems += 1
            continue
        try:
            where = replay(folder, record, curve, cfg.logger.project, cfg.logger.entity, cfg.logger.mode)
        except records.ConfigError as error:
            return refuse(str(error))
        except Exception as error:  # wandb raises nearly anything
            print(f"error: {title}: {type(error).__name__}: {error}; the same command tries again", file=sys.stderr)
            problems += 1
            continue
        print(f"{title}: {len(curve)} evaluations\n  wrote  {where}")
        replayed += 1
    if replayed and cfg.logger.mode == "offline":
        print(f"upload with: wandb sync {folder / 'wandb'}/offline-run-*")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(command_line.guarded(main, sys.argv[1:]))

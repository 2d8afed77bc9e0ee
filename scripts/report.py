#!/usr/bin/env python
"""Draw what the records in a results folder say.

python scripts/report.py results_dir=outputs/demo/results figures_dir=outputs/demo title="Demo"
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from cyclical_lr import records
from cyclical_lr.report import figures

REPOSITORY = Path(__file__).resolve().parent.parent
OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)


@hydra.main(version_base="1.3", config_path=str(REPOSITORY / "conf"), config_name="report")
def main(cfg: DictConfig) -> None:
    results, runs, unreadable = Path(cfg.results_dir), [], []
    for path in sorted((results / "runs").glob("*.json")):
        try:
            record = records.read_record(path)
            runs.append((record, records.read_curve(records.curve_path(results, record.run_id))))
        except (ValueError, OSError) as error:
            unreadable.append(str(error))
    if runs:
        for written in figures.save(figures.accuracy_and_lr(runs, cfg.title), Path(cfg.figures_dir), "curves"):
            print(f"wrote {written}")
    else:
        print(f"no runs in {results}: python scripts/run.py +experiment=cifar10_tri2 makes one")
    for problem in unreadable:
        print(f"skipped: {problem}", file=sys.stderr)
    if unreadable:
        sys.exit(1)


if __name__ == "__main__":
    main()

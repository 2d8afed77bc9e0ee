#!/usr/bin/env python
"""Turn results/ into tables, verdicts and figures: no GPU, no data set, the same bytes every time.

    python scripts/report.py
    python scripts/report.py figures=[1]
    python scripts/report.py results_dir=outputs/demo/results figures_dir=outputs/demo figures=[] title=Demo

Exit code 1 if a file in results/ could not be used; the others were.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from cyclical_lr.report import collect, figures, markup, paper_figures, tables, verdicts

REPOSITORY = Path(__file__).resolve().parent.parent
CONF = REPOSITORY / "conf"
OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="report")
def main(cfg: DictConfig) -> None:
    results_dir, figures_dir = Path(cfg.results_dir), Path(cfg.figures_dir)
    numbers = list(paper_figures.FIGURES) if cfg.figures is None else list(cfg.figures)
    if unknown := [number for number in numbers if number not in paper_figures.FIGURES]:
        print(f"error: figures: expected some of {list(paper_figures.FIGURES)}, got {unknown}", file=sys.stderr)
        sys.exit(2)
    results = collect.collect(results_dir)
    paper = verdicts.read_paper(CONF / "paper")
    decided = verdicts.decide(paper, results)
    made = tables.make_tables(paper, results, decided)
    written = [
        collect.write_runs(results_dir, results),
        *markup.write_tables(results_dir, paper, made),
        markup.write_claims(results_dir, paper, decided),
    ]
    for number in numbers:
        written += figures.save(paper_figures.draw(number, results, CONF), figures_dir, f"fig{number:02d}")
    if cfg.title is not None and results.records:
        runs = [(results.records[run_id], results.curves[run_id]) for run_id in results.records]
        written += figures.save(figures.accuracy_and_lr(runs, cfg.title), figures_dir, "curves")
    print(f"{len(results.records)} runs in {results_dir}")
    for path in written:
        print(f"  wrote  {path}")
    for problem in results.problems:
        print(f"skipped: {problem}", file=sys.stderr)
    sys.exit(bool(results.problems))


if __name__ == "__main__":
    main()

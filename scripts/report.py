#!/usr/bin/env python
"""Turn results/ into tables, verdicts, figures, the page and the README's block: no GPU, no data set, no network.

    python scripts/report.py
    python scripts/report.py figures=[1,controls]
    python scripts/report.py results_dir=outputs/demo/results figures_dir=outputs/demo figures=[] title=Demo

The same records give the same bytes every time. Exit codes: 0 done, 1 a file in results_dir could not be used (the
others were), 2 unusable input.
"""

import logging
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

REPOSITORY = Path(__file__).resolve().parent.parent
CONF = REPOSITORY / "conf"
UNUSABLE = 2
OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="report")
def main(cfg: DictConfig) -> None:
    from cyclical_lr.records import ConfigError  # imported here: --help and --cfg stay quick
    from cyclical_lr.report import collect, figures, gallery, headline, markup, page, readme, verdicts

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells how it embeds each font
    results_dir = Path(cfg.results_dir)
    is_own = results_dir.resolve() == REPOSITORY / "results"
    figures_dir = Path(cfg.figures_dir or (REPOSITORY / "paper_figures" if is_own else results_dir / "figures"))
    readme_file = Path(cfg.readme) if cfg.readme else REPOSITORY / "README.md" if is_own else None
    names = list(gallery.FIGURES) if cfg.figures is None else list(cfg.figures)
    if unknown := [name for name in names if name not in gallery.FIGURES]:
        print(f"error: figures: expected some of {list(gallery.FIGURES)}, got {unknown}", file=sys.stderr)
        sys.exit(UNUSABLE)

    results = collect.collect(results_dir)
    paper = verdicts.read_paper(CONF / "paper")
    report = headline.make_report(paper, results)
    written = [
        collect.write_runs(results_dir, results),
        *markup.write_tables(results_dir, paper, report.tables),
        markup.write_claims(results_dir, paper, report.verdicts),
    ]
    drawn, not_drawn = gallery.draw_all(names, report, CONF, figures_dir)
    written += drawn
    shown = list(gallery.FIGURES.values())
    wanted = None if cfg.experiments is None else set(cfg.experiments)
    chosen = [record for record in results.records.values() if wanted is None or record.experiment in wanted]
    if absent := sorted((wanted or set()) - {record.experiment for record in chosen}):
        not_drawn = [*not_drawn, f"{', '.join(absent)}: no run in {results_dir}"]
    if cfg.title is not None and chosen:
        runs = [(record, results.curves[record.run_id]) for record in chosen]
        written += figures.save(figures.accuracy_and_lr(runs, cfg.title), figures_dir, "curves")
        caption = "Test accuracy (%) above, learning rate below, against the iteration."
        shown.append(gallery.Entry("curves", cfg.title, caption, ""))
    if cfg.page:
        written.append(page.write_page(Path(cfg.page), REPOSITORY, report, page.pictures(shown, figures_dir)))
    if readme_file:
        try:
            written.append(readme.write_readme(readme_file, readme.block(report, CONF)))
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(UNUSABLE)

    print(f"{len(results.records)} runs in {results_dir}")
    for path in written:
        print(f"  wrote  {path}")
    for reason in not_drawn:
        print(f"not drawn: {reason}")
    for problem in results.problems:
        print(f"skipped: {problem}", file=sys.stderr)
    sys.exit(bool(results.problems))


if __name__ == "__main__":
    main()

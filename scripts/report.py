#!/usr/bin/env python
"""Turn results/ into tables, verdicts, figures, the page and the README's block: no GPU, no data set, no network.

    python scripts/report.py
    python scripts/report.py figures=[1,controls]
    python scripts/report.py results_dir=outputs/demo/results figures_dir=outputs/demo figures=[] title=Demo

The same records give the same bytes every time. Exit codes: 0 done, 1 a file in results_dir could not be used (the
others were), 2 unusable input.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, ListConfig, OmegaConf

from cyclical_lr import command_line, processes
from cyclical_lr.records import ConfigError

REPOSITORY = Path(__file__).resolve().parent.parent
CONF = REPOSITORY / "conf"
OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="report")
def main(cfg: DictConfig) -> None:
    try:
        problems = report(cfg)
    except ConfigError as error:
        sys.exit(command_line.refuse(str(error)))
    except BrokenPipeError:  # nobody reads on, as in `| head`
        raise
    except OSError as error:
        where = error.filename or "results_dir or figures_dir"  # a full disk names no file
        remedy = "give another path; the tables go into results_dir itself: of one that is read-only, give a copy"
        sys.exit(command_line.refuse(f"{where}: {error.strerror}; {remedy}"))
    sys.exit(bool(problems))


def report(cfg: DictConfig) -> Sequence[str]:
    """Read, draw and write what is asked for; what was wrong with which file."""
    with processes.loading():
        from cyclical_lr.report import collect, figures, gallery, markup, page, readme
        from cyclical_lr.report.paper import read_paper
        from cyclical_lr.report.report import make_report

    known = [key for key in map(str, OmegaConf.load(CONF / "report.yaml")) if key not in ("defaults", "hydra")]
    if unknown := sorted(map(str, set(cfg) - set(known))):  # Hydra takes `+typo=1`
        raise ConfigError(f"{', '.join(unknown)}: there is no such key; expected some of {', '.join(known)}")
    results_dir = Path(str(cfg.results_dir or ""))
    if not cfg.results_dir or not (results_dir / "runs").is_dir():
        raise ConfigError(f"results_dir: expected a folder with records in runs/, got {cfg.results_dir!r}")
    is_own = results_dir.resolve() == REPOSITORY / "results"
    figures_dir = Path(cfg.figures_dir or (REPOSITORY / "paper_figures" if is_own else results_dir / "figures"))
    readme_file = Path(cfg.readme) if cfg.readme else REPOSITORY / "README.md" if is_own else None
    wanted = None if cfg.experiments is None else set(listed("experiments", cfg.experiments))
    if wanted is not None and cfg.title is None:
        raise ConfigError("experiments: expected title= beside it: it chooses what the figure of that title draws")
    names = list(gallery.FIGURES) if cfg.figures is None else listed("figures", cfg.figures)
    if wrong := [name for name in names if isinstance(name, bool) or name not in gallery.FIGURES]:
        raise ConfigError(f"figures: expected some of {list(gallery.FIGURES)}, got {wrong}")

    results = collect.collect(results_dir)
    paper = read_paper(CONF / "paper")
    said = make_report(paper, results)
    written = [
        collect.write_runs(results_dir, results),
        *markup.write_tables(results_dir, paper, said.tables),
        markup.write_claims(results_dir, paper, results, said.verdicts),
    ]
    drawn, not_drawn = gallery.draw_all(names, said, CONF, figures_dir)
    written += drawn
    shown = list(gallery.FIGURES.values())
    chosen = list(results.records.values()) if wanted is None else figures.named(results, wanted)
    if absent := sorted((wanted or set()) - {name for record in chosen for name in (record.label, record.experiment)}):
        not_drawn = [*not_drawn, f"{', '.join(absent)}: no run in {results_dir}"]
    if cfg.title is not None and chosen:
        runs = [(record, results.curves[record.run_id]) for record in chosen]
        written += figures.save(figures.accuracy_and_lr(runs, cfg.title), figures_dir, "curves")
        caption = "Test accuracy (%) above, learning rate below, against the iteration."
        shown.append(gallery.Entry("curves", cfg.title, caption, ""))
    if cfg.page:
        heading = page.HEADING if is_own or cfg.title is None else str(cfg.title)
        pictures = page.pictures(shown, figures_dir)
        written.append(page.write_page(Path(cfg.page), REPOSITORY, said, pictures, heading))
    if readme_file:
        written.append(readme.write_readme(readme_file, readme.block(said)))

    print(f"{len(results.records)} runs in {results_dir}")
    for path in written:
        print(f"  wrote  {path}")
    for reason in not_drawn:
        print(f"not drawn: {reason}")
    for problem in results.problems:
        print(f"skipped: {problem}", file=sys.stderr)
    return results.problems


def listed(key: str, value: Any) -> list[Any]:
    """The items of a list in the config.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, ListConfig):
        raise ConfigError(f"{key}: expected a list such as {key}=[a,b], got {value!r}")
    return list(value)


if __name__ == "__main__":
    sys.argv[1:] = command_line.overrides_first(sys.argv[1:])
    sys.exit(command_line.guarded(main))

"""All figures of the report by the name that selects them: the paper's 1 to 13, then this study's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from cyclical_lr.report import figures, paper_figures, study_figures
from cyclical_lr.report.report import Report


@dataclass(frozen=True)
class Entry:
    """What is said of a figure.

    Attributes:
        file: name of its files, without ending.
        command: what makes its runs and draws it, a line each.
    """

    file: str
    title: str
    caption: str
    command: str


def _with_report(command: str) -> str:
    draws = "python scripts/report.py"
    return command if command.startswith(draws) else f"{command}\n{draws}"


FIGURES: dict[int | str, Entry] = {
    **{
        number: Entry(f"fig{number:02d}", f"Figure {number}", each.caption, _with_report(paper_figures.command(number)))
        for number, each in paper_figures.FIGURES.items()
    },
    **{
        name: Entry(name, name.replace("_", " ").capitalize(), each.caption, _with_report(study_figures.command(name)))
        for name, each in study_figures.FIGURES.items()
    },
}


def draw(name: int | str, report: Report, conf: Path) -> Figure:
    """The figure of that name; `conf` is the folder of configs.

    Raises:
        figures.MissingRuns: there is nothing to draw.
    """
    if isinstance(name, int):
        return paper_figures.draw(name, report, conf)
    return study_figures.draw(name, report, conf)


def draw_all(names: Sequence[int | str], report: Report, conf: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Draw figures into a folder; the files of one that has nothing to draw are removed, for they show other results.

    Returns:
        the files written, and why a figure was not drawn, a sentence each.
    """
    written, not_drawn = [], []
    for name in names:
        try:
            figure = draw(name, report, conf)
        except figures.MissingRuns as missing:
            not_drawn.append(str(missing))
            for ending in ("pdf", "png"):
                (folder / f"{FIGURES[name].file}.{ending}").unlink(missing_ok=True)
        else:
            written += figures.save(figure, folder, FIGURES[name].file)
    return written, not_drawn

"""What all figures share: style, seeds as a mean with a band, marks of a schedule, the legend, files.

And the two figures that a user's own runs get: `accuracy_and_lr` and `range_test`. Figures are made from records and
curves alone: neither data set nor GPU.
"""

import logging
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from cyclical_lr.policy import Schedule
from cyclical_lr.range_test import Bounds, Curve
from cyclical_lr.records import CurveRow, Record
from cyclical_lr.report.arms import COLOURS, LINES, Arm
from cyclical_lr.report.collect import Results
from cyclical_lr.report.cycles import cycle_ends, schedule_in

logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every table of a font that it embeds

STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.handlelength": 2.4,
    "legend.labelspacing": 0.35,
    "legend.borderaxespad": 0.2,
    "pdf.fonttype": 42,  # embedded, editable text
}
COLUMN, DPI = 3.4, 200
"""Width of a column of text in inches, and dots per inch of the pictures."""
LINE = 0.145
"""Height of a line of the legend, in inches."""
GREY = "0.45"
SEEDS = 10
"""How many the commands beside the figures ask for: fewer make a verdict preliminary (conf/paper/verdicts.yaml)."""

Runs = Iterable[tuple[Record, list[CurveRow]]]


class MissingRuns(Exception):
    """A figure with nothing to draw yet: the message says what is missing and the command that runs it."""


# Seeds ----------------------------------------------------------------------------------------------------------------


def finished(results: Results, label: str) -> list[list[CurveRow]]:
    """The curves of a label's finished runs, by seed."""
    return [results.curves[record.run_id] for record in results.by_label.get(label, []) if record.status == "done"]


def census(results: Results, label: str) -> str:
    """How many runs a label has: `n = 4, 1 diverged`, or `not run`."""
    return counted(results.by_label[label]) if label in results.by_label else "not run"


def counted(runs: Iterable[Record]) -> str:
    """How many of a label's runs are done, and what became of the others: `n = 4, 1 diverged`."""
    status = Counter(record.status for record in runs)
    lost = [f"{status[name]} {name}" for name in ("diverged", "failed") if status[name]]
    return ", ".join([f"n = {status['done']}", *lost])


def seeds_band(
    axes: Axes,
    curves: Sequence[Sequence[CurveRow]],
    arm: Arm,
    label: str,
    x_of: Callable[[CurveRow], float] = lambda row: row.iteration,
    schedule: Schedule | None = None,
) -> None:
    """The mean over the seeds, at the evaluations that all have, and their range behind it where there are several.

    With a schedule, a dot on the mean marks the end of each cycle.
    """
    rows = [{row.iteration: row for row in curve} for curve in curves]
    common = sorted(set.intersection(*map(set, rows)))
    x = np.mean([[x_of(at[t]) for t in common] for at in rows], axis=0)
    accuracy = np.array([[at[t].test_accuracy for t in common] for at in rows])
    axes.plot(x, accuracy.mean(axis=0), color=arm.colour, ls=arm.line, label=label, zorder=3)
    if len(curves) > 1:
        low, high = accuracy.min(axis=0), accuracy.max(axis=0)
        axes.fill_between(x, low, high, color=arm.colour, alpha=0.25, lw=0, zorder=2, gid="range")
    if schedule is not None and common:
        ends = [t for t in cycle_ends(schedule, common[-1]) if t >= common[0]]
        at_ends = [np.interp(ends, common, values) for values in (x, accuracy.mean(axis=0))]
        axes.plot(*at_ends, color=arm.colour, ls="none", marker="o", ms=2.6, zorder=4, gid="cycle ends")


# The legends ----------------------------------------------------------------------------------------------------------

MARKS: dict[str, Artist] = {
    "cycle ends": Line2D([], [], color=GREY, ls="none", marker="o", ms=2.6, label="end of a cycle"),
    "drops": Line2D([], [], color=GREY, ls=":", lw=0.8, label="LR drop"),
    "digitised": Line2D([], [], color=GREY, ls="none", marker="o", ms=4, mfc="white", label="paper, digitised"),
    "tables": Line2D([], [], color=GREY, ls="none", marker="*", ms=7, mec="white", label="paper, table"),
    "range": Patch(color=GREY, alpha=0.25, lw=0, label="range of the seeds"),
}
"""What a mark means, by the gid of the artists that are such marks."""


def legends(figure: Figure, axes: Axes, notes: Sequence[str] = (), above: bool = False) -> None:
    """What the marks mean, the arms and small print; the figure grows by as much.

    The marks stand above the axes, three in a line, the rest below; with `above` all stand there, one below the other.
    """
    present = {artist.get_gid() for artist in axes.get_children()}
    marks: list[Artist] = [mark for gid, mark in MARKS.items() if gid in present]
    rows = -(-len(marks) // 3)
    arms: list[Artist] = axes.get_legend_handles_labels()[0]
    wrapped = ["\n".join(textwrap.wrap(note, 62)) for note in notes]
    small: list[Artist] = [Line2D([], [], ls="none", label=note) for note in wrapped]
    if above:
        names = figure.legend(handles=arms + marks + small, loc="outside upper center")
    else:
        names = figure.legend(handles=arms + small, loc="outside lower center")
        line: Any = {"handlelength": 1.2, "handletextpad": 0.4, "columnspacing": 1.0, "fontsize": 6.5}
        if marks:
            figure.legend(handles=marks, loc="outside upper center", ncols=-(-len(marks) // rows), **line)
    for text in names.get_texts()[len(names.get_texts()) - len(small) :]:
        text.set(fontsize=6, color=GREY)
    lines = len(arms) + (len(marks) if above else rows) + sum(note.count("\n") + 1 for note in wrapped)
    figure.set_figheight(figure.get_figheight() + LINE * lines)


def not_run(labels: Iterable[str]) -> list[str]:
    """The small print for arms without a run: at most one sentence."""
    return [f"Not run: {'; '.join(labels)}."] if (labels := list(labels)) else []


def named_rows(axes: Axes, ticks: Sequence[tuple[float, str]], headings: Sequence[float], size: float) -> None:
    """Rows from the top down, named at the left; headings in bold."""
    axes.set_ylim(ticks[-1][0] + 0.6, -0.6)
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
    axes.tick_params(axis="y", labelsize=size, length=0)
    for (at, _), text in zip(ticks, axes.get_yticklabels(), strict=True):
        text.set_fontweight("bold" if at in headings else "normal")


# A user's own runs ----------------------------------------------------------------------------------------------------


def named(results: Results, names: Collection[str]) -> list[Record]:
    """The runs of these labels; of an experiment of which no run has the bare name, those of all its labels."""
    overridden = set(names) - results.by_label.keys()
    return [run for run in results.records.values() if run.label in names or run.experiment in overridden]


def accuracy_and_lr(runs: Runs, title: str) -> Figure:
    """Test accuracy (%) above, LR below, against the iteration: a line per label, the seeds' range as a band.

    Of a label's runs, those that are done; how many others there are is said.
    """
    by_label: dict[str, list[tuple[Record, list[CurveRow]]]] = defaultdict(list)
    for record, curve in runs:
        by_label[record.label].append((record, curve))
    overridden = {label.partition("[")[2].rstrip("]") for label in by_label}
    shared = overridden.pop() if len(overridden) == 1 else ""  # what all have in common is said once
    with plt.rc_context(STYLE):
        figure, (above, below) = plt.subplots(
            2, 1, sharex=True, figsize=(COLUMN, 3.8), height_ratios=(2.2, 1), layout="constrained"
        )
        for number, (label, cell) in enumerate(sorted(by_label.items())):
            look = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]  # 28 pairs
            arm = Arm(label.removesuffix(f"[{shared}]"), *look)
            done = [curve for record, curve in cell if record.status == "done"]
            name = f"{arm.name.replace(',', ', ')} ({counted(record for record, _ in cell)})"
            name = textwrap.fill(name, 54)  # with many overrides, long
            if done:
                seeds_band(above, done, arm, name)
            else:
                above.plot([], [], color=arm.colour, ls=arm.line, label=name)
            figure.set_figheight(figure.get_figheight() + LINE * name.count("\n"))
            _lr_line(below, *cell[0], arm)
        figure.set_figheight(figure.get_figheight() + LINE * max(0, len(by_label) - 4))  # the legend's lines
        above.set_ylabel("test accuracy (%)")
        below.set_ylabel("learning rate")
        below.set_xlabel("iteration")
        below.set_ylim(bottom=0)
        below.xaxis.set_major_formatter(thousands)
        figure.align_ylabels()
        bands = [MARKS["range"]] if any(artist.get_gid() == "range" for artist in above.get_children()) else []
        handles: list[Artist] = [*above.get_legend_handles_labels()[0], *bands]
        figure.legend(handles=handles, loc="outside lower center", title=shared, title_fontsize="small")
        figure.suptitle(title, fontsize=8)
    return figure


def _lr_line(axes: Axes, record: Record, curve: Sequence[CurveRow], arm: Arm) -> None:
    """The LR of a run; dots at its evaluations alone where its schedule is not this package's."""
    schedule = schedule_in(record)
    if schedule is not None:
        axes.plot(schedule(np.arange(record.config["iterations"] + 1)), color=arm.colour, ls=arm.line, lw=0.9)
    else:
        x, y = [row.iteration for row in curve], [row.lr for row in curve]
        axes.plot(x, y, color=arm.colour, ls="none", marker="o", ms=2)


def thousands(value: float, _: object = None) -> str:
    """A tick's label: 25,000."""
    return f"{value:,.0f}"


def range_test(curves: Curve | Sequence[Curve], bounds: Bounds, title: str) -> Figure:
    """Test accuracy (%) against the LR, as in Figure 3: a line per seed, both bounds marked where there are any."""
    curves = [curves] if isinstance(curves, Curve) else curves
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN, 2.4), layout="constrained")
        for curve in curves:
            axes.plot(
                curve.lr, curve.accuracy, color=COLOURS[0], alpha=1 if len(curves) == 1 else 0.5, marker=".", ms=3
            )
        for name, value, colour in (("base_lr", bounds.base_lr, COLOURS[2]), ("max_lr", bounds.max_lr, COLOURS[1])):
            if value is not None:
                axes.axvline(value, color=colour, linestyle="--", linewidth=1, label=f"{name} = {value:.3g}")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("test accuracy (%)")
        axes.set_xlim(left=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right")
        axes.set_title(textwrap.fill(f"{title.replace(',', ', ')} (n = {len(curves)})", 54), fontsize=8)
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.pdf and `name`.png, the same bytes for the same figure."""
    folder.mkdir(parents=True, exist_ok=True)
    pdf, png = folder / f"{name}.pdf", folder / f"{name}.png"
    with plt.rc_context(STYLE):  # pdf.fonttype counts when the file is written, not when the figure is drawn
        figure.set_dpi(DPI)
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
            figure.set_layout_engine("none")  # a third of the time, if it did so for each file
            for axes in figure.axes:  # the solver's last digits go with the addresses of its variables
                left, bottom, width, height = axes.get_position().bounds
                axes.set_position((round(left, 6), round(bottom, 6), round(width, 6), round(height, 6)))
        figure.savefig(pdf, metadata={"CreationDate": None})
        drawn = BytesIO()
        figure.savefig(drawn, dpi=DPI)
    picture = Image.open(drawn).convert("RGB")
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # the median cut loses rare ones
    few.save(png, optimize=True, dpi=(DPI, DPI))  # a third of the bytes
    plt.close(figure)
    return [pdf, png]

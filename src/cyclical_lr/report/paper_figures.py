"""The paper's Figures 1 to 13, redrawn from results/ on the paper's axes.

The paper's own curve stands behind ours where it was digitised, its number from a table or the text where it has one,
and controls of this study beside. What the paper shows is data (conf/paper/); what we draw for it is `FIGURES`.
"""

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from cyclical_lr import range_test
from cyclical_lr.records import CurveRow
from cyclical_lr.report import wording
from cyclical_lr.report.arms import ARMS, BLUE, VERMILLION, schedule_of
from cyclical_lr.report.collect import Results
from cyclical_lr.report.cycles import drops
from cyclical_lr.report.figures import (
    COLUMN,
    GREY,
    SEEDS,
    STYLE,
    MissingRuns,
    census,
    finished,
    legends,
    seeds_band,
    thousands,
)
from cyclical_lr.report.paper import Paper
from cyclical_lr.report.report import Report
from cyclical_lr.report.verdicts import range_tests
from cyclical_lr.schedules import Triangular


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper.

    Attributes:
        caption: what it shows, in a sentence or two that stand for the picture where it cannot be seen.
        arms: the experiments that it draws, the paper's first, then controls of this study.
        studies: the files of conf/study that run the arms; without one they are run by name.
        inset: a stretch of iterations that is enlarged: in Figure 1, whose axis is mostly empty, CLR's from before its
            drops; where the paper has an inset, its.
    """

    caption: str
    arms: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    inset: tuple[int, int] | None = None

    @property
    def y_label(self) -> str:
        return f"{'validation' if self.arms[0].startswith('imagenet') else 'test'} accuracy (%)"


FIGURES = {
    1: PaperFigure(
        "Test accuracy on CIFAR-10 against the iteration for CLR, the fixed policy and exp, with the paper's digitised "
        "curves. As controls, the fixed policy with CLR's budget and drops and, in black, "
        "runs of Caffe itself.",
        ("cifar10_tri2", "cifar10_fixed", "cifar10_exp", "cifar10_fixed_25k"),
        ("table1_cifar", "controls"),
        inset=(12_000, 26_000),
    ),
    2: PaperFigure(
        "The triangular policy: the LR rises in a straight line from base_lr to max_lr in stepsize iterations, and "
        "falls back in as many; together they are a cycle.",
    ),
    3: PaperFigure(
        "The LR range test on CIFAR-10: test accuracy against the LR, which rises from 0 to 0.02 over eight epochs "
        "and, as a control, over four. The bounds that the paper read off, and those that this study's rules read off "
        "the first, are marked: a base_lr and a max_lr by each rule (figure3_bounds in results/claims.md).",
        ("cifar10_range_test", "cifar10_range_test_ss2000"),
        ("figure3",),
    ),
    4: PaperFigure(
        "Test accuracy on CIFAR-10 against the iteration for exp and exp_range, both with gamma 0.99994.",
        ("cifar10_exp_range", "cifar10_exp"),
        ("table1_cifar",),
    ),
    5: PaperFigure(
        "Test accuracy on CIFAR-10 against the iteration for Nesterov with CLR and for Adam with and without it. The "
        "paper does not say whether the LR dropped in phases, so both readings are drawn; its numbers have the colours "
        "of both, inside that of the reading without; those of one iteration stand side by side.",
        (
            *("cifar10_nesterov_tri", "cifar10_nesterov_tri_staged"),
            *("cifar10_adam_tri", "cifar10_adam_tri_70k", "cifar10_adam_tri_staged", "cifar10_adam_fixed"),
        ),
        ("table3",),
    ),
    6: PaperFigure(
        "Test accuracy on CIFAR-10 against the iteration for Caffe's sigmoid network with batch normalisation, fixed "
        "against CLR; as controls, both without batch normalisation. The paper's numbers have no iteration.",
        ("cifar10_bn_clr", "cifar10_bn_fixed", "cifar10_sigmoid_clr", "cifar10_sigmoid_fixed"),
        ("figure6",),
    ),
    7: PaperFigure(
        "The LR range test of AlexNet on ImageNet: validation accuracy against the LR, with three points of the "
        "paper's curve that were read off by eye.",
        ("imagenet_alexnet_range_test",),
        ("figure7",),
    ),
    8: PaperFigure(
        "Validation accuracy on ImageNet against the iteration, fixed against CLR, presumably of AlexNet: the paper's "
        "text does not mention this figure. Its caption says triangular, Table 1 triangular2, which is drawn: the runs "
        "are those of Figure 9.",
        ("imagenet_alexnet_tri2", "imagenet_alexnet_fixed"),
    ),
    9: PaperFigure(
        "Validation accuracy of AlexNet on ImageNet against the iteration, fixed against triangular2, with the end "
        "enlarged.",
        ("imagenet_alexnet_tri2", "imagenet_alexnet_fixed"),
        inset=(380_000, 400_000),
    ),
    10: PaperFigure(
        "Validation accuracy of AlexNet on ImageNet against the iteration, exp against exp_range, with the end of "
        "exp_range enlarged.",
        ("imagenet_alexnet_exp_range", "imagenet_alexnet_exp"),
        inset=(280_000, 300_000),
    ),
    11: PaperFigure(
        "The LR range test of GoogLeNet on ImageNet: validation accuracy against the LR.",
        ("imagenet_googlenet_range_test",),
        ("figure11",),
    ),
    12: PaperFigure(
        "Validation accuracy of GoogLeNet on ImageNet against the iteration, fixed against triangular2.",
        ("imagenet_googlenet_tri2", "imagenet_googlenet_fixed"),
    ),
    13: PaperFigure(
        "Validation accuracy of GoogLeNet on ImageNet against the iteration, exp against exp_range.",
        ("imagenet_googlenet_exp_range", "imagenet_googlenet_exp"),
    ),
}
TABLE: Any = {"marker": "*", "ms": 7, "mec": "white", "mew": 0.5, "ls": "none", "zorder": 5, "gid": "tables"}
DIGITISED: Any = {"marker": "o", "ms": 4, "mfc": "white", "mew": 0.8, "zorder": 1, "gid": "digitised"}


def command(number: int) -> str:
    """What makes the runs of a figure, ready to paste; for a figure without runs, what draws it."""
    figure = FIGURES[number]
    if figure.studies:
        return wording.studies(figure.studies, SEEDS)
    if not figure.arms:
        return f"python scripts/report.py figures=[{number}]"
    several = "-m " if len(figure.arms) > 1 else ""
    return f"python scripts/run.py {several}+experiment={','.join(figure.arms)}"


def draw(number: int, report: Report, conf: Path) -> Figure:
    """Figure `number` of the paper; `conf` is the folder of config files.

    Raises:
        MissingRuns: there is neither a run nor a digitised curve.
    """
    figure = FIGURES[number]
    if not figure.arms:
        return _triangle()
    shown, results = _shown(report.paper, number), report.results
    points = [point for curve in shown["curves"] for point in curve["points"] if not point.get("approximate")]
    if not points and not any(label in results.by_label for label in figure.arms):
        raise MissingRuns(f"Figure {number} has no run yet: {'; '.join(command(number).splitlines())}")
    with plt.rc_context(STYLE):
        if shown["axes"]["x"] == "lr":
            return _accuracy_against_lr(figure, shown, results)
        return _accuracy_against_iteration(figure, shown, results, conf)


def _shown(paper: Paper, number: int) -> dict[str, Any]:
    """What the paper shows: axes, curves with their digitised points, the arms' numbers, bounds read off."""
    arms = FIGURES[number].arms
    numbers = [row for row in paper.rows.values() if row.get("experiment") in arms]
    bounds = [row for row in paper.bounds.values() if row["experiment"] in arms]
    return {**paper.figures[number], "numbers": numbers, "bounds": bounds}


# Accuracy against iteration -------------------------------------------------------------------------------------------


def _accuracy_against_iteration(
    paper_figure: PaperFigure, shown: Mapping[str, Any], results: Results, conf: Path
) -> Figure:
    figure, axes = plt.subplots(figsize=(COLUMN, 2.3), layout="constrained")
    late = _plot(axes, paper_figure, shown, results, conf)
    for line in axes.lines:
        line.set_clip_on(line.get_gid() != "tables")  # the paper's number often stands on the edge
    first, last = shown["axes"]["x_limits"]
    accuracies = [accuracy for t, accuracy in late if t >= last / 20]  # the start would flatten the rest
    axes.set_xlim(first, last)
    axes.set_ylim(*shown["axes"].get("y_limits", (5 * (min(accuracies) // 5), 5 * (max(accuracies) // 5 + 1))))
    axes.set_xlabel("iteration")
    axes.set_ylabel(paper_figure.y_label)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(thousands)
    if (enlarged := paper_figure.inset) is not None:
        low, high = enlarged
        inside = axes.inset_axes((0.4, 0.1, 0.57, 0.52))
        _plot(inside, paper_figure, shown, results, conf)
        within = [accuracy for t, accuracy in late if low <= t <= high]
        inside.spines[:].set(visible=True, linewidth=0.5)
        inside.set_xlim(low, high + (high - low) / 50)  # room for a mark at the end
        if within:
            inside.set_ylim(min(within) - 0.5, max(within) + 0.5)
        inside.set_xticks([low, high], [thousands(low), thousands(high)])
        inside.tick_params(labelsize=6, pad=1.5, length=2)
        inside.get_xticklabels()[1].set_horizontalalignment("right")
        for text in inside.get_xticklabels():  # lines of the axes behind end before them
            text.set_bbox({"facecolor": "white", "lw": 0, "pad": 0.6})
    drawn = [np.asarray(line.get_xdata()) for line in axes.lines if line.get_gid() is None]
    cut = any(x.size > 1 and x[0] > 0 for x in drawn)
    legends(figure, axes, ["What two runs have in common is drawn once."] if cut else [])
    return figure


def _plot(
    axes: Axes, paper_figure: PaperFigure, shown: Mapping[str, Any], results: Results, conf: Path
) -> list[tuple[int, float]]:
    """The paper's points and numbers, our arms, their drops; returns all (iteration, accuracy) that were drawn."""
    drawn: list[tuple[int, float]] = []
    earlier: list[Sequence[Sequence[CurveRow]]] = []
    dropping: dict[int, set[str]] = defaultdict(set)
    for curve in shown["curves"]:
        points = [(point["iteration"], point["accuracy"]) for point in curve["points"]]
        axes.plot(*zip(*points, strict=True), color=ARMS[curve["experiment"]].colour, ls="none", **DIGITISED)
        drawn += points
    marked: list[tuple[int | None, float]] = []
    for row in shown["numbers"]:
        near = [at for at, accuracy in marked if at == row["iterations"] and abs(accuracy - row["accuracy"]) < 1]
        _paper_number(axes, row, 5 * len(near))
        marked.append((row["iterations"], row["accuracy"]))
        drawn.append((row["iterations"] or shown["axes"]["x_limits"][1], row["accuracy"]))
    for label in paper_figure.arms:
        arm, curves = ARMS[label], finished(results, label)
        if curves:
            schedule = schedule_of(conf, label)[0]
            name = f"{arm.name} ({census(results, label)})"
            seeds_band(axes, _apart(curves, earlier), arm, name, schedule=schedule)
            earlier.append(curves)
            drawn += [(row.iteration, row.test_accuracy) for curve in curves for row in curve]
        else:  # named all the same: the paper's marks have its colour
            axes.plot([], [], color=arm.colour, ls=arm.line, label=f"{arm.name} ({census(results, label)})")
        if curves or label in {curve["experiment"] for curve in shown["curves"]}:
            for t in drops(*schedule_of(conf, label)):
                dropping[t].add(arm.colour)
        line = "-" if label == paper_figure.arms[0] else ":"
        for i, run in enumerate(runs := results.caffe.get(label, ())):
            name = "_" * (i > 0) + wording.caffe(arm.name, len(runs))
            axes.plot(*zip(*run.items(), strict=True), color="black", ls=line, lw=0.5, label=name, zorder=2.5)
    for t, colours in dropping.items():  # grey where the LRs of several arms drop
        axes.axvline(t, color=colours.pop() if len(colours) == 1 else GREY, lw=0.8, ls=":", zorder=0, gid="drops")
    return drawn


def _apart(
    curves: Sequence[Sequence[CurveRow]], earlier: Sequence[Sequence[Sequence[CurveRow]]]
) -> list[Sequence[CurveRow]]:
    """The curves from their last evaluation in common, seed by seed, with those of an arm that is drawn already."""

    def measured(row: CurveRow) -> tuple[int, float, float]:
        return row.iteration, row.test_loss, row.test_accuracy

    def shared(curve: Sequence[CurveRow], other: Sequence[CurveRow]) -> int:
        same = (measured(ours) == measured(theirs) for ours, theirs in zip(curve, other, strict=False))
        return sum(takewhile(bool, same))

    alike = [arm for arm in earlier if len(arm) == len(curves)]
    start = max((min(map(shared, curves, arm)) for arm in alike), default=0)
    return [curve[max(0, start - 1) :] for curve in curves]


def _paper_number(axes: Axes, row: Mapping[str, Any], aside: float) -> None:
    """A star at the row's iteration, so many points aside; where the paper gives none, a line with the number."""
    colour, accuracy = ARMS[row["experiment"]].colour, row["accuracy"]
    if row["iterations"] is not None:
        edge = {"mec": ARMS[row["staged"]].colour, "mew": 1.2} if row.get("staged") in ARMS else {}
        where = offset_copy(axes.transData, axes.get_figure(root=True), x=aside, units="points")
        axes.plot(row["iterations"], accuracy, color=colour, transform=where, **{**TABLE, **edge})
        return
    axes.axhline(accuracy, color=colour, ls=(0, (1, 3)), lw=0.9, zorder=1)
    text: Any = {"xycoords": axes.get_yaxis_transform(), "va": "center", "fontsize": 6, "color": colour}
    axes.annotate(f"paper:\n{accuracy} %", (1.02, accuracy), **text)


# Accuracy against LR --------------------------------------------------------------------------------------------------


def _accuracy_against_lr(paper_figure: PaperFigure, shown: Mapping[str, Any], results: Results) -> Figure:
    figure, axes = plt.subplots(figsize=(COLUMN, 2.3), layout="constrained")
    for curve in shown["curves"]:
        whole = not any(point.get("approximate") for point in curve["points"])  # landmarks are not joined
        xy = [[point[name] for point in curve["points"]] for name in ("lr", "accuracy")]
        axes.plot(*xy, color=GREY, ls="-" if whole else "none", lw=0.8, clip_on=False, **DIGITISED)
    for label in paper_figure.arms:
        arm, curves = ARMS[label], finished(results, label)
        name = f"{arm.name} ({census(results, label)})"
        if curves:
            seeds_band(axes, curves, arm, name, lambda row: row.lr)
        else:
            axes.plot([], [], color=arm.colour, label=name)
        for record in results.by_label.get(label, []):
            if record.status == "diverged":  # an outcome of a range test, not a failure
                rows = results.curves[record.run_id]
                axes.plot([row.lr for row in rows], [row.test_accuracy for row in rows], color=arm.colour, lw=0.6)
                axes.plot(rows[-1].lr, rows[-1].test_accuracy, color=arm.colour, marker="x", ms=4, gid="diverged")
    if tests := range_tests(results, paper_figure.arms[0]):
        found = {rule: range_test.find_bounds(tests, max_rule=rule) for rule in range_test.CEILINGS}
        ceilings = {f"max_lr by {rule}": bounds.max_lr for rule, bounds in found.items()}
        (base_lr,) = {bounds.base_lr for bounds in found.values()}
        _bounds(axes, "this study's", {"base_lr": base_lr, **ceilings}, BLUE, "--")
    for row in shown["bounds"]:  # dotted, on top of dashes at the same LR
        _bounds(axes, "the paper's", {name: row[name] for name in ("base_lr", "max_lr")}, VERMILLION, ":")
    axes.set_xlim(*shown["axes"]["x_limits"])
    if "y_limits" in shown["axes"]:
        axes.set_ylim(*shown["axes"]["y_limits"])
    axes.set_xlabel("learning rate")
    axes.set_ylabel(paper_figure.y_label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    legends(figure, axes)
    return figure


def _bounds(axes: Axes, whose: str, bounds: Mapping[str, float | None], colour: str, line: str) -> None:
    """A vertical line per bound; all are named in the legend, whether there are any or not."""
    said = "; ".join(f"{name} {'none' if lr is None else f'{lr:g}'}" for name, lr in bounds.items())
    axes.plot([], [], color=colour, ls=line, lw=0.9, label=textwrap.fill(f"{whose}: {said}", 54))
    for lr in bounds.values():
        if lr is not None:
            axes.axvline(lr, color=colour, ls=line, lw=0.9, zorder=0)


# Figure 2 -------------------------------------------------------------------------------------------------------------


def _triangle() -> Figure:
    """The triangular policy, in letters."""
    stepsize = 100
    t = np.arange(4 * stepsize + 1)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN, 1.9), layout="constrained")
        axes.plot(t, Triangular(1, 6, stepsize)(t), color=BLUE)
        for low, high, name in ((0, 1, "stepsize"), (2, 4, "a cycle: 2 stepsize")):
            span = [low * stepsize, high * stepsize]
            axes.annotate("", (span[0], 6.7), (span[1], 6.7), arrowprops={"arrowstyle": "<->", "lw": 0.8})
            axes.text(sum(span) / 2, 7, name, ha="center", va="bottom")
        axes.set_xlim(0, t[-1])
        axes.set_ylim(0, 8)
        axes.set_xticks(np.arange(5) * stepsize, ["0", "stepsize", "2 stepsize", "3 stepsize", "4 stepsize"])
        axes.tick_params(axis="x", labelsize=7)
        axes.set_yticks([1, 6], ["base_lr", "max_lr"])
        axes.set_xlabel("iteration")
        axes.set_ylabel("learning rate")
    return figure

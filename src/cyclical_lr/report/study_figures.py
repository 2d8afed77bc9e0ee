"""This study's own figures: LR schedules, verdicts, time, controls, porting mistakes and later policies."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, MultipleLocator

from cyclical_lr.records import Record
from cyclical_lr.report import forest, statistics, wording
from cyclical_lr.report.arms import (
    ARMS,
    BLUE,
    END,
    FAITHFUL,
    GREEN,
    LATER_POLICIES,
    MISTAKES,
    ORANGE,
    VERMILLION,
    Groups,
    constant_lrs,
    schedule_of,
)
from cyclical_lr.report.collect import Results, read_cell
from cyclical_lr.report.cycles import cycle_ends, drops
from cyclical_lr.report.figures import (
    COLUMN,
    GREY,
    SEEDS,
    STYLE,
    MissingRuns,
    census,
    finished,
    legends,
    named_rows,
    not_run,
    seeds_band,
    thousands,
)
from cyclical_lr.report.paper import Paper
from cyclical_lr.report.report import Report


@dataclass(frozen=True)
class StudyFigure:
    """One figure of this study: its caption, the studies that run its arms, and what draws it."""

    caption: str
    studies: tuple[str, ...]
    draw: Callable[[Report, Path], Figure]


def draw(name: str, report: Report, conf: Path) -> Figure:
    """The figure of that name; `conf` is the folder of configs.

    Raises:
        MissingRuns: there is no run to draw.
    """
    with plt.rc_context(STYLE):
        return FIGURES[name].draw(report, conf)


def command(name: str) -> str:
    """What makes the runs of a figure, ready to paste; for a figure without runs, what draws it."""
    return wording.studies(FIGURES[name].studies, SEEDS) or f"python scripts/report.py figures=[{name}]"


def _missing(name: str) -> MissingRuns:
    return MissingRuns(f"The figure {name} has no run yet: {'; '.join(command(name).splitlines())}")


# LR schedules ---------------------------------------------------------------------------------------------------------

PAPER, CONTROL, LATER = BLUE, ORANGE, GREEN
SCHEDULES = {
    "cifar10_fixed": ("fixed", PAPER),
    "cifar10_tri2": ("triangular2, 3 phases", PAPER),
    "cifar10_decay": ("decay", PAPER),
    "cifar10_exp": ("exp", PAPER),
    "cifar10_exp_range": ("exp_range", PAPER),
    "cifar10_exp_range_amplitude": ("exp_range, amplitude", CONTROL),
    "cifar10_tri_no_drops": ("triangular (Sec. 3.1)", PAPER),
    "cifar10_welch": ("Welch window", PAPER),
    "cifar10_hann": ("Hann window", PAPER),
    "cifar10_range_test": ("LR range test", PAPER),
    "cifar10_range_test_ss2000": ("half the range test", CONTROL),
    "imagenet_alexnet_tri2": ("triangular2, AlexNet", PAPER),
    "imagenet_googlenet_exp_range": ("exp_range, GoogLeNet", PAPER),
    "cifar10_fixed_25k": ("fixed, CLR's drops", CONTROL),
    "cifar10_fixed_25k_matched": ("fixed, CLR's mean LR", CONTROL),
    "cifar10_tri": ("triangular, 3 phases", CONTROL),
    "cifar10_tri2_no_drops": ("triangular2, no drops", CONTROL),
    "cifar10_decay_drops": ("decay, drops", CONTROL),
    "cifar10_exp_drops": ("exp, drops", CONTROL),
    "cifar10_exp_matched": ("exp, exp_range's mean", CONTROL),
    "cifar10_cosine": ("cosine", LATER),
    "cifar10_cosine_restarts": ("cosine with restarts", LATER),
    "cifar10_one_cycle": ("one-cycle", LATER),
    "cifar10_warmup_stable_decay": ("warmup-stable-decay", LATER),
}
"""Lab cards with a panel each: its title and whose policy it is."""


def _schedules(report: Report, conf: Path) -> Figure:
    """A panel per policy, from the lab cards alone."""
    figure, grid = plt.subplots(-(-len(SCHEDULES) // 3), 3, figsize=(COLUMN, 6.4), layout="constrained")
    for axes, (experiment, (title, colour)) in zip(grid.flat, SCHEDULES.items(), strict=True):
        schedule, iterations = schedule_of(conf, experiment)
        # Corners stand at cycle ends and drops; an even grid alone would cut them off.
        breaks = [*drops(schedule, iterations), *cycle_ends(schedule, iterations)]
        t = np.unique([*np.linspace(0, iterations - 1, 1201, dtype=int), *breaks, *(b - 1 for b in breaks)])
        t = t[t < iterations]  # the LR at the end is of no update
        rates = schedule(t)
        axes.plot(t, rates, color=colour, lw=0.8)
        axes.set_title(title, fontsize=6, pad=3, loc="left", x=-0.4)
        axes.set_xlim(0, iterations)
        axes.set_ylim(0, 1.15 * rates.max())
        axes.set_xticks([0, iterations], ["0", f"{iterations // 1000}k"])
        axes.set_yticks([0, rates.max()], ["0", f"{rates.max():.2g}"])
        axes.tick_params(labelsize=5.5, pad=1.5, length=2)
        axes.get_xticklabels()[1].set_horizontalalignment("right")
        axes.grid(False)
    figure.supxlabel("iteration", fontsize=7)
    figure.supylabel("learning rate", fontsize=7)
    kinds = {"the paper's": PAPER, "control or other reading": CONTROL, "later policy": LATER}
    handles = [Line2D([], [], color=colour, label=name) for name, colour in kinds.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, handlelength=1.2, columnspacing=1)
    return figure


# Verdicts -------------------------------------------------------------------------------------------------------------


def _verdicts(report: Report, conf: Path) -> Figure:
    if not any(map(forest.can_show, report.verdicts)):
        raise _missing("verdicts")
    return forest.forest_plot(report.paper, report.verdicts)


# Training time --------------------------------------------------------------------------------------------------------

TIMED = ("cifar10_tri2", "cifar10_fixed_25k", "cifar10_fixed", "cifar10_exp", "cifar10_exp_range", "cifar10_decay")


def _training_time(report: Report, conf: Path) -> Figure:
    """Accuracy against minutes of training, from runs of which minutes compare: as many arms as can be had.

    All at one pace, the median of these runs: what other work on the machine took is no policy's.
    """
    results = report.results
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for label in TIMED:
        for record in results.by_label.get(label, []):
            if record.status == "done":
                groups[record.clock].append(record)
    if not groups:
        raise _missing("training_time")
    clock = max(sorted(groups), key=lambda key: (len({run.label for run in groups[key]}), len(groups[key])))
    device, threads, engine, layers, _ = clock
    ends = [results.curves[record.run_id][-1] for record in groups[clock]]
    pace = median(end.train_seconds / end.iteration for end in ends)
    figure, axes = plt.subplots(figsize=(COLUMN, 2.3), layout="constrained")
    missing: list[str] = []
    elsewhere: list[str] = []
    late: list[float] = []
    for label in TIMED:
        runs = [record for record in groups[clock] if record.label == label]
        if not runs:
            (elsewhere if label in results.by_label else missing).append(ARMS[label].name.removeprefix("control: "))
            continue
        curves = [results.curves[record.run_id] for record in runs]
        name = f"{ARMS[label].name} (n = {len(runs)})"
        seeds_band(axes, curves, ARMS[label], name, lambda row: row.iteration * pace / 60, schedule_of(conf, label)[0])
        late += [row.test_accuracy for curve in curves for row in curve if row.iteration >= curve[-1].iteration / 5]
    axes.set_ylim(5 * (min(late) // 5), 5 * (max(late) // 5 + 1))
    axes.yaxis.set_major_locator(MultipleLocator(5))
    axes.set_xlim(left=0)
    axes.set_xlabel(f"minutes of training, at {1000 * pace:.0f} ms an iteration")
    axes.set_ylabel("test accuracy (%)")
    notes = [f"Timed on {device}, {threads} thread{'s' * (threads != '1')}, {engine} engine, {layers} layers."]
    if spread := wording.paces(groups[clock]):
        notes.append(f"{1000 * pace:.0f} ms is the runs' median; beside other work they took {spread}.")
    if otherwise := sum(map(len, groups.values())) - len(groups[clock]):
        left = "1 run is" if otherwise == 1 else f"{otherwise} runs are"
        whole = f", with them all of {'; '.join(elsewhere)}" if elsewhere else ""
        notes.append(f"{left} left out{whole}: on another machine, or by other layers, minutes do not compare.")
    legends(figure, axes, [*notes, *not_run(missing)])
    return figure


# Controls -------------------------------------------------------------------------------------------------------------

CONFOUNDS = ("cifar10_tri2", "cifar10_tri2_no_drops", "cifar10_fixed_25k", "cifar10_fixed_25k_matched")
CONTROLS: Groups = {
    "Is it the LR drops?": [
        ("cifar10_tri2", 25_000, "CLR, drops"),
        ("cifar10_tri2_no_drops", 25_000, "CLR, no drops"),
        ("cifar10_decay_drops", 25_000, "decay, drops"),
        ("cifar10_decay", 25_000, "decay, no drops"),
        ("cifar10_exp_drops", 25_000, "exp, drops, 25k"),
        ("cifar10_exp", 25_000, "exp, no drops, 25k"),
    ],
    "Is it the budget?": [
        ("cifar10_fixed", 70_000, "fixed, 70k"),
        ("cifar10_fixed_25k", 25_000, "fixed, 25k"),
    ],
    "Is it the mean LR?": [
        ("cifar10_fixed_25k_matched", 25_000, "fixed, CLR's mean LR, 25k"),
        ("cifar10_exp_range", 42_000, "exp_range, 42k: LR peak"),
        ("cifar10_exp_matched", 42_000, "exp at exp_range's mean, 42k"),
    ],
    "Is it the order of images?": [
        ("cifar10_tri2[data.shuffle=True]", 25_000, "CLR, shuffled"),
        ("cifar10_fixed_25k[data.shuffle=True]", 25_000, "fixed, 25k, shuffled"),
    ],
    "Which reading of CLR?": [
        ("cifar10_tri", 25_000, "no halving, 3 phases"),
        ("cifar10_tri_no_drops", 24_000, "no phases, 24k: cycle end"),
        ("cifar10_tri_no_drops", 25_000, "no phases, 25k: mid-cycle"),
    ],
    "Which exp_range, at 42k?": [
        ("cifar10_exp_range_amplitude", 42_000, "amplitude alone falls"),
        ("cifar10_exp_range_ss1000", 42_000, "stepsize 1,000"),
        ("cifar10_exp_range_ss1500", 42_000, "stepsize 1,500"),
        ("cifar10_exp_range_ss3000", 42_000, "stepsize 3,000"),
    ],
}


def _controls(report: Report, conf: Path) -> Figure:
    """Three panels: curves at one budget, accuracy against a constant LR, and the end of every control."""
    results = report.results
    rows = [cell for group in CONTROLS.values() for cell in group]
    if not any(read_cell(results, label, iteration).n for label, iteration, _ in rows):
        raise _missing("controls")
    height = _height(CONTROLS)
    figure = plt.figure(figsize=(COLUMN, 4.3 + height), layout="constrained")
    parts = figure.add_gridspec(2, 1, height_ratios=(3.6, 0.5 + height))
    upper = parts[0].subgridspec(2, 1, height_ratios=(1.6, 1))
    curves, constant = figure.add_subplot(upper[0]), figure.add_subplot(upper[1])
    ends = figure.add_subplot(parts[1].subgridspec(1, 1)[0])  # of its own, or its long names would narrow the others
    missing = _curves_panel(curves, results, conf)
    _constant_panel(constant, results)
    _ends_panel(ends, CONTROLS, results, report.paper)
    legends(figure, curves, not_run(missing), above=True)
    return figure


def _curves_panel(axes: Axes, results: Results, conf: Path) -> list[str]:
    """Curves of the arms with one budget, 25,000 iterations; the names of those not run."""
    missing, late = [], []
    for label in CONFOUNDS:
        arm, curves = ARMS[label], finished(results, label)
        if not curves:
            missing.append(arm.name.removeprefix("control: "))
            continue
        schedule, iterations = schedule_of(conf, label)
        seeds_band(axes, curves, arm, f"{arm.name} ({census(results, label)})", schedule=schedule)
        late += [row.test_accuracy for curve in curves for row in curve if row.iteration >= iterations / 4]
    for t in drops(*schedule_of(conf, "cifar10_tri2")):
        axes.axvline(t, color=GREY, lw=0.8, ls=":", zorder=0, gid="drops")
    axes.set_xlim(0, 25_000)
    if late:
        axes.set_ylim(min(late) - 1, max(late) + 1)
    axes.set_xlabel("iteration")
    axes.set_ylabel("test accuracy (%)")
    axes.xaxis.set_major_formatter(thousands)
    return missing


def _constant_panel(axes: Axes, results: Results) -> None:
    """Accuracy at 25,000 against the LR of the compressed fixed schedule, with CLR's across."""
    arms = {0.001: "cifar10_fixed_25k", 0.00194: "cifar10_fixed_25k_matched", **constant_lrs(results.by_label)}
    cells = {lr: read_cell(results, label, END).values for lr, label in sorted(arms.items())}
    cells = {lr: values for lr, values in cells.items() if values}
    for lr, values in cells.items():
        axes.plot([lr] * len(values), values, color=BLUE, ls="none", marker="o", ms=2, alpha=0.5)
    means = [statistics.mean(values) for values in cells.values()]
    axes.plot(list(cells), means, color=BLUE, marker="_", ms=7, mew=1.4, lw=0.8)
    if clr := read_cell(results, FAITHFUL, END).values:
        axes.axhline(statistics.mean(clr), color=VERMILLION, lw=1.2)
        axes.axhspan(min(clr), max(clr), color=VERMILLION, alpha=0.2, lw=0)
        where: Any = {"xycoords": axes.get_yaxis_transform(), "ha": "right", "va": "bottom", "fontsize": 6}
        axes.annotate("CLR", (0.99, max(clr)), **where, color=VERMILLION)
    axes.set_xlim(0, 0.0055)
    axes.margins(y=0.25)
    axes.set_xlabel("LR of the fixed schedule in 25k, before its drops")
    axes.set_ylabel("accuracy at 25k (%)")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if len(cells) <= 2:
        axes.text(0.99, 0.04, "not run: python scripts/study.py +study=constant_lr", transform=axes.transAxes,
                  ha="right", va="bottom", fontsize=5.5, color=GREY)  # fmt: skip


FAR = 25
"""Points below the best at which an end would squeeze the others into a corner."""


def _height(groups: Groups) -> float:
    """Of what `_ends_panel` draws, in inches."""
    return 0.125 * (len(groups) + sum(map(len, groups.values())))


def _ends_panel(axes: Axes, groups: Groups, results: Results, paper: Paper) -> None:
    """A row per cell: seeds, their mean and the number of the paper's that a claim expects there."""
    claimed = {
        (cell["experiment"], cell["iteration"]): paper.rows[claim["row"]]["accuracy"]
        for claim in paper.claims
        if claim["rule"] == "number"
        for cell in claim["operands"]
    }
    ticks: list[tuple[float, str]] = []
    headings, y, means = [], 0, {}
    for question, cells in groups.items():
        headings.append(y)
        ticks.append((y, question))
        for label, iteration, name in cells:
            y += 1
            ticks.append((y, name))
            cell = read_cell(results, label, iteration)
            axes.plot(cell.values, [y] * cell.n, color=BLUE, ls="none", marker="o", ms=2, alpha=0.5)
            remark = ", ".join(cell.remarks) if cell.runs else "not run"
            if cell.n:
                means[y] = statistics.mean(cell.values)
                axes.plot(means[y], y, color=BLUE, marker="|", ms=6, mew=1.4)
                remark = f"{means[y]:.2f}  n = {cell.n}"
            axes.annotate(remark, (1.02, y), xycoords=axes.get_yaxis_transform(), fontsize=5.5, va="center",
                          color="black" if cell.n else GREY)  # fmt: skip
            if (theirs := claimed.get((label, iteration))) is not None:
                axes.plot(theirs, y, color=VERMILLION, marker="*", ms=6, ls="none", mec="white", mew=0.4, zorder=1.9)
        y += 1
    named_rows(axes, ticks, headings, 5.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("test accuracy (%)\ndot: seed, bar: mean, star: paper")
    near = {y: mean for y, mean in means.items() if mean > max(means.values()) - FAR}
    if far := means.keys() - near.keys():
        axes.set_xlim(min(near.values()) - 1, max(near.values()) + 1)
        axes.plot([axes.get_xlim()[0]] * len(far), sorted(far), color=BLUE, ls="none", marker="<", ms=4, clip_on=False)
        axes.set_xlabel("test accuracy (%)\ndot: seed, bar: mean, star: paper,\narrow: far below")


# Ends alone -----------------------------------------------------------------------------------------------------------


def _ends(name: str, groups: Groups) -> Callable[[Report, Path], Figure]:
    """What draws these ends alone, once there is a run of any group but the first."""

    def drawn(report: Report, conf: Path) -> Figure:
        results, (_, *others) = report.results, groups.values()
        if not any(read_cell(results, label, iteration).runs for cells in others for label, iteration, _ in cells):
            raise _missing(name)
        figure, axes = plt.subplots(figsize=(COLUMN, 0.5 + _height(groups)), layout="constrained")
        _ends_panel(axes, groups, results, report.paper)
        return figure

    return drawn


FIGURES = {
    "schedules": StudyFigure(
        "The learning rate against the iteration, a panel for each policy: the paper's, this study's controls and "
        "other readings, and later policies that are compared with it.",
        (),
        _schedules,
    ),
    "verdicts": StudyFigure(
        "Every claim that compares accuracies and has runs: the difference, its interval (for the paper's numbers the "
        "95 % prediction interval, else 90 %, not corrected for the family) and the margin of its rule, coloured by "
        "verdict, half of it if preliminary; † where it is read in mid-cycle, an arrow where it lies beyond the axis. "
        "Rows have the claims' names in results/claims.md, less their beginnings.",
        ("table1_cifar", "controls", "table3", "figure6", "windows", "stepsize", "third_rule"),
        _verdicts,
    ),
    "training_time": StudyFigure(
        "Test accuracy on CIFAR-10 against minutes of training on one kind of machine, evaluation left out, at one "
        "pace for all: what an iteration costs does not depend on the policy. Dots mark the ends of cycles.",
        ("table1_cifar", "controls"),
        _training_time,
    ),
    "controls": StudyFigure(
        "What the paper's comparisons leave open: CLR and the fixed policy under one budget, with and without LR drops "
        "and at one mean LR; the fixed policy at other constant LRs; and where the controls end.",
        ("table1_cifar", "controls", "constant_lr"),
        _controls,
    ),
    "porting_mistakes": StudyFigure(
        "What earlier ports of Caffe's network missed, and what each costs: CLR as in Table 2 after 25,000 iterations, "
        "with one of Caffe's choices changed at a time, then several.",
        ("porting_mistakes",),
        _ends("porting_mistakes", MISTAKES),
    ),
    "later_policies": StudyFigure(
        "Later policies under CLR's budget of 25,000 iterations, with a peak or mean set by Table 2 and not tuned.",
        ("modern",),
        _ends("later_policies", LATER_POLICIES),
    ),
}

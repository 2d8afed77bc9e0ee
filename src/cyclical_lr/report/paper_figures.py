"""The paper's figures, redrawn from results/ with the paper's own digitised curves behind ours."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cyclical_lr.records import CurveRow
from cyclical_lr.report.collect import Results
from cyclical_lr.report.figures import COLOURS, COLUMN, STYLE

NAMES = {
    "cifar10_fixed": "fixed",
    "cifar10_fixed_25k": "fixed, 25k (control)",
    "cifar10_tri2": "CLR (triangular2)",
    "cifar10_exp": "exp",
}
COLOUR_OF = dict(zip(NAMES, (COLOURS[0], COLOURS[5], COLOURS[1], COLOURS[2]), strict=True))


def figure1(results: Results, paper: Mapping[str, Any]) -> Figure:
    """Test accuracy (%) against the iteration: CLR, fixed and exp; LR drops as dotted lines in the curve's colour."""
    digitised = {curve["experiment"]: curve for curve in paper["curves"]}
    missing = []
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN, 3.0), layout="constrained")
        for label, name in NAMES.items():
            colour = COLOUR_OF[label]
            if label in digitised:
                points = digitised[label]["points"]
                x, y = [p["iteration"] for p in points], [p["accuracy"] for p in points]
                axes.plot(x, y, color=colour, ls="none", marker="o", ms=4, mfc="white", mew=0.8, alpha=0.8, zorder=1)
            curves = _finished(results, label)
            if not curves:
                missing.append(label)
                continue
            _band(axes, curves, colour, f"{name} (n = {len(curves)})", lambda row: row.iteration)
        for iteration, label in ((16_000, "cifar10_tri2"), (22_000, "cifar10_tri2"), (60_000, "cifar10_fixed")):
            axes.axvline(iteration, color=COLOUR_OF[label], lw=0.6, ls=":", zorder=0)
        axes.plot([], [], color="0.4", ls="none", marker="o", ms=4, mfc="white", label="the paper, digitised")
        axes.set_xlim(0, 70_000)
        axes.set_ylim(*paper["axes"]["y_limits"])
        axes.set_xlabel("iteration")
        axes.set_ylabel("test accuracy (%)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _say_missing(axes, missing)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.02))
    return figure


def figure3(results: Results, paper: Mapping[str, Any]) -> Figure:
    """Test accuracy (%) against the LR of the range test; the paper's choice of bounds as dotted lines."""
    curves = _finished(results, "cifar10_range_test")
    points = paper["curves"][0]["points"]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN, 2.6), layout="constrained")
        x, y = [p["lr"] for p in points], [p["accuracy"] for p in points]
        axes.plot(x, y, color="0.4", marker="o", ms=3, mfc="white", lw=0.8, label="the paper, digitised")
        if curves:
            _band(axes, curves, COLOURS[0], f"ours (n = {len(curves)})", lambda row: row.lr)
        for name, lr in paper["bounds_chosen"].items():
            axes.axvline(lr, color=COLOURS[1], lw=0.8, ls=":")
            axes.annotate(f"{name}\n{lr}", (lr, 12), xytext=(2, 0), textcoords="offset points", color=COLOURS[1])
        axes.set_xlim(*paper["axes"]["x_limits"])
        axes.set_xlabel("learning rate")
        axes.set_ylabel("test accuracy (%)")
        _say_missing(axes, [] if curves else ["cifar10_range_test"])
        axes.legend(loc="lower right")
    return figure


FIGURES: dict[int, Callable[[Results, Mapping[str, Any]], Figure]] = {1: figure1, 3: figure3}


def draw(number: int, results: Results, conf: Path) -> Figure:
    """Figure `number` of the paper; `conf` is the folder with paper/figureN.yaml."""
    return FIGURES[number](results, yaml.safe_load((conf / "paper" / f"figure{number}.yaml").read_text()))


def _finished(results: Results, label: str) -> list[list[CurveRow]]:
    return [results.curves[record.run_id] for record in results.by_label.get(label, []) if record.status == "done"]


def _band(
    axes: Axes, curves: Sequence[list[CurveRow]], colour: str, name: str, x_of: Callable[[CurveRow], float]
) -> None:
    """The mean over the seeds, at the evaluations that all have, and their range behind it."""
    rows = [{row.iteration: row for row in curve} for curve in curves]
    common = sorted(set.intersection(*map(set, rows)))
    x = [x_of(rows[0][t]) for t in common]
    accuracy = np.array([[by_iteration[t].test_accuracy for t in common] for by_iteration in rows])
    axes.plot(x, accuracy.mean(axis=0), color=colour, label=name, zorder=3)
    if len(curves) > 1:
        axes.fill_between(x, accuracy.min(axis=0), accuracy.max(axis=0), color=colour, alpha=0.25, lw=0, zorder=2)


def _say_missing(axes: Axes, labels: Sequence[str]) -> None:
    for label in labels:
        axes.plot([], [], ls="none", label=f"{NAMES.get(label, label)}: not run")

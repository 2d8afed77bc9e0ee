"""Figures from records and curves alone: neither data set nor GPU."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from cyclical_lr.range_test import Bounds, Curve
from cyclical_lr.records import CurveRow, Record, learning_rates

STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # embedded, editable text
    "svg.hashsalt": "cyclical_lr",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette: told apart by colour-blind readers too."""
COLUMN = 3.4
"""Width of a column of text, in inches."""

Runs = Iterable[tuple[Record, list[CurveRow]]]


def accuracy_and_lr(runs: Runs, title: str) -> Figure:
    """Test accuracy (%) above, LR below, against the iteration: a line per label, the seeds' range as a band."""
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
            colour = COLOURS[number % len(COLOURS)]
            at = [{row.iteration: row.test_accuracy for row in curve} for _, curve in cell]
            iterations = sorted(set.intersection(*map(set, at)))
            accuracy = np.array([[rows[t] for t in iterations] for rows in at])
            name = f"{label.removesuffix(f'[{shared}]')} (n = {len(cell)})"
            above.plot(iterations, accuracy.mean(axis=0), color=colour, label=name)
            if len(cell) > 1:
                above.fill_between(
                    iterations, accuracy.min(axis=0), accuracy.max(axis=0), color=colour, alpha=0.2, lw=0
                )
            below.plot(learning_rates(cell[0][0].config), color=colour, linewidth=0.9)
        above.set_ylabel("test accuracy (%)")
        below.set_ylabel("learning rate")
        below.set_xlabel("iteration")
        below.set_ylim(bottom=0)
        below.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.align_ylabels()
        figure.legend(loc="outside lower center", title=shared, title_fontsize="small")
        figure.suptitle(title, fontsize=8)
    return figure


def range_test(curves: Sequence[Curve], bounds: Bounds, title: str) -> Figure:
    """Test accuracy (%) against the LR, as in Figure 3: a line per seed, both bounds marked where there are any."""
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
        axes.set_title(f"{title} (n = {len(curves)})", fontsize=8)
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.pdf and `name`.png, the same bytes for the same figure."""
    folder.mkdir(parents=True, exist_ok=True)
    pdf, png = folder / f"{name}.pdf", folder / f"{name}.png"
    figure.savefig(pdf, metadata={"CreationDate": None})
    figure.savefig(png, dpi=200, metadata={"Software": None})
    plt.close(figure)
    return [pdf, png]

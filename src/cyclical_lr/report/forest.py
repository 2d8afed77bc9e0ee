"""The forest plot: per claim the difference, its interval and its rule's margin, coloured by verdict."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETLEFT, CARETRIGHT
from matplotlib.patches import Patch

from cyclical_lr.report import statistics
from cyclical_lr.report.arms import BLUE, ORANGE, VERMILLION
from cyclical_lr.report.figures import COLUMN, GREY, named_rows
from cyclical_lr.report.paper import FAMILIES, Paper
from cyclical_lr.report.verdicts import CONTRADICTED, INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Verdict

VERDICT_COLOURS = {REPRODUCED: BLUE, NOT_REPRODUCED: VERMILLION, CONTRADICTED: VERMILLION, INCONCLUSIVE: ORANGE}
SIGNS = {REPRODUCED: "✓", NOT_REPRODUCED: "✗", CONTRADICTED: "✗", INCONCLUSIVE: "?"}
"""Beside the colours, which a grey print has not; in brackets if preliminary."""
FILLED = (REPRODUCED, NOT_REPRODUCED, CONTRADICTED)
MARKERS = {"number": "o", "equal": "s", "greater": ">"}
"""By rule. Only these compare accuracies, so only they have a place on the axis."""
HALF: Any = {"fillstyle": "bottom", "markerfacecoloralt": "white"}
"""Of a preliminary verdict."""
ROWS = 60
"""The most that one column of the plot has."""


def can_show(verdict: Verdict) -> bool:
    """Whether a verdict has a row: it compares accuracies, and there are runs of all that it compares."""
    return verdict.claim["rule"] in MARKERS and all(cell.n for cell in verdict.cells)


def forest_plot(paper: Paper, decided: Sequence[Verdict]) -> Figure:
    """A row per verdict that can be shown, of which there must be one, by family; the rest is counted."""
    shown: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in filter(can_show, decided):
        shown[verdict.claim["family"]].append(verdict)
    rows: list[str | Verdict] = []
    for family, verdicts in shown.items():
        rows += [FAMILIES.get(family, family), *verdicts]
    columns = _columns(rows)
    differences = [_difference(paper, verdict) for verdicts in shown.values() for verdict in verdicts]
    limit = min(6.0, max(1.5, 1.2 * max(map(abs, differences))))
    size = COLUMN * len(columns), 1.5 + 0.105 * max(map(len, columns))
    figure, grid = plt.subplots(1, len(columns), figsize=size, layout="constrained", squeeze=False)
    for axes, column in zip(grid[0], columns, strict=True):
        for y, row in enumerate(column):
            if not isinstance(row, str):
                _row(axes, y, paper, row, limit)
        axes.set_xlim(-limit, limit)
        headings = [y for y, row in enumerate(column) if isinstance(row, str)]
        named_rows(axes, [(y, _name(row)) for y, row in enumerate(column)], headings, 6)
        axes.axvline(0, color="black", lw=0.6, zorder=1)
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("difference in points (n)")
    _legend(figure, len(decided) - len(differences), 2 * len(columns))
    return figure


def _columns(rows: list[str | Verdict]) -> list[list[str | Verdict]]:
    """The rows, or two halves of them, so that they fit a page; a family that is cut has its heading in both."""
    half = -(-len(rows) // 2)
    if len(rows) <= ROWS:
        return [rows]
    if isinstance(rows[half - 1], str):
        half -= 1
    heading = [row for row in rows[:half] if isinstance(row, str)][-1]
    again = [] if isinstance(rows[half], str) else [f"{heading} (continued)"]
    return [rows[:half], [*again, *rows[half:]]]


def _name(row: str | Verdict) -> str:
    """A heading itself; of a verdict its id without the family, with which it begins."""
    if isinstance(row, str):
        return row
    prefix = row.claim["family"].partition("_")[0].removesuffix("s")
    return row.id.removeprefix(f"{prefix}_").replace("_", " ")


def _difference(paper: Paper, verdict: Verdict) -> float:
    """Ours minus the paper's, or A minus B, in points."""
    ours = [statistics.mean(cell.values) for cell in verdict.cells]
    return ours[0] - (paper.rows[verdict.claim["row"]]["accuracy"] if verdict.claim["rule"] == "number" else ours[1])


def _row(axes: Axes, y: int, paper: Paper, verdict: Verdict, limit: float) -> None:
    rule, finding = verdict.claim["rule"], verdict.finding
    margin = paper.rule(rule).get("margin", paper.rule(rule).get("floor", 0.0))
    axes.fill_betweenx([y - 0.5, y + 0.5], -margin, margin, color="0.9", lw=0, zorder=0)
    colour = VERDICT_COLOURS.get(finding.verdict)
    low, high = finding.interval
    if np.isfinite([low, high]).all():
        axes.plot([low, high], [y, y], color=colour or GREY, lw=1, zorder=2)
        for cut, marker, end in ((low < -limit, CARETLEFT, -limit), (high > limit, CARETRIGHT, limit)):
            if cut:  # it goes on beyond the axis
                axes.plot(end, y, marker=marker, ms=3, color=colour or GREY, mew=0, clip_on=False, zorder=2)
    difference = _difference(paper, verdict)
    inside = float(np.clip(difference, -limit, limit))
    face: Any = {"mfc": colour if finding.verdict in FILLED else "white"}
    if finding.preliminary:
        face |= HALF
    axes.plot(inside, y, marker=MARKERS[rule], ms=3.5, color=colour or GREY, mew=0.8, clip_on=False, zorder=3, **face)
    beyond = "" if inside == difference else " ←" if difference < 0 else " →"
    sign = SIGNS.get(finding.verdict, "")
    sign = f"({sign})" if sign and finding.preliminary else sign
    remark = f"{difference:+.2f} ({finding.n}) {sign}{'†' * bool(verdict.at_ends)}{beyond}"
    axes.annotate(remark, (1.06, y), xycoords=axes.get_yaxis_transform(), fontsize=6, va="center")


def _legend(figure: Figure, others: int, columns: int) -> None:
    colours = {"✓ reproduced": BLUE, "? inconclusive": ORANGE, "✗ not reproduced, or the opposite": VERMILLION}
    handles: list[Any] = [
        Line2D([], [], color=colour, marker="o", ms=3.5, mfc="white" if colour == ORANGE else colour, label=name)
        for name, colour in colours.items()
    ]
    handles += [Line2D([], [], color=GREY, marker="o", ms=3.5, mfc="white", ls="none", label="too few seeds")]
    handles += [Line2D([], [], color="black", marker="o", ms=3.5, ls="none", label="(✓) preliminary", **HALF)]
    rules = {
        "number": "ours less the paper's",
        "equal": "first less second, equal?",
        "greater": "first less second, above?",
    }
    handles += [
        Line2D([], [], color="black", marker=MARKERS[rule], ms=3.5, ls="none", label=name)
        for rule, name in rules.items()
    ]
    handles += [Patch(color="0.9", label="the rule's margin")]
    title = f"†: read in mid-cycle. {others} more claims are not run, or measure something else: results/claims.md"
    title = textwrap.fill(title, 55 * (columns // 2))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, handlelength=1.6, fontsize=6,
        title=title, title_fontsize=6,
    )  # fmt: skip

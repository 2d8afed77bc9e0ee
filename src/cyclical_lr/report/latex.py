"""Tables for a paper: booktabs, at their natural width or scaled down to the text's. The same bytes every time."""

import math
import re
from collections.abc import Iterable, Iterator

import pandas as pd

from cyclical_lr.report.verdicts import NOT_RUN

DIGITS = 100
"""Of a row: with more, its texts wrap. Scaled to an article's width, a row of so many is still legible."""
NARROW = 16
"""Digits that a wrapped column keeps at least, if its cells have as many."""
LINES_OF_A_PAGE, LINES_OF_A_BOX = 48, 24
"""Of a table that is one box, at most, and of each of its boxes where it would be longer."""
DROPPED = ("section", "best so far", "unit")
ESCAPES = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\char34{}"},
}
BREAKS = re.compile(r"(?<=[_,\[])(?=[A-Za-z])|(?<==)(?=\w)")
"""Where a run's name may go on in the next line."""
KEPT = re.compile(r" (?=\[|%|[+-]?\d|\(no interval\))|(?<=\(no) (?=interval\))")
"""The spaces of a number with its unit or interval, which stay in one line."""

Sections = list[tuple[str, list[tuple[str, int]]]]
"""By its name the rows of each, written out, with the lines that they take."""


def files(name: str, title: str, shown: pd.DataFrame) -> dict[str, str]:
    """<name>.tex, of all sections, and for Table 1 <name>_controls.tex of what is not the paper's; texts by file name.

    Runs that are neither the paper's nor controls are left out, and so is what a paper has no room for: the best so
    far, differences to the paper, seconds. The CSV has them.
    """
    shown = shown[shown["section"] != "other runs"] if len(shown) else shown
    if name == "time_to_target":
        shown = _a_row_per_target(shown)
    out = {f"{name}.tex": latex(title, shown)}
    if len(shown) and (controls := shown["section"] == "controls").any():
        out = {
            f"{name}.tex": latex(title, shown[~controls]),
            f"{name}_controls.tex": latex(f"Controls beside {title}", shown[controls]),
        }
    return out


def latex(title: str, shown: pd.DataFrame) -> str:
    """The sections of a table one below the other; of one that is longer than a page, each by itself."""
    shown = shown.fillna("")
    kept = [c for c in shown.columns if c not in DROPPED and not c.startswith("ours less")]
    kept = [c for c in kept if not len(shown) or (shown[c] != "").any()]
    if "policy" in kept:  # and what else the paper describes a row by
        kept = [c for c in kept if c != "run"]
    widths, wanted = _widths(shown[kept])
    sections: Sections = []
    for section, rows in shown.groupby("section", sort=False) if len(shown) else ():
        cells = rows[kept].to_numpy().tolist()
        sections.append((str(section), [(_row(row), _height(row, widths)) for row in cells]))
    long = sum(2 + sum(height for _, height in rows) for _, rows in sections) > LINES_OF_A_PAGE
    wrapped = [long or width < natural for width, natural in zip(widths, wanted, strict=True)]
    columns = _columns(shown[kept], widths, wrapped)
    lines = [f"% {title}", f"% \\caption{{{_caption(title, shown[kept])}}}"]
    lines += ["% needs \\usepackage{array,booktabs,graphicx}" + "; too long for a float" * long]
    lines += [r"{\footnotesize\setlength{\tabcolsep}{3pt}"]
    for number, box in enumerate(_boxes(sections) if long else [sections]):
        lines += ["\\par\\medskip"] if number else []
        lines += ["\\noindent\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"]
        lines += [f"\\begin{{tabular}}{{@{{}}{columns}@{{}}}}", "\\toprule", _row(kept), "\\midrule"]
        for place, (section, written) in enumerate(box):
            lines += ["\\addlinespace"] if place else []
            lines += [f"\\multicolumn{{{len(kept)}}}{{@{{}}l}}{{\\emph{{{_escaped(section)}}}}} \\\\"]
            lines += [row for row, _ in written]
        lines += ["\\bottomrule", "\\end{tabular}}%"]
    return "\n".join([*lines, "}%", ""])


def _boxes(sections: Sections) -> Iterator[Sections]:
    """A box or more for each section, of about as many lines."""
    for section, rows in sections:
        box: list[tuple[str, int]] = []
        name = section
        for row in rows:
            if box and sum(height for _, height in box) + row[1] > LINES_OF_A_BOX:
                yield [(name, box)]
                box, name = [], f"{section} (continued)"
            box.append(row)
        yield [(name, box)]


def _height(row: Iterable[str], widths: Iterable[float]) -> int:
    """Lines of a row; those that wrap are not full to the last digit."""
    needed = [(_width(text), width) for text, width in zip(row, widths, strict=True)]
    return max(1 if text <= width else math.ceil(1.15 * text / width) for text, width in needed)


def _caption(title: str, body: pd.DataFrame) -> str:
    """One to begin with."""
    said = [re.sub(r"\bTable (\d)", r"Smith's Table \1", title)]
    if (ours := next((c for c in body.columns if "[" in c and "ours" in c), "")) and "n" in body.columns:
        said.append(f"Ours: the mean over n seeds and its {ours.partition('[')[2].replace('interval]', 't interval')}")
    if "remarks" in body.columns and body["remarks"].str.contains("mid-cycle").any():
        said.append("Mid-cycle: read between two ends of cycles, where the LR is not at its lowest")
    return _escaped(". ".join(said)) + "."


def _a_row_per_target(shown: pd.DataFrame) -> pd.DataFrame:
    rows = []
    targets = [c for c in shown.columns if c.endswith(" %")]
    for row in shown.to_dict("records"):
        for target in targets if row["unit"] == "iterations" else ():
            if row[target] and row[target] != NOT_RUN:
                time, _, ratio = row[target].partition("; ")
                known = {"section": row["section"], "run": row["run"], "role": row["role"], "target": target}
                rows.append({**known, "iterations (reached/runs)": time, "speed-up of A [95 %]": ratio})
    return pd.DataFrame(
        rows, columns=["section", "run", "role", "target", "iterations (reached/runs)", "speed-up of A [95 %]"]
    )


def _widths(body: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Of each column in digits: what it gets, and what its longest cell wants."""
    texts = [[column, *body[column].tolist()] for column in body.columns]
    wanted = [max(map(_width, column)) for column in texts]
    least = [
        max(min(width, NARROW), *(_width(word) for text in column for word in _words(text)))
        for width, column in zip(wanted, texts, strict=True)
    ]
    limit = max(wanted, default=0.0)
    widths = wanted
    while sum(widths) > DIGITS and limit > NARROW:
        limit -= 1
        widths = [max(word, min(width, limit)) for word, width in zip(least, wanted, strict=True)]
    return widths, wanted


def _columns(body: pd.DataFrame, widths: Iterable[float], wrapped: Iterable[bool]) -> str:
    """A column as wide as its longest cell, or a paragraph where it is `wrapped`.

    Paragraphs are measured in the font's own units, so that no cell reaches into its neighbour.
    """
    spec = []
    for name, width, wraps in zip(body.columns, widths, wrapped, strict=True):
        right = all(re.fullmatch(r"[-+\d.,e]*", text) for text in body[name])
        if wraps:
            spec.append(f">{{\\ragged{'left' if right else 'right'}\\arraybackslash}}p{{{width / 2:.1f}em}}")
        else:
            spec.append("r" if right else "l")
    return "".join(spec)


def _words(text: str) -> list[str]:
    return BREAKS.sub(" ", KEPT.sub("\0", text)).split(" ")


def _width(text: str) -> float:
    """In digits, of half an em each."""
    wide, narrow = "%mMW", " .,:;[]()ijlt"
    return 0.5 + sum(1.7 if c in wide else 1.45 if c.isupper() else 0.6 if c in narrow else 1.05 for c in text)


def _row(cells: Iterable[str]) -> str:
    # An empty group keeps a first cell that begins with a bracket from being read as an option of the line before.
    return "{}" + " & ".join(map(_escaped, cells)) + " \\\\"


def _escaped(text: str) -> str:
    if small := re.fullmatch(r"(-?[\d.]+)e-0?(\d+)", text):
        return f"${small[1]}\\cdot10^{{-{small[2]}}}$"
    text = KEPT.sub("\1", "\0".join(BREAKS.split(re.sub(r"(?<=\d) - (?=\d)", "--", text))))
    text = "".join(ESCAPES.get(character, character) for character in text)
    text = text.replace("\0", r"\allowbreak{}").replace("\1", "~")
    text = re.sub(r"(?<![\w.}-])-(?=\d)", "$-$", text)
    return re.sub(r"\bx(?=\d)", r"$\\times$", text)

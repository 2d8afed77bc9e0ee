"""Tables for a paper, as wide as its text at most: booktabs, with columns that wrap. The same bytes every time."""

import re
from collections.abc import Iterable

import pandas as pd

from cyclical_lr.report.verdicts import NOT_RUN

DIGITS = 104
"""Of \\footnotesize that a line of text holds."""
GAP = 0.0135  # of a line's width
ROWS_OF_A_PAGE = 30
DROPPED = ("section", "best so far", "unit")
ESCAPES = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    ">": r"\textgreater{}",
}
BREAKS = re.compile(r"(?<=[_,\[])(?=[A-Za-z])|(?<==)(?=\w)")
"""Where a run's name may go on in the next line."""
KEPT = re.compile(r" (?=\[|[+-]?\d)")
"""The spaces of a number and its interval, which stay in one line."""


def files(name: str, title: str, shown: pd.DataFrame) -> dict[str, str]:
    """<name>.tex, of all sections, and for Table 1 <name>_controls.tex of what is not the paper's; texts by file name.

    Runs that are neither the paper's nor controls are left out, and so is what a paper has no room for: the best so
    far, differences to the paper, seconds. The CSV has them.
    """
    shown = shown[shown["section"] != "other runs"] if len(shown) else shown
    if name == "time_to_target":
        shown = _a_row_per_target(shown)
    parts = {"": shown}
    if len(shown) and (controls := shown["section"] == "controls").any():
        parts = {"": shown[~controls], "_controls": shown[controls]}
    return {f"{name}{part}.tex": latex(title, rows) for part, rows in parts.items()}


def latex(title: str, shown: pd.DataFrame) -> str:
    """The sections of a table one below the other; one that may be longer than a page as a longtable."""
    shown = shown.fillna("")
    kept = [c for c in shown.columns if c not in DROPPED and not c.startswith("ours less")]
    kept = [c for c in kept if not len(shown) or (shown[c] != "").any()]
    if "policy" in kept:  # and what else the paper describes a row by
        kept = [c for c in kept if c != "run"]
    long = len(shown) > ROWS_OF_A_PAGE
    kind = "longtable" if long else "tabular"
    lines = [f"% {title}", f"% needs \\usepackage{{array,booktabs{',longtable' if long else ''}}}; n: seeds"]
    lines += [r"{\footnotesize\setlength{\tabcolsep}{3pt}", f"\\begin{{{kind}}}{{@{{}}{_columns(shown[kept])}@{{}}}}"]
    lines += ["\\toprule", _row(kept), "\\midrule", *(["\\endhead"] if long else [])]
    for number, (section, rows) in enumerate(shown.groupby("section", sort=False) if len(shown) else ()):
        lines += ["\\addlinespace"] if number else []
        lines += [f"\\multicolumn{{{len(kept)}}}{{@{{}}l}}{{\\emph{{{_escaped(str(section))}}}}} \\\\"]
        lines += [_row(row) for row in rows[kept].to_numpy().tolist()]
    return "\n".join([*lines, "\\bottomrule", f"\\end{{{kind}}}}}", ""])


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


def _columns(body: pd.DataFrame) -> str:
    """A paragraph of its own width for each column: its longest cell's, or less for those that have to wrap."""
    texts = [[column, *body[column].tolist()] for column in body.columns]
    words = [max(_width(word) for text in column for word in _words(text)) for column in texts]
    wanted = [max(_width(text) for text in column[1:] or column) for column in texts]
    room = DIGITS * (1 - GAP * len(texts))
    widths = [max(pair) for pair in zip(words, wanted, strict=True)]
    limit = max(widths, default=0.0)
    while sum(widths) > room and limit > 1:
        limit -= 1
        widths = [max(word, min(width, limit)) for word, width in zip(words, wanted, strict=True)]
    unit = (1 - GAP * len(widths)) / max(room, sum(widths))
    numeric = [all(re.fullmatch(r"[-+\d.,]*", text) for text in column[1:]) for column in texts]
    return "".join(
        f">{{\\ragged{'left' if right else 'right'}\\arraybackslash}}p{{{width * unit:.3f}\\linewidth}}"
        for width, right in zip(widths, numeric, strict=True)
    )


def _words(text: str) -> list[str]:
    return BREAKS.sub(" ", KEPT.sub("\0", text)).split(" ")


def _width(text: str) -> float:
    """In digits."""
    return 0.5 + sum(1.45 if c.isupper() else 0.6 if c in " .,:;[]()ijlt" else 1.05 for c in text)


def _row(cells: Iterable[str]) -> str:
    # An empty group keeps a first cell that begins with a bracket from being read as an option of the line before.
    return "{}" + " & ".join(map(_escaped, cells)) + " \\\\"


def _escaped(text: str) -> str:
    text = KEPT.sub("\1", "\0".join(BREAKS.split(text)))
    text = "".join(ESCAPES.get(character, character) for character in text)
    text = text.replace("\0", r"\allowbreak{}").replace("\1", "~")
    text = re.sub(r"(?<![\w.}])-(?=\d)", "$-$", text)
    return re.sub(r"\bx(?=\d)", r"$\\times$", text)

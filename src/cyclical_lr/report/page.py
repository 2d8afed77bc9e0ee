"""results/report.html: everything that was found on one page, in one file that loads nothing from anywhere."""

import base64
import os
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from cyclical_lr.records import Record, write_atomic
from cyclical_lr.report import headline, headline_tables, markup, wording
from cyclical_lr.report.collect import Results
from cyclical_lr.report.gallery import Entry
from cyclical_lr.report.paper import FAMILIES, NOT_THE_PAPERS, OWN_FAMILIES, Paper
from cyclical_lr.report.report import Report
from cyclical_lr.report.verdicts import (
    CONTRADICTED,
    INCONCLUSIVE,
    MEASURED,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    Verdict,
)

SECTIONS = {
    "found": "What was found",
    "claims": "Claims",
    "tables": "Tables",
    "figures": "Figures",
    "inconsistencies": "The paper’s contradictions",
    "provenance": "Provenance",
    "deviations": "Deviations",
}
ROWS = {"paper": "The paper's rows", "bf16": "The same in bfloat16", "controls": "Controls", "other runs": "Other runs"}
ON_CIFAR10_FULL = (
    *("table1_cifar", "controls", "constant_lr", "table3", "windows", "stepsize", "third_rule"),
    *("porting_mistakes", "modern"),
)
STUDIES = {
    "table1": ("table1_cifar", "table1_imagenet", "controls", "windows", "stepsize", "third_rule"),
    "table2": ("table1_cifar",),
    "table3": ("table3",),
    "table4": ("table4",),
    "text": ("densenet_caffe", "figure6"),
    "budget": ON_CIFAR10_FULL,
    "cost": (),
    "time_to_target": ON_CIFAR10_FULL,
}
"""The studies in conf/study that fill each table, in float32; of costs, a benchmark does."""
BENCHMARK = "OMP_NUM_THREADS=1 python benchmarks/solvers.py"
KINDS = {
    REPRODUCED: "good",
    NOT_REPRODUCED: "bad",
    CONTRADICTED: "bad",
    INCONCLUSIVE: "open",
    MEASURED: "info",
    "incomplete": "bad",
}
"""The look of a verdict; what has none yet looks grey."""
SCALE = 0.7
"""CSS pixels per pixel of a figure: its text comes out as large as the tables'."""


@dataclass(frozen=True)
class Picture:
    """A figure and the bytes of its PNG file; empty where it has not been drawn."""

    entry: Entry
    png: bytes

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels."""
        width, height = struct.unpack(">II", self.png[16:24])  # a PNG file's header begins with them
        return round(width * SCALE), round(height * SCALE)


def pictures(entries: Iterable[Entry], folder: Path) -> list[Picture]:
    """Figures as they are in a folder."""
    files = [(entry, folder / f"{entry.file}.png") for entry in entries]
    return [Picture(entry, file.read_bytes() if file.is_file() else b"") for entry, file in files]


HEADING = "Cyclical learning rates, replicated"


def write_page(path: Path, repository: Path, report: Report, shown: Sequence[Picture], heading: str = HEADING) -> Path:
    """Write the page.

    Args:
        path: the file; its folder is the one with runs/ and tables/, which the page links to.
        repository: the folder with conf/ and DEVIATIONS.md.
        shown: all figures, drawn or not.
        heading: what stands at the top; of runs that are not the study's, what they are.
    """
    write_atomic(path, html(path.parent, repository, report, shown, heading).encode())
    return path


def html(folder: Path, repository: Path, report: Report, shown: Sequence[Picture], heading: str = HEADING) -> str:
    """The page as it is in `folder`."""
    root = Path(os.path.relpath(repository, folder)).as_posix()
    paper, results = report.paper, report.results
    environment = Environment(
        loader=PackageLoader("cyclical_lr", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = {picture.entry.file for picture in shown if picture.png}
    markdown, counts = Markdown(root, drawn), markup.claims_by_verdict(report.verdicts)
    return environment.get_template("page.html").render(
        root=root,
        heading=heading,
        cards={card.stem for card in (repository / "conf" / "experiment").glob("*.yaml")},
        kind=kind,
        sections=SECTIONS.items(),
        runs=_counted(len(results.records), "run"),
        problems=len(results.problems),
        short=headline.short(report),
        policies=markdown.line(headline.POLICIES),
        rules=markdown.line(headline.rules(report)),
        found=[markdown.line(sentence) for sentence in headline.found(report)],
        claims=headline.claims(report),
        tally=counts.items(),
        moved=headline.moved(report),
        beside_clr=_grid(headline_tables.beside_clr(report)),
        measured=_grid(headline_tables.measured_rows(report)),
        along=[
            _along(curve, paper.figures[1]["uncertainty"])
            for curve in headline_tables.along_the_way(results, paper.figures[1])
        ],
        how_decided=markdown.line(markup.how_decided(paper)),
        floor=f"{paper.rule('number')['floor']:g}",
        families=_families(report, markdown.line),
        tables=[_table(paper, name, frame) for name, frame in report.tables.items()],
        first=[picture for picture in shown if picture.png and picture.entry.file == "fig01"],
        figures=[picture for picture in shown if picture.png and picture.entry.file != "fig01"],
        not_drawn=[picture for picture in shown if not picture.png],
        inconsistencies=paper.inconsistencies,
        provenance=_grid(_provenance(results)),
        machines=_grid(pd.DataFrame(_machines(results).values())),
        deviations=markdown.page((repository / "DEVIATIONS.md").read_text(encoding="utf-8")),
    )


def kind(verdict: str) -> str:
    """The CSS class of a verdict."""
    return KINDS.get(verdict.removesuffix(" (preliminary)"), "none")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


# Tables ---------------------------------------------------------------------------------------------------------------


def _grid(frame: pd.DataFrame) -> dict[str, Any]:
    """A frame of strings as the template takes it: empty columns left out, those of which half are numbers marked."""
    columns = []
    for name in frame.columns:
        filled = [text for text in frame[name] if text]
        if filled:
            numbers = sum(text[0] in "+-0123456789" for text in filled)
            columns.append({"name": name, "numeric": 2 * numbers >= len(filled)})
    return {"columns": columns, "rows": frame.to_dict("records")}


def _table(paper: Paper, name: str, frame: pd.DataFrame) -> dict[str, Any]:
    shown = markup.presented(paper, name, frame)
    claims = {claim["id"]: claim["text"] for claim in paper.claims}
    sections = []
    for section, rows in shown.groupby("section", sort=False) if len(shown) else ():
        section = str(section)
        run = bool((rows.drop(columns=["section", "run"], errors="ignore") != NOT_RUN).all(axis=1).any())
        title = ROWS.get(section) or claims.get(section, section)
        if name == "time_to_target" and section in claims:
            for unit, timed in rows.groupby("unit", sort=False):
                said = "; ".join([f"{title} In {unit}", *dict.fromkeys(filter(None, timed["remarks"]))])
                sections.append({"title": said, "run": run, "folded": not run, **_grid(_by_target(timed))})
            continue
        folded = not run or name == "time_to_target"  # there, a row for every label
        sections.append({"title": title, "run": run, "folded": folded, **_grid(rows.drop(columns="section"))})
    seeds = paper.verdicts["seeds"]["preliminary_below"]
    command = f"{wording.studies(STUDIES[name], seeds) or BENCHMARK}\npython scripts/report.py"
    return {"name": name, "title": markup.TITLES[name], "sections": sections, "command": command}


def _by_target(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per target and the runs of a claim side by side, which are fewer."""
    targets = [column for column in rows.columns if column.endswith(" %")]
    runs = rows["role"] + ": " + rows["run"]
    turned = rows[targets].set_axis(runs, axis=0).T
    return turned.rename_axis("target").reset_index()


def _along(curve: headline_tables.AlongTheWay, uncertainty: float) -> dict[str, Any]:
    rows = [
        {"iteration": f"{iteration:,}", "the paper": f"{accuracy:.1f}"}
        | {name: wording.number(values[position]) for name, values in curve.ours.items()}
        | {"ours at": f"{at:,}"}
        for position, ((iteration, accuracy), at) in enumerate(zip(curve.points, curve.at, strict=True))
    ]
    return {"name": curve.name, "uncertainty": f"{uncertainty:g}", **_grid(pd.DataFrame(rows))}


# Claims ---------------------------------------------------------------------------------------------------------------


def _families(report: Report, line: Callable[[str], Markup]) -> list[dict[str, Any]]:
    by_control = markup.control_claims(report.verdicts)
    out = []
    for family in dict.fromkeys(verdict.claim["family"] for verdict in report.verdicts):
        claims = [
            {
                "id": verdict.id,
                "text": " ".join(verdict.claim["text"].split()),
                "place": verdict.claim["place"],
                "verdict": verdict.finding.text,
                "ours": markup.our_numbers(report.paper, report.results, verdict),
                "controls": markup.controls_say(verdict, by_control),
                "note": line(" ".join(verdict.claim.get("note", "").split())),
                "command": _command(report.paper, verdict),
            }
            for verdict in report.verdicts
            if verdict.claim["family"] == family
        ]
        run = [claim for claim in claims if claim["verdict"] != NOT_RUN]
        waiting = [claim for claim in claims if claim["verdict"] == NOT_RUN]
        about = NOT_THE_PAPERS if family in OWN_FAMILIES else ""
        title = FAMILIES.get(family, family)
        out.append({"name": family, "title": title, "about": about, "run": run, "waiting": waiting})
    return out


def _command(paper: Paper, verdict: Verdict) -> str:
    """What makes the numbers of a claim, with as many seeds as a verdict needs."""
    if "command" in verdict.claim:
        return str(verdict.claim["command"])
    shown = [*verdict.claim["operands"], *verdict.claim.get("beside", [])]
    seeds = paper.verdicts["seeds"]["preliminary_below"]
    by_trainer: dict[tuple[str, ...], list[str]] = {}
    for label in dict.fromkeys(each["experiment"] for each in shown):
        experiment, bf16, _ = label.partition("[precision=bf16]")
        by_trainer.setdefault(("trainer=cpu_bf16",) if bf16 else (), []).append(experiment)
    return "\n".join(wording.runs(experiments, seeds, *trainer) for trainer, experiments in by_trainer.items())


# Provenance -----------------------------------------------------------------------------------------------------------


def _provenance(results: Results) -> pd.DataFrame:
    machines = _machines(results)
    return pd.DataFrame(
        {
            "label": record.label,
            "seed": str(record.seed),
            "status": record.status,
            "accuracy": "" if record.test_accuracy is None else wording.number(record.test_accuracy),
            "iterations": f"{record.iterations:,}",
            "record": record.run_id,
            "machine": machines[_machine(record)]["machine"],
            "precision": record.precision,
            "commit": record.commit[:10] + (" (dirty)" if record.dirty else ""),
            "started": record.started,
            "minutes": f"{(record.train_seconds + record.eval_seconds) / 60:,.0f}",
            "remarks": "; ".join(_remarks(record)),
        }
        for record in results.records.values()
    )


def _remarks(record: Record) -> Iterable[str]:
    if len(record.segments) > 1:
        times = len(record.segments) - 1
        yield "resumed once" if times == 1 else f"resumed {times} times"
    if record.message:
        yield record.message


def _machines(results: Results) -> dict[tuple[Any, ...], dict[str, str]]:
    """A name for each set of device, threads, engine and versions, in the order of the runs."""
    out: dict[tuple[Any, ...], dict[str, str]] = {}
    for record in results.records.values():
        versions = ", ".join(f"{package} {version}" for package, version in record.versions.items())
        described = dict(zip(("device", "threads", "engine"), record.clock, strict=False))
        out.setdefault(_machine(record), {"machine": f"M{len(out) + 1}", **described, "versions": versions})
    return out


def _machine(record: Record) -> tuple[Any, ...]:
    return *record.clock[:3], *record.versions.items()


# Markdown -------------------------------------------------------------------------------------------------------------


class Markdown:
    """Markdown to HTML: raw HTML is text, links from the repository's root lead there from the page.

    What is on the page itself they lead to there: DEVIATIONS.md's headings, and figures that are `drawn`.
    """

    def __init__(self, root: str, drawn: Iterable[str]) -> None:
        self.root = root
        self.here = {f"paper_figures/{name}.png": f"#{name}" for name in drawn}
        self.parser = MarkdownIt("commonmark", {"html": False}).enable("table")

    def line(self, text: str) -> Markup:
        return Markup(self._rendered(self.parser.parseInline(text)))

    def page(self, text: str) -> Markup:
        """A whole page, with its headings a level lower and its tables in boxes that scroll."""
        tokens, heading, boxes = self.parser.parse(text), "", []
        for token, after in pairwise(tokens):
            if token.type == "heading_open":
                heading = after.content
                if token.tag != "h1":  # the section's own
                    token.attrSet("id", re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-"))  # as GitHub has it
            elif token.type == "table_open":
                boxes.append(f'<div class="scroll" role="group" aria-label="{escape(heading)}" tabindex="0"><table>')
            if token.type in ("heading_open", "heading_close"):
                token.tag = f"h{int(token.tag[1:]) + 1}"
        first, *rest = self._rendered(tokens).split("<table>")
        out = first + "".join(box + part for box, part in zip(boxes, rest, strict=True))
        return Markup(out.replace("</table>", "</table></div>"))

    def _rendered(self, tokens: Sequence[Token]) -> str:
        for child in (child for token in tokens for child in token.children or ()):
            href = str(child.attrGet("href") or "")
            if child.type == "link_open" and "://" not in href and not href.startswith("#"):
                here = self.here.get(href) or href.removeprefix("DEVIATIONS.md")
                child.attrSet("href", here if here.startswith("#") else f"{self.root}/{href}")
        return self.parser.renderer.render(tokens, self.parser.options, {})

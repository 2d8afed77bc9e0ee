"""The paper's numbers and claims, and the rules by which they are judged: conf/paper as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from cyclical_lr.records import ConfigError

TABLES = ("table1", "table2", "table3", "table4", "text")
FIGURES = ("figures", "figure1", "figure3", "figure7")
OPERANDS = {"number": 1, "equal": 2, "greater": 2, "share": 2, "bounds": 1, "cost": 0, "time_to_target": 2}
"""How many cells each rule compares."""
FAMILIES = {
    **{f"table{number}": f"Table {number}" for number in (1, 2, 3, 4)},
    **{f"figure{number}": f"Figure {number}" for number in (1, 3, 6, 7, 11)},
    "table1_imagenet": "Table 1: ImageNet",
    "figure1_shape": "Figure 1: its shape",
    "text": "Sections 3 and 4",
    "text_densenet_caffe": "Section 4.1.2: DenseNet in Caffe",
    "controls": "Controls of this study",
    "precision": "Precision",
}
"""Of claims, for a reader."""
OWN_FAMILIES = ("controls", "precision")
NOT_THE_PAPERS = "The paper claims none of these: “reproduced” says that what this study supposed is so."


@dataclass(frozen=True)
class Paper:
    """conf/paper as data; claims and inconsistencies in their order, verdicts.yaml as it is."""

    tables: Mapping[str, list[dict[str, Any]]]  # rows by file name
    bounds: Mapping[str, dict[str, Any]]  # what the paper reads off its LR range tests, by id
    figures: Mapping[int, Mapping[str, Any]]  # axes and, where they were digitised, curves, by number
    inconsistencies: list[dict[str, Any]]
    claims: list[dict[str, Any]]
    verdicts: Mapping[str, Any]

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of all tables by id, each with the `table` that it is in."""
        return {row["id"]: {**row, "table": table} for table, rows in self.tables.items() for row in rows}

    def rule(self, name: str) -> Mapping[str, Any]:
        return self.verdicts["rules"][name]


def experiments_of(row: Mapping[str, Any]) -> list[str]:
    """Those that are a row of the paper: none, one, or two readings of it."""
    return [row[reading] for reading in ("experiment", "staged") if reading in row]


@cache  # each run that ends asks for it
def read_paper(folder: Path) -> Paper:
    """Read conf/paper.

    Raises:
        ConfigError: a claim names a rule or row that is not there, or has the wrong number of operands.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    names = (*TABLES, *FIGURES, "inconsistencies", "claims", "verdicts")
    files = {name: yaml.load((folder / f"{name}.yaml").read_text(encoding="utf-8"), loader) for name in names}
    paper = Paper(
        tables={name: files[name]["rows"] for name in TABLES},
        bounds={row["id"]: row for row in files["text"]["bounds"]},
        figures={
            shown["figure"]: {"curves": [], **shown}
            for name in FIGURES
            for shown in files[name].get("figures", [files[name]])
        },
        inconsistencies=files["inconsistencies"]["inconsistencies"],
        claims=files["claims"]["claims"],
        verdicts=files["verdicts"],
    )
    for claim in paper.claims:
        where, rule = f"{folder / 'claims.yaml'}: {claim.get('id')}", claim.get("rule")
        if rule not in OPERANDS or rule not in paper.verdicts["rules"]:
            raise ConfigError(f"{where}.rule: expected one of {', '.join(OPERANDS)}, got {rule!r}")
        if len(claim["operands"]) != OPERANDS[rule]:
            raise ConfigError(f"{where}.operands: {rule} compares {OPERANDS[rule]}, got {len(claim['operands'])}")
        known = {"number": [name for name, row in paper.rows.items() if "runs" in row], "bounds": list(paper.bounds)}
        if rule in known and claim.get("row") not in known[rule]:
            raise ConfigError(f"{where}.row: expected one of {', '.join(known[rule])}, got {claim.get('row')!r}")
        if rule == "cost" and claim.get("ratio") not in paper.rule(rule)["limits"]:
            ratios = ", ".join(paper.rule(rule)["limits"])
            raise ConfigError(f"{where}.ratio: expected one of {ratios}, got {claim.get('ratio')!r}")
    return paper

"""All that page, README, tables and figures show of a folder of results, worked out once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cyclical_lr.report import tables
from cyclical_lr.report.collect import Results
from cyclical_lr.report.paper import Paper
from cyclical_lr.report.verdicts import Verdict, decide


@dataclass(frozen=True)
class Report:
    """What the paper says, what the records say, and how the one stands to the other."""

    paper: Paper
    results: Results
    verdicts: Sequence[Verdict]
    tables: Mapping[str, pd.DataFrame]


def make_report(paper: Paper, results: Results) -> Report:
    """Decide every claim and fill every table."""
    decided = decide(paper, results)
    return Report(paper, results, decided, tables.make_tables(paper, results, decided))

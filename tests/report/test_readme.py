"""The README's generated block: what the results give, between its markers and nowhere else."""

import re
from pathlib import Path

import pytest

from cyclical_lr.records import ConfigError
from cyclical_lr.report import readme
from cyclical_lr.report.collect import Results, collect
from cyclical_lr.report.report import make_report

REPOSITORY = Path(__file__).parents[2]
CONF, README = REPOSITORY / "conf", REPOSITORY / "README.md"


def between_markers(text):
    return text.partition(readme.BEGIN + "\n")[2].partition(readme.END)[0]


def test_the_readme_says_what_the_results_say(paper, committed_results):
    """A mismatch means: python scripts/report.py, then commit results/, paper_figures/ and README.md."""
    results = collect(committed_results)
    assert results.records and not results.problems
    block = readme.block(make_report(paper, results))
    assert between_markers(README.read_text(encoding="utf-8")) == block, "README.md: run python scripts/report.py"


def test_the_first_screen_says_what_was_found():
    head = README.read_text(encoding="utf-8").split("\n## ")[0]
    assert head.index(readme.BEGIN) < 800
    assert (
        "**In short: " in head
        and " runs so far. " in head
        and "| [CLR](conf/experiment/cifar10_tri2.yaml) | 25,000 | " in head
        and "![Figure 1 redrawn]" in head
    )


def test_every_link_of_the_block_leads_somewhere():
    links = re.findall(r"\]\(([^)]*)\)", between_markers(README.read_text(encoding="utf-8")))
    assert len(links) > 5 and any("conf/experiment/" in link for link in links)
    for path, _, heading in (link.partition("#") for link in links):
        assert (REPOSITORY / path).exists(), path
        if heading:
            anchors = [line.strip("# \n").lower().replace(" ", "-") for line in (REPOSITORY / path).open()]
            assert heading in anchors


def test_every_link_of_the_claims_leads_somewhere():
    links = re.findall(r"\]\(([^)]*)\)", (REPOSITORY / "results" / "claims.md").read_text(encoding="utf-8"))
    assert links and all((REPOSITORY / "results" / link).exists() for link in links)


def test_only_what_stands_between_the_markers_is_replaced(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    assert readme.write_readme(file, "new\n") == file
    assert file.read_text() == f"before\n{readme.BEGIN}\nnew\n{readme.END}\nafter\n"
    readme.write_readme(file, "new\n")
    assert file.read_text().count("new") == 1


@pytest.mark.parametrize(
    "text",
    [None, "no marker", readme.BEGIN, readme.END + readme.BEGIN, (readme.BEGIN + readme.END) * 2],
    ids=["no file", "neither", "one", "the wrong way round", "twice"],
)
def test_a_file_without_its_markers_is_refused_and_left_alone(tmp_path, text):
    file = tmp_path / "README.md"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match="readme: expected a file with"):
        readme.write_readme(file, "new\n")
    assert not file.exists() if text is None else file.read_text() == text


def test_every_row_links_to_its_lab_card_and_has_n_the_papers_number_and_the_verdict(paper, tmp_path, add_run):
    for seed in range(3):
        add_run("cifar10_tri2", seed, {0: 10.0, 16_000: 77.0, 25_000: 81.2 + seed / 10})
    add_run("cifar10_fixed_25k", 0, {0: 10.0, 16_000: 76.0, 25_000: 79.4})
    add_run("cifar10_decay", 0, {0: 10.0}, status="diverged")
    add_run("cifar10_tri2[data.shuffle=True]", 0, {0: 10.0, 25_000: 81.0})
    block = readme.block(make_report(paper, collect(tmp_path)))
    link = "[`{0}`](conf/experiment/{0}.yaml)".format
    row = f"| {link('cifar10_tri2')} | 25,000 | 81.30 [81.05, 81.55] | 3 | 81.4 (Table 1) | reproduced (preliminary) |"
    assert row in block
    row = f"| {link('cifar10_fixed_25k')} | 25,000 | 79.40 (no interval) | 1 | not in the paper | control |"
    assert row in block
    row = f"| {link('cifar10_decay')} | 25,000 |  | 0 | 78.5 (Table 1) | no verdict (n = 0); 1 diverged |"
    assert row in block
    rows = block.partition("<summary>All rows that have a run</summary>")[2].partition("</details>")[0]
    assert rows.count("\n| [`") == 3 and "data.shuffle" not in rows
    assert "Table 1: 2 of 14, Table 3: 0 of 12, Table 4: 0 of 24, text: 0 of 6." in block


def test_without_a_run_the_block_says_so(paper):
    block = readme.block(make_report(paper, Results({}, {}, ())))
    assert "0 runs so far." in block and "| run |" not in block and "fig01" not in block
    assert "| [CLR](conf/experiment/cifar10_tri2.yaml) | 25,000 | not run | 0 | 81.4 | not run |  |  |" in block

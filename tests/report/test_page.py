"""report.html: all that was found, in one file that loads nothing, safe against what stands in a record."""

import base64
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cyclical_lr.report import collect as collecting
from cyclical_lr.report import gallery, markup, page
from cyclical_lr.report.collect import Results, collect
from cyclical_lr.report.report import make_report

REPOSITORY = Path(__file__).parents[2]
RESULTS, FIGURES = REPOSITORY / "results", REPOSITORY / "paper_figures"
HOSTILE = "<img src=x onerror=alert(1)>[a=\"b\",c='d',{{ 7 * 7 }}&amp;|`]"
VOID = {"meta", "img", "br", "hr", "link", "input", "source"}


class Parsed(HTMLParser):
    """The page as a browser takes it apart: tags with their attributes, rows of tables, headings, text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.headings, self.rows, self.buttons = [], [], [], 0
        self._open, self._row, self._texts = [], None, []
        self.feed(text)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in VOID:
            return
        self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append([int(tag[1]), ""])
        if tag == "tr":
            self._row = []
        if tag in ("td", "th"):
            self._row.append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "tr":
            self.rows.append([" ".join(text.split()) for text in self._row])

    def handle_data(self, data):
        if "style" in self._open or "script" in self._open:
            return
        self._texts.append(data)
        if "td" in self._open or "th" in self._open:
            self._row[-1] += data
        if self._open and re.fullmatch("h[1-6]", self._open[-1]):
            self.headings[-1][1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self._texts).split())

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def html_of(report, folder, shown=()):
    return page.html(folder, REPOSITORY, report, shown)


@pytest.fixture(scope="module")
def committed(paper):
    """The report on this repository's own results."""
    return make_report(paper, collect(RESULTS))


@pytest.fixture
def some(paper, tmp_path, add_run):
    """Three seeds of the headline, its control, one run of a user's own with a hostile label, one that diverged."""
    for seed in range(3):
        add_run("cifar10_tri2", seed, {0: 10.0, 4_000: 72.0, 16_000: 77.0, 25_000: 81.2 + seed / 10})
        add_run("cifar10_fixed_25k", seed, {0: 10.0, 4_000: 66.0, 16_000: 76.0, 25_000: 79.4 + seed / 10})
    add_run(HOSTILE, 0, {0: 10.0, 7_000: 60.0}, message="</td><script>alert(2)</script>", device="<b>gpu</b>")
    add_run("cifar10_decay", 0, {0: 10.0}, status="diverged")
    shutil.copytree(RESULTS / "benchmarks", tmp_path / "benchmarks")
    return make_report(paper, collect(tmp_path))


# The committed page ---------------------------------------------------------------------------------------------------


def test_the_committed_page_is_what_the_results_give(committed, committed_results):
    """A mismatch means: python scripts/report.py, then commit results/, paper_figures/ and README.md."""
    expected = html_of(committed, RESULTS, page.pictures(gallery.FIGURES.values(), FIGURES))
    found = (RESULTS / "report.html").read_text(encoding="utf-8")
    assert found == expected, "results/report.html is out of date: run python scripts/report.py"


def test_so_are_the_committed_tables_claims_and_runs(committed, committed_results, tmp_path):
    written = [
        collecting.write_runs(tmp_path, committed.results),
        *markup.write_tables(tmp_path, committed.paper, committed.tables),
        markup.write_claims(tmp_path, committed.paper, committed.results, committed.verdicts),
    ]
    for path in written:
        committed_file = committed_results / path.relative_to(tmp_path)
        assert committed_file.read_bytes() == path.read_bytes(), f"{committed_file}: run python scripts/report.py"


def test_the_committed_page_is_under_5_mb_and_holds_every_figure():
    size = (RESULTS / "report.html").stat().st_size
    assert 50_000 < size < 5_000_000
    images = [a["src"] for tag, a in Parsed((RESULTS / "report.html").read_text()).tags if tag == "img"]
    shown = {base64.b64decode(src.removeprefix("data:image/png;base64,")) for src in images}
    known = {f"{entry.file}.png" for entry in gallery.FIGURES.values()}
    assert shown == {file.read_bytes() for file in FIGURES.glob("*.png") if file.name in known}


def test_every_link_of_the_committed_page_leads_somewhere(committed):
    parsed = Parsed(html_of(committed, RESULTS))
    links = [href for href in parsed.attributes("href") if "://" not in href]
    ids = parsed.attributes("id")
    assert len(ids) == len(set(ids))
    assert any(not href.startswith("#") for href in links)
    for href in links:
        if href.startswith("#"):
            assert href[1:] in ids or href == "#fig01", href
        else:
            assert (RESULTS / href.partition("#")[0]).exists(), href


# What it holds --------------------------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_anywhere(some, tmp_path):
    text = html_of(some, tmp_path, page.pictures(gallery.FIGURES.values(), FIGURES))
    parsed = Parsed(text)
    assert parsed.attributes("src") and all(
        src.startswith("data:image/png;base64,") for src in parsed.attributes("src")
    )
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in parsed.tags}
    assert all(tag == "a" for tag, attributes in parsed.tags if "href" in attributes)
    for loader in ("url(", "@import", "fetch(", "XMLHttpRequest", "import("):
        assert loader not in text
    (policy,) = [a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")


def test_every_claim_stands_there_with_its_text_place_and_verdict(some, tmp_path):
    parsed = Parsed(html_of(some, tmp_path))
    ids = parsed.attributes("id")
    assert len(some.verdicts) == len(some.paper.claims) > 80
    for verdict in some.verdicts:
        assert ids.count(verdict.id) == 1
        text = " ".join(verdict.claim["text"].split())
        assert f"{verdict.finding.text} {text} {verdict.id} · {verdict.claim['place']}" in parsed.text
    assert "expected within [80.80, 81.80]" in parsed.text


def test_every_row_of_every_table_stands_there(some, tmp_path):
    rows = [[text for text in row if text] for row in Parsed(html_of(some, tmp_path)).rows]
    for name, frame in some.tables.items():
        shown = markup.presented(some.paper, name, frame)
        assert len(shown)
        if name == "time_to_target":  # a claim's stand side by side, below
            shown = shown[shown["section"] == "other runs"]
        for row in shown.drop(columns="section").to_numpy().tolist():
            assert [" ".join(text.split()) for text in row if text] in rows


def test_the_runs_of_a_claim_about_time_stand_side_by_side(some, tmp_path):
    rows = Parsed(html_of(some, tmp_path)).rows
    shown = markup.presented(some.paper, "time_to_target", some.tables["time_to_target"])
    claims = shown[shown["section"] != "other runs"]
    assert len(claims)
    for (section, unit), group in claims.groupby(["section", "unit"]):
        runs = [f"{role}: {run}" for role, run in zip(group["role"], group["run"], strict=True)]
        assert ["target", *runs] in rows, (section, unit)
        for target in (column for column in group.columns if column.endswith(" %")):
            assert [target, *filter(None, group[target])] in rows


def test_every_run_stands_there_with_what_computed_it(some, tmp_path):
    rows = Parsed(html_of(some, tmp_path)).rows
    for record in some.results.records.values():
        (row,) = [row for row in rows if record.run_id in row]
        assert {record.label, str(record.seed), record.status, record.commit[:10], record.started} <= set(row)
    assert ["M1", "<b>gpu</b>", "2", "reference", "torch 2.11.0"] in rows
    assert ["M2", "a cpu", "2", "reference", "torch 2.11.0"] in rows


def test_what_stands_in_a_record_is_text_and_never_markup(some, tmp_path):
    parsed = Parsed(html_of(some, tmp_path))
    assert any(HOSTILE in row for row in parsed.rows)
    assert any("</td><script>alert(2)</script>" in row for row in parsed.rows)
    tags = [tag for tag, _ in parsed.tags]
    assert "img" not in tags and "b" not in tags and tags.count("script") == 1
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)


def test_the_headings_have_one_top_and_skip_no_level(some, tmp_path):
    headings = Parsed(html_of(some, tmp_path)).headings
    levels = [level for level, _ in headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    titles = [title for level, title in headings if level == 2]
    assert len(titles) == len(page.SECTIONS) and titles[0] == "What was found" and titles[-1] == "Deviations"
    assert all(title.strip() for _, title in headings)


def test_the_same_records_give_the_same_bytes(some, paper, tmp_path):
    again = make_report(paper, collect(tmp_path))
    assert html_of(some, tmp_path) == html_of(again, tmp_path)


def test_deviations_and_contradictions_are_rendered_with_links_from_the_page(some, tmp_path):
    text = html_of(some, tmp_path / "results")
    root = os.path.relpath(REPOSITORY, tmp_path / "results")
    assert f'href="{root}/conf/paper/inconsistencies.yaml"' in text
    rows = Parsed(text).rows
    assert ["#", "Caffe or paper", "source", "here", "switch", "effect"] in rows
    count = len(re.findall(r"^\| \d+ \|", (REPOSITORY / "DEVIATIONS.md").read_text(), re.MULTILINE))
    assert count > 30 and sum(row[0].isdecimal() and len(row[0]) < 3 for row in rows) >= count


def test_html_in_markdown_is_text():
    markdown = page.Markdown("..", ["schedules"])
    assert "<script>" not in markdown.line("<script>alert(1)</script> **bold**")
    assert "<strong>bold</strong>" in markdown.line("**bold**")
    assert 'href="../a.md"' in markdown.page("[a](a.md)") and 'href="https://x.y"' in markdown.page("[a](https://x.y)")
    assert 'href="#schedules"' in markdown.line("[a](paper_figures/schedules.png)")
    assert 'href="../paper_figures/fig01.png"' in markdown.line("[a](paper_figures/fig01.png)")  # not drawn
    deviations = markdown.page("# D\n\n## What was, tried\n\n| a |\n|---|\n\n[a](DEVIATIONS.md#what-was-tried)")
    assert 'id="what-was-tried"' in deviations and 'href="#what-was-tried"' in deviations and "<h2>D" in deviations
    assert 'aria-label="What was, tried"' in deviations
    quoted = markdown.page('## A "b"\n\n| a |\n|---|\n')
    assert 'aria-label="A &#34;b&#34;"' in quoted
    assert "javascript:" not in re.sub(r"\[.*", "", str(markdown.page("[a](javascript:alert(1))")))


# Figures, commands, what is missing -----------------------------------------------------------------------------------


def test_figures_are_inlined_and_what_is_not_drawn_is_listed_with_its_command(some, tmp_path):
    first, second, *_ = gallery.FIGURES.values()
    png = (FIGURES / "fig01.png").read_bytes()
    (tmp_path / f"{first.file}.png").write_bytes(png)
    parsed = Parsed(html_of(some, tmp_path, page.pictures([first, second], tmp_path)))
    (image,) = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert base64.b64decode(image["src"].partition(",")[2]) == png
    assert image["alt"].startswith(f"{first.title}, ") and first.caption in parsed.text and int(image["width"]) > 300
    assert "1 not drawn" in parsed.text
    assert all(" ".join(entry.command.split()) in parsed.text for entry in (first, second))


def test_every_figure_and_table_says_how_to_make_it_again(some, tmp_path):
    text = Parsed(html_of(some, tmp_path, page.pictures(gallery.FIGURES.values(), FIGURES))).text
    for entry in gallery.FIGURES.values():
        assert entry.command.splitlines()[-1].startswith("python scripts/report.py")
        assert " ".join(entry.command.split()) in text
    assert page.STUDIES.keys() == some.tables.keys()
    for study in {study for studies in page.STUDIES.values() for study in studies}:
        assert (REPOSITORY / "conf" / "study" / f"{study}.yaml").is_file()
        assert f"python scripts/study.py +study={study} seeds=10" in text
    assert "python scripts/run.py -m +experiment=cifar10_tri2,cifar10_fixed 'seed=range(10)'" in text


def test_the_command_of_a_claim_is_one_that_can_be_typed(some):
    parser = OverridesParser.create()
    for verdict in some.verdicts:
        for line in page._command(some.paper, verdict).splitlines():
            _, script, *arguments = shlex.split(line.removeprefix("OMP_NUM_THREADS=1 "))
            assert (REPOSITORY / script).is_file()
            parser.parse_overrides([argument for argument in arguments if argument != "-m"])
    (bf16,) = [verdict for verdict in some.verdicts if verdict.id == "precision_tri2"]
    assert page._command(some.paper, bf16).splitlines() == [
        "python scripts/run.py -m +experiment=cifar10_tri2 'seed=range(10)' trainer=cpu_bf16",
        "python scripts/run.py -m +experiment=cifar10_tri2 'seed=range(10)'",
    ]


def test_without_a_run_the_page_says_so_everywhere(paper, tmp_path):
    parsed = Parsed(html_of(make_report(paper, Results({}, {}, ())), tmp_path))
    assert "0 runs so far." in parsed.text and "No run yet." in parsed.text
    ours = sum(verdict["source"] == "paper" for verdict in paper.claims)
    assert f"{ours} not run" in parsed.text


def test_files_that_were_left_out_are_counted(paper, tmp_path):
    text = Parsed(html_of(make_report(paper, Results({}, {}, ("a", "b"))), tmp_path)).text
    assert "incomplete 2 of the files in the results could not be used" in text
    assert "incomplete" not in Parsed(html_of(make_report(paper, Results({}, {}, ())), tmp_path)).text

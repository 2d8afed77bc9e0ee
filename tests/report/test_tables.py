"""Tables and claims from files to text."""

import io
import math
import re

import cards
import pandas as pd
import pytest

from cyclical_lr.report import latex, markup, study_figures, tables, verdicts, wording
from cyclical_lr.report.collect import Results, collect
from cyclical_lr.report.statistics import Interval

NONE = Results({}, {}, ())


def tri2(last):
    return {0: 10.0, 16_000: 77.0, 22_000: 80.0, 24_000: 80.5, 25_000: last}


@pytest.fixture
def headline(tmp_path, add_run):
    """Three seeds of the paper's headline, a bf16 one, a control, and a user's own schedule."""
    for seed in range(3):
        add_run("cifar10_tri2", seed, tri2(81.2 + seed / 10))
    add_run("cifar10_tri2[precision=bf16]", 0, tri2(81.0), precision="bf16")
    add_run("cifar10_tri2[schedule=Welch(base_lr=0.001)]", 0, {**tri2(82.0), 30_000: 83.0})
    add_run("cifar10_fixed_25k", 0, tri2(79.4))
    add_run("custom[0123456789ab]", 0, {0: 10.0, 7_000: 60.0})
    return collect(tmp_path)


def rows_of(frame, **values):
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame.to_dict("records")


def make(paper, results):
    return tables.make_tables(paper, results, verdicts.decide(paper, results))


# ---- Tables ----------------------------------------------------------------------------------------------------------


def test_without_runs_every_row_of_the_paper_is_there_and_says_not_run(paper):
    made = make(paper, NONE)
    assert list(made) == ["budget", "cost", "table1", "table2", "table3", "table4", "text", "time_to_target"]
    counts = {"table1": 14, "table2": 3, "table3": 12 + 5, "table4": 24, "text": 6}
    for name, count in counts.items():
        of_paper = made[name][made[name]["section"] == "paper"]
        assert len(of_paper) == count
        assert set(made[name]["verdict"]) == {"not run"}
        assert set(made[name]["n"]) == {0}
    assert set(made["table1"]["section"]) == {"paper", "controls"}
    assert made["time_to_target"]["median"].isna().all() and len(made["time_to_target"]) == (4 + 3) * 6 * 2


def test_a_row_has_ours_the_papers_the_difference_and_the_verdict(paper, headline):
    (row,) = rows_of(make(paper, headline)["table1"], label="cifar10_tri2")
    assert (row["section"], row["iterations"], row["n"]) == ("paper", 25_000, 3)
    assert row["verdict"] == "reproduced (preliminary)"
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((81.3, 81.3 - half, 81.3 + half), abs=1e-6)
    assert row["best"] == pytest.approx(81.3)
    assert (row["paper"], row["difference"]) == pytest.approx((81.4, -0.1))
    assert 4.302653 * 0.1 * math.sqrt(4 / 3) < 0.5  # half of the interval is at least that
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((-0.6, 0.4), abs=1e-6)


def test_a_bf16_run_is_a_row_of_its_own_right_after_the_float32_one(paper, headline):
    frame = make(paper, headline)["table1"]
    labels = frame["label"].tolist()
    at = labels.index("cifar10_tri2")
    assert labels[at + 1] == "cifar10_tri2[precision=bf16]" and labels.count("cifar10_tri2[precision=bf16]") == 1
    row = frame.iloc[at + 1]
    assert (row["section"], row["n"], row["mean"], row["verdict"]) == ("bf16", 1, 81.0, "no verdict (bf16)")
    assert row["paper"] == 81.4 and row["difference"] == pytest.approx(-0.4)


def test_controls_stand_in_table_1_at_every_iteration_that_a_claim_names(paper, headline):
    frame = make(paper, headline)["table1"]
    (row,) = rows_of(frame, section="controls", label="cifar10_fixed_25k")
    assert (row["iterations"], row["mean"], row["n"]) == (25_000, 79.4, 1)
    assert [row["iterations"] for row in rows_of(frame, label="cifar10_tri_no_drops")] == [
        *(12_000, 20_000, 24_000, 25_000),
    ]
    assert [row["iterations"] for row in rows_of(frame, label="cifar10_tri")] == [12_000, 16_000, 25_000]


def test_a_users_own_run_shows_up_below_at_the_papers_iteration_and_at_its_end(paper, headline):
    made = make(paper, headline)
    frame = made["table1"]
    others = [(row["label"], row["iterations"], row["mean"]) for row in rows_of(frame, section="other runs")]
    assert others == [
        ("cifar10_tri2[schedule=Welch(base_lr=0.001)]", 25_000, 82.0),
        ("cifar10_tri2[schedule=Welch(base_lr=0.001)]", 30_000, 83.0),
        ("custom[0123456789ab]", 7_000, 60.0),
    ]
    assert frame["section"].tolist()[-3:] == ["other runs"] * 3
    for name in ("table3", "table4", "text"):
        assert rows_of(made[name], section="other runs") == []
    timed = rows_of(made["time_to_target"], label="cifar10_tri2[schedule=Welch(base_lr=0.001)]", target=80)
    assert [(row["role"], row["unit"], row["median"]) for row in timed] == [
        *(("other run", "iterations", 22_000), ("other run", "train_seconds", 1_100)),
    ]


def test_every_label_is_in_some_table(paper, tmp_path, add_run):
    expected = {
        "cifar10_adam_tri[seed_all=1]": ["table3"],
        "cifar10_adam_tri_staged": ["table3"],
        "cifar100_resnet_clr": ["table4"],
        "cifar100_resnet_clr[iterations=5]": ["table4"],
        "cifar10_bn_clr": ["text"],
        "cifar10_bn_clr[x=1]": ["text"],
        "mine": ["table1"],
        "mine[x=1]": ["table1"],
        "cifar10_fixed_25k[precision=bf16]": ["table1"],
    }
    for label in expected:
        add_run(label, 0, tri2(50.0))
    made = make(paper, collect(tmp_path))
    for label, place in expected.items():
        assert [name for name in tables.DESCRIBED_BY if rows_of(made[name], label=label, n=1)] == place


def test_the_end_of_a_range_test_is_no_accuracy(paper, tmp_path, add_run):
    ramp = {"_target_": "cyclical_lr.schedules.RangeTest", "base_lr": 0.0, "max_lr": 0.02, "stepsize": 4000}
    add_run("mine", 0, tri2(50.0), config={"schedule": ramp})
    add_run("yours", 0, tri2(50.0))
    made = make(paper, collect(tmp_path))
    assert {row["label"] for row in rows_of(made["table1"], section="other runs")} == {"yours"}
    assert set(made["time_to_target"]["label"]) & {"mine", "yours"} == {"yours"}


def test_a_class_of_a_users_own_has_no_networks_targets_and_is_no_reason_to_fail(paper, tmp_path, add_run):
    for number, target in enumerate(("Net", "cifar10_full.Net", "my.cifar10_full.Net")):
        add_run(f"mine{number}", 0, tri2(81.0), config={"model": {"_target_": target}})
    assert not {"mine0", "mine1", "mine2"} & set(make(paper, collect(tmp_path))["time_to_target"]["label"])


def test_table_4_is_read_at_the_end_and_judged_against_a_mean_of_five(paper, tmp_path, add_run):
    for seed in range(10):
        add_run("cifar10_resnet_clr", seed, {0: 10.0, 64_000: 93.0 + 0.4 * (seed % 2) * 2})  # mean 93.4, s = 0.42
    (row,) = rows_of(make(paper, collect(tmp_path))["table4"], label="cifar10_resnet_clr")
    half = 2.262157 * 0.421637 * math.sqrt(1 / 5 + 1 / 10)
    assert (row["iterations"], row["n"], row["verdict"]) == (64_000, 10, "reproduced")
    assert row["difference_low"] == pytest.approx(-0.2 - half, abs=1e-5)


def test_diverged_and_unmeasured_runs_are_remarked_on(paper, tmp_path, add_run):
    add_run("cifar10_decay", 0, {0: 10.0}, status="diverged")
    add_run("cifar10_exp", 4, {0: 10.0, 60_000: 78.0})
    add_run("custom[ab]", 0, {}, status="diverged")
    frame = make(paper, collect(tmp_path))["table1"]
    (decay,), (exp,) = rows_of(frame, label="cifar10_decay"), rows_of(frame, label="cifar10_exp")
    assert (decay["verdict"], decay["remarks"]) == ("no verdict (n = 0)", "1 diverged")
    assert (exp["verdict"], exp["remarks"]) == ("no verdict (n = 0)", "not evaluated at 70,000: seed 4")
    (custom,) = rows_of(frame, label="custom[ab]")
    assert (custom["section"], custom["n"], custom["remarks"]) == ("other runs", 0, "1 diverged")


def phase(start, base_lr, max_lr, stepsize):
    return {"start": start, "schedule": {"base_lr": base_lr, "max_lr": max_lr, "stepsize": stepsize}}


@pytest.mark.parametrize(("max_lr", "verdict"), [(0.005, "same"), (0.006, "differs")])
def test_table_2_sets_the_phases_that_ran_beside_the_papers(paper, tmp_path, add_run, max_lr, verdict):
    phases = [phase(0, 0.001, max_lr, 2000), phase(16_000, 1e-4, 5e-4, 1000), phase(22_000, 1e-5, 5e-5, 500)]
    run = {"model": {"_target_": "a.b.C"}, "data": {"name": "cifar10"}, "iterations": 25_000, "seed": 0}
    config = {**run, "schedule": {"phases": phases}}
    add_run("cifar10_tri2", 0, tri2(81.0), config=config)
    frame = make(paper, collect(tmp_path))["table2"]
    assert frame["verdict"].tolist() == [verdict, "same", "same"]
    assert frame["ours_max_lr"].tolist() == [max_lr, 5e-4, 5e-5]
    assert frame["ours_max_iter"].tolist() == [16_000, 22_000, 25_000]
    assert frame["mean"].tolist() == [77.0, 80.0, 81.0]


def test_seconds_from_different_machines_are_remarked_on(paper, tmp_path, add_run):
    add_run("cifar10_tri2", 0, tri2(81.0))
    add_run("cifar10_fixed", 0, tri2(79.0), device="a gpu")
    frame = make(paper, collect(tmp_path))["time_to_target"]
    seconds = rows_of(frame, claim="table1_tri2_time_to_target", unit="train_seconds")
    said = "seconds from 2 kinds of device, threads, engine or layers, which do not compare"
    assert {row["remarks"] for row in seconds} == {said}
    assert set(frame[frame["unit"] == "iterations"]["remarks"]) == {""}


def test_seconds_from_different_machines_have_no_speed_up(paper, tmp_path, add_run):
    fast, slow = ({0: 10.0, 2000: first, 4000: 77.0, 6000: 77.0} for first in (77.0, 60.0))
    for seed in range(2):
        add_run("cifar10_tri2", seed, fast)
        add_run("cifar10_fixed", seed, slow, device="a gpu")
        add_run("cifar10_fixed_25k", seed, slow)
    frame = make(paper, collect(tmp_path))["time_to_target"]
    found = {
        (row["label"], row["unit"]): row["speed_up"]
        for row in rows_of(frame, claim="table1_tri2_time_to_target", target=76)
    }
    assert math.isnan(found["cifar10_fixed", "train_seconds"])
    assert found["cifar10_fixed", "iterations"] == found["cifar10_fixed_25k", "train_seconds"] == 2
    write(tmp_path, paper, collect(tmp_path))
    text = (tmp_path / "tables" / "time_to_target.md").read_text()
    assert "| cifar10_fixed | B | seconds of training | 200 (2/2) |" in text


def test_an_infinite_speed_up_has_its_interval_where_it_is_not_certain():
    assert wording.speed_up(math.inf, Interval(0.0, math.inf)) == "infinite [0.00, inf]"
    assert wording.speed_up(math.inf, Interval(math.inf, math.inf)) == "infinite [inf, inf]"


@pytest.mark.parametrize(("seconds", "said"), [(1250.0, ""), (1500.0, "50 to 60 ms an iteration")])
def test_how_far_the_time_of_an_iteration_differs_between_runs_stands_beside_seconds(
    paper, tmp_path, add_run, seconds, said
):
    add_run("cifar10_tri2", 0, tri2(81.0), train_seconds=1250.0)
    add_run("cifar10_fixed", 0, tri2(79.0), train_seconds=seconds)
    frame = make(paper, collect(tmp_path))["time_to_target"]
    rows = rows_of(frame, claim="table1_tri2_time_to_target", unit="train_seconds")
    assert {row["remarks"] for row in rows} == {said}


def test_a_control_that_nothing_is_compared_with_has_a_row_where_its_claim_is_read(paper, tmp_path, add_run):
    add_run("cifar10_sigmoid_fixed", 0, {0: 10.0, 60_000: 54.6})
    frame = make(paper, collect(tmp_path))["table1"]
    named = {label for claim in paper.claims for label in claim.get("controls", [])}
    shown = {label for table in make(paper, collect(tmp_path)).values() if "label" in table for label in table["label"]}
    assert named <= shown
    (run,) = rows_of(frame, label="cifar10_sigmoid_fixed")
    (missing,) = rows_of(frame, label="cifar10_tri_no_drops_ss3000")
    assert (run["section"], run["iterations"], run["mean"]) == ("controls", 60_000, 54.6)
    assert (missing["section"], missing["iterations"], missing["verdict"]) == ("controls", 24_000, "not run")


def test_seconds_of_one_label_on_different_machines_are_remarked_on_where_no_claim_reads_them(paper, tmp_path, add_run):
    add_run("cifar10_decay", 0, tri2(81.0))
    add_run("cifar10_decay", 1, tri2(81.0), device="a gpu")
    frame = make(paper, collect(tmp_path))["time_to_target"]
    remarks = {unit: set(rows["remarks"]) for unit, rows in frame[frame["label"] == "cifar10_decay"].groupby("unit")}
    (spacing,) = remarks["iterations"]
    assert spacing.startswith("evaluated every")
    said = "seconds from 2 kinds of device, threads, engine or layers, which do not compare"
    assert remarks["train_seconds"] == {f"{spacing}; {said}"}


# ---- Text ------------------------------------------------------------------------------------------------------------


def write(folder, paper, results):
    decided = verdicts.decide(paper, results)
    written = markup.write_tables(folder, paper, tables.make_tables(paper, results, decided))
    return [*written, markup.write_claims(folder, paper, results, decided)]


def test_everything_is_written_with_the_same_bytes_every_time(paper, headline, tmp_path):
    first = {path: path.read_bytes() for path in write(tmp_path, paper, headline)}
    assert {path.relative_to(tmp_path).as_posix() for path in first} == {
        "claims.md",
        "tables/table1_controls.tex",
        *(f"tables/table{number}.{ending}" for number in (1, 2, 3, 4) for ending in ("csv", "md", "tex")),
        *(
            f"tables/{name}.{ending}"
            for name in ("budget", "cost", "text", "time_to_target")
            for ending in ("csv", "md", "tex")
        ),
    }
    again = write(tmp_path, paper, collect(tmp_path))
    assert {path: path.read_bytes() for path in again} == first
    assert all(text.endswith(b"\n") and b"\r" not in text for text in first.values())


def test_a_csv_reads_back_as_the_table(paper, headline, tmp_path):
    write(tmp_path, paper, headline)
    for name, frame in make(paper, headline).items():
        read = pd.read_csv(tmp_path / "tables" / f"{name}.csv", keep_default_na=False, na_values=[""])
        assert list(read.columns) == list(frame.columns) and len(read) == len(frame)
        for column in frame.select_dtypes("number"):
            expected = frame[column].astype(float).tolist()
            assert read[column].astype(float).tolist() == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_markdown_shows_each_section_and_the_verdict(paper, headline, tmp_path):
    write(tmp_path, paper, headline)
    text = (tmp_path / "tables" / "table1.md").read_text()
    assert re.findall(r"^#+ .*", text, re.MULTILINE)[0].startswith("# Table 1")
    row = "| cifar10_tri2 | 81.30 [81.05, 81.55] | 3 | 81.4 | reproduced (preliminary) | -0.10 [-0.60, +0.40] | 81.30 |"
    assert row in text
    assert "| cifar10_tri2[precision=bf16] | 81.00 (no interval) | 1 |" in text
    assert "| imagenet_alexnet_fixed |  | 0 | 58.0 | not run |" in text
    assert "## other runs" in text and "| cifar10_tri2[schedule=Welch(base_lr=0.001)] | 83.00" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_latex_has_as_many_cells_in_each_line_and_no_bare_special_character(paper, headline, tmp_path):
    write(tmp_path, paper, headline)
    names = {path.name for path in (tmp_path / "tables").glob("*.tex")}
    assert names == {f"{name}.tex" for name in (*markup.TITLES, "table1_controls")}
    for name in names:
        text = (tmp_path / "tables" / name).read_text()
        title, caption, needs, *_ = text.splitlines()
        if name != "table1_controls.tex":
            assert title == f"% {markup.TITLES[name.removesuffix('.tex')]}"
        assert re.fullmatch(r"% \\caption\{.+\.\}", caption) and "array,booktabs,graphicx" in needs
        assert text.endswith("\\bottomrule\n\\end{tabular}}%\n}%\n")  # no space that widens a line
        assert "Welch" not in text  # neither the paper's nor a control
        boxes = text.split(r"\noindent\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%")[1:]
        assert (len(boxes) > 1) <= ("too long for a float" in needs)
        for box in boxes:
            ((columns, body),) = re.findall(
                r"\\begin\{tabular\}\{@\{\}(.+)@\{\}\}\n(.+)\\end\{tabular\}", box, re.DOTALL
            )
            count = len(re.sub(r">\{.+?\}p\{[\d.]+em\}", "p", columns))
            lines = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
            assert 0 < len(lines) <= latex.LINES_OF_A_PAGE + 1
            for line in lines:
                assert len(re.findall(r"(?<!\\)&", line)) == count - 1, line
                assert not re.search(r"(?<!\\)[_%#]", line)
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_a_latex_table_longer_than_a_page_is_cut_between_rows():
    rows = [
        {"section": section, "run": f"r{i}", "n": "3"} for section, count in (("a", 3), ("b", 90)) for i in range(count)
    ]
    text = latex.latex("t", pd.DataFrame(rows))
    assert "too long for a float" in text
    boxes = text.split("\n\\par\\medskip\n")
    runs = [re.findall(r"\{\}r(\d+) & 3", box) for box in boxes]
    assert [(of[0], of[-1], len(of)) for of in runs] == [
        *(("0", "2", 3), ("0", "23", 24), ("24", "47", 24), ("48", "71", 24), ("72", "89", 18)),
    ]
    names = [re.findall(r"emph\{(.+)\}\}", box) for box in boxes]
    assert names == [["a"], ["b"], *[["b (continued)"]] * 3]
    assert all(box.count(r"{}run & n \\") == 1 for box in boxes)
    specs = {re.search(r"tabular\}\{@\{\}(.+)@\{\}\}", box)[1] for box in boxes}
    assert len(specs) == 1 and "p{" in specs.pop()  # one below the other, with the same columns
    short = latex.latex("t", pd.DataFrame(rows[:20]))
    assert short.count("resizebox") == 1 and "too long" not in short and short.count("emph") == 2


def test_latex_has_the_controls_apart_and_what_fits_a_page(paper, headline, tmp_path):
    write(tmp_path, paper, headline)
    rows, controls = ((tmp_path / "tables" / f"table1{end}.tex").read_text() for end in ("", "_controls"))
    assert r"dataset & architecture & policy & iterations & ours~[95~\% interval] & n & paper & verdict" in rows
    assert r"\emph{bf16}" in rows and r"\emph{controls}" not in rows and "best so far" not in rows
    assert r"\emph{controls}" in controls and r"cifar10\_\allowbreak{}fixed\_25k" in controls
    times = (tmp_path / "tables" / "time_to_target.tex").read_text()
    assert r"{}run & role & target & iterations (reached/runs) & speed-up of A~[95~\%] \\" in times
    assert " & 80.5~\\% & " in times and "not run" not in times
    of_one_claim = times.split(r"\emph{")[1].count(r"{}cifar10\_\allowbreak{}tri2 & A & 76~\%")
    assert of_one_claim == 1  # in iterations alone
    assert times.count(r"\addlinespace") == times.count(r"\emph{") - 1 > 0


def test_rows_that_wrap_count_as_the_lines_that_they_take():
    rows = [{"section": "a", "run": f"r{i}", "remarks": "many words " * 20} for i in range(30)]
    boxes = latex.latex("t", pd.DataFrame(rows)).split("resizebox")[1:]
    counts = [box.count("{}r") - 1 for box in boxes]
    assert sum(counts) == 30 and 2 < max(counts) < 12
    assert latex.latex("t", pd.DataFrame(rows[:8])).count("resizebox") == 1


def test_columns_of_a_latex_table_are_natural_until_a_row_is_too_long():
    def columns(*cells: str) -> list[str]:
        shown = pd.DataFrame([{"section": "s", **{f"{number}": cell for number, cell in enumerate(cells)}}])
        (found,) = re.findall(r"tabular\}\{@\{\}(.+)@\{\}\}", latex.latex("t", shown))
        return re.findall(r">\{.+?\}p\{[\d.]+em\}|[lr]", found)

    interval = "80.74 [80.57, 80.90]"
    assert columns(interval, "10", "1e-05", "-0.5", "word " * 3) == ["l", "r", "r", "r", "l"]
    first, second, third = columns(interval, "word " * 7, "word " * 90)
    assert (first, second) == ("l", "l")  # a number and its interval are not torn apart
    assert "raggedright" in third and 20 < float(third[third.index("p{") + 2 : -3]) < latex.DIGITS / 2
    spec = columns(f"label[{'a_name=0.1,' * 40}]", "of " * 80)
    widths = [float(each[each.index("p{") + 2 : -3]) for each in spec]
    assert sum(widths) <= latex.DIGITS / 2 and min(widths) > 20
    # What cannot be broken keeps its width: the row is scaled down then.
    assert columns(*["unbreakable" * 3] * 5) == ["l"] * 5


@pytest.mark.parametrize(
    ("title", "row", "said"),
    [
        ("Table 1: x (%)", {"n": "2"}, r"Smith's Table~1: x (\%)."),
        ("Controls beside Table 1: x", {"a": "2"}, "Controls beside Smith's Table~1: x."),
        (
            "t",
            {"ours [95 % interval]": "81.00 (no interval)", "n": "1", "remarks": "mid-cycle (3 at 4)"},
            r"t. Ours: the mean over n seeds and its~95~\% t interval. Mid-cycle: read between two ends of cycles, "
            "where the LR is not at its lowest.",
        ),
    ],
)
def test_a_latex_table_suggests_a_caption(title, row, said):
    text = latex.latex(title, pd.DataFrame([{"section": "s", **row}]))
    assert text.splitlines()[1] == f"% \\caption{{{said}}}"


def test_special_characters_are_escaped():
    shown = pd.DataFrame([{"section": "a_b", "x": r"50 % & #1 $ {\} ~ ^ < | " + '"'}])
    expected = (
        r"{}50~\% \& \#1 \$ \{\textbackslash{}\} \textasciitilde{} \textasciicircum{} \textless{} "
        r"\textbar{} \char34{} \\"
    )
    assert expected in latex.latex("t", shown)
    assert r"| a\|b |" in markup.markdown("t", pd.DataFrame([{"section": "s", "x": "a|b"}]))


def test_signs_are_mathematics_in_latex():
    shown = pd.DataFrame(
        [{"section": "s", "x": "-0.51 [-2.21, +1.19]", "y": "x2.06 [1.83, 2.19]", "z": "5e-05, mid-1"}]
    )
    assert r"{}$-$0.51~[$-$2.21,~+1.19] & $\times$2.06~[1.83,~2.19] & 5e-05, mid-1 \\" in latex.latex("t", shown)
    numbers = pd.DataFrame([{"section": "s", "x": "5e-05", "y": "0.001 - 0.006", "z": "82.1 (no interval)"}])
    assert r"{}$5\cdot10^{-5}$ & 0.001--0.006 & 82.1~(no~interval) \\" in latex.latex("t", numbers)


def test_time_to_target_shows_misses_and_undefined_ratios(paper, tmp_path, add_run):
    for seed in range(2):
        add_run("cifar10_tri2", seed, {0: 10.0, 2000: 77.0, 4000: 79.5, 6000: 79.5})
        add_run("cifar10_fixed", seed, {0: 10.0, 2000: 60.0, 4000: 77.0, 6000: 77.0})
        add_run("cifar10_fixed_25k_matched", seed, {0: 10.0, 2000: 77.0, 4000: 80.0, 6000: 80.0})
    write(tmp_path, paper, collect(tmp_path))
    text = (tmp_path / "tables" / "time_to_target.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("| run"))
    assert header == "| run | role | unit | 76 % | 78 % | 79 % | 80 % | 80.5 % | 81 % |"
    b = next(line for line in text.splitlines() if "| cifar10_fixed | B | iterations |" in line)
    assert (
        "| 4,000 (2/2); x2.00 [2.00, 2.00] | never (0/2); infinite [inf, inf] | never (0/2); infinite [inf, inf] |" in b
    )
    assert "| never (0/2); undefined |" in b
    assert "| cifar10_fixed_25k | beside | iterations | not run |" in text
    beside = next(line for line in text.splitlines() if "| cifar10_fixed_25k_matched | beside | iterations |" in line)
    assert "| 4,000 (2/2); x0 (not reached by the median of A) [0.00, 0.00] | never (0/2); undefined |" in beside


# ---- Claims ----------------------------------------------------------------------------------------------------------


def test_every_claim_is_one_line_with_its_verdict(paper, headline, tmp_path):
    write(tmp_path, paper, headline)
    text = (tmp_path / "claims.md").read_text()
    for claim in paper.claims:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{claim['id']}`")]
        assert " ".join(claim["text"].split()).replace("|", r"\|") in line and claim["place"] in line
    (line,) = [line for line in text.splitlines() if line.startswith("| `table1_tri2`")]
    assert "cifar10_tri2 81.30 at 25,000 (n = 3); paper 81.4, expected within [80.80, 81.80]" in line
    assert "**reproduced (preliminary)**" in line


def test_a_claim_says_what_its_controls_are_and_what_they_decided(paper, tmp_path, add_run):
    for seed in range(3):
        add_run("cifar10_tri2", seed, tri2(81.2 + seed / 10))
        add_run("cifar10_fixed", seed, {**tri2(76.0), 70_000: 81.2 + seed / 10})
        add_run("cifar10_fixed_25k", seed, tri2(81.2 + seed / 10))
    add_run("cifar10_fixed_25k", 3, {0: 10.0}, status="diverged")
    write(tmp_path, paper, collect(tmp_path))
    lines = (tmp_path / "claims.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("| `table1_tri2_equals_fixed`")]
    controls = line.split(" | ")[-1]
    assert "cifar10_fixed_25k 81.30 at 25,000 (n = 3, 1 diverged)" in controls
    assert "cifar10_tri2_no_drops not run" in controls
    assert "`control_tri2_equals_fixed_25k` inconclusive (preliminary)" in controls
    assert "`control_section31_25k`" not in controls
    # t = 0.5 / sqrt(2 * 0.01 / 3) = 6.12 with 4 degrees of freedom: p = 0.0018; five of the family have a p-value.
    assert "difference +0.00 [-0.17, +0.17] (90%); p = 0.0018, Holm = 0.009" in line


def test_a_claim_that_is_read_in_mid_cycle_says_what_there_is_where_cycles_end(paper, tmp_path, add_run):
    schedule = cards.plan("cifar10_exp_range")["schedule"]
    for seed in range(3):
        rows = {0: 10.0, 40_000: 81.0, 42_000: 79.0 + seed / 10, 44_000: 81.5}
        add_run("cifar10_exp_range", seed, rows, config={"schedule": schedule})
    results = collect(tmp_path)
    (verdict,) = [each for each in verdicts.decide(paper, results) if each.id == "table1_exp_range"]
    there = "mid-cycle (81.00 at 40,000 and 81.50 at 44,000, where cycles end)"
    told = markup.our_numbers(paper, results, verdict)
    assert told.startswith(f"cifar10_exp_range 79.10 at 42,000 (n = 3, {there}); paper 82.2, expected within [")


def test_the_head_counts_the_papers_claims_alone(paper, headline):
    page = markup.claims_page(paper, headline, verdicts.decide(paper, headline))
    (counted,) = re.findall(r"^Of the paper's claims: (.*)\.$", page, re.MULTILINE)
    numbers = {text: int(count) for count, text in (part.split(" ", 1) for part in counted.split(", "))}
    assert sum(numbers.values()) == sum(claim["source"] == "paper" for claim in paper.claims)
    assert numbers["reproduced (preliminary)"] == 1


def test_a_table_without_rows_is_still_a_table(paper):
    empty = tables.accuracy_table(paper, NONE, "table3").iloc[:0]
    shown = markup.presented(paper, "table3", empty)
    assert markup.markdown("t", shown) == "# t\n" and "toprule" in latex.latex("t", shown)
    assert pd.read_csv(io.StringIO(empty.to_csv(index=False))).empty


def test_levels_that_titles_name_are_the_rules(paper):
    assert paper.rule("time_to_target")["bootstrap"]["confidence"] == paper.rule("number")["confidence"] == 0.95
    assert "nominal 95 %" in markup.TITLES["time_to_target"]
    assert "95 % prediction interval, else 90 %" in study_figures.FIGURES["verdicts"].caption
    assert paper.rule("equal")["interval"] == 1 - 2 * paper.rule("greater")["alpha"] == 0.90

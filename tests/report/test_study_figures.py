"""This study's own figures."""

import re
from pathlib import Path

import cards
import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from matplotlib.colors import to_hex

from cyclical_lr.report import arms, collect, cycles, figures, forest, study_figures, verdicts
from cyclical_lr.report.collect import Results
from cyclical_lr.report.report import Report

CONF = Path(__file__).parents[2] / "conf"
NOTHING = Results({}, {}, ())
WITH_RUNS = ["verdicts", "training_time", "controls", "porting_mistakes", "later_policies"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def draw(paper, tmp_path):
    """A figure of this study from what add_run has written."""

    def drawn(name: str):
        results = collect.collect(tmp_path)
        assert results.problems == ()
        return study_figures.draw(name, Report(paper, results, verdicts.decide(paper, results), tables={}), CONF)

    return drawn


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(plt.Text))


def assert_no_text_leaves(figure) -> None:
    figure.draw_without_rendering()
    room, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(room.x0, room.y0) > -0.01 and room.x1 < width + 0.01 and room.y1 < height + 0.01


def test_there_is_a_caption_and_a_command_that_exists_for_each():
    assert list(study_figures.FIGURES) == ["schedules", *WITH_RUNS]
    assert study_figures.command("schedules") == "python scripts/report.py figures=[schedules]"
    for name in WITH_RUNS:
        for command in study_figures.command(name).splitlines():
            study = re.fullmatch(r"python scripts/study\.py \+study=(\w+) seeds=10", command)[1]
            assert (CONF / "study" / f"{study}.yaml").is_file()


@pytest.mark.parametrize("name", WITH_RUNS)
def test_without_any_run_a_figure_gives_the_command_for_them(name, paper):
    with pytest.raises(figures.MissingRuns, match=r"has no run yet: python scripts/study\.py \+study="):
        study_figures.draw(name, Report(paper, NOTHING, [], {}), CONF)


# ---- Schedules -------------------------------------------------------------------------------------------------------


def test_the_schedules_need_no_run_and_have_their_corners_at_cycle_ends_and_drops(paper):
    figure = study_figures.draw("schedules", Report(paper, NOTHING, [], {}), CONF)
    for axes, (label, (title, _)) in zip(figure.axes, study_figures.SCHEDULES.items(), strict=True):
        assert axes.get_title(loc="left") == title
        schedule, iterations = arms.schedule_of(CONF, label)
        t, lr = axes.lines[0].get_xydata().T
        assert t[0] == 0 and t[-1] == iterations - 1  # the LR at the end is of no update
        assert lr == pytest.approx(schedule(t.astype(int)), abs=0)
        breaks = [*cycles.cycle_ends(schedule, iterations - 1), *cycles.drops(schedule, iterations)]
        assert {*breaks, *(b - 1 for b in breaks)} <= {*t.astype(int)}
    assert_no_text_leaves(figure)


# ---- Verdicts --------------------------------------------------------------------------------------------------------


def test_a_row_of_the_forest_plot_is_ours_minus_the_papers_with_its_interval_and_the_colour_of_its_verdict(
    add_run, draw, paper, tmp_path
):
    for seed, accuracy in enumerate((79.9, 80.0, 80.1)):
        add_run("cifar10_tri2", seed, {0: 10.0, 25_000: accuracy})
    (verdict,) = [
        each for each in verdicts.decide(paper, collect.collect(tmp_path)) if each.claim["id"] == "table1_tri2"
    ]
    assert verdict.finding.verdict == "not reproduced"  # 81.4 in the paper
    axes = draw("verdicts").axes[0]
    row = dict(zip((label.get_text() for label in axes.get_yticklabels()), axes.get_yticks(), strict=True))["tri2"]
    (marker,) = [line for line in axes.lines if line.get_xydata().tolist() == [[pytest.approx(-1.4), row]]]
    assert to_hex(marker.get_color()).upper() == arms.VERMILLION
    (bar,) = [line for line in axes.lines if line.get_xydata()[:, 1].tolist() == [row, row]]
    ends = verdict.finding.interval
    assert bar.get_xdata().tolist() == pytest.approx([*ends])
    assert ends.low < -1.4 < ends.high
    assert "-1.40 (3)" in texts(axes.figure)
    bands = [band.get_paths()[0].get_extents() for band in axes.collections]
    assert [band.x1 for band in bands if band.y0 < row < band.y1] == [0.5]  # the rule's floor


def test_families_are_headed_by_the_papers_names(add_run, draw):
    add_run("cifar10_tri2", 0, {0: 10.0, 4_000: 73.0, 6_000: 71.0, 25_000: 80.6})
    names = [label.get_text() for label in draw("verdicts").axes[0].get_yticklabels()]
    assert names == ["Table 1", "tri2", "Figure 1: its shape", "tri2 dips at lr peak"]


def test_too_few_seeds_are_shown_hollow_and_what_has_no_row_is_counted(add_run, draw, paper):
    add_run("cifar10_tri2", 0, {0: 10.0, 25_000: 80.6})
    add_run("cifar10_fixed_25k", 0, {0: 10.0, 25_000: 80.1})
    figure = draw("verdicts")
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["Table 1", "tri2", "Controls of this study", "tri2 equals fixed 25k", "tri2 beats fixed 25k"]
    markers = [line for line in axes.lines if line.get_marker() in forest.MARKERS.values()]
    assert [line.get_xdata()[0] for line in markers] == pytest.approx([-0.8, 0.5, 0.5])
    assert {line.get_markerfacecolor() for line in markers} == {"white"}
    others = len(paper.claims) - 3
    assert f"{others} more claims are not run, or measure something else" in " ".join(texts(figure).split())


def test_a_preliminary_verdict_is_half_filled_and_one_read_in_mid_cycle_is_marked(add_run, draw):
    config = {"schedule": cards.plan("cifar10_exp_range")["schedule"]}
    for seed in range(3):
        values = {40_000: 81.4, 42_000: 79.6 + seed / 10, 44_000: 81.5}
        add_run("cifar10_exp_range", seed, {0: 10.0, **values}, config=config)
    for seed in range(10):
        add_run("cifar10_tri2", seed, {0: 10.0, 25_000: 80.6 + seed / 100})
    figure = draw("verdicts")
    markers = [line for line in figure.axes[0].lines if line.get_marker() in forest.MARKERS.values()]
    assert [line.get_fillstyle() for line in markers] == ["full", "bottom"]
    assert "-2.50 (3) (✗)†" in texts(figure) and "-0.76 (10) ✗\n" in texts(figure)


def test_a_difference_beyond_the_axis_stands_at_its_edge_with_its_value(add_run, draw):
    for label, accuracy in (("cifar10_bn_clr", 72.0), ("cifar10_bn_fixed", 60.0)):
        for seed in range(3):
            add_run(label, seed, {0: 10.0, 60_000: accuracy + seed / 10})
    figure = draw("verdicts")
    assert figure.axes[0].get_xlim() == (-6, 6)
    assert "+12.00 (3) (✓) →" in texts(figure)
    assert max(line.get_xdata().max() for line in figure.axes[0].lines if line.get_marker() == ">") == 6


def test_an_interval_that_goes_on_beyond_the_axis_is_marked_there(add_run, draw):
    for seed, accuracy in enumerate((76.0, 80.0, 84.0)):
        add_run("cifar10_tri2", seed, {0: 10.0, 25_000: accuracy})
    (axes, *_) = draw("verdicts").axes
    marked = {line.get_marker(): line.get_xdata()[0] for line in axes.lines if isinstance(line.get_marker(), int)}
    assert marked == dict(zip((forest.CARETLEFT, forest.CARETRIGHT), axes.get_xlim(), strict=True))


def test_every_claim_with_accuracies_has_a_row_and_no_text_leaves_the_plot(add_run, draw, paper):
    claims = [claim for claim in paper.claims if claim["rule"] in forest.MARKERS]
    at: dict[str, set[int]] = {}
    for each in (operand for claim in claims for operand in claim["operands"]):
        at.setdefault(each["experiment"], {0}).add(each["iteration"])
    for k, (label, iterations) in enumerate(at.items()):
        add_run(label, 0, {t: 70.0 + k % 7 + t / 100_000 for t in sorted(iterations)})
    figure = draw("verdicts")
    left, right = ([label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes)
    assert abs(len(left) - len(right)) <= 2 and right[0].endswith(" (continued)")  # a family that is cut
    rows = len(left) + len(right) - len({claim["family"] for claim in claims}) - 1
    assert rows == len(claims)
    assert figure.get_figheight() < 10  # inches: it fits a page
    assert_no_text_leaves(figure)


def test_no_column_of_the_forest_plot_ends_with_a_heading():
    rows = [str(k) for k in range(forest.ROWS + 1)]  # headings alone
    left, right = forest._columns(rows)
    assert (left, right) == (rows[:30], rows[30:])
    assert forest._columns(rows[1:]) == [rows[1:]]


# ---- Training time ---------------------------------------------------------------------------------------------------


def test_training_time_is_in_minutes_and_comes_from_one_kind_of_machine_which_it_names(add_run, draw):
    for label in ("cifar10_tri2", "cifar10_exp"):
        end = 25_000 if label == "cifar10_tri2" else 70_000
        for seed in range(2):
            add_run(label, seed, {0: 10.0, 4_000: 70.0, 12_000: 76.0, end: 80.0}, threads=4)
    add_run("cifar10_exp", 2, {0: 10.0, 4_000: 0.0, 12_000: 76.0, 70_000: 0.0}, threads=1)
    figure = draw("training_time")
    assert "Timed on a cpu, 4 threads, reference engine, torch layers." in texts(figure).replace("\n", " ")
    assert "1 run is left out" in texts(figure).replace("\n", " ")
    (clr,) = [line for line in figure.axes[0].lines if line.get_label().startswith("CLR")]
    assert clr.get_label().endswith("(n = 2)")
    minutes = [0.05 * t / 60 for t in (0, 4_000, 12_000, 25_000)]
    assert clr.get_xydata() == pytest.approx(np.column_stack([minutes, [10, 70, 76, 80]]))
    dots = [line.get_xdata() for line in figure.axes[0].lines if line.get_gid() == "cycle ends"]
    assert [len(each) for each in dots] == [4 + 3 + 3, 0]  # Table 2's phases; exp has no cycle
    assert dots[0][0] == pytest.approx(0.05 * 4_000 / 60)
    assert "Not run:" in texts(figure)
    assert_no_text_leaves(figure)


# ---- Controls --------------------------------------------------------------------------------------------------------


def test_every_control_has_a_row_with_its_mean_or_says_that_it_was_not_run(add_run, draw):
    for seed, accuracy in enumerate((80.0, 81.0)):
        add_run("cifar10_tri2", seed, {0: 10.0, 16_000: 78.0, 25_000: accuracy})
        add_run("cifar10_fixed_25k[schedule.base_lr=0.002]", seed, {0: 10.0, 25_000: accuracy - 1})
    add_run("cifar10_decay", 0, {0: 10.0, 1_000: 5.0}, status="diverged")
    figure = draw("controls")
    rows = [cell for cells in study_figures.CONTROLS.values() for cell in cells]
    assert "80.50  n = 2" in texts(figure) and "1 diverged" in texts(figure)
    assert texts(figure).split("\n").count("not run") == len(rows) - 2
    _, constant, ends = figure.axes
    seeds = [line.get_xydata().tolist() for line in constant.lines if line.get_marker() == "o"]
    assert seeds == [[[0.002, 79.0], [0.002, 80.0]]]
    stars = {(x, y) for line in ends.lines if line.get_marker() == "*" for x, y in line.get_xydata().tolist()}
    names = [label.get_text() for label in ends.get_yticklabels()]
    assert {(accuracy, names[int(y)]) for accuracy, y in stars} == {
        *((81.4, "CLR, drops"), (78.5, "decay, no drops"), (81.4, "fixed, 70k"), (82.2, "exp_range, 42k: LR peak")),
        *((81.4, f"no phases, {where}") for where in ("24k: cycle end", "25k: mid-cycle")),
        *((82.2, name) for name in ("amplitude alone falls", *(f"stepsize {n}" for n in ("1,000", "1,500", "3,000")))),
    }
    assert_no_text_leaves(figure)


def test_every_control_of_the_study_has_a_place_in_the_figure():
    listed = yaml.safe_load((CONF / "study" / "controls.yaml").read_text())["experiments"]
    shown = {label for cells in study_figures.CONTROLS.values() for label, _, _ in cells}
    assert {line.replace(" data.shuffle=true", "[data.shuffle=True]") for line in listed} <= shown


# ---- Ends alone ------------------------------------------------------------------------------------------------------


def test_a_mistake_stands_beside_the_faithful_port(add_run, draw):
    add_run("cifar10_tri2", 0, {0: 10.0, 25_000: 80.0})
    with pytest.raises(figures.MissingRuns):  # it was run for Table 1
        draw("porting_mistakes")
    add_run("cifar10_tri2[model.lrn=none]", 0, {0: 10.0, 25_000: 70.0})
    add_run("cifar10_tri2[model.init=torch]", 0, {0: 10.0, 1_000: 5.0}, status="diverged")
    figure = draw("porting_mistakes")
    (axes,) = figure.axes
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    bars = {(line.get_xdata()[0], names[int(line.get_ydata()[0])]) for line in axes.lines if line.get_marker() == "|"}
    assert bars == {(80.0, "as Caffe has it"), (70.0, "no LRN")}
    assert texts(figure).split("\n").count("not run") == 10 and "1 diverged" in texts(figure)
    assert_no_text_leaves(figure)


def test_an_end_far_below_the_others_is_an_arrow_at_the_border(add_run, draw):
    for name, accuracy in (("", 80.0), ("[model.lrn=none]", 78.0), ("[data.mean=channel]", 10.0)):
        add_run(f"cifar10_tri2{name}", 0, {0: 10.0, 25_000: accuracy})
    figure = draw("porting_mistakes")
    (axes,) = figure.axes
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    (arrows,) = [line for line in axes.lines if line.get_marker() == "<"]
    assert axes.get_xlim() == (77.0, 81.0) and list(arrows.get_xdata()) == [77.0]
    assert [names[int(y)] for y in arrows.get_ydata()] == ["channel means"]
    assert "10.00  n = 1" in texts(figure)
    assert_no_text_leaves(figure)

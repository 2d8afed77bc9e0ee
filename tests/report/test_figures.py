"""The paper's figures: what is on them, from many runs, from two, from none; and the files that they are saved to."""

import math
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from PIL import Image

from cyclical_lr.records import CurveRow, write_curve
from cyclical_lr.report import arms, collect, figures, paper_figures
from cyclical_lr.report.collect import Results
from cyclical_lr.report.paper import read_paper
from cyclical_lr.report.report import Report

CONF = Path(__file__).parents[2] / "conf"
PAPER = read_paper(CONF / "paper")
NOTHING = Results({}, {}, ())
WITH_ARMS = [number for number, figure in paper_figures.FIGURES.items() if figure.arms]
DRAWN_ALONE = [1, 2, 3]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def run_all(add_run, tmp_path):
    """Two seeds of each arm of a figure, evaluated twenty times on the way to the end of its lab card."""

    def run(labels: tuple[str, ...], seeds: tuple[int, ...] = (0, 1)) -> Results:
        for label in labels:
            schedule, iterations = arms.schedule_of(CONF, label)
            at = np.linspace(0, iterations, 21, dtype=int).tolist()
            lrs = dict(zip(at, np.asarray(schedule(np.array(at))).tolist(), strict=True))
            for seed in seeds:
                accuracies = {t: min(10 + seed + 7.0 * k, 80.0 + seed) for k, t in enumerate(at)}
                add_run(label, seed, accuracies, lrs)
        results = collect.collect(tmp_path)
        assert results.problems == ()
        return results

    return run


def draw(number: int, results: Results):
    return paper_figures.draw(number, Report(PAPER, results, verdicts=[], tables={}), CONF)


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(plt.Text))


def lines(figure, gid: str):
    return [line for line in figure.axes[0].lines if line.get_gid() == gid]


# ---- Many runs, two, none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", WITH_ARMS)
def test_every_figure_shows_all_its_arms_and_no_text_leaves_it(number, run_all):
    figure = draw(number, run_all(paper_figures.FIGURES[number].arms))
    assert texts(figure).count("(n = 2)") == len(paper_figures.FIGURES[number].arms)
    assert "not run" not in texts(figure)
    figure.draw_without_rendering()
    room, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(room.x0, room.y0) > -0.01 and room.x1 < width + 0.01 and room.y1 < height + 0.01


def test_a_figure_says_which_of_its_arms_were_not_run(add_run, tmp_path):
    for label in ("cifar10_tri2", "cifar10_fixed_25k"):
        add_run(label, 0, {0: 10.0, 16_000: 78.0, 25_000: 80.5})
    figure = draw(1, collect.collect(tmp_path))
    assert texts(figure).count("(n = 1)") == 2
    assert "fixed, drops at 60k and 65k (not run)" in texts(figure)
    assert texts(figure).count("not run") == 2


def test_figure_1_has_the_runs_of_caffe_itself_where_there_are_some(add_run, tmp_path):
    add_run("cifar10_tri2", 0, {0: 10.0, 25_000: 80.5})
    assert "Caffe itself" not in texts(draw(1, collect.collect(tmp_path)))
    (tmp_path / "caffe").mkdir()
    for seed in (1, 2):
        ends = ((0, 10.0), (25_000, 81.0 + seed))
        rows = [CurveRow(t, 0.001, math.nan, 1.0, accuracy, math.nan) for t, accuracy in ends]
        write_curve(tmp_path / "caffe" / f"cifar10_tri2-{seed}.csv", rows)
    figure = draw(1, collect.collect(tmp_path))
    assert texts(figure).count("Caffe itself (n = 2)") == 1
    assert [line.get_ydata()[-1] for line in figure.axes[0].lines if line.get_color() == "black"] == [82.0, 83.0]


def test_a_name_stands_for_its_label_or_where_there_is_none_for_all_of_its_experiment(add_run, tmp_path):
    for label in ("mine", "mine[seed=1]", "other[x=1]", "other[x=2]", "third"):
        add_run(label, 0, {0: 10.0, 25_000: 80.0})
    results = collect.collect(tmp_path)
    assert {run.label for run in figures.named(results, {"mine", "other"})} == {"mine", "other[x=1]", "other[x=2]"}
    assert [run.label for run in figures.named(results, {"mine[seed=1]"})] == ["mine[seed=1]"]


def test_a_figure_grows_with_its_legend(add_run, tmp_path, recwarn):
    for number in range(24):
        add_run(f"mine[x={number}]", 0, {0: 10.0, 25_000: 80.0})
    results = collect.collect(tmp_path)
    runs = [(run, results.curves[run.run_id]) for run in results.records.values()]
    figure = figures.accuracy_and_lr(runs, "Many")
    figure.draw_without_rendering()
    assert all(axes.get_position().height * figure.get_figheight() > 0.6 for axes in figure.axes)
    assert not [warning for warning in recwarn if "constrained_layout" in str(warning.message)]


def test_a_notebooks_own_figures_stay_on_its_screen():
    program = "import matplotlib as m; m.use('svg'); import cyclical_lr.report.figures; print(m.get_backend())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "svg"


@pytest.mark.parametrize("number", paper_figures.FIGURES)
def test_without_any_run_a_figure_shows_the_papers_curve_or_gives_its_command(number):
    if number in DRAWN_ALONE:
        assert draw(number, NOTHING).axes
        return
    with pytest.raises(figures.MissingRuns) as missing:
        draw(number, NOTHING)
    assert str(missing.value) == f"Figure {number} has no run yet: {paper_figures.command(number)}"


@pytest.mark.parametrize("number", WITH_ARMS)
def test_the_command_of_a_figure_names_a_study_or_lab_cards_that_exist_and_runs_its_arms(number):
    command, drawn = paper_figures.command(number), paper_figures.FIGURES[number].arms
    if studies := re.findall(r"python scripts/study\.py \+study=(\w+) seeds=10", command):
        files = [CONF / "study" / f"{study}.yaml" for study in studies]
        assert set(drawn) <= {arm for file in files for arm in yaml.safe_load(file.read_text())["experiments"]}
        assert len(studies) == len(command.splitlines())
    else:
        named = re.fullmatch(r"python scripts/run\.py (?:-m )?\+experiment=([\w,]+)", command)
        assert named and tuple(named[1].split(",")) == drawn
        assert ("-m " in command) == (len(drawn) > 1)
        for label in drawn:
            assert (CONF / "experiment" / f"{label}.yaml").is_file()


def test_there_is_a_caption_and_a_command_for_each_of_the_thirteen_figures():
    assert list(paper_figures.FIGURES) == list(range(1, 14))
    assert all(figure.caption.endswith(".") for figure in paper_figures.FIGURES.values())
    assert paper_figures.command(2) == "python scripts/report.py figures=[2]"


# ---- What is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "x"), [(1, "iteration"), (3, "lr"), (7, "lr")])
def test_the_papers_points_are_drawn_where_they_were_digitised(number, x, run_all):
    results = run_all(paper_figures.FIGURES[number].arms[:1], seeds=(0,))
    drawn = lines(draw(number, results), "digitised")
    curves = yaml.safe_load((CONF / "paper" / f"figure{number}.yaml").read_text())["curves"]
    assert [line.get_xydata().tolist() for line in drawn] == [
        [[point[x], point["accuracy"]] for point in curve["points"]] for curve in curves
    ]


@pytest.mark.parametrize(
    ("number", "numbers"),
    [
        (1, {(25_000, 81.4), (70_000, 81.4), (70_000, 79.1)}),
        (4, {(42_000, 82.2), (70_000, 79.1)}),
        (10, {(300_000, 56.0), (460_000, 56.5), (300_000, 56.5)}),
    ],
)
def test_the_numbers_of_the_papers_table_1_stand_at_their_iterations(number, numbers, run_all):
    results = run_all(paper_figures.FIGURES[number].arms[:1], seeds=(0,))
    drawn = lines(draw(number, results), "tables")
    assert {(t, accuracy) for line in drawn for t, accuracy in line.get_xydata().tolist()} == numbers


def test_numbers_that_the_paper_gives_no_iteration_for_stand_at_none(run_all):
    figure = draw(6, run_all(("cifar10_bn_clr",), seeds=(0,)))
    assert not lines(figure, "tables")
    assert "paper: 72.2 %" in " ".join(texts(figure).split())


@pytest.mark.parametrize(("number", "x_limits", "y_limits"), [(1, (0, 70_000), (20, 85)), (3, (0, 0.02), (10, 60))])
def test_the_axes_are_the_papers(number, x_limits, y_limits):
    axes = draw(number, NOTHING).axes[0]
    assert axes.get_xlim() == x_limits and axes.get_ylim() == y_limits


def test_a_line_is_the_mean_over_the_seeds_and_its_band_their_range_where_all_were_evaluated(add_run, tmp_path):
    add_run("cifar10_exp", 0, {0: 10.0, 1_000: 60.0, 70_000: 78.0})
    add_run("cifar10_exp", 1, {0: 12.0, 500: 1.0, 1_000: 63.0, 70_000: 77.0})
    add_run("cifar10_exp", 2, {0: 11.0, 1_000: 66.0, 70_000: 79.0})
    add_run("cifar10_exp", 3, {0: 9.0, 1_000: 5.0}, status="diverged")
    axes = draw(4, collect.collect(tmp_path)).axes[0]
    (line,) = [line for line in axes.lines if line.get_label().startswith("exp:")]
    assert line.get_label().endswith("(n = 3, 1 diverged)")
    assert line.get_xydata().tolist() == [[0, 11], [1_000, 63], [70_000, 78]]
    assert "range of the seeds" in texts(axes.figure)
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(0, 10), (0, 12), (1_000, 60), (1_000, 66), (70_000, 77), (70_000, 79)}


def test_of_a_users_runs_those_that_are_done_are_drawn_and_the_others_counted(add_run, tmp_path):
    whole = {"compress": 1}
    add_run("mine", 0, {0: 10.0, 1000: 50.0, 2000: 60.0}, config=whole)
    add_run("mine", 1, {0: 10.0, 1000: 52.0}, status="diverged", config=whole)
    add_run("yours", 0, {}, status="failed", config=whole)
    results = collect.collect(tmp_path)
    figure = figures.accuracy_and_lr([(run, results.curves[id_]) for id_, run in results.records.items()], "Mine")
    (line, nothing) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [0, 1000, 2000] and not len(nothing.get_xdata())
    assert "mine (n = 1, 1 diverged)" in texts(figure) and "yours (n = 0, 1 failed)" in texts(figure)
    assert "range of the seeds" not in texts(figure)
    add_run("mine", 2, {0: 10.0, 1000: 51.0, 2000: 61.0}, config=whole)
    results = collect.collect(tmp_path)
    figure = figures.accuracy_and_lr([(run, results.curves[id_]) for id_, run in results.records.items()], "Mine")
    assert "range of the seeds" in texts(figure)


def test_one_seed_has_no_band(add_run, tmp_path):
    add_run("cifar10_exp", 0, {0: 10.0, 70_000: 78.0})
    figure = draw(4, collect.collect(tmp_path))
    assert not figure.axes[0].collections and "range of the seeds" not in texts(figure)


def test_dots_mark_the_cycle_ends_that_were_reached_and_dotted_lines_the_drops(add_run, tmp_path):
    add_run("cifar10_tri2", 0, {t: t / 1_000 for t in range(0, 25_001, 1_000)})
    figure = draw(1, collect.collect(tmp_path))
    (dots,) = lines(figure, "cycle ends")
    ends = [4_000, 8_000, 12_000, 16_000, 18_000, 20_000, 22_000, 23_000, 24_000, 25_000]
    assert dots.get_xydata().tolist() == [[t, t / 1_000] for t in ends]
    # The fixed policy's drops are marked too: the paper's digitised curve has them.
    assert [line.get_xdata()[0] for line in lines(figure, "drops")] == [16_000, 22_000, 60_000, 65_000]


def test_a_range_test_that_diverged_is_drawn_to_where_it_got_and_counted(run_all, add_run, tmp_path):
    ramp = {"_target_": "cyclical_lr.schedules.RangeTest", "base_lr": 0.0, "max_lr": 0.02, "stepsize": 4_000}
    network = {"_target_": "cyclical_lr.models.cifar10_full.Cifar10Full"}
    add_run(
        "cifar10_range_test", 0, {0: 10.0, 200: 20.0, 400: 30.0}, {0: 0.0, 200: 0.001, 400: 0.002}, status="diverged",
        iterations=500, config={"schedule": ramp, "model": network, "data": {"name": "cifar10"}, "iterations": 4_000},
    )  # fmt: skip
    figure = draw(3, collect.collect(tmp_path))
    assert "ours (n = 0, 1 diverged)" in texts(figure)
    assert [line.get_xydata().tolist() for line in lines(figure, "diverged")] == [[[0.002, 30.0]]]


def test_the_bounds_of_the_paper_and_of_this_studys_rules_are_both_named(run_all):
    figure = draw(3, run_all(("cifar10_range_test",)))
    assert "the paper's: base_lr 0.001; max_lr 0.006" in texts(figure)
    said = " ".join(texts(figure).split()).partition("this study's: ")[2].partition(" the paper's")[0]
    named = dict(re.findall(r"(base_lr|max_lr by \w+) (none|0\.\d+)", said))
    assert list(named) == ["base_lr", "max_lr by plateau", "max_lr by raggedness", "max_lr by drop"]
    dashed = [line for line in figure.axes[0].lines if (line.get_color(), line.get_linestyle()) == (arms.BLUE, "--")]
    drawn = [line.get_xdata()[0] for line in dashed if len(line.get_xdata())]
    assert drawn == [pytest.approx(float(lr), rel=1e-3) for lr in named.values() if lr != "none"] and drawn


def test_what_two_runs_have_in_common_is_drawn_once(add_run, tmp_path):
    """A run without drops goes on as one of 70,000, and until its drops the one in phases is the same."""
    whole = {t: 10.0 + t / 1_000 for t in range(0, 70_001, 1_000)}
    add_run("cifar10_adam_tri", 0, {t: accuracy for t, accuracy in whole.items() if t <= 25_000})
    add_run("cifar10_adam_tri_70k", 0, whole)
    add_run("cifar10_adam_tri_staged", 0, {t: a + (t > 16_000) for t, a in whole.items() if t <= 25_000})
    axes = draw(5, collect.collect(tmp_path)).axes[0]
    drawn = {line.get_label(): line.get_xdata() for line in axes.lines if len(line.get_xdata()) > 2}
    spans = [(drawn[f"{arms.ARMS[name].name} (n = 1)"][[0, -1]]).tolist() for name in (
        "cifar10_adam_tri", "cifar10_adam_tri_70k", "cifar10_adam_tri_staged"
    )]  # fmt: skip
    assert spans == [[0, 25_000], [25_000, 70_000], [16_000, 25_000]]
    (of_70k,) = [
        line.get_xdata() for line in axes.lines
        if line.get_gid() == "cycle ends" and line.get_color() == arms.ARMS["cifar10_adam_tri_70k"].colour
    ]  # fmt: skip
    assert min(of_70k) >= 25_000 and max(of_70k) == 68_000


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_a_saved_figure_does_not_show_the_last_digits_of_its_layouts_solver(tmp_path):
    figure = draw(3, NOTHING)
    drawn = [axes.get_position().bounds for axes in figure.axes]
    figures.save(figure, tmp_path, "fig03")
    saved = [axes.get_position().bounds for axes in figure.axes]
    assert saved != drawn and figure.axes  # it has been laid out
    assert saved == [pytest.approx([round(float(x), 6) for x in bounds], rel=0, abs=1e-12) for bounds in saved]


def test_a_saved_picture_has_a_palette_that_keeps_a_rare_colour_and_its_resolution(tmp_path):
    figure, axes = plt.subplots(figsize=(3, 3))
    axes.imshow(np.linspace(0, 1, 64 * 64).reshape(64, 64), cmap="viridis")
    axes.plot(32, 32, marker="*", ms=5, color=arms.VERMILLION)
    _, png = figures.save(figure, tmp_path, "rare")
    picture = Image.open(png)
    wanted = [int(arms.VERMILLION[at : at + 2], 16) for at in (1, 3, 5)]
    away = np.abs(np.asarray(picture.convert("RGB")).astype(int) - wanted).max(axis=2)
    assert picture.mode == "P" and picture.info["dpi"] == pytest.approx((200, 200), abs=0.01)
    assert away.min() < 20


def test_a_figure_is_saved_as_the_same_bytes_with_embedded_fonts_and_no_time(tmp_path):
    written = [
        [path.read_bytes() for path in figures.save(draw(3, NOTHING), tmp_path / name, "fig03")]
        for name in ("once", "twice")
    ]
    assert written[0] == written[1]
    assert [path.name for path in sorted((tmp_path / "once").iterdir())] == ["fig03.pdf", "fig03.png"]
    pdf, png = written[0]
    assert pdf.startswith(b"%PDF") and png.startswith(b"\x89PNG")
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert not any(word in pdf for word in (b"CreationDate", b"ModDate"))
    assert not any(word in png for word in (b"tIME", b"Software", b"Creation Time"))

"""scripts/report.py as a process: what it writes, what it leaves alone, how it names what it could not use."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT, README = REPOSITORY / "scripts" / "report.py", REPOSITORY / "README.md"


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def own(tmp_path, add_run):
    """A results folder of one's own: two runs, a half-written record, a foreign file."""
    config = {
        "model": {"_target_": "cyclical_lr.models.cifar10_full.Cifar10Full"},
        "schedule": {"_target_": "cyclical_lr.schedules.Fixed", "base_lr": 0.001},
        "data": {"name": "cifar10"},
        "iterations": 25_000,
        "compress": 1,
    }
    add_run("cifar10_tri2", 0, {0: 10.0, 16_000: 77.0, 25_000: 81.2}, config=config)
    add_run("mine[x=1]", 0, {0: 10.0, 25_000: 60.0}, config=config)
    (tmp_path / "runs" / "0123456789ab.json").write_text('{"run_id": "0123')
    (tmp_path / "runs" / "notes.txt").write_text("")
    return tmp_path


def test_a_folder_of_ones_own_gets_a_report_inside_and_what_is_broken_is_named(own):
    before = {path: path.read_bytes() for path in (README, *(REPOSITORY / "paper_figures").iterdir())}
    (own / "figures").mkdir()
    (own / "figures" / "fig10.png").write_bytes(b"of runs that are no more")
    shown = run(f"results_dir={own}", "figures=[2,10]", "title=Mine")
    assert shown.returncode == 1
    assert "Traceback" not in shown.stderr, shown.stderr
    skipped = [line for line in shown.stderr.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2 and "0123456789ab.json" in skipped[0] and "notes.txt" in skipped[1]
    assert "2 runs in" in shown.stdout and "not drawn: Figure 10 has no run yet" in shown.stdout
    assert sorted(path.name for path in (own / "figures").iterdir()) == [
        *("curves.pdf", "curves.png", "fig02.pdf", "fig02.png"),
    ]
    html = (own / "report.html").read_text()
    assert "mine[x=1]" in html and "2 of the files" in html and html.count("data:image/png;base64,") == 2
    assert (own / "runs.csv").is_file() and (own / "claims.md").is_file() and (own / "tables" / "table1.md").is_file()
    assert {path: path.read_bytes() for path in before} == before
    assert "fontTools" not in shown.stdout and len(shown.stdout.splitlines()) < 40


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["figures=[2,99]"], "error: figures: expected some of [1, 2, 3"),
        (["figures=1"], "error: figures: expected a list such as figures=[a,b], got 1"),
        (["figures=[true]"], "error: figures: expected some of"),
        (["figures=[]", "readme=none.md"], "error: readme: expected a file with <!-- results -->"),
        (["figures=[]", "page=/proc/page.html"], "error: /proc"),
        (["figures=[]", "experiments=mine"], "error: experiments: expected a list"),
        (["figures=[]", "experiments=[mine]"], "error: experiments: expected title= beside it"),
        (["+typo=1"], "error: typo: there is no such key"),
        (["typo=1"], "error: typo: there is no such key"),
        (["results_dir=nowhere"], "error: results_dir: expected a folder with records in runs/, got 'nowhere'"),
        (["results_dir=null"], "error: results_dir: expected a folder with records in runs/, got None"),
    ],
)
def test_unusable_input_is_refused_with_a_sentence(own, arguments, said):
    shown = run(*(arguments if arguments[0].startswith("results_dir=") else [f"results_dir={own}", *arguments]))
    assert shown.returncode == 2 and said in shown.stderr and "Traceback" not in shown.stderr


def test_help_explains_every_key():
    shown = run("--help")
    assert shown.returncode == 0
    for key in ("results_dir", "figures", "figures_dir", "page", "readme", "title"):
        assert f"{key}=" in shown.stdout
    assert "schedules, verdicts, training_time, controls" in shown.stdout

"""A user's own schedules: built, checked, identified, labelled and reported like the paper's, without touching code."""

import json
import math
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small_runs
import yaml
from omegaconf import OmegaConf
from small_runs import CONF, REPOSITORY, SAMPLE, TINY, Forked, records_in, run_script

from cyclical_lr import records
from cyclical_lr.records import ConfigError
from cyclical_lr.report import figures, tables
from cyclical_lr.report.collect import collect
from cyclical_lr.report.paper import read_paper
from cyclical_lr.report.verdicts import decide
from cyclical_lr.training.config import check, compose_config, describe, label, plain
from cyclical_lr.training.run import run

STUDY = REPOSITORY / "scripts" / "study.py"
UNUSABLE = 2
MODULE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Sawtooth:
    base_lr: float
    max_lr: float
    period: int

    def __call__(self, t):
        return self.max_lr - (self.max_lr - self.base_lr) * (t % self.period) / self.period
"""
CARD = """
# @package _global_
defaults:
  - override /schedule: own
  - _self_
experiment: my_sawtooth
iterations: 25000
schedule: {_target_: my_schedules.Sawtooth, base_lr: 0.001, max_lr: 0.005, period: 2000}
"""


# Schedules of the user's, good and bad --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frozen:
    base_lr: float
    max_lr: float
    period: int = 2000

    def __call__(self, t):
        return sawtooth(t, self.base_lr, self.max_lr, self.period)


@dataclass
class Thawed:
    base_lr: float
    max_lr: float
    period: int = 2000
    __call__ = Frozen.__call__


class Plain:
    def __init__(self, base_lr, max_lr, period=2000):
        self.base_lr, self.max_lr, self.period = base_lr, max_lr, period

    __call__ = Frozen.__call__


class Triangular2(Plain):
    """Named like one of the package's."""


def sawtooth(t, base_lr, max_lr, period=2000):
    return max_lr - (max_lr - base_lr) * (t % period) / period


def factory(base_lr, max_lr, period=2000):
    return lambda t: sawtooth(t, base_lr, max_lr, period)


def negative(t):
    return 0.001 - 0.0005 * t


def nan_at_7(t):
    return np.where(t == 7, math.nan, 0.001)


def imaginary(t):
    return t * 1j


def infinite(t):
    return np.where(t == 7, math.inf, 0.001)


def a_constant(t):
    return 0.001


def too_short(t):
    return np.full(len(t) - 1, 0.001)


def one_at_a_time(t):
    return 0.001 if t < 5 else 0.0005


def raises_at_9(t):
    if np.any(t == 9):
        raise RuntimeError("the cat sat on the cable")
    return 0.001 + 0 * t


def chance(t):
    return np.random.default_rng().random(len(t))


def by_length(t):
    return 0.001 * (1 - t / t.max())


class Refuses:
    def __init__(self):
        raise RuntimeError("not today")


class NotCallable:
    pass


@pytest.fixture(scope="module")
def headline():
    """The config of the paper's headline, whose schedule the tests replace."""
    return plain(compose_config(CONF, ["+experiment=cifar10_tri2"]))


@pytest.fixture(scope="module")
def tiny():
    """The config of a tiny run."""
    return plain(
        compose_config(CONF, [*TINY, "schedule=own", "schedule._target_=mine", "iterations=12", "eval_every=6"])
    )


def node(target, **arguments):
    return {"_target_": f"test_own_schedule.{target}", **arguments}


def train(tiny, folder, schedule):
    where = {"results_dir": f"{folder}/results", "runs_dir": f"{folder}/runs"}
    return run(OmegaConf.create({**tiny, **where, "schedule": schedule}), CONF)


# Identity and label ---------------------------------------------------------------------------------------------------


def named(headline, schedule):
    """The run's label and its config."""
    config = describe({**headline, "schedule": schedule}, 0)
    return records.label("cifar10_tri2", config, describe(headline, 0)), config


@pytest.mark.parametrize("target", ["Frozen", "Thawed", "Plain", "factory", "sawtooth"])
def test_any_kind_of_callable_is_checked_identified_labelled_and_gives_its_lrs(headline, target):
    arguments = {"base_lr": 0.001, "max_lr": 0.005} | ({"_partial_": True} if target == "sawtooth" else {})
    check({**headline, "schedule": node(target, **arguments)})
    label, config = named(headline, node(target, **arguments))
    assert label == f"cifar10_tri2[schedule=test_own_schedule.{target}(base_lr=0.001,max_lr=0.005)]"
    same_label, same = named(headline, node(target, **arguments, period=2000))  # at its default
    assert same_label == label and records.run_id(same) == records.run_id(config)
    other_label, other = named(headline, node(target, **arguments, period=1000))
    assert other_label == label.replace(")]", ",period=1000)]") and records.run_id(other) != records.run_id(config)
    lrs = records.learning_rates(config)
    assert lrs.shape == (25_001,) and lrs[[0, 1000, 1999, 2000]] == pytest.approx([0.005, 0.003, 0.001002, 0.005])


def test_a_class_named_like_one_of_the_packages_has_a_label_of_its_own(headline):
    theirs = {"_target_": "cyclical_lr.schedules.Triangular2", "base_lr": 0.001, "max_lr": 0.005, "stepsize": 2000}
    label, config = named(headline, theirs)
    assert label == "cifar10_tri2[schedule=Triangular2(base_lr=0.001,max_lr=0.005,stepsize=2000)]"
    assert "lr_sha256" not in config  # ids of the package's schedules rest on names and arguments alone
    assert "=test_own_schedule.Triangular2(" in named(headline, node("Triangular2", base_lr=0.001, max_lr=0.005))[0]


def test_a_schedule_whose_code_was_changed_is_another_run_under_the_same_label(headline, monkeypatch):
    ours = node("Frozen", base_lr=0.001, max_lr=0.005)
    (label, before), nested = (
        named(headline, ours),
        {"_target_": "cyclical_lr.schedules.Held", "schedule": ours, "every": 5},
    )
    (_, held) = named(headline, nested)
    monkeypatch.setattr(Frozen, "__call__", lambda self, t: sawtooth(t, self.base_lr, self.max_lr) * 1.001)
    label_now, after = named(headline, ours)
    assert label_now == label and records.run_id(after) != records.run_id(before)
    assert records.run_id(named(headline, nested)[1]) != records.run_id(held)


def test_the_last_bits_of_an_lr_in_which_machines_differ_leave_the_id(headline, monkeypatch):
    ours = node("Frozen", base_lr=0.001, max_lr=0.005)
    here = named(headline, ours)[1]["lr_sha256"]
    monkeypatch.setattr(Frozen, "__call__", lambda self, t: sawtooth(t, self.base_lr, self.max_lr) * (1 + 1e-15))
    assert named(headline, ours)[1]["lr_sha256"] == here


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("negative", ["-0.0005 at iteration 3", "at least 0"]),
        ("nan_at_7", ["nan at iteration 7"]),
        ("infinite", ["inf at iteration 7"]),
        ("imaginary", ["real LRs", "complex"]),
        ("a_constant", ["got one float", "13 iterations", "np.full"]),
        ("too_short", ["shape [12]", "13 iterations"]),
        ("one_at_a_time", ["no array", "np.where"]),
        ("raises_at_9", ["raises at iteration 9", "the cat sat on the cable"]),
        ("chance", ["function of the iteration itself"]),
        ("by_length", ["function of the iteration itself", "length"]),
        ("Refuses", ["cannot be built", "not today"]),
        ("NotCallable", ["called with the iteration"]),
        ("Nowhere", ["test_own_schedule.Nowhere", "PYTHONPATH=."]),
    ],
)
def test_a_schedule_that_is_none_is_refused_before_training(tmp_path, tiny, target, named):
    partial = {"_partial_": True} if target.islower() else {}
    with pytest.raises(ConfigError) as caught:
        train(tiny, tmp_path, node(target, **partial))
    assert str(caught.value).startswith(("schedule", "_target_"))
    assert all(text in str(caught.value) for text in [*named, target])
    assert not list(tmp_path.rglob("*.*"))


def test_a_scheduler_of_torchs_is_no_schedule(tmp_path, tiny):
    with pytest.raises(ConfigError, match=r"schedule: expected a function .*CosineAnnealingLR, which steps .* cosine,"):
        train(tiny, tmp_path, {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 4})


def test_a_function_of_the_iteration_without_partial_is_explained(tmp_path, tiny):
    with pytest.raises(ConfigError, match=r"'t'.*schedule\._partial_=true"):
        train(tiny, tmp_path, node("nan_at_7"))
    with pytest.raises(ConfigError, match=r"math\.sin.*schedule\._partial_=true"):  # a function in C
        train(tiny, tmp_path, {"_target_": "math.sin"})


def test_what_a_lab_card_sets_for_its_own_schedule_is_named_with_the_way_to_drop_it():
    cosine = ["schedule=cosine", "schedule.max_lr=0.005", "schedule.iterations=25000"]
    cfg = compose_config(CONF, ["+experiment=cifar10_tri2", *cosine])
    with pytest.raises(ConfigError, match=r"schedule\.phases: .*'~schedule\.phases'"):
        check(plain(cfg))


def study(arguments):
    """`python scripts/study.py ARGUMENTS`"""
    sys.argv = [str(STUDY), *arguments]
    runpy.run_path(str(STUDY), run_name="__main__")


def test_a_study_with_a_schedule_that_is_not_there_says_how_to_find_it_and_trains_nothing(tmp_path):
    write_example(tmp_path)
    arguments = [f"+study={tmp_path}/my_study.yaml", "--config-dir", f"{tmp_path}/my_conf", f"results_dir={tmp_path}/r"]
    code, output = Forked(tmp_path / "out.txt", study, [*arguments, f"runs_dir={tmp_path}/runs", "logger=none"]).ends()
    assert code == UNUSABLE and "my_schedules.Sawtooth" in output and "PYTHONPATH=." in output
    assert not (tmp_path / "r").exists()


def test_a_study_takes_no_experiment_beside_its_own(tmp_path):
    arguments = ["+study=table1_cifar", "+experiment=cifar10_tri2"]
    code, output = Forked(tmp_path / "out.txt", study, arguments).ends()
    assert code == UNUSABLE and "experiment: a study's file lists its own, got cifar10_tri2" in output


@pytest.mark.parametrize("name", ["ünï", "a b", "a,b", "it's"])
def test_a_card_may_have_a_name_that_has_to_be_quoted(tmp_path, tiny, name, monkeypatch):
    (tmp_path / "experiment").mkdir()
    card = (
        "# @package _global_\ndefaults: [override /schedule: fixed, _self_]\nschedule: {base_lr: 0.1}\niterations: 2\n"
    )
    (tmp_path / "experiment" / f"{name}.yaml").write_text(card + f"experiment: {json.dumps(name)}\n")
    monkeypatch.setenv("CYCLICAL_LR_CONF", str(tmp_path))
    quoted = name.replace("'", "\\'")
    plan = plain(compose_config(CONF, [f"+experiment='{quoted}'", *SAMPLE]))
    assert label(plan, CONF) == f"{name}[data.batch_size=4,data=cifar10_sample]"


def test_a_card_whose_name_yaml_reads_as_something_else_is_explained(tiny):
    with pytest.raises(ConfigError, match="experiment: expected the name of a card, got True; write it in quotes"):
        label({**tiny, "experiment": True}, CONF)


def test_a_card_of_the_users_that_cannot_be_used_is_refused_with_the_reason(tmp_path):
    cards = tmp_path / "my_conf" / "experiment"
    cards.mkdir(parents=True)
    card = "# @package _global_\ndefaults: [override /schedule: fixed, _self_]\nexperiment: {}\niterations: {}\n"
    card += "schedule: {{base_lr: 0.1}}\n"

    def refused(name: str, text: str, *overrides: str) -> str:
        (cards / f"{name}.yaml").write_text(text)
        where = [f"results_dir={tmp_path}/r", f"runs_dir={tmp_path}/o"]
        command = ["--config-dir", f"{tmp_path}/my_conf", f"+experiment={name}", *where, *overrides]
        code, output = Forked(tmp_path / f"{name}.txt", run_script, command).ends()
        assert code == UNUSABLE and output.count("\n") == 1, output
        return output

    assert "experiment: there is no card 'elsewhere'" in refused("misnamed", card.format("elsewhere", 9))
    assert "the card 'half' has to be whole by itself" in refused("half", card.format("half", "???"), "iterations=9")
    said = refused("cifar10_tri2", card.format("cifar10_tri2", 9))
    assert f"--config-dir: {cards}/cifar10_tri2.yaml would never be read" in said and "rename it" in said
    assert not (tmp_path / "r").exists()


def test_a_choice_of_the_users_that_would_never_be_read_is_refused_without_a_card_too(tmp_path):
    (tmp_path / "my_conf" / "schedule").mkdir(parents=True)
    file = tmp_path / "my_conf" / "schedule" / "triangular.yaml"
    file.write_text("_target_: cyclical_lr.schedules.Fixed\nbase_lr: 0.123\n")
    command = small_runs.tiny(tmp_path, "--config-dir", f"{tmp_path}/my_conf")
    code, output = Forked(tmp_path / "out.txt", run_script, command).ends()
    assert code == UNUSABLE and f"--config-dir: {file} would never be read" in output
    assert not (tmp_path / "results").exists()


# Training and report --------------------------------------------------------------------------------------------------


def test_a_run_follows_the_users_schedule(tmp_path, tiny):
    (outcome,) = train(tiny, tmp_path, node("Frozen", base_lr=0.001, max_lr=0.003, period=8))
    assert outcome.record is not None and outcome.record.status == "done"
    rows = records.read_curve(records.curve_path(tmp_path / "results", outcome.run_id))
    assert [row.lr for row in rows] == pytest.approx([0.003, 0.0015, 0.002])
    (again,) = train(tiny, tmp_path, node("Frozen", base_lr=0.001, max_lr=0.003, period=8))
    assert again.run_id == outcome.run_id and not again.fresh


def write_example(folder: Path) -> None:
    """The README's files, and a study that sets them beside the paper's policies."""
    (folder / "my_schedules.py").write_text(MODULE)
    (folder / "my_conf" / "experiment").mkdir(parents=True)
    (folder / "my_conf" / "experiment" / "my_sawtooth.yaml").write_text(CARD.lstrip())
    slower = "cifar10_fixed_25k ~schedule.milestones ~schedule.gamma schedule._target_=my_schedules.Sawtooth"
    arms = ["cifar10_tri2", "my_sawtooth", f"{slower} +schedule.max_lr=0.004 +schedule.period=5000"]
    (folder / "my_study.yaml").write_text(yaml.safe_dump({"experiments": arms}))


@pytest.mark.slow
def test_the_readmes_example_runs_beside_the_papers_policies_and_is_in_every_table_and_figure(tmp_path, monkeypatch):
    write_example(tmp_path)
    small = [*SAMPLE, "compress=5000", f"results_dir={tmp_path}/results", f"runs_dir={tmp_path}/runs"]
    command = [sys.executable, str(STUDY), "--config-dir", "my_conf", "+study=my_study.yaml", *small]
    environment = {**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    small_print = "compress=5000,data.batch_size=4,data=cifar10_sample"
    arguments = "base_lr=0.001,max_lr=0.004,period=5000"
    headline, mine, slower = labels = [
        f"cifar10_tri2[{small_print}]",
        f"my_sawtooth[{small_print}]",
        f"cifar10_fixed_25k[{small_print},schedule=my_schedules.Sawtooth({arguments})]",
    ]
    assert {record.label for record in records_in(tmp_path)} == set(labels)
    monkeypatch.syspath_prepend(tmp_path)
    results = collect(tmp_path / "results")
    assert not results.problems
    paper = read_paper(CONF / "paper")
    made = tables.make_tables(paper, results, decide(paper, results))
    for name, section in (("table1", "other runs"), ("budget", None), ("time_to_target", None)):
        rows = made[name] if section is None else made[name][made[name]["section"] == section]
        assert set(labels) <= set(rows["label"]), name
    budget = made["budget"].set_index("label")
    assert set(budget["reference"]) == {headline} and budget.loc[[mine, slower], "difference"].notna().all()

    figure = figures.accuracy_and_lr([(each, results.curves[each.run_id]) for each in results.records.values()], "mine")
    above, below = figure.axes
    assert len(above.lines) == len(below.lines) == 3
    lrs = {tuple(np.round(line.get_ydata(), 6)[[0, -1]]) for line in below.lines}
    assert {(0.005, 0.003), (0.004, 0.004)} <= lrs
    assert "my_schedules" not in sys.modules  # a report runs no code that a record names
    text = "".join(entry.get_text() for entry in figure.legends[0].get_texts()).replace(" ", "").replace("\n", "")
    assert "my_sawtooth[" in text and f"my_schedules.Sawtooth({arguments})" in text

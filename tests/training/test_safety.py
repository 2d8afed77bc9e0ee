"""Files from elsewhere run no code, and files written here hold no secret."""

import hashlib
import io
import logging
import os
import pickle
import random
import re
import runpy
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from small_runs import (
    CONF,
    REPOSITORY,
    Forked,
    PowerCut,
    assert_same_bits,
    cut,
    records_in,
    run_script,
    tiny,
)
from small_runs import train as train_in

from cyclical_lr import records
from cyclical_lr.report import collect, figures

STUDY = REPOSITORY / "scripts" / "study.py"

# Code -----------------------------------------------------------------------------------------------------------------


class Trap:
    """Unpickled by somebody who trusts it, it leaves a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def trapped(mark, sealed):
    """A checkpoint with a trap in it, with its checksum; either torch's own format or a bare pickle."""
    file = io.BytesIO()
    state = {"run_id": "x", "iteration": 12, "network": Trap(mark)}
    if sealed == "torch":
        torch.save(state, file)
    else:
        pickle.dump(state, file)
    return file.getvalue() + hashlib.sha256(file.getvalue()).digest()


@pytest.mark.parametrize("sealed", ["torch", "pickle"])
def test_a_checkpoint_that_would_run_code_is_not_run_and_the_one_before_taken(tmp_path, train, caplog, sealed):
    mark = tmp_path / "the trap has sprung"
    with cut(batch=10), pytest.raises(PowerCut):
        train("checkpoint_seconds=0")
    (folder,) = (tmp_path / "runs").iterdir()
    bad = folder / "checkpoint-000000012.pt"
    bad.write_bytes(trapped(mark, sealed))
    (outcome,) = train()
    assert not mark.exists()
    assert [segment["iteration"] for segment in outcome.record.segments] == [0, 9]
    warned = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert any(bad.name in text and "the one before" in text for text in warned)
    train_in(tmp_path / "straight")
    assert_same_bits(tmp_path, tmp_path / "straight", outcome.run_id)

    with pytest.raises(FileNotFoundError):  # that the trap is one: it would make a folder in a folder that is not there
        pickle.loads(pickle.dumps(Trap(tmp_path / "nowhere" / "mark")))


def test_a_curve_and_a_record_are_data_whatever_they_hold(tmp_path, train):
    mark = tmp_path / "the trap has sprung"
    (outcome,) = train("iterations=2")
    path = records.record_path(tmp_path / "results", outcome.run_id)
    for bad in (pickle.dumps(Trap(mark)), f"!!python/object/apply:os.mkdir ['{mark}']".encode()):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=path.name):
            train("iterations=2")
    records.write_record(tmp_path / "results", outcome.record)
    curve = records.curve_path(tmp_path / "results", outcome.run_id)
    curve.write_bytes(pickle.dumps(Trap(mark)))
    assert curve.name in " ".join(collect.collect(tmp_path / "results").problems)
    assert not mark.exists()


@pytest.fixture
def record(train):
    return train("iterations=2")[0].record


def as_schedule(record, **schedule):
    return replace(record, config={**record.config, "schedule": schedule})


@pytest.mark.parametrize(
    "target",
    ["os.mkdir", "cyclical_lr.records.os.mkdir", "cyclical_lr.report.collect.records.os.mkdir", "trap_module.anything"],
)
def test_a_report_calls_and_imports_nothing_that_a_record_names(tmp_path, record, monkeypatch, target):
    mark = tmp_path / "the trap has sprung"
    rows = records.read_curve(records.curve_path(tmp_path / "results", record.run_id))
    (tmp_path / "trap_module.py").write_text(f"import os; os.mkdir({str(mark)!r}); anything = dict")
    monkeypatch.syspath_prepend(tmp_path)
    nested = {"_target_": "cyclical_lr.schedules.Compressed", "factor": 1}
    trap = {"_target_": target, "_args_": [str(mark)]}
    for number, schedule in enumerate((trap, {**nested, "schedule": trap}, {**nested, "schedule": [trap]})):
        foreign = as_schedule(record, **schedule)
        figures.accuracy_and_lr([(foreign, rows)], f"schedule {number}")  # the LRs of the evaluations are drawn instead
        sibling = replace(foreign, run_id="0" * 12, config_sha256="0" * 64, seed=1)
        records.write_record(tmp_path / "results", sibling)  # the same label, another config: they are compared
        records.write_curve(records.curve_path(tmp_path / "results", sibling.run_id), rows)
        assert len(collect.collect(tmp_path / "results").problems) == 1
    assert not mark.exists()


def test_a_report_reads_no_environment_for_a_record(tmp_path, record, monkeypatch):
    monkeypatch.setenv("SECRET_PIN", "0.4711")
    curious = as_schedule(record, _target_="cyclical_lr.schedules.Fixed", base_lr="${oc.decode:${oc.env:SECRET_PIN}}")
    rows = records.read_curve(records.curve_path(tmp_path / "results", record.run_id))
    figure = figures.accuracy_and_lr([(curious, rows)], "curious")
    (line,) = figure.axes[1].lines
    assert list(line.get_ydata()) == [row.lr for row in rows]


def test_a_study_file_that_would_run_code_is_refused(tmp_path):
    mark = tmp_path / "the trap has sprung"
    study = tmp_path / "study.yaml"
    study.write_text(f"experiments: !!python/object/apply:os.mkdir ['{mark}']\n")
    code, output = Forked(tmp_path / "out.txt", run_study, [f"+study={study}", *tiny(tmp_path)]).ends()
    assert code != 0 and "python/object" in output
    assert not mark.exists()
    with pytest.raises(FileExistsError):  # that it would have
        yaml.unsafe_load(study.read_text().replace(str(mark), str(tmp_path)))


def run_study(arguments):
    sys.argv = [str(STUDY), *arguments]
    runpy.run_path(str(STUDY), run_name="__main__")


# Secrets --------------------------------------------------------------------------------------------------------------

KEY = "".join(random.Random(0).choices("0123456789abcdef", k=40))
SECRETS = {"WANDB_API_KEY": KEY, "SECRET_TOKEN": "rosebud-4711", "AWS_SECRET_ACCESS_KEY": "xanadu/0815+"}


def files_with_a_secret(folder):
    values = [value.encode() for value in SECRETS.values()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if any(value in path.read_bytes() for value in values)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param({}, id="offline"),
        pytest.param({"logger.mode": "online"}, id="online, at a host that refuses"),
    ],
)
def test_no_file_and_no_output_of_a_run_holds_a_secret_of_its_environment(tmp_path, mode):
    overrides = tiny(tmp_path, "logger=wandb", "iterations=2", *(f"{key}={value}" for key, value in mode.items()))
    closed = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path / "home")}
    code, output = Forked(tmp_path / "out.txt", run_script, overrides, **closed, **SECRETS).ends()
    assert code == 0, output
    (record,) = records_in(tmp_path)
    assert list((tmp_path / "runs" / record.run_id / "wandb").rglob("*.wandb")), "W&B wrote nothing to look into"
    assert list((tmp_path / "runs" / record.run_id / "wandb").rglob("debug*.log"))
    assert files_with_a_secret(tmp_path) == []
    (tmp_path / "seen").write_text(f"key={KEY}")
    assert [path.name for path in files_with_a_secret(tmp_path)] == ["seen"]  # that the search finds one


@pytest.mark.slow
def test_a_key_that_wandb_refuses_is_not_shown(tmp_path):
    overrides = tiny(tmp_path, "logger=wandb", "logger.mode=online", "iterations=2")
    closed = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path / "home")}
    refused = {**SECRETS, "WANDB_API_KEY": "not a key: rosebud-4711"}
    code, output = Forked(tmp_path / "out.txt", run_script, overrides, **closed, **refused).ends()
    assert code == 0 and "offline" in output, output
    assert files_with_a_secret(tmp_path) == []


def test_committed_results_and_configs_hold_no_key():
    # A W&B key is 40 hexadecimal digits, as a commit is: only those that a record calls a commit may stand there.
    found = []
    for path in [*(REPOSITORY / "results").rglob("*.*"), *CONF.rglob("*.yaml")]:
        if path.suffix in (".json", ".csv", ".yaml", ".md", ".html", ".tex"):
            text = path.read_text(encoding="utf-8")
            commits = set(re.findall(r'"commit": "([0-9a-f]{40})"', text))
            if path.name == "runs.csv":
                commits |= {record.commit for record in collect.collect(path.parent).records.values()}
            found += [(path.name, word) for word in re.findall(r"\b[0-9a-f]{40}\b", text) if word not in commits]
    assert found == []

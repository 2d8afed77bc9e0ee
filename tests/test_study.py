"""Studies: lists of experiments, run until nothing is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from cyclical_lr import records
from cyclical_lr.training.config import check, compose_config, describe, plain

REPOSITORY = Path(__file__).resolve().parent.parent
CONF = REPOSITORY / "conf"
STUDIES = sorted((CONF / "study").glob("*.yaml"))
TINY = "data=cifar10_sample data.batch_size=4 data.eval_batch_size=500 compress=5000"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_arm_of_a_study_is_a_run_of_its_own_that_could_start(path):
    OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)
    ids = {}
    for arm in yaml.safe_load(path.read_text())["experiments"]:
        experiment, *overrides = arm.split()
        plan = plain(compose_config(CONF, [f"+experiment={experiment}", *overrides]))
        check(plan)
        config = describe(plan, seed=0)
        assert len(records.learning_rates(config)) == config["iterations"] + 1
        ids[arm] = records.run_id(config)
    assert len(set(ids.values())) == len(ids), "two arms are the same run"


def study(tmp_path: Path, arms: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"experiments": arms}))
    command = [sys.executable, "scripts/study.py", f"+study={file}", "logger=none", "threads=1"]
    command += [f"results_dir={tmp_path}/results", f"runs_dir={tmp_path}/runs", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_a_study_runs_what_is_missing_goes_on_after_a_failure_and_says_so(tmp_path):
    arms = [f"cifar10_fixed_25k {TINY}", f"cifar10_tri2 {TINY} model.lrn=typo", f"cifar10_tri2 {TINY}"]
    first = study(tmp_path, arms)
    assert first.returncode == 1
    assert "failed: cifar10_tri2" in first.stdout and "model.lrn" in first.stdout
    assert {path.stem for path in (tmp_path / "results/curves").glob("*.csv")} == {
        record.run_id for record in map(records.read_record, (tmp_path / "results/runs").glob("*.json"))
    }
    done = [records.read_record(path) for path in (tmp_path / "results/runs").glob("*.json")]
    assert sorted(record.experiment for record in done) == ["cifar10_fixed_25k", "cifar10_tri2"]

    again = study(tmp_path, arms[::2])
    assert again.returncode == 0
    assert "2 of 2 runs are done, 0 are missing" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seeds=0"], "seeds: expected"),
        (["seed=1"], "seeds: expected"),
        (["+typo=1"], "typo: there is no such key"),
        (["+study=none_such"], "study: there is no 'none_such'"),
    ],
)
def test_unusable_input_is_refused_before_anything_is_trained(tmp_path, arguments, message):
    refused = study(tmp_path, [f"cifar10_tri2 {TINY}"], *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (tmp_path / "results").exists()


def test_help_lists_every_study():
    shown = subprocess.run(
        [sys.executable, "scripts/study.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert shown.returncode == 0
    assert all(f"  {path.stem} " in shown.stdout for path in STUDIES)

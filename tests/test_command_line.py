"""What scripts say of input that Hydra refuses, and how they end."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf.errors import ConfigKeyError
from small_runs import CONF, REPOSITORY

from cyclical_lr import command_line, processes
from cyclical_lr.command_line import about, explained, guarded, overrides_first
from cyclical_lr.records import ConfigError
from cyclical_lr.training.config import compose_config


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["+experiment=cifar10_trj2"], "experiment: there is no 'cifar10_trj2'; did you mean cifar10_tri2"),
        (["+experiment=nope"], "experiment: there is no 'nope'; --help lists those that there are; a card of your own"),
        (["data=zzz"], "data: there is no 'zzz'; expected one of cifar10, cifar100, cifar10_sample"),
        (["+trainer.max_time=1", "ckpt_path=x"], "ckpt_path: there is no such key; the same command goes on"),
        (["logger.tags=[a]"], "logger.tags: there is no such key; set WANDB_TAGS=A,B in the environment"),
        (["model="], "model: there is no ''; expected one of alexnet, caffenet"),
        (["typo=1"], "typo: there is no such key; --cfg job"),
        (["iteratons=1"], "iteratons: there is no such key; did you mean iterations? --cfg job"),
        (["solver.momentm=0.8"], "solver.momentm: there is no such key; did you mean momentum? --cfg job"),
        (
            ["+experiment=cifar10_fixed_25k", "batch_size=9"],
            "there is no such key; did you mean data.batch_size",
        ),
        (["+experiment=cifar10_tri2", "schedule.max_lr=1"], "did you mean schedule.phases.0.schedule.max_lr or sch"),
        (["+experiment=cifar10_tri2", "schedule.phases[0].start=1"], "number after a dot: schedule.phases.0.start"),
        (
            ["+experiment=cifar10_tri2", "schedule.phases.5.start=1"],
            "schedule.phases.5.start: there is no such key,",
        ),
        (["+experiment=a,b"], "+experiment=a,b: expected one name; scripts/run.py sweeps over several with -m"),
        (["experiment=cifar10_tri2"], "To append to your default list use +experiment=cifar10_tri2"),
        (["+experiment=cifar10_tri2", "~data.nope"], "'data.nope' does not exist"),
        (["seed=[0"], "seed=[0: cannot be read; close what is open"),
        (["results_dir=~/x"], "results_dir=~/x: cannot be read; "),
        (["results_dir=~/x"], "in quotes of its own: 'results_dir=\"VALUE\"', with ~ written out"),
        (["results_dir=mine, yours"], "results_dir=mine, yours: expected one value; put text in quotes"),
    ],
)
def test_hydras_refusal_is_one_line_that_names_what_was_given(overrides, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/run.py"])  # other scripts name it (tests/test_study.py)
    with pytest.raises(Exception) as refusal:
        compose_config(CONF, overrides)
    text = explained(refusal.value)
    assert said in text and "\n" not in text and len(text) < 400


def test_overrides_and_options_may_stand_in_any_order():
    given = ["a=1", "-m", "--config-dir", "x=y", "~b", "--cfg", "job", "--config-dir=z", "+c=2", ""]
    ordered = ["a=1", "~b", "+c=2", "-m", "--config-dir", "x=y", "--cfg", "job", "--config-dir=z", ""]
    assert overrides_first(given) == ordered
    command = [sys.executable, str(REPOSITORY / "scripts" / "run.py"), "seed=3", "--cfg", "job", "iterations=7"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "seed: 3\n" in shown and "iterations: 7\n" in shown


@pytest.mark.slow
def test_a_config_can_be_composed_where_no_script_is():
    code = "from pathlib import Path; from cyclical_lr.training.config import *; "
    code += "print(plain(compose_config(Path('conf'), ['+experiment=cifar10_tri2']))['results_dir'])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert shown.stdout == f"{REPOSITORY}/results\n", shown.stderr


def test_a_cards_choice_without_override_is_explained(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults: [{schedule: own}, _self_]\n")
    monkeypatch.setenv("CYCLICAL_LR_CONF", str(tmp_path))
    with pytest.raises(Exception) as refusal:
        compose_config(CONF, ["+experiment=mine"])
    said = explained(refusal.value)
    assert said == "experiment/schedule: there is no 'own'; a card says `override /schedule: own`"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# @package _global_\n# Table 1: CLR.\n# More.\nseed: 0\n", "Table 1: CLR."),
        ("# A study.\nexperiments: []\n", "A study."),
        ("# @package _global_\n", ""),
        ("seed: 0", ""),
        ("", ""),
    ],
)
def test_help_has_the_first_line_that_a_file_says_of_itself(tmp_path, text, line):
    (tmp_path / "file.yaml").write_text(text)
    assert about(tmp_path / "file.yaml") == line


@pytest.fixture
def ended(monkeypatch):
    """How a script with this main ends."""
    monkeypatch.setitem(os.environ, "HYDRA_FULL_ERROR", "0")
    return guarded


def raising(error):
    def main():
        raise error

    return main


def test_how_a_script_ends_says_why_it_does(ended, capsys):
    assert ended(lambda: None) == 0
    assert ended(int, 1) == 1
    assert ended(raising(ConfigError("seed: expected more"))) == 2
    assert ended(raising(ConfigKeyError("no key"))) == 2
    assert capsys.readouterr().err == "error: seed: expected more\nerror: no key\n"
    assert ended(yaml.safe_load, "{a: 1") == 2  # as in a card of one's own
    assert "expected ',' or '}'" in capsys.readouterr().err
    assert ended(raising(ValueError("Config group override must be a string or a list. Got NoneType"))) == 2
    assert "error: a group takes a name, such as model=" in capsys.readouterr().err
    for hydras in ("File nowhere does not exist!", "The --resolve flag can only be used with --cfg"):
        assert ended(raising(ValueError(hydras))) == 2
        assert capsys.readouterr().err == f"error: {hydras} --hydra-help shows Hydra's options\n"
    assert ended(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "stopped; the same command continues\n"
    for passed_on in (SystemExit(3), RuntimeError("a bug"), ValueError("a bug")):
        with pytest.raises(type(passed_on)):
            ended(raising(passed_on))


def test_a_script_refuses_in_one_line():
    command = [sys.executable, str(REPOSITORY / "scripts" / "run.py"), "+experiment=cifar10_tri9"]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 2 and shown.stdout == ""
    assert shown.stderr.startswith("error: experiment: there is no 'cifar10_tri9'; did you mean")
    assert shown.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["run.py", "study.py", "wandb_replay.py"])
def test_output_that_nobody_reads_is_no_traceback(script):
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, str(REPOSITORY / "scripts" / script), "--help"]
    shown = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (shown.returncode, shown.stderr) == (1, "")


def test_a_script_refuses_the_package_of_another_checkout(tmp_path):
    (tmp_path / "src" / "cyclical_lr").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "run.py"
    script.write_text((REPOSITORY / "scripts" / "run.py").read_text())
    shown = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
    assert shown.returncode == 2 and shown.stdout == ""
    package = Path(command_line.__file__).parent
    assert shown.stderr.startswith(f"error: {script}: expected the package of its own checkout, Python found {package}")
    assert f"pip install -e {tmp_path}" in shown.stderr


def test_a_closed_output_is_no_failure():
    command = f"{sys.executable} {REPOSITORY / 'scripts' / 'study.py'} --help >&-"
    shown = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")


def test_libraries_are_loaded_without_garbage_collection_which_is_then_as_before():
    for before in (True, False):
        (gc.enable if before else gc.disable)()
        try:
            with pytest.raises(ImportError), processes.loading():
                assert not gc.isenabled()
                raise ImportError
            assert gc.isenabled() == before
        finally:
            gc.enable()

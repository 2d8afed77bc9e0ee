"""Input that cannot be used: the message names key, value and remedy, nothing is trained and nothing recorded."""

import pytest
import torch
from hydra.errors import HydraException
from small_runs import CONF, tiny

from cyclical_lr.records import ConfigError
from cyclical_lr.training import provenance
from cyclical_lr.training.config import check, compose_config, label, plain
from cyclical_lr.training.sweep import plan_job

WRONG = [
    # overrides, what the message must hold
    pytest.param(["+typo=1"], ["typo", "no such key"], id="unknown key"),
    pytest.param(["+iteration=5"], ["iteration:", "did you mean iterations"], id="misspelt key"),
    pytest.param(["+schedule.typo=1"], ["schedule.typo", "stepsize"], id="unknown key of a class"),
    pytest.param(["+schedule.step_size=4"], ["schedule.step_size", "did you mean stepsize"], id="misspelt argument"),
    pytest.param(["+trainer.device=2"], ["trainer.device:", "did you mean devices"], id="misspelt key of a group"),
    pytest.param(["+cluster.typo=1"], ["cluster.typo", "no such key"], id="unknown key of the cluster"),
    pytest.param(["+cluster.setup=module load cuda"], ["cluster.setup", "a list"], id="one line for a list of them"),
    pytest.param(["+cluster.sbatch=[requeue]"], ["cluster.sbatch", "requeue"], id="a list for options"),
    *(
        pytest.param([f"+cluster.{key}={value}"], [f"cluster.{key}", value, ">= 1"], id=f"cluster.{key}")
        for key, value in {"time": "0", "cpus": "1.5", "gpus": "-1", "memory": "8G", "parallel": "0"}.items()
    ),
    pytest.param(["schedule.stepsize=-3"], ["schedule.stepsize", "-3"], id="negative stepsize"),
    pytest.param(["schedule.stepsize=0"], ["schedule.stepsize", "0"], id="zero stepsize"),
    pytest.param(["schedule.max_lr=0.0001"], ["schedule.max_lr", "0.0001", "base_lr"], id="max_lr below base_lr"),
    pytest.param(["schedule.base_lr=-1"], ["schedule.base_lr", "-1"], id="negative LR"),
    pytest.param(["schedule.base_lr=fast"], ["schedule.base_lr", "fast"], id="an LR that is a word"),
    pytest.param(["schedule.base_lr=???"], ["schedule.base_lr", "give schedule.base_lr="], id="missing value"),
    pytest.param(["schedule._target_=cyclical_lr.schedules.Triangel"], ["Triangel"], id="unknown schedule"),
    pytest.param(["iterations=0"], ["iterations", "0", ">= 1"], id="no iterations"),
    pytest.param(["iterations=-5"], ["iterations", "-5"], id="negative iterations"),
    pytest.param(["iterations=1e4"], ["iterations", "10000.0", "write 10000"], id="a float"),
    pytest.param(["iterations=1.5"], ["iterations", "1.5", "whole"], id="half an iteration"),
    pytest.param(["eval_every=0"], ["eval_every", "0", ">= 1"], id="eval_every=0"),
    pytest.param(["compress=5"], ["compress", "5", "divisor of iterations=12"], id="compress is no divisor"),
    pytest.param(["threads=0"], ["threads", "0", ">= 1"], id="no threads"),
    pytest.param(["checkpoint_seconds=-1"], ["checkpoint_seconds", "-1", ">= 0"], id="negative time"),
    pytest.param(["checkpoint_seconds=nan"], ["checkpoint_seconds", "nan", ">= 0"], id="no time at all"),
    pytest.param(["seed=[0,0]"], ["seed", "[0, 0]", "different"], id="one seed twice"),
    pytest.param(["seed=[]"], ["seed", "[]"], id="no seed"),
    pytest.param(["seed=-1"], ["seed", "-1", "from 0"], id="negative seed"),
    pytest.param(["seed=4294967296"], ["seed", "4294967296", "2^32 - 1"], id="a seed of more than 32 bits"),
    pytest.param(["seed='22'"], ["seed", "'22'", 'seed="${oc.decode:${oc.env:X}}"'], id="a seed that is text"),
    pytest.param(
        ["+trainer.fast_dev_run=true"], ["trainer.fast_dev_run", "iterations=20"], id="a habit of Lightning's"
    ),
    pytest.param(["seed=0..4"], ["seed", "0..4", "[0,1,2]"], id="a seed that Hydra takes for a word"),
    pytest.param(["trainer.precision=16"], ["trainer.precision", "16", "32-true"], id="unknown precision"),
    pytest.param(["trainer.accelerator=abacus"], ["trainer.accelerator", "abacus", "cpu"], id="unknown accelerator"),
    pytest.param(["trainer.devices=0"], ["trainer.devices", "0"], id="no device"),
    pytest.param(["model.lrn=typo"], ["model.lrn", "typo", "within_channel"], id="unknown normalisation"),
    pytest.param(["model.init=typo"], ["model.init", "typo", "caffe"], id="unknown initialisation"),
    pytest.param(["solver.momentum=2"], ["solver.momentum", "2", "[0, 1)"], id="momentum of 2"),
    pytest.param(["solver.momentum=high"], ["solver.momentum", "high"], id="a momentum that is a word"),
    pytest.param(["solver.weight_decay=-1"], ["solver.weight_decay", "-1"], id="negative weight decay"),
    pytest.param(["data.batch_size=0"], ["data.batch_size", "0", "1"], id="empty batch"),
    pytest.param(["data.batch_size=2.5"], ["data.batch_size", "2.5", "integer"], id="half an image"),
    pytest.param(["data.batch_size=many"], ["data.batch_size", "many", "integer"], id="a size that is a word"),
    pytest.param(["data.shuffle=flase"], ["data.shuffle", "flase", "true"], id="neither true nor false"),
    pytest.param(["solver.multipliers=flase"], ["solver.multipliers", "flase", "true"], id="nor here"),
    pytest.param(["data.mean=typo"], ["data.mean", "typo", "pixel"], id="unknown mean"),
    pytest.param(["data.train_sha256=abc"], ["data.train_sha256", "abc"], id="other data than declared"),
    pytest.param(["data.scale=nan"], ["data.scale", "nan", "finite"], id="a scale that is no number"),
    pytest.param(["solver.momentum=nan"], ["solver.momentum", "nan", "finite"], id="nor a momentum"),
    pytest.param(["data.mean=[1,2,nan]"], ["data.mean.2", "nan", "finite"], id="nor one in a list"),
    pytest.param(["data.root=5"], ["data.root", "5", "a folder"], id="a folder that is a number"),
    pytest.param(["~eval_every"], ["eval_every: there is none", "+eval_every=VALUE"], id="a key taken away"),
    pytest.param(["~trainer.devices"], ["trainer.devices: there is none"], id="a key of a group taken away"),
    pytest.param(["~solver"], ["solver", "solver=NAME", "None"], id="no solver"),
    pytest.param(["~trainer"], ["trainer", "trainer=NAME", "None"], id="no trainer"),
    pytest.param(["~data._target_"], ["data._target_", "+data._target_=CLASS"], id="a set without a class"),
    pytest.param(["~model._target_"], ["model._target_", "+model._target_=CLASS"], id="a network without a class"),
    pytest.param(["~data.name"], ["data.name", "+data.name=VALUE"], id="a set without a name"),
    pytest.param(
        ["~data.num_classes", "model.num_classes=10"],
        ["data.num_classes", "+data.num_classes=VALUE"],
        id="a set of nobody knows how many classes",
    ),
    pytest.param(["schedule._target_=null"], ["None", "dotted path"], id="a class without a name"),
    pytest.param(["schedule._target_=math.pi"], ["math.pi", "no class or function"], id="a class that is a number"),
    pytest.param(["schedule._target_=builtins.dict"], ["builtins.dict"], id="a class that says nothing of itself"),
    pytest.param(["iterations=100000001"], ["iterations", "at most 100,000,000"], id="more than memory holds"),
    pytest.param(["+trainer.emulate_bf16=5"], ["trainer.emulate_bf16", "5", "true or false"], id="neither here"),
    pytest.param(["model=alexnet"], ["model", "3 x 32 x 32", "AlexNet"], id="images that the network does not take"),
    pytest.param(["results_dir=''"], ["results_dir", "''", "a folder"], id="no folder"),
    pytest.param(["runs_dir=5"], ["runs_dir", "5", "a folder"], id="a number for a folder"),
    pytest.param(["runs_dir='~/mine'"], ["runs_dir", "~/mine", "write out what ~ stands for"], id="an unexpanded home"),
    pytest.param(["model.num_classes=7"], ["model.num_classes", "num_classes=10", "got 7"], id="other classes"),
    pytest.param(["cluster.kind=pbs"], ["cluster.kind", "pbs", "slurm"], id="unknown cluster"),
    pytest.param(["cluster.snapshot=maybe"], ["cluster.snapshot", "maybe", "true or false"], id="a snapshot or not"),
    pytest.param(["+cluster.setup=[5]"], ["cluster.setup", "a list of shell lines"], id="a number for a line"),
    pytest.param(["iterations=true"], ["iterations", "True", "whole"], id="true for a number"),
    pytest.param(["seed=true"], ["seed", "True", "whole"], id="true for a seed"),
    pytest.param(["checkpoint_seconds=true"], ["checkpoint_seconds", "True"], id="true for seconds"),
    pytest.param(["data.batch_size=true"], ["data.batch_size", "True", "an integer"], id="true for a size"),
    pytest.param(
        ["solver._target_=torch.optim.SGD", "~solver.multipliers"],
        ["SGD: it cannot be built from the network (TypeError("],
        id="a class that takes parameters",
    ),
    pytest.param(
        ["data._target_=torch.nn.Identity"],
        ["data._target_", "without prepare_data", "a subclass"],
        id="no data module",
    ),
    pytest.param(["logger.kind=typo"], ["logger.kind", "typo", "none"], id="unknown logger"),
    pytest.param(["logger=wandb", "logger.mode=typo"], ["logger.mode", "typo", "offline"], id="unknown W&B mode"),
]


@pytest.mark.parametrize(("overrides", "named"), WRONG)
def test_the_message_names_key_value_and_remedy_and_nothing_is_recorded(tmp_path, train, overrides, named):
    with pytest.raises(ConfigError) as caught:
        train(*overrides)
    for text in named:
        assert text in str(caught.value)
    assert not list((tmp_path / "results").rglob("*.*")) and not list(tmp_path.rglob("checkpoint*"))


OF_THE_RUN = ("data.train_sha256=abc", "data.root=/gone", "solver._target_=torch.optim.SGD", "runs_dir='~/mine'")
"""What the data, a class from elsewhere or the disk have to tell."""


@pytest.mark.parametrize(("overrides", "named"), [p for p in WRONG if p.values[0][0] not in OF_THE_RUN])
def test_a_sweep_refuses_it_before_anything_is_queued(tmp_path, overrides, named):
    arguments = tiny(tmp_path, *overrides)
    with pytest.raises(ConfigError) as caught:
        plan_job(compose_config(CONF, arguments), CONF, arguments)
    for text in named:
        assert text in str(caught.value)


def test_what_is_right_is_not_refused():
    # Were `check` to refuse everything, the tests above would pass.
    check(plain(compose_config(CONF, ["+experiment=cifar10_tri2", "seed=[0,1]", "threads=2", "compress=5"])))
    annotated = ["model._target_=small_runs.WithDropout", "+model.chance=0.1"]  # by what has no hash
    check(plain(compose_config(CONF, ["+experiment=cifar10_tri2", *annotated])))
    any_key = ["model._target_=torchvision.models.resnet18", *(f"~model.{key}" for key in ("lrn", "ceil_mode", "init"))]
    check(plain(compose_config(CONF, ["+experiment=cifar10_tri2", *any_key])))


def test_a_record_that_cannot_be_read_is_named_with_a_way_out_and_nothing_is_trained(tmp_path, train):
    (outcome,) = train("iterations=2")
    path = tmp_path / "results" / "runs" / f"{outcome.run_id}.json"
    whole = path.read_text()
    path.write_text(whole[:100])
    with pytest.raises(ConfigError, match=rf"{outcome.run_id}\.json is not a run's record.*or remove it"):
        train("iterations=2")
    path.write_text(whole)
    assert not train("iterations=2")[0].fresh


@pytest.mark.parametrize("damage", [lambda lines: lines[:-1], lambda lines: [], lambda lines: [*lines[:-1], "x"]])
def test_a_curve_that_is_not_the_whole_one_is_named_with_a_way_out_and_nothing_is_trained(tmp_path, train, damage):
    (outcome,) = train("iterations=2", "eval_every=1")
    path = tmp_path / "results" / "curves" / f"{outcome.run_id}.csv"
    whole = path.read_text()
    path.write_text("".join(f"{line}\n" for line in damage(whole.splitlines())))
    with pytest.raises(ConfigError, match=rf"{outcome.run_id}\.csv is .*or remove it, and the run is done again"):
        train("iterations=2", "eval_every=1")
    path.unlink()
    assert train("iterations=2", "eval_every=1")[0].fresh and path.read_text().count("\n") == whole.count("\n")


def test_a_card_that_is_unusable_by_itself_is_refused_where_the_command_line_mends_it_too(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    card = (CONF / "experiment" / "cifar10_tri2.yaml").read_text().replace("cifar10_tri2", "mine")
    (tmp_path / "experiment" / "mine.yaml").write_text(card.replace("iterations: 25000", "iterations: 25,000"))
    monkeypatch.setenv("CYCLICAL_LR_CONF", str(tmp_path))
    plan = plain(compose_config(CONF, ["+experiment=mine", "iterations=2"]))
    check(plan)
    with pytest.raises(ConfigError, match=r"card 'mine' has to be whole .*\(iterations: expected a whole number"):
        label(plan, CONF)


def test_a_misspelt_experiment_is_named_beside_those_that_there_are(train):
    with pytest.raises(HydraException, match=r"(?s)cifar10_tri3.*cifar10_tri2"):
        train("+experiment=cifar10_tri3")


def test_an_experiment_given_without_its_plus_is_explained(train):
    with pytest.raises(HydraException, match=r"use \+experiment=cifar10_tri2"):
        train("experiment=cifar10_tri2")


@pytest.mark.parametrize("key", ["results_dir", "runs_dir"])
def test_a_folder_that_cannot_be_written_is_found_out_before_training(tmp_path, train, key):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=rf"{key}.*file.*give another {key}="):
        train(f"{key}={tmp_path / 'file'}")
    assert not list(tmp_path.rglob("checkpoint*"))


@pytest.mark.parametrize("name", ["runs", "curves"])
def test_a_results_folder_whose_parts_cannot_be_written_is_found_out_before_training(tmp_path, train, name):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_text("in the way")
    with pytest.raises(ConfigError, match=rf"results_dir.*{name}"):
        train("iterations=2")
    assert not list(tmp_path.rglob("checkpoint*"))


def test_run_folders_are_kept_apart_from_the_records(tmp_path, train):
    with pytest.raises(ConfigError, match=r"^runs_dir: expected a folder apart from .*results/runs"):
        train(f"runs_dir={tmp_path}/elsewhere/../results/runs/mine")
    assert not (tmp_path / "results").exists()


def test_data_that_are_not_there_are_named_with_ways_to_get_them(tmp_path, train):
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match=r"data\.source=.*nowhere.*does not exist.*CYCLICAL_LR_DATA"):
        train("data=cifar10", f"data.root={tmp_path}/data", f"data.source={nowhere}")
    assert not list((tmp_path / "results").rglob("*.json"))


def test_a_gpu_that_is_not_there_is_refused_with_a_way_out(tmp_path, train, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"trainer\.accelerator.*GPU.*trainer=cpu"):
        train("trainer=gpu")
    assert not list((tmp_path / "results").rglob("*.json"))


def test_bf16_on_a_cpu_that_emulates_it_is_refused_with_the_reason_and_a_way_out(tmp_path, train, monkeypatch):
    monkeypatch.setattr(provenance, "native_bf16", lambda: False)
    with pytest.raises(ConfigError, match=r"trainer\.precision.*emulated.*trainer\.emulate_bf16=true"):
        train("trainer=cpu_bf16")
    assert not list((tmp_path / "results").rglob("*.json"))


def test_bf16_on_a_gpu_that_emulates_it_is_refused(tmp_path, train, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    with pytest.raises(ConfigError, match=r"trainer\.precision.*Tesla T4.*use trainer=gpu$"):
        train("trainer=gpu_bf16")
    assert not list((tmp_path / "results").rglob("*.json"))


def test_a_choice_of_the_networks_is_not_taken_for_the_sets_size(train):
    with pytest.raises(ConfigError, match=r"^model\.lrn: expected"):
        train("model.lrn=typo")

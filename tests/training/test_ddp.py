"""Runs spread over two ranks, which are processes of their own here, on gloo: what they give, and what they refuse."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_imagenet import QuickNet, prepared
from small_runs import (
    CONF,
    REPOSITORY,
    SCRIPT,
    Forked,
    Terminated,
    TinyData,
    assert_same_bits,
    checkpoint,
    checkpoints,
    records_in,
    run_script,
    tiny,
)
from small_runs import train as train_in
from torch.nn import functional as F

from cyclical_lr import records
from cyclical_lr.data.cifar import CifarData
from cyclical_lr.data.imagenet import ImageNetData
from cyclical_lr.records import ConfigError, build
from cyclical_lr.training import ddp
from cyclical_lr.training.config import compose_config, plain
from cyclical_lr.training.run import run
from cyclical_lr.training.sweep import plan_job

DDP = ("trainer=ddp", "trainer.accelerator=cpu")
RUN = ("data._target_=test_ddp.OddData", "iterations=20", "eval_every=10")


class OddData(TinyData):
    """51 test images, which two ranks cannot share evenly, and a rank that is sent SIGTERM where the tests say so."""

    def setup(self, stage=None):
        if not hasattr(self, "train"):
            CifarData.setup(self, stage)
            for images, count in ((self.train, 40), (self.test, 51)):
                images.pixels, images.labels = images.pixels[:count], images.labels[:count]

    def indices(self, seed, iteration, count):
        if (os.environ.get("TERM_AT"), os.environ.get("RANK")) == (str(iteration), "1"):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().indices(seed, iteration, count)

    def eval_blocks(self, shard=(0, 1)):
        blocks = CifarData.eval_blocks(self, shard)
        terms = (os.environ.get("TERM_AT"), os.environ.get("RANK")) == ("evaluation", "1")
        return Terminated(blocks) if terms else blocks


class PlainNet(QuickNet):
    """Without dropout, of which ranks draw their own."""

    def __init__(self, num_classes: int = 1000, caffenet: bool = False, init: str = "caffe") -> None:
        super().__init__(num_classes, caffenet, init)

    def forward(self, x):
        return self.fc(x[:, :, ::16, ::16].flatten(1) / 100)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def torchrun(rank, port):
    """What torchrun gives a rank by the environment."""
    numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return {**numbers, "MASTER_ADDR": "localhost", "MASTER_PORT": port}


def srun(rank, port):
    """What srun does, except for the port."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_ID": "0", "MASTER_PORT": port}
    return {**step, "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


def start(folder, *overrides, launcher=torchrun, **environment):
    """`scripts/run.py OVERRIDES` in two ranks, whose output goes into `folder`: the exit code and output of each."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    ranks = [
        Forked(folder / f"out-{rank}.txt", run_script, overrides, **launcher(rank, port), **environment)
        for rank in range(2)
    ]
    return [rank.ends() for rank in ranks]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same run in two ranks and in one process: both folders, and what the ranks said."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    said = start(two, *tiny(two, *RUN, *DDP))
    train_in(one, *RUN)
    return two, one, said


def distance(value, other):
    """Relative; training has moved the weights by about their size, the momentum is all of training."""
    return ((value - other).norm() / other.norm()).item()


def test_two_ranks_and_one_process_agree(pair):
    two, one, _ = pair
    (ours,), (theirs,) = records_in(two), records_in(one)
    assert ours.run_id == theirs.run_id and ours.config == theirs.config and ours.status == "done"
    states = [checkpoint(checkpoints(folder, ours.run_id)[-1]) for folder in pair[:2]]
    assert states[0]["iteration"] == states[1]["iteration"] == 20
    for name, value in states[0]["network"].items():
        assert distance(value, states[1]["network"][name]) < 1e-3, name
    for position, state in states[0]["solver"]["state"].items():
        assert distance(state["velocity"], states[1]["solver"]["state"][position]["velocity"]) < 5e-3, position
    curves = [records.read_curve(records.curve_path(folder / "results", ours.run_id)) for folder in (two, one)]
    assert [row.iteration for row in curves[0]] == [0, 10, 20]
    for row, other in zip(*curves, strict=True):
        assert (row.iteration, row.lr, row.test_accuracy) == (other.iteration, other.lr, other.test_accuracy)
        assert row.test_loss == pytest.approx(other.test_loss, rel=1e-5)
        assert row.train_loss == pytest.approx(other.train_loss, rel=1e-5, nan_ok=True)


def test_two_ranks_and_one_process_agree_on_imagenet(tmp_path):
    quick = (
        *("+experiment=imagenet_alexnet_tri2", "data=imagenet_subset", "data.num_classes=6", "data.batch_size=4"),
        *(f"data.root={prepared(tmp_path)}", "model._target_=test_ddp.PlainNet", "data.eval_batch_size=3"),
        *("iterations=4", "eval_every=2", "data.workers=0", "threads=1", "logger=none"),
    )
    folders = [tmp_path / "two", tmp_path / "one"]
    two, one = ([*quick, f"results_dir={folder}/results", f"runs_dir={folder}/runs"] for folder in folders)
    said = start(tmp_path / "ranks", *two, *DDP)
    assert [code for code, _ in said] == [0, 0], said
    run(compose_config(CONF, one), CONF)
    curves = []
    for folder in folders:
        (record,) = records_in(folder)
        curves.append(records.read_curve(records.curve_path(folder / "results", record.run_id)))
    for row, other in zip(*curves, strict=True):
        for name in ("iteration", "lr", "train_loss", "test_loss", "test_accuracy", "test_accuracy_top5"):
            assert getattr(row, name) == pytest.approx(getattr(other, name), rel=1e-4, nan_ok=True), name


def test_the_first_rank_alone_writes_and_speaks(pair):
    two, one, said = pair
    assert [code for code, _ in said] == [0, 0]
    assert "done" in said[0][1] and said[1][1] == ""
    (record,), (other,) = records_in(two), records_in(one)
    assert record.device == f"2 x {other.device}" and record.segments[0]["ranks"] == 2
    assert other.segments[0]["ranks"] == 1
    assert {path.name for path in (two / "runs" / record.run_id).iterdir()} == {
        path.name for path in (one / "runs" / record.run_id).iterdir()
    }


def test_a_run_that_is_done_is_left_alone_by_all_ranks(pair):
    two, _, _ = pair
    before = records_in(two)
    said = start(two / "again", *tiny(two, *RUN, *DDP), launcher=srun)
    assert [code for code, _ in said] == [0, 0] and "already done" in said[0][1] and said[1][1] == ""
    assert records_in(two) == before


@pytest.mark.slow
def test_torchrun_starts_the_ranks(pair, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    path = os.pathsep.join(map(str, (REPOSITORY / "tests", Path(__file__).parent)))
    done = subprocess.run([*command, *tiny(tmp_path, *RUN, *DDP)], env={**os.environ, "PYTHONPATH": path}, timeout=300)
    assert done.returncode == 0
    (record,) = records_in(tmp_path)
    ours, theirs = (checkpoint(checkpoints(folder, record.run_id)[-1])["network"] for folder in (tmp_path, pair[0]))
    for name, value in ours.items():  # torchrun sets OMP_NUM_THREADS to 1 where it is not set: sums may round otherwise
        assert distance(value, theirs[name]) < 1e-3, name


def test_when_one_rank_is_killed_all_end_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    overrides = (*RUN, *DDP, "model._target_=small_runs.WithDropout", "checkpoint_seconds=0")
    cut, straight = tmp_path / "cut", tmp_path / "straight"
    killed, lost = start(cut, *tiny(cut, *overrides), TERM_AT="15")[::-1]
    assert killed[0] == -signal.SIGTERM and lost[0] == 1
    assert [record.status for record in records_in(cut)] == ["failed"]
    for folder in (cut, straight):
        said = start(folder / "ranks", *tiny(folder, *overrides), launcher=srun)
        assert [code for code, _ in said] == [0, 0], said
    (record,) = records_in(cut)
    assert record.status == "done" and 0 < record.segments[1]["iteration"] <= 15
    assert_same_bits(cut, straight, record.run_id)


def test_when_one_rank_is_killed_in_the_evaluation_before_training_all_end(tmp_path):
    killed, lost = start(tmp_path, *tiny(tmp_path, *RUN, *DDP), TERM_AT="evaluation")[::-1]
    assert killed[0] == -signal.SIGTERM and lost[0] == 1


def test_ranks_find_out_together_that_the_run_diverges(tmp_path):
    explodes = (*RUN, "model._target_=small_runs.Seed1Explodes", "seed=1")
    said = start(tmp_path, *tiny(tmp_path, *explodes, *DDP))
    assert [code for code, _ in said] == [3, 0], said
    train_in(tmp_path / "one", *explodes)
    (ours,), (theirs,) = records_in(tmp_path), records_in(tmp_path / "one")
    assert (ours.status, ours.iterations) == ("diverged", theirs.iterations)


def test_an_evaluation_is_of_one_network_though_each_rank_has_its_own_batch_norm(tmp_path):
    overrides = tiny(tmp_path, *RUN, *DDP, "model=cifar10_sigmoid_bn")
    said = start(tmp_path, *overrides)
    assert [code for code, _ in said] == [0, 0], said
    plan = plain(compose_config(CONF, overrides))
    (record,) = records_in(tmp_path)
    network, data = build(plan["model"]), build(plan["data"])
    network.load_state_dict(checkpoint(checkpoints(tmp_path, record.run_id)[-1])["network"])
    data.setup()
    with torch.no_grad():
        x, y = data.test.eval()(torch.arange(51))
        loss = F.cross_entropy(network.eval()(x), y).item()
    last = records.read_curve(records.curve_path(tmp_path / "results", record.run_id))[-1]
    assert last.test_loss == pytest.approx(loss, rel=1e-5)


# Shares ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_shares_of_cifar_are_the_whole(ranks):
    data = build(plain(compose_config(CONF, tiny(Path(), *RUN)))["data"])
    data.setup()
    whole = [block["indices"] for block in data.train_blocks([0, 1], 5, 20, 7, block=3)]
    shares = [
        [block["indices"] for block in data.train_blocks([0, 1], 5, 20, 7, block=3, shard=(rank, ranks))]
        for rank in range(ranks)
    ]
    for block, *parts in zip(whole, *shares, strict=True):
        assert all(part.shape[-1] == 4 // ranks for part in parts)
        assert torch.equal(torch.stack(parts, -1).flatten(-2), block)
    tested = [torch.cat(list(data.eval_blocks(shard=(rank, ranks)))) for rank in range(ranks)]
    assert sorted(torch.cat(tested).tolist()) == list(range(51))


def test_the_shares_of_imagenet_are_the_whole_with_the_same_crops(tmp_path):
    data = ImageNetData("imagenet_subset", 6, prepared(tmp_path), 227, batch_size=4, eval_batch_size=3, workers=0)
    data.setup()
    (whole,) = data.train_blocks([0], 3, 4, 10)
    shares = [next(iter(data.train_blocks([0], 3, 4, 10, shard=(rank, 2)))) for rank in range(2)]
    for name in ("images", "labels", "top", "left", "mirrored"):
        whole_values, parts = np.asarray(whole[name]), [np.asarray(share[name]) for share in shares]
        for rank, part in enumerate(parts):
            assert np.array_equal(part, whole_values[:, :, rank::2]), name
    labels = [np.concatenate([batch["labels"] for batch in data.eval_blocks(shard=(rank, 3))]) for rank in range(3)]
    assert [len(part) for part in labels] == [3, 3, 2]
    everything = np.concatenate([batch["labels"] for batch in data.eval_blocks()])
    assert all(np.array_equal(part, everything[rank::3]) for rank, part in enumerate(labels))


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batch_size=5", "data.batch_size: expected a multiple of the 2 ranks, got 5"),
        ("engine=fast", "engine=fast: the run is spread over several ranks; use engine=auto"),
    ],
)
def test_ranks_refuse_what_they_cannot_share(tmp_path, override, words):
    for code, output in start(tmp_path, *tiny(tmp_path, *RUN, *DDP, override)):
        assert code == 2 and words in output
    assert records_in(tmp_path) == []


def test_without_ranks_there_is_no_ddp(tmp_path, train):
    with pytest.raises(ConfigError, match=r"strategy=ddp: expected ranks.*whole sweep.*torchrun.*srun.*trainer=gpu"):
        train(*DDP)
    assert not list(tmp_path.iterdir())


def test_in_a_batch_script_srun_must_start_the_ranks(monkeypatch, train):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(ConfigError, match="srun --ntasks 2 --kill-on-bad-exit"):
        train(*DDP)


@pytest.mark.parametrize(("per_node", "here"), [("8", "8"), ("2(x3),1", "2"), ("12,12", "12")])
def test_a_rank_that_srun_started_knows_how_many_share_its_node(monkeypatch, per_node, here):
    for name, value in {
        **{"JOB_ID": "4711", "STEP_ID": "0", "PROCID": "1", "LOCALID": "1", "STEP_NUM_TASKS": "7"},
        **{"STEP_NODELIST": "node1", "STEP_TASKS_PER_NODE": per_node},
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    environment = ddp._environment_of_srun()
    assert environment["LOCAL_WORLD_SIZE"] == here
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["MASTER_ADDR"]) == ("1", "7", "node1")


@pytest.mark.parametrize(("cores", "sharing"), [(4, "1"), (32, "8"), (2, "1")])  # bound by Slurm to its own, or not
def test_a_rank_of_srun_has_its_own_cores_to_itself(monkeypatch, cores, sharing):
    for name, value in {
        **{"JOB_ID": "4711", "STEP_ID": "0", "PROCID": "1", "LOCALID": "1", "STEP_NUM_TASKS": "8"},
        **{"STEP_NODELIST": "node1", "STEP_TASKS_PER_NODE": "8", "CPUS_PER_TASK": "4"},
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert ddp._environment_of_srun()["LOCAL_WORLD_SIZE"] == sharing


def test_a_sweep_in_one_process_is_refused_before_anything_runs(tmp_path):
    overrides = tiny(tmp_path, *RUN, *DDP, "seed=0,1")
    sweep = Forked(tmp_path / "out.txt", run_script, ["-m", *overrides])
    code, output = sweep.ends()
    assert code == 1 and "each of them would run the whole sweep again" in output
    assert records_in(tmp_path) == []


def test_a_sweep_of_slurm_jobs_is_planned(tmp_path):
    overrides = tiny(tmp_path, *DDP, "cluster.kind=slurm")
    assert plan_job(compose_config(CONF, overrides), CONF, overrides).missing


@pytest.mark.parametrize(
    "asked", [None, "cluster.gpus=1", "+cluster.sbatch.gres=gpu:1", "+cluster.sbatch.gpus-per-task=1"]
)
def test_jobs_that_train_on_a_gpu_have_to_ask_for_one(tmp_path, asked):
    overrides = tiny(tmp_path, "trainer=gpu", "cluster=slurm", *filter(None, [asked]))
    if asked:
        assert plan_job(compose_config(CONF, overrides), CONF, overrides).missing
    else:
        with pytest.raises(ConfigError, match=r"cluster\.gpus: expected .*cluster\.gpus=1"):
            plan_job(compose_config(CONF, overrides), CONF, overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*DDP, "seed=[0,1]"], "seed: expected one"),
        (["trainer.devices=2"], "trainer.devices: expected 1, got 2: .*whole sweep again.*trainer=ddp"),
        (["+trainer.strategy=fsdp"], "trainer.strategy: expected 'ddp'"),
    ],
)
def test_what_ddp_does_not_do_is_refused(train, overrides, words):
    with pytest.raises(ConfigError, match=words):
        train(*overrides)

"""Runs on ImageNet: top-5, resuming, several seeds; and from real JPEGs to a record, with AlexNet and GoogLeNet."""

import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from small_imagenet import CutData, prepared
from small_runs import CONF, SCRIPT, Forked, PowerCut, assert_same_bits, checkpoints, curve, run_script

from cyclical_lr import records
from cyclical_lr.report.ending import summary
from cyclical_lr.training.config import compose_config
from cyclical_lr.training.run import Outcome, run

QUICK = (
    *("+experiment=imagenet_alexnet_tri2", "data=imagenet_subset", "data.num_classes=6", "data.batch_size=4"),
    *("data._target_=small_imagenet.CutData", "model._target_=small_imagenet.QuickNet", "data.eval_batch_size=3"),
    *("iterations=12", "eval_every=5", "data.workers=0", "threads=1", "logger=none"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("imagenet"))


def train(folder: Path, *overrides: str) -> list[Outcome]:
    where = [f"results_dir={folder}/results", f"runs_dir={folder}/runs"]
    return run(compose_config(CONF, [*overrides, *where]), CONF)


def rows(folder: Path, outcome: Outcome) -> list[records.CurveRow]:
    return records.read_curve(records.curve_path(folder / "results", outcome.run_id))


@pytest.fixture(scope="module")
def unbroken(root, tmp_path_factory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("unbroken")
    (outcome,) = train(folder, *QUICK, f"data.root={root}")
    return folder, outcome


def test_a_run_measures_top_1_and_top_5_on_the_whole_validation_set(unbroken):
    folder, outcome = unbroken
    record, measured = outcome.record, rows(*unbroken)
    assert record.status == "done" and record.label.startswith("imagenet_alexnet_tri2[")
    assert [row.iteration for row in measured] == [0, 5, 10, 12]
    for row in measured:
        assert (row.test_accuracy * 8 / 100) % 1 == (row.test_accuracy_top5 * 8 / 100) % 1 == 0  # of 8 images
        assert row.test_accuracy <= row.test_accuracy_top5 <= 100
    assert any(row.test_accuracy < row.test_accuracy_top5 for row in measured)
    assert record.test_accuracy == measured[-1].test_accuracy
    assert f"top-5 {measured[-1].test_accuracy_top5:.2f} %" in summary(record, CONF, folder / "results")


def test_top_1_and_top_5_are_those_of_the_network(unbroken, root):
    folder, outcome = unbroken
    path = checkpoints(folder, outcome.run_id)[-1]
    saved = torch.load(path, weights_only=True)["network"]
    config = outcome.record.config
    network = records.build(config["model"]).eval()
    network.load_state_dict(saved)
    data = records.build({**config["data"], "root": str(root), "workers": 0})
    data.setup()
    (x, y) = data.test(**next(iter(data.eval_blocks())))
    best = network(x).sort(descending=True).indices
    one, five = (100 * (best[:, :k] == y[:, None]).any(1).double().mean().item() for k in (1, 5))
    last = rows(folder, outcome)[-1]
    assert (last.test_accuracy, last.test_accuracy_top5) == (pytest.approx(one), pytest.approx(five))


@pytest.mark.parametrize("cut_at", [4, 5, 9])
def test_a_cut_run_ends_with_the_bits_of_an_unbroken_one(root, tmp_path, unbroken, monkeypatch, cut_at):
    monkeypatch.setattr(CutData, "cut_at", cut_at)
    with pytest.raises(PowerCut):
        train(tmp_path, *QUICK, f"data.root={root}", "checkpoint_seconds=0")
    monkeypatch.setattr(CutData, "cut_at", None)
    (outcome,) = train(tmp_path, *QUICK, f"data.root={root}", "data.workers=2")
    assert [segment["iteration"] for segment in outcome.record.segments][1:] == [cut_at if cut_at == 5 else cut_at - 1]
    assert_same_bits(tmp_path, unbroken[0], outcome.run_id)


def test_seeds_in_one_process_are_the_runs_that_they_are_alone(root, tmp_path, unbroken):
    together = train(tmp_path, *QUICK, f"data.root={root}", "seed=[0,1]")
    assert together[0].run_id == unbroken[1].run_id
    assert_same_bits(tmp_path, unbroken[0], together[0].run_id)
    assert curve(tmp_path, together[0].run_id) != curve(tmp_path, together[1].run_id)


def test_a_missing_set_is_unusable_input_that_says_how_to_get_one(tmp_path):
    where = [f"data.root={tmp_path}/none", f"results_dir={tmp_path}/results", f"runs_dir={tmp_path}/runs"]
    code, output = Forked(tmp_path / "output.txt", run_script, ["+experiment=imagenet_alexnet_fixed", *where]).ends()
    assert SCRIPT.exists() and code == 2
    assert "no prepared ImageNet there" in output and "scripts/prepare_imagenet.py SOURCE DEST" in output


# Real JPEGs -----------------------------------------------------------------------------------------------------------

CLASSES = 12


@pytest.fixture(scope="module")
def real_jpegs(tmp_path_factory) -> Path:
    """Ten classes of the sample's prepared images and two of full-size ones, as a raw ImageNet: five images a class."""
    sample = os.environ.get("CYCLICAL_LR_JPEGS")
    if not sample:
        pytest.skip(
            "needs real JPEGs: set CYCLICAL_LR_JPEGS to a folder with train/<wnid>/*.JPEG, val/<wnid>/*.JPEG and "
            "full_size/<wnid>/*.JPEG"
        )
    raw = tmp_path_factory.mktemp("raw")
    for split, count in (("train", 4), ("val", 1)):
        for folder in sorted((Path(sample) / split).iterdir()):
            _link(raw / split / folder.name, sorted(folder.iterdir())[:count])
    known = {folder.name for folder in (raw / "train").iterdir()}
    others = [folder for folder in sorted((Path(sample) / "full_size").iterdir()) if folder.name not in known]
    for folder in others[: CLASSES - len(known)]:
        for split in ("train", "val"):
            _link(raw / split / folder.name, sorted(folder.iterdir()))
    return raw


def _link(folder: Path, images: list[Path]) -> None:
    folder.mkdir(parents=True)
    for image in images:
        (folder / image.name).symlink_to(image)


@pytest.fixture(scope="module")
def prepared_jpegs(real_jpegs, tmp_path_factory) -> Path:
    from cyclical_lr.data.prepare import prepare

    dest = tmp_path_factory.mktemp("prepared")
    done = prepare(real_jpegs, dest)
    assert done.usable and done.classes == CLASSES and not done.problems
    return dest


@pytest.fixture
def scratch(tmp_path):
    """A folder that goes with the test: AlexNet's checkpoints have 460 MB each."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["alexnet", "googlenet"])
def test_from_raw_jpegs_to_range_test_training_resumption_and_evaluation(network, prepared_jpegs, scratch, monkeypatch):
    subset = ["data=imagenet_subset", f"data.num_classes={CLASSES}", f"data.root={prepared_jpegs}"]
    subset += ["data.eval_batch_size=7", "threads=1", "logger=none"]

    short = [f"+experiment=imagenet_{network}_range_test", *subset, "schedule.stepsize=2", "iterations=2"]
    short += [
        "eval_every=2",
        "data.batch_size=2",
        "data.workers=1",
        f"results_dir={scratch}/r",
        f"runs_dir={scratch}/o",
    ]
    code, output = Forked(scratch / "output.txt", run_script, short).ends(1200)
    assert code == 0, output
    assert "top-5" in output and "LR range test, 1 seed" in output, output
    shutil.rmtree(scratch / "o")

    ten = [f"+experiment=imagenet_{network}_tri2", *subset, "iterations=4", "eval_every=4", "data.batch_size=8"]
    ten += ["data._target_=small_imagenet.CutData"]
    monkeypatch.setattr(CutData, "cut_at", 2)
    with pytest.raises(PowerCut):
        train(scratch, *ten, "checkpoint_seconds=0", "data.workers=0")  # workers would ask for batches ahead
    monkeypatch.setattr(CutData, "cut_at", None)
    (outcome,) = train(scratch, *ten, "data.workers=1")
    record, measured = outcome.record, rows(scratch, outcome)
    assert record.status == "done" and record.iterations == 4
    assert [segment["iteration"] for segment in record.segments] == [0, 1]
    assert [row.iteration for row in measured] == [0, 4]
    # Its loss at the start is that of a guess; GoogLeNet's counts its auxiliary heads by 0.3 each.
    heads = 1.6 if network == "googlenet" else 1.0
    assert measured[0].test_loss == pytest.approx(math.log(CLASSES), rel=0.5)
    assert 0.5 * heads * math.log(CLASSES) < measured[1].train_loss < 3 * heads * math.log(CLASSES)
    assert all(0 <= row.test_accuracy <= row.test_accuracy_top5 <= 100 for row in measured)
    assert record.config["data"]["mean_sha256"]

"""What benchmarks/ measure: each part runs, on the CPU, that of `make gpu-check` too."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu_check
import report
import step

from cyclical_lr.report.collect import collect


def test_an_imagenet_cards_hours_follow_from_the_measured_rate(monkeypatch):
    monkeypatch.setattr(gpu_check.PlainModule, "WARM_UP", 0)
    measured = gpu_check.imagenet_hours("imagenet_alexnet_tri2", torch.device("cpu"), batch_size=2, iterations=1)
    assert list(measured) == ["float32", "bf16"]
    for precision in measured.values():
        assert precision["hours"] == pytest.approx(400_000 * 256 / 3600 / precision["images_per_second"], rel=0.01)


def test_a_recipes_run_is_timed_beside_the_usual_one(monkeypatch):
    monkeypatch.setattr(gpu_check.PlainModule, "WARM_UP", 1)
    monkeypatch.setitem(gpu_check.BLOCKS, "fast", 2)
    small = ["trainer=cpu", "data=cifar10_sample", "model.depth=8", "data.batch_size=8"]
    cpu = torch.device("cpu")
    ratio = gpu_check.images_per_second_ratio("cifar10_resnet_lr01", small, cpu, blocks=2, batches=3, rounds=1)
    assert 0 < ratio < 100


@pytest.mark.parametrize("precision", [[], ["trainer=cpu_bf16", "trainer.emulate_bf16=true"]], ids=["float32", "bf16"])
def test_a_run_is_timed_beside_the_others_and_ends_as_the_bare_loop_does(monkeypatch, precision):
    monkeypatch.setattr(step, "CHUNKS", 2)
    small = ["data=cifar10_sample", "data.batch_size=4", "logger=none", "checkpoint_seconds=0"]
    seconds, chunk, equal = step.measure([*small, *precision])
    assert equal and chunk == 10
    assert set(seconds) == {"run", "bare", "floor", "plain", "module"}
    assert all(len(taken) == 1 and taken[0] > 0 for taken in seconds.values())


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_check.main([]) == 2
    assert "found none" in capsys.readouterr().err


def test_the_runs_that_the_report_is_timed_on_are_taken_for_runs(tmp_path):
    report.write_runs(tmp_path, ["cifar10_fixed", "cifar10_tri2"], 4)
    results = collect(tmp_path)
    assert not results.problems and sorted(results.by_label) == ["cifar10_fixed", "cifar10_tri2"]

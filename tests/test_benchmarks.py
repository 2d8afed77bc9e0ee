"""What benchmarks/ measure: each part runs, on the CPU, that of `make gpu-check` too."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu_check
import report
import solvers
import step

from cyclical_lr.report.collect import collect
from cyclical_lr.training.run import Outcome

RESULTS = Path(__file__).resolve().parents[1] / "results"


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
    ((ours, usual),) = gpu_check.images_per_second_of("cifar10_sd_lr01", small, cpu, blocks=2, batches=3, rounds=1)
    assert 0 < ours < 100 * usual


def test_each_methods_iteration_is_timed_under_either_policy(monkeypatch, tmp_path, capsys):
    small = ["data=cifar10_sample", "data.batch_size=4", f"--out={tmp_path}", "--minutes=0.0001"]
    monkeypatch.setattr(sys, "argv", ["solvers.py", *small])
    solvers.main()
    (path,) = tmp_path.iterdir()
    measured = json.loads(path.read_text())
    assert measured["overrides"] == small[:2] and set(measured["milliseconds"]) == set(solvers.CARDS)
    assert all(min(row) > 0 for times in measured["milliseconds"].values() for row in times.values())
    assert "fixed / SGD with CLR" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["cifar10_tri2"], ["cifar10_densenet_lr01", "model.depth=7", "trainer=cpu_bf16"]])
def test_the_kernels_of_an_iteration_are_listed(monkeypatch, options):
    monkeypatch.setitem(gpu_check.BLOCKS, "fast", 2)
    card, *small = [*options, "data=cifar10_sample", "data.batch_size=4"]
    spent = gpu_check.kernels([f"+experiment={card}", *small], torch.device("cpu"), most=3)
    assert next(iter(spent)) == "all" and len(spent) == 4 and spent["all"] > list(spent.values())[1] > 0


@pytest.mark.parametrize("precision", [[], ["trainer=cpu_bf16", "trainer.emulate_bf16=true"]], ids=["float32", "bf16"])
def test_a_run_is_timed_beside_the_others_and_ends_as_the_bare_loop_does(monkeypatch, precision):
    monkeypatch.setitem(step.CHUNKS, "cpu", 2)
    small = ["data=cifar10_sample", "data.batch_size=4", "logger=none", "checkpoint_seconds=0"]
    seconds, chunk, equal = step.measure([*small, *precision])
    assert equal and chunk == 10
    assert set(seconds) == {"run", "bare", "floor", "plain", "module"}
    assert all(len(taken) == 1 and taken[0] > 0 for taken in seconds.values())


def fails(*_):
    raise RuntimeError("out of memory")


def test_what_fails_is_written_down_and_the_rest_goes_on(monkeypatch, tmp_path, capsys):
    taken = {name: [1.0, 2.0] for name in ("run", "bare", "floor", "plain")} | {"module": [10.0, 30.0]}
    record = replace(next(iter(collect(RESULTS).records.values())), train_seconds=8.0, eval_seconds=1.5)
    for name, stub in {
        "torch.cuda.is_available": lambda: True,
        "measure": lambda _: (taken, 10, True),
        "tests_pass": lambda: True,
        "build": lambda _: SimpleNamespace(prepare_data=lambda: None),
        "check_file": lambda _: tmp_path / "results" / "a_gpu.json",
        "run": lambda *_: [Outcome("", record, True)],
        "images_per_second_of": lambda *_: [(300.0, 100.0), (250.0, 50.0), (400.0, 100.0)],
        "imagenet_hours": fails,
        "kernels": lambda *_: {"all": 1.0},
    }.items():
        monkeypatch.setattr(gpu_check if "." not in name else torch.cuda, name.rpartition(".")[2], stub)
    monkeypatch.setattr(gpu_check.provenance, "device_name", lambda _: "a gpu")
    monkeypatch.setattr(gpu_check.provenance, "versions", dict)
    assert gpu_check.main([]) == 0
    written = json.loads((tmp_path / "results" / "a_gpu.json").read_text())
    assert written["fast_equals_reference"] and written["device"] == "a gpu"
    by_name = {name.partition(",")[0]: found for name, found in written["measured"].items()}
    assert by_name["run / DataLoader module (it/s)"] == {"value": 12.5, "lowest": 10.0, "highest": 15.0}
    assert by_name["cifar10_tri2"] == {"value": 9.5, "evaluation": 1.5}
    assert by_name["eight seeds together / one (time)"]["value"] == 1.0
    table_4 = by_name["sd: bf16 run / float32 DataLoader module (images/s)"]
    assert table_4 == {"value": 4.0, "lowest": 3.0, "highest": 5.0, "run": 300.0}
    assert by_name["milliseconds of an iteration"]["module"] == 2000.0
    assert all(found == {"failed": "RuntimeError: out of memory"} for found in written["imagenet"].values())
    assert len(written["kernels"]) == 2 and all(found == {"all": 1.0} for found in written["kernels"].values())


@pytest.mark.parametrize(
    ("overrides", "broken", "said"),
    [
        (["data.root=EMPTY", "data.source=EMPTY/none.tar.gz"], {}, "none.tar.gz"),
        (["data=cifar10_sample"], {"measure": fails}, "could not be checked"),
        (["data=cifar10_sample"], {"subprocess.run": lambda *_, **__: CompletedProcess([], 4)}, "could not be checked"),
    ],
    ids=["data", "measure", "pytest"],
)
def test_what_could_not_be_checked_changes_no_earlier_file(monkeypatch, tmp_path, capsys, overrides, broken, said):
    earlier = tmp_path / "a_gpu.json"
    earlier.write_text("earlier")
    for name, stub in {
        **{"torch.cuda.is_available": lambda: True, "check_file": lambda _: earlier},
        **({"subprocess.run": lambda *_, **__: CompletedProcess([], 0)} | broken),
    }.items():
        where = {"torch.cuda": torch.cuda, "subprocess": gpu_check.subprocess}.get(name.rpartition(".")[0], gpu_check)
        monkeypatch.setattr(where, name.rpartition(".")[2], stub)
    monkeypatch.setattr(gpu_check.provenance, "commit", lambda: ("unknown", False))
    assert gpu_check.main([o.replace("EMPTY", str(tmp_path / "empty")) for o in overrides]) == 2
    assert said in capsys.readouterr().err and earlier.read_text() == "earlier"


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_check.main([]) == 2
    assert "found none" in capsys.readouterr().err


def test_the_runs_that_the_report_is_timed_on_are_taken_for_runs(tmp_path):
    report.write_runs(tmp_path, ["cifar10_fixed", "cifar10_tri2"], 4)
    results = collect(tmp_path)
    assert not results.problems and sorted(results.by_label) == ["cifar10_fixed", "cifar10_tri2"]

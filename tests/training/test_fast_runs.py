"""Whole runs with engine=fast: the bits of the reference, cut and continued, alone and with other seeds.

On a GPU they replay a captured graph, elsewhere the same program without one.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import PowerCut, assert_same_bits, cut, records_in, train

from cyclical_lr.records import ConfigError
from cyclical_lr.training.engine import FastEngine
from cyclical_lr.training.run import Outcome

step = FastEngine._step

TRAINERS = ["cpu", *(["gpu", "gpu_bf16"] if torch.cuda.is_available() else [])]
LONG = ("iterations=26", "eval_every=8")


@pytest.fixture(params=TRAINERS, ids=lambda trainer: trainer.replace("gpu", "cuda"))
def on(request):
    return f"trainer={request.param}"


@pytest.fixture
def train_in(tmp_path: Path) -> Callable[..., list[Outcome]]:
    """`train_in(name, *overrides)`: a tiny run whose files go into that folder in tmp_path."""
    return lambda name, *overrides: train(tmp_path / name, *overrides)


def test_a_fast_run_ends_with_the_bits_of_the_reference(tmp_path, train_in, on):
    (outcome,) = train_in("fast", *LONG, on, "engine=fast")
    (reference,) = train_in("reference", *LONG, on, "engine=reference")
    assert (outcome.record.engine, reference.record.engine) == ("fast", "reference")
    assert outcome.run_id == reference.run_id  # an engine is how, not what
    assert_same_bits(tmp_path / "fast", tmp_path / "reference", outcome.run_id)


def test_in_bf16_it_does_so_too(tmp_path, train_in):
    bf16 = ("trainer=cpu_bf16", "trainer.emulate_bf16=true")
    (outcome,) = train_in("fast", *LONG, *bf16, "engine=fast")
    train_in("reference", *LONG, *bf16, "engine=reference")
    assert outcome.record.engine == "fast" and outcome.record.precision == "bf16"
    assert_same_bits(tmp_path / "fast", tmp_path / "reference", outcome.run_id)


def test_a_run_may_change_its_engine_where_it_was_cut(tmp_path, train_in, on):
    (reference,) = train_in("straight", *LONG, on, "engine=reference")
    with cut(batch=8), pytest.raises(PowerCut):
        train_in("cut", *LONG, on, "engine=fast", "checkpoint_seconds=0")
    (outcome,) = train_in("cut", *LONG, on, "engine=reference")
    assert [segment["iteration"] for segment in outcome.record.segments] == [0, 8]
    assert_same_bits(tmp_path / "cut", tmp_path / "straight", reference.run_id)


def test_each_seed_of_a_fast_group_has_the_bits_of_its_own_reference_run(tmp_path, train_in, on):
    together = train_in("together", *LONG, on, "engine=fast", "seed=[0,1,2]", "data.shuffle=true")
    for seed, outcome in enumerate(together):
        train_in("solo", *LONG, on, "engine=reference", f"seed={seed}", "data.shuffle=true")
        assert_same_bits(tmp_path / "together", tmp_path / "solo", outcome.run_id)


def test_a_group_goes_on_fast_from_done_half_done_and_new_seeds(tmp_path, train_in, on):
    train_in("group", *LONG, on, "engine=fast", "seed=0")
    with cut(batch=16), pytest.raises(PowerCut):
        train_in("group", *LONG, on, "engine=fast", "seed=1", "checkpoint_seconds=0")
    train_in("group", *LONG, on, "engine=fast", "seed=[0,1,2]")
    for record in records_in(tmp_path / "group"):
        train_in("solo", *LONG, on, "engine=reference", f"seed={record.seed}")
        assert_same_bits(tmp_path / "group", tmp_path / "solo", record.run_id)
    assert [record.seed for record in records_in(tmp_path / "group")] == [0, 1, 2]


@pytest.mark.parametrize("draws", ["data.augment=crop_flip", "model._target_=small_runs.WithDropout"])
def test_fast_runs_that_draw_random_numbers_draw_those_of_their_own_reference_runs(tmp_path, train_in, on, draws):
    together = train_in("together", *LONG, on, "engine=fast", "seed=[0,1]", draws, "solver=torch_sgd")
    for seed, outcome in enumerate(together):
        train_in("solo", *LONG, on, "engine=reference", f"seed={seed}", draws, "solver=torch_sgd")
        assert_same_bits(tmp_path / "together", tmp_path / "solo", outcome.run_id)


def test_a_seed_that_diverges_in_a_fast_group_leaves_the_others_alone(tmp_path, train_in, on):
    explodes = "model._target_=small_runs.Seed1Explodes"
    together = train_in("together", *LONG, on, "engine=fast", "seed=[0,1]", explodes)
    assert [outcome.record.status for outcome in together] == ["done", "diverged"]
    train_in("solo", *LONG, on, "engine=reference", "seed=0", explodes)
    assert_same_bits(tmp_path / "together", tmp_path / "solo", together[0].run_id)


def test_a_run_with_its_channels_first_has_the_same_bits_on_both_engines_and_goes_on_from_one_with_them_last(
    monkeypatch, tmp_path, train_in
):
    """As on a GPU in float32, where others are trained on a CPU."""
    with cut(batch=8), pytest.raises(PowerCut):
        train_in("moved", *LONG, "engine=reference", "checkpoint_seconds=0")
    formats = set()

    def look_and_step(engine: FastEngine, run: int) -> None:
        network, solver, _ = engine.runs[run]
        velocities = [state["velocity"] for state in solver.state.values()]
        formats.update(tensor.is_contiguous() for tensor in [*network.parameters(), *velocities] if tensor.dim() == 4)
        step(engine, run)

    monkeypatch.setattr("cyclical_lr.training.module.layout", lambda *_: torch.contiguous_format)
    monkeypatch.setattr(FastEngine, "_step", look_and_step)
    train_in("fast", *LONG, "engine=fast")
    (reference,) = train_in("reference", *LONG, "engine=reference")
    assert_same_bits(tmp_path / "fast", tmp_path / "reference", reference.run_id)
    (moved,) = train_in("moved", *LONG, "engine=fast")
    assert moved.record.segments[1]["iteration"] == 8 and formats == {True}
    assert moved.record.test_accuracy == pytest.approx(reference.record.test_accuracy, abs=1)


def test_auto_is_the_reference_where_no_check_of_the_device_is_committed(train_in):
    assert train_in("", "iterations=2")[0].record.engine == "reference"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("engine=fast", "solver._target_=small_runs.adam"), "engine=fast: Adam does not take its LR as a tensor; use"),
        (("engine=quick",), "engine: expected 'auto', 'reference' or 'fast', got 'quick'"),
    ],
)
def test_an_engine_that_cannot_be_used_is_refused_before_training(tmp_path, train_in, overrides, message):
    with pytest.raises(ConfigError, match=message):
        train_in("", *overrides)
    assert records_in(tmp_path) == []

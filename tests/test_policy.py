"""What every LR policy promises: bounds, pure values, speed, refusals in one wording, and a config that makes it."""

import dataclasses
import inspect
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import hydra
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from rates import ITERATIONS, TABLE_2, bounds

from cyclical_lr import comparators, schedules
from cyclical_lr.comparators import Cosine, CosineRestarts, OneCycle, WarmupStableDecay
from cyclical_lr.policy import Schedule
from cyclical_lr.schedules import (
    Compressed,
    Decay,
    Drops,
    Exp,
    ExpRange,
    Fixed,
    Hann,
    Held,
    MultiStep,
    Phase,
    Phases,
    RangeTest,
    Triangular,
    Triangular2,
    Welch,
)

CONF = Path(__file__).parents[1] / "conf" / "schedule"
CYCLIC = [Triangular, Triangular2, Welch, Hann]


# ---- Values ----------------------------------------------------------------------------------------------------------


@st.composite
def any_schedule(draw) -> tuple[Schedule, float, float]:
    """A schedule with a lower and an upper bound of its values."""
    low, high = draw(bounds())
    length = draw(st.integers(1, 5000))
    gamma = draw(st.floats(0.5, 1))
    milestones = sorted(draw(st.sets(st.integers(1, 20000), max_size=3)))
    made = [
        (Fixed(high), high, high),
        (MultiStep(high, milestones, gamma), high * gamma**3, high),
        (Exp(high, gamma), 0.0, high),
        (ExpRange(low, high, length, gamma), 0.0, high),
        (ExpRange(low, high, length, gamma, decay="amplitude"), low, high),
        (Decay(low, high, length), low, high),
        (RangeTest(low, high, length), low, high),
        *((policy(low, high, length), low, high) for policy in CYCLIC),
        (Drops(Triangular(low, high, length), milestones, gamma), low * gamma**3, high),
        (Held(Triangular(low, high, length), draw(st.integers(1, 500))), low, high),
        (Phases([Phase(0, Fixed(high)), Phase(length, Triangular2(low, high, length))]), low, high),
        (Compressed(Hann(low, high, length), draw(st.integers(1, 9))), low, high),
        (Cosine(high, length, low), low, high),
        (CosineRestarts(high, length, draw(st.integers(1, 4)), low), low, high),
        (OneCycle(high, length, draw(st.floats(0.01, 0.99))), 0.0, high),
        (WarmupStableDecay(high, length + 10, draw(st.integers(0, 5)), draw(st.integers(0, 5)), low), low, high),
    ]
    return draw(st.sampled_from(made))


@given(any_schedule(), st.lists(ITERATIONS, min_size=1, max_size=20))
def test_rates_stay_within_the_bounds(made, t):
    schedule, low, high = made
    rates = schedule(np.array(t))
    slack = 1e-12
    assert np.all(rates >= low - slack)
    assert np.all(rates <= high + slack)


@given(any_schedule(), st.lists(ITERATIONS, max_size=20))
def test_a_scalar_gives_the_float_that_an_array_gives(made, t):
    schedule = made[0]
    rates = schedule(np.array(t, dtype=np.int64))
    assert rates.dtype == np.float64
    assert rates.shape == (len(t),)
    one_by_one = [schedule(i) for i in t]
    assert all(type(rate) is float for rate in one_by_one)
    assert rates.tolist() == one_by_one
    assert [schedule(np.int32(i)) for i in t] == one_by_one


@given(any_schedule())
def test_arrays_keep_their_shape_and_their_contents(made):
    t = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    rates = made[0](t)
    assert rates.shape == (2, 3, 4)
    assert rates.ravel().tolist() == made[0](np.arange(24)).tolist()
    assert t.ravel().tolist() == list(range(24))


@given(any_schedule())
def test_schedules_are_hashable_values(made):
    schedule = made[0]
    twin = dataclasses.replace(schedule)
    assert schedule == twin
    assert hash(schedule) == hash(twin)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.base_lr = 1.0


@given(any_schedule(), any_schedule(), st.integers(1, 10**5), ITERATIONS)
def test_each_phase_counts_from_its_own_start(first, second, start, t):
    phases = Phases([Phase(0, first[0]), Phase(start, second[0])])
    assert phases(start + t) == second[0](t)
    assert phases(t % start) == first[0](t % start)


@given(any_schedule(), st.integers(1, 1000), ITERATIONS)
def test_held_changes_at_multiples_of_every_alone(made, stretch, t):
    held, start = Held(made[0], stretch), t - t % stretch
    assert held(t) == held(start) == made[0](start)
    assert Held(made[0], stretch, first=1)(t) == held(t + stretch)


# ---- Speed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        TABLE_2,
        ExpRange(0.001, 0.006, 2000, 0.99994),
        Hann(0.001, 0.006, 2000),
        Drops(Triangular(0.001, 0.006, 2000), [60000, 65000]),
        CosineRestarts(0.1, 10, 2),
        OneCycle(0.1, 70000),
        WarmupStableDecay(0.1, 70000, 1000, 10000),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_a_run_of_70000_iterations_is_computed_in_milliseconds(schedule):
    t = np.arange(70000)
    seconds = []
    for _ in range(10):
        began = time.process_time()  # which a busy machine does not lengthen
        schedule(t)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.01  # 1 to 4 ms; a Python loop takes 500


def test_importing_the_schedules_imports_neither_torch_nor_lightning():
    imports = "import sys, cyclical_lr.schedules, cyclical_lr.comparators"
    code = f"{imports}; print(*{{'torch', 'pytorch_lightning', 'hydra'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# ---- Refusals --------------------------------------------------------------------------------------------------------

VALID = {
    Fixed: {"base_lr": 0.1},
    MultiStep: {"base_lr": 0.1, "milestones": [10, 20], "gamma": 0.1},
    Triangular: {"base_lr": 0.1, "max_lr": 0.2, "stepsize": 5},
    Triangular2: {"base_lr": 0.1, "max_lr": 0.2, "stepsize": 5},
    Welch: {"base_lr": 0.1, "max_lr": 0.2, "stepsize": 5},
    Hann: {"base_lr": 0.1, "max_lr": 0.2, "stepsize": 5},
    ExpRange: {"base_lr": 0.1, "max_lr": 0.2, "stepsize": 5, "gamma": 0.9, "decay": "bounds"},
    Decay: {"base_lr": 0.1, "max_lr": 0.2, "stepsize": 5},
    Exp: {"base_lr": 0.1, "gamma": 0.9},
    RangeTest: {"base_lr": 0.0, "max_lr": 0.2, "stepsize": 5},
    Drops: {"schedule": Fixed(0.1), "milestones": [10, 20], "gamma": 0.1},
    Held: {"schedule": Fixed(0.1), "every": 391, "first": 1},
    Phase: {"start": 0, "schedule": Fixed(0.1)},
    Phases: {"phases": [Phase(0, Fixed(0.1)), Phase(10, Fixed(0.2))]},
    Compressed: {"schedule": Fixed(0.1), "factor": 2},
    Cosine: {"max_lr": 0.1, "iterations": 100, "min_lr": 0.01},
    CosineRestarts: {"max_lr": 0.1, "period": 10, "period_mult": 2, "min_lr": 0.01},
    OneCycle: {"max_lr": 0.1, "iterations": 100, "pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 1e4},
    WarmupStableDecay: {"max_lr": 0.1, "iterations": 100, "warmup": 10, "decay": 20, "min_lr": 0.01},
}

BAD = {
    "base_lr": [-0.1, math.nan, math.inf, 10**400, "0.1", None, True],
    "max_lr": [-0.2, math.nan, "0.2", None],
    "min_lr": [-0.01, math.inf],
    "stepsize": [0, -5, 2000.0, 2.5, "2000", None, True],
    "gamma": [0, -0.1, 1.5, math.nan, "0.1"],
    "milestones": [[20, 10], [10, 10], 10, "10", None],
    "schedule": [0.1, None, {"_target_": "Fixed"}, Fixed],
    "every": [0, -391, 391.0, "391", None, True],
    "first": [-1, 1.0, "1", None],
    "start": [-1, 0.0, "0", None],
    "phases": [[], None, Fixed(0.1)],
    "factor": [0, -2, 2.0, 1.5],
    "iterations": [0, -100, 100.0, "100"],
    "period": [0, -10, 10.0],
    "period_mult": [0, -1, 2.0],
    "pct_start": [0, 1, -0.3, 30, "0.3"],
    "div_factor": [0, 0.5, -25, math.nan],
    "final_div_factor": [0, 0.5, -1],
    "warmup": [-1, 10.0, None],
    "decay": ["both", "Bounds", None, -1],
}

REFUSALS = [(policy, key, value) for policy, valid in VALID.items() for key in valid for value in BAD[key]]


def test_every_policy_is_listed_here():
    offered = {
        value
        for module in (schedules, comparators)
        for value in vars(module).values()
        if dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    }
    assert set(VALID) == offered
    for policy, valid in VALID.items():
        assert list(valid) == [field.name for field in dataclasses.fields(policy)]


@pytest.mark.parametrize(
    ("policy", "key", "value"), REFUSALS, ids=[f"{policy.__name__}-{key}-{value}" for policy, key, value in REFUSALS]
)
def test_a_bad_argument_is_refused_by_key_and_value(policy, key, value):
    with pytest.raises(ValueError) as refusal:
        policy(**{**VALID[policy], key: value})
    assert re.fullmatch(rf"schedule\.{key}: expected .+, got {re.escape(repr(value))}; .+", str(refusal.value))


@pytest.mark.parametrize(("at", "value"), [(0, 0), (0, -3), (1, 20.0), (1, "20"), (1, True), (1, None)])
@pytest.mark.parametrize("policy", [MultiStep, Drops], ids=lambda policy: policy.__name__)
def test_a_bad_milestone_is_refused_by_its_place(policy, at, value):
    milestones = [10, 20]
    milestones[at] = value
    with pytest.raises(ValueError) as refusal:
        policy(**{**VALID[policy], "milestones": milestones})
    expected = rf"schedule\.milestones\[{at}\]: expected .+, got {re.escape(repr(value))}; .+"
    assert re.fullmatch(expected, str(refusal.value))


@pytest.mark.parametrize("value", [Fixed(0.1), (10, Fixed(0.1)), {"start": 10, "schedule": Fixed(0.1)}], ids=repr)
def test_what_is_no_phase_is_refused_by_its_place(value):
    with pytest.raises(ValueError) as refusal:
        Phases([Phase(0, Fixed(0.1)), value])
    assert f"schedule.phases[1]: expected a Phase, got {value!r}; " in str(refusal.value)


def test_the_message_says_what_to_do():
    with pytest.raises(ValueError) as refusal:
        Triangular(0.001, 0.006, -5)
    assert str(refusal.value) == (
        "schedule.stepsize: expected a positive integer number of iterations (half a cycle), got -5; "
        "the paper advises 2 to 10 times the iterations of an epoch"
    )


@pytest.mark.parametrize(
    ("policy", "lower"),
    [
        (policy, lower)
        for policy, valid in VALID.items()
        if "max_lr" in valid
        for lower in {"base_lr", "min_lr"} & set(valid)
    ],
)
def test_max_lr_below_the_lower_bound_is_refused(policy, lower):
    expected = rf"schedule\.max_lr: expected at least {lower} \(0\.5\), got {VALID[policy]['max_lr']}; "
    with pytest.raises(ValueError, match=expected):
        policy(**{**VALID[policy], lower: 0.5})


def test_the_first_phase_starts_at_0():
    with pytest.raises(ValueError, match=r"schedule\.phases\[0\]\.start: expected 0, got 5; "):
        Phases([Phase(5, Fixed(0.1))])


@pytest.mark.parametrize("start", [10, 9])
def test_starts_increase_strictly(start):
    with pytest.raises(ValueError, match=rf"schedule\.phases\[2\]\.start: expected more than .*10.*, got {start}; "):
        Phases([Phase(0, Fixed(0.1)), Phase(10, Fixed(0.1)), Phase(start, Fixed(0.1))])


@pytest.mark.parametrize("policy", [policy for policy in VALID if policy is not Phase], ids=lambda p: p.__name__)
@pytest.mark.parametrize("t", [-1, 1.0, 0.5, True, "3", None, np.array([3, -2]), np.array([1.0]), []], ids=repr)
def test_what_is_no_iteration_is_refused(policy, t):
    with pytest.raises(ValueError, match=r"^t: expected .*, got .*; ") as refusal:
        policy(**VALID[policy])(t)
    assert f"got {t!r}; " in str(refusal.value)


# ---- Configuration ---------------------------------------------------------------------------------------------------

FIXED_NODE = {"_target_": "cyclical_lr.schedules.Fixed", "base_lr": 0.1}
PHASE_NODES = [
    {"_target_": "cyclical_lr.schedules.Phase", "start": start, "schedule": {**FIXED_NODE, "base_lr": rate}}
    for start, rate in [(0, 0.1), (10, 0.2)]
]
CONFIGS = {
    "fixed": Fixed,
    "multistep": MultiStep,
    "triangular": Triangular,
    "triangular2": Triangular2,
    "welch": Welch,
    "hann": Hann,
    "exp_range": ExpRange,
    "decay": Decay,
    "exp": Exp,
    "range_test": RangeTest,
    "phases": Phases,
    "drops": Drops,
    "held": Held,
    "cosine": Cosine,
    "cosine_restarts": CosineRestarts,
    "one_cycle": OneCycle,
    "warmup_stable_decay": WarmupStableDecay,
}


def test_every_policy_has_a_config_and_every_config_a_policy():
    assert {path.stem for path in CONF.glob("*.yaml")} == {*CONFIGS, "own"}  # `own` is for a policy of a user's
    assert set(CONFIGS.values()) == set(VALID) - {Phase, Compressed}  # which `compress=` makes


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_makes_its_schedule_once_its_gaps_are_filled(name):
    policy = CONFIGS[name]
    config = OmegaConf.load(CONF / f"{name}.yaml")
    gaps = OmegaConf.missing_keys(config)
    for key in gaps:
        config[key] = {"schedule": FIXED_NODE, "phases": PHASE_NODES}.get(key, VALID[policy][key])
    made = hydra.utils.instantiate(config)
    assert made == policy(**{key: VALID[policy][key] for key in gaps})
    assert type(hash(made)) is int  # so no OmegaConf container is left inside
    assert made(np.arange(30)).shape == (30,)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configs_defaults_are_the_classs(name):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert set(config.keys()) - {"_target_", "_convert_"} == set(VALID[CONFIGS[name]])
    for field in dataclasses.fields(CONFIGS[name]):
        if field.default is dataclasses.MISSING:
            assert OmegaConf.is_missing(config, field.name), f"{name}.yaml invents a value for {field.name}"
        else:
            assert config[field.name] == field.default


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_begins_with_a_line_on_what_it_is(name):
    assert (CONF / f"{name}.yaml").read_text().startswith("# ")


def test_lists_of_omegaconf_become_tuples():
    made = MultiStep(0.1, OmegaConf.create([3, 5]))
    assert made.milestones == (3, 5)
    assert hash(made) == hash(MultiStep(0.1, (3, 5)))


def test_a_bad_value_in_a_config_is_named():
    node = {"_target_": "cyclical_lr.schedules.Triangular", "base_lr": 0.001, "max_lr": 0.006, "stepsize": -5}
    with pytest.raises(hydra.errors.InstantiationException, match=r"schedule\.stepsize: .* got -5"):
        hydra.utils.instantiate(OmegaConf.create(node))


def test_help_tells_what_a_schedule_is_called_with():
    for policy in (Triangular, OneCycle, Phases):
        assert inspect.getdoc(policy.__call__).startswith("The LR at iterations t, from 0: a float for an int")
        assert list(inspect.signature(policy.__call__).parameters) == ["self", "t"]
        assert policy.__call__.__qualname__ == f"{policy.__name__}.__call__"

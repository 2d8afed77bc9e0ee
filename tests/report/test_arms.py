"""The arms of the figures: their lab cards' schedules, with cycle ends and drops, and how they are told apart."""

from pathlib import Path

import hydra
import pytest

from cyclical_lr import schedules
from cyclical_lr.report import arms, paper_figures

CONF = Path(__file__).parents[2] / "conf"


def test_a_lab_cards_schedule_is_what_hydra_composes():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for label in ("cifar10_tri2", "cifar10_decay_drops", "imagenet_googlenet_exp_range"):
            config = hydra.compose("run", overrides=[f"+experiment={label}"])
            assert arms.schedule_of(CONF, label) == (hydra.utils.instantiate(config.schedule), config.iterations)


CYCLE = schedules.Triangular(0.001, 0.006, 100)
PHASES = schedules.Phases([schedules.Phase(0, CYCLE), schedules.Phase(500, schedules.Fixed(0.1))])


@pytest.mark.parametrize(
    ("schedule", "iterations", "ends", "drops"),
    [
        (CYCLE, 700, [200, 400, 600], []),
        (CYCLE, 600, [200, 400, 600], []),
        (CYCLE, 199, [], []),
        (schedules.ExpRange(0.001, 0.006, 100, 0.9), 450, [200, 400], []),
        (schedules.Drops(CYCLE, [250, 900]), 500, [200, 400], [250]),
        (PHASES, 1_000, [200, 400], [500]),
        (PHASES, 300, [200], []),
        (schedules.MultiStep(0.1, [50, 70]), 70, [], [50]),
        (schedules.Decay(0.001, 0.007, 100), 500, [], []),
    ],
)
def test_cycle_ends_and_drops_are_those_of_the_schedule(schedule, iterations, ends, drops):
    assert arms.cycle_ends(schedule, iterations) == ends
    assert arms.drops(schedule, iterations) == drops
    for end in ends:
        assert schedule(end - 1) > schedule(end)
    for drop in drops:
        assert schedule(drop) != schedule(drop - 1)


def test_arms_that_share_a_figure_differ_in_colour():
    for figure in paper_figures.FIGURES.values():
        colours = [arms.ARMS[label].colour for label in figure.arms]
        assert len(set(colours)) == len(colours)

"""The arms of the figures: their lab cards' schedules, and how they are told apart."""

from pathlib import Path

import hydra

from cyclical_lr.report import arms, paper_figures

CONF = Path(__file__).parents[2] / "conf"


def test_a_lab_cards_schedule_is_what_hydra_composes():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for label in ("cifar10_tri2", "cifar10_decay_drops", "imagenet_googlenet_exp_range"):
            config = hydra.compose("run", overrides=[f"+experiment={label}"])
            assert arms.schedule_of(CONF, label) == (hydra.utils.instantiate(config.schedule), config.iterations)


def test_arms_that_share_a_figure_differ_in_colour():
    for figure in paper_figures.FIGURES.values():
        colours = [arms.ARMS[label].colour for label in figure.arms]
        assert len(set(colours)) == len(colours)

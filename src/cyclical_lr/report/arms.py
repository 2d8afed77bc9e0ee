"""The arms of the figures: how each experiment is named and drawn everywhere, and what its lab card schedules."""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from cyclical_lr import records
from cyclical_lr.policy import Schedule

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
)
"""Okabe and Ito's palette: told apart by colour-blind readers too."""
DASHED, DASHDOT, DOTTED = "--", "-.", ":"
LONG_DASHES, DASHDOTDOT = (0, (6, 1.5)), (0, (4, 1, 1, 1, 1, 1))
LINES = ("-", DASHED, DASHDOT, DOTTED)


@dataclass(frozen=True)
class Arm:
    """How an experiment is shown: a name for a reader who knows no lab card, a colour and a line."""

    name: str
    colour: str
    line: str | tuple[int, tuple[float, ...]] = "-"


ARMS = {
    # Figure 1's colours and lines are the paper's: blue dashed, green dash-dot, red (here vermillion).
    "cifar10_fixed": Arm("fixed, drops at 60k and 65k", BLUE, DASHED),
    "cifar10_tri2": Arm("CLR: triangular2 in 3 phases", VERMILLION),
    "cifar10_exp": Arm("exp: 0.001 × 0.99994$^t$", GREEN, DASHDOT),
    "cifar10_exp_range": Arm("exp_range: CLR, both bounds falling", PURPLE, DASHDOTDOT),
    "cifar10_decay": Arm("decay: 0.007 to 0.001 in 4k", ORANGE, DASHDOT),
    "cifar10_range_test": Arm("ours", BLUE),
    "cifar10_range_test_ss2000": Arm("control: in half the iterations", ORANGE),
    # Controls
    "cifar10_fixed_25k": Arm("control: fixed, drops as CLR's", SKY, LONG_DASHES),
    "cifar10_fixed_25k_matched": Arm("control: the same at the mean LR of CLR's first phase", BLACK, DASHED),
    "cifar10_tri2_no_drops": Arm("control: CLR without drops", ORANGE),
    # Figure 5
    "cifar10_nesterov_tri": Arm("Nesterov, CLR, no drops", ORANGE, DASHDOT),
    "cifar10_nesterov_tri_staged": Arm("Nesterov, CLR in 3 phases", VERMILLION),
    "cifar10_adam_fixed": Arm("Adam, fixed, drops at 60k and 65k", BLUE, DASHED),
    "cifar10_adam_tri": Arm("Adam, CLR, no drops", GREEN, LONG_DASHES),
    "cifar10_adam_tri_staged": Arm("Adam, CLR in 3 phases", SKY, DOTTED),
    "cifar10_adam_tri_70k": Arm("Adam, CLR, no drops, 70k", PURPLE, DASHED),
    # Figure 6
    "cifar10_bn_fixed": Arm("fixed at 0.001", BLUE),
    "cifar10_bn_clr": Arm("CLR: triangular, 0.001 to 0.006", VERMILLION),
    "cifar10_sigmoid_fixed": Arm("control: fixed, no batch norm.", SKY, DASHED),
    "cifar10_sigmoid_clr": Arm("control: CLR, no batch norm.", ORANGE, DASHED),
    # Figures 7 to 13
    "imagenet_alexnet_range_test": Arm("ours", BLUE),
    "imagenet_alexnet_fixed": Arm("fixed, drops at 180k and 300k", BLUE, DASHED),
    "imagenet_alexnet_tri2": Arm("CLR: triangular2, the same drops", VERMILLION),
    "imagenet_alexnet_exp": Arm("exp", GREEN, DASHDOT),
    "imagenet_alexnet_exp_range": Arm("exp_range: CLR, both bounds falling", PURPLE),
    "imagenet_googlenet_range_test": Arm("ours", BLUE),
    "imagenet_googlenet_fixed": Arm("fixed, drops at 180k and 300k", BLUE, DASHED),
    "imagenet_googlenet_tri2": Arm("CLR: triangular2, the same drops", VERMILLION),
    "imagenet_googlenet_exp": Arm("exp", GREEN, DASHDOT),
    "imagenet_googlenet_exp_range": Arm("exp_range: CLR, both bounds falling", PURPLE),
}
"""By experiment. Two that stand in one figure differ in colour, and in line where they are as dark."""


Groups = dict[str, list[tuple[str, int, str]]]
"""Questions, and the cells that answer them: label, iteration, name."""
FAITHFUL, END = "cifar10_tri2", 25_000
MISTAKES: Groups = {
    "The port": [(FAITHFUL, END, "as Caffe has it")],
    "How it is updated": [
        (f"{FAITHFUL}[solver=torch_sgd(weight_decay=0.004)]", END, "LR outside momentum"),
        (f"{FAITHFUL}[solver.multipliers=False]", END, "no multipliers"),
    ],
    "What it is shown": [
        (f"{FAITHFUL}[data.scale=0.00392156862745098]", END, "pixels 0 to 1"),
        (f"{FAITHFUL}[data.mean=channel]", END, "channel means"),
        (f"{FAITHFUL}[data.shuffle=True]", END, "shuffled"),
    ],
    "What it is made of": [
        (f"{FAITHFUL}[model.ceil_mode=False]", END, "pooling rounds down"),
        (f"{FAITHFUL}[model.lrn=across_channels]", END, "LRN across channels"),
        (f"{FAITHFUL}[model.lrn=none]", END, "no LRN"),
        (f"{FAITHFUL}[model.init=torch]", END, "PyTorch's weights"),
    ],
    "Several at once": [
        (f"{FAITHFUL}[data.mean=channel,data.scale=0.00392156862745098]", END, "0 to 1 with channel means"),
        (f"{FAITHFUL}[data.scale=0.00392156862745098,model.init=torch]", END, "0 to 1 with PyTorch's weights"),
        (
            f"{FAITHFUL}[data.mean=channel,data.scale=0.00392156862745098,data.shuffle=True,model.ceil_mode=False,"
            "model.init=torch,model.lrn=across_channels,solver=torch_sgd(multipliers=False,weight_decay=0.004)]",
            END,
            "all at once",
        ),
    ],
}
"""The arms of conf/study/porting_mistakes.yaml: one of Caffe's choices changed at a time, then several."""
LATER_POLICIES: Groups = {
    "The paper's, in CLR's budget": [
        (FAITHFUL, END, "triangular2, 3 phases"),
        ("cifar10_fixed_25k", END, "fixed, 25k"),
        ("cifar10_fixed_25k_matched", END, "fixed, CLR's mean LR"),
    ],
    "Later": [
        ("cifar10_cosine", END, "cosine"),
        ("cifar10_cosine_restarts", END, "cosine with restarts"),
        ("cifar10_one_cycle", END, "one-cycle"),
        ("cifar10_warmup_stable_decay", END, "warmup-stable-decay"),
    ],
}
"""The arms of conf/study/modern.yaml."""


def constant_lrs(labels: Iterable[str]) -> dict[float, str]:
    """Those of the labels that are the fixed policy in CLR's budget at another LR (conf/study/constant_lr.yaml)."""
    pattern = re.compile(r"cifar10_fixed_25k\[schedule\.base_lr=([-+.\de]+)\]")
    return {float(found[1]): label for label in labels if (found := pattern.fullmatch(label))}


@functools.cache
def schedule_of(conf: Path, experiment: str) -> tuple[Schedule, int]:
    """A lab card's schedule and its number of iterations, merged here, which is quicker than composing."""
    card = OmegaConf.load(conf / "experiment" / f"{experiment}.yaml")
    choices = OmegaConf.to_container(card.defaults)
    assert isinstance(choices, list)
    group = next(choice["override /schedule"] for choice in choices if "override /schedule" in choice)
    composed = OmegaConf.merge({"schedule": OmegaConf.load(conf / "schedule" / f"{group}.yaml")}, card)
    node = OmegaConf.to_container(composed.schedule, resolve=True)
    assert isinstance(node, dict)
    return records.build({str(key): value for key, value in node.items()}), int(card.iterations)

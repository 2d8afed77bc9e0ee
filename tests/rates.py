"""What the tests of the schedules share: Table 2, torch's own rates, and bounds to draw."""

import numpy as np
import torch
from hypothesis import strategies as st

from cyclical_lr.policy import Schedule
from cyclical_lr.schedules import Phase, Phases, Triangular2

ITERATIONS = st.integers(0, 10**6)

# The rows of Table 2: base_lr, max_lr, stepsize, start.
TABLE_2 = Phases(
    (
        Phase(0, Triangular2(0.001, 0.005, 2000)),
        Phase(16000, Triangular2(0.0001, 0.0005, 1000)),
        Phase(22000, Triangular2(0.00001, 0.00005, 500)),
    )
)


def every(schedule: Schedule, iterations: int) -> list[float]:
    return schedule(np.arange(iterations)).tolist()


def torch_rates(make, iterations: int, lr: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(iterations):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@st.composite
def bounds(draw) -> tuple[float, float]:
    low = draw(st.floats(0, 1))
    return low, low + draw(st.floats(0, 1))

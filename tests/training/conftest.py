"""Runs in a folder of the test's own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from small_runs import train

from cyclical_lr.training.run import Outcome


@pytest.fixture(name="train")
def train_in_tmp_path(tmp_path: Path) -> Callable[..., list[Outcome]]:
    """`train(*overrides)`: a tiny run whose files go into tmp_path."""
    return partial(train, tmp_path)

"""Lab cards, for the tests of what they say."""

from functools import cache
from typing import Any

from small_runs import CONF

from cyclical_lr.training.config import compose_config, plain

H200 = CONF.parent / "benchmarks" / "results" / "nvidia_h200.json"
"""What `make gpu-check` measured on the GPU that cards name."""


@cache
def plan(card: str) -> dict[str, Any]:
    """The card's config, as plain containers, which tests share: not to be changed."""
    return plain(compose_config(CONF, [f"+experiment={card}"]))


def text(card: str) -> str:
    """All words of the card's file, in one line."""
    return " ".join((CONF / "experiment" / f"{card}.yaml").read_text().replace("#", " ").split())


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    """Paths of the values in which two plans differ, but for the card's name."""
    one, two = _flat(ours), _flat(theirs)
    return {path for path in one.keys() | two.keys() if one.get(path, ...) != two.get(path, ...)} - {"experiment"}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        items = list(enumerate(node))
    else:
        return {prefix: node}
    return {path: value for key, child in items for path, value in _flat(child, f"{prefix}.{key}".strip(".")).items()}

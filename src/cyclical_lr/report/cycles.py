"""Where the cycles of a schedule end and its LR drops, and what a run has at a cycle's end that is read elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

from hydra.errors import InstantiationException

from cyclical_lr import schedules
from cyclical_lr.policy import Schedule
from cyclical_lr.records import PACKAGE, ConfigError, Record, build, locate
from cyclical_lr.report import statistics
from cyclical_lr.report.collect import Cell, Results, read_cell


def cycle_ends(schedule: Schedule, iterations: int) -> list[int]:
    """The iterations, up to `iterations`, at which a cycle is complete; none for a policy without cycles."""
    if isinstance(
        schedule,
        (schedules.Triangular, schedules.Triangular2, schedules.Welch, schedules.Hann, schedules.ExpRange),
    ):
        cycle = 2 * schedule.stepsize
        return list(range(cycle, iterations + 1, cycle))
    if isinstance(schedule, schedules.Drops):
        return cycle_ends(schedule.schedule, iterations)
    if isinstance(schedule, schedules.Held):
        ends = _held(cycle_ends(schedule.schedule, iterations + schedule.first * schedule.every), schedule)
        return [t for t in ends if t <= iterations]
    if isinstance(schedule, schedules.Compressed):
        return _compressed(cycle_ends(schedule.schedule, iterations * schedule.factor), schedule.factor)
    if isinstance(schedule, schedules.Phases):
        return _in_phases(cycle_ends, schedule, iterations)
    return []


def drops(schedule: Schedule, iterations: int) -> list[int]:
    """The iterations, before `iterations`, at which the LR drops for good: milestones, and starts of lower phases."""
    if isinstance(schedule, schedules.Compressed):
        found = _compressed(drops(schedule.schedule, iterations * schedule.factor), schedule.factor)
    elif isinstance(schedule, schedules.MultiStep):
        found = list(schedule.milestones)
    elif isinstance(schedule, schedules.Drops):
        found = sorted({*schedule.milestones, *drops(schedule.schedule, iterations)})
    elif isinstance(schedule, schedules.Phases):
        lower = [phase.start for phase in schedule.phases[1:] if schedule(phase.start) < schedule(phase.start - 1)]
        found = sorted({*lower, *_in_phases(drops, schedule, iterations)})
    elif isinstance(schedule, schedules.Held):
        found = _held(drops(schedule.schedule, iterations + schedule.first * schedule.every), schedule)
    else:
        found = []
    return [t for t in found if t < iterations]


def _in_phases(of: Callable[[Schedule, int], list[int]], schedule: schedules.Phases, iterations: int) -> list[int]:
    """What `of` finds in each phase, up to its end or to `iterations`, in the whole schedule's iterations."""
    ends = [min(phase.start, iterations) for phase in schedule.phases[1:]] + [iterations]
    return [
        phase.start + t
        for phase, end in zip(schedule.phases, ends, strict=True)
        for t in of(phase.schedule, end - phase.start)
    ]


def _held(iterations: list[int], held: schedules.Held) -> list[int]:
    """The iterations at which a schedule that is looked up now and then shows what it has at these."""
    return [t for t in ((-(-t // held.every) - held.first) * held.every for t in iterations) if t > 0]


def _compressed(iterations: list[int], factor: int) -> list[int]:
    """The first iterations of a compressed run at or after these of the whole one."""
    return [-(-t // factor) for t in iterations]


def schedule_in(record: Record) -> Schedule | None:
    """The schedule of a run; None where it is no policy of this package.

    Nothing else is called, nor any interpolation resolved: a record may come from anywhere, and name anything.
    """
    node, compress = record.config["schedule"], record.config.get("compress", 1)
    try:
        if not (node.get("_target_") and _is_ours(node)):
            return None
        schedule: Schedule = build(node)
    except (ConfigError, InstantiationException):  # of a version whose policies were others
        return None
    return schedules.Compressed(schedule, compress) if compress > 1 else schedule


def _is_ours(node: Any) -> bool:
    if isinstance(node, Mapping):
        target = str(node.get("_target_", ""))
        ours = not target or (target.startswith(PACKAGE) and is_dataclass(locate(target)))
        return ours and all(map(_is_ours, node.values()))
    if isinstance(node, list):
        return all(map(_is_ours, node))
    return not (isinstance(node, str) and "${" in node)


def ends_around(results: Results, label: str, iteration: int) -> list[int]:
    """The cycles' ends before and after an iteration of a label's runs; none if it is as good as one.

    That is where the LR dropped earlier, and is low all over the cycle, or is less than half above a cycle's end.
    """
    schedule = _schedule_of(results, label)
    if schedule is None or drops(schedule, iteration):
        return []
    ends = cycle_ends(schedule, max(3 * iteration, results.by_label[label][0].iterations))
    if not ends or iteration in ends:
        return []
    around = [*(t for t in ends if t < iteration)][-1:] + [*(t for t in ends if t > iteration)][:1]
    return [] if schedule(iteration) < 1.5 * min(map(schedule, around)) else around


def ends_before(results: Results, cell: Cell) -> list[int]:
    """Where the cycles before a cell's iteration end."""
    schedule = _schedule_of(results, cell.label)
    return [t for t in cycle_ends(schedule, cell.iteration) if t < cell.iteration] if schedule else []


def _schedule_of(results: Results, label: str) -> Schedule | None:
    """The schedule of a label's runs, which is the same for all; None where it is not known."""
    runs = results.by_label.get(label)
    return schedule_in(runs[0]) if runs else None


def mid_cycle(results: Results, label: str, iteration: int) -> str:
    """What a label's runs have at the cycles' ends around an iteration; empty if it is as good as one."""
    around = ends_around(results, label, iteration)
    if not around:
        return ""
    cells = [cell for cell in (read_cell(results, label, t) for t in around) if cell.n]
    there = " and ".join(f"{statistics.mean(cell.values):.2f} at {cell.iteration:,}" for cell in cells)
    return f"mid-cycle ({there}, where cycles end)" if there else "mid-cycle"

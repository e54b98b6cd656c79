"""Tasks of Django's interface: the outbox as their backend, and django-tasks-db."""

from __future__ import annotations

import dataclasses
import statistics

from tests.benchmarks import queueing
from tests.benchmarks.measuring import Comparison
from tests.benchmarks.queueing import Queue, Yard
from tests.benchmarks.results import Row, compared

OURS, PEER = queueing.OURS_TASKS, queueing.TASKS_DB
BOTH = OURS, PEER


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 3
    share: float = 1.0
    """Of each queue's messages."""
    enqueued: int = 2_000
    latencies: int = 15
    latency_rounds: int = 2

    def messages(self, queue: Queue) -> int:
        return max(20, round(queue.messages * self.share))

    def __str__(self) -> str:
        return (
            f"Tasks: {self.rounds} rounds of {self.messages(OURS):,} tasks of ours and "
            f"{self.messages(PEER):,} of {PEER.name}, {self.enqueued:,} enqueued, "
            f"{self.latency_rounds} x {self.latencies} latencies."
        )


FULL = Size()
QUICK = Size(rounds=1, share=0.02, enqueued=20, latencies=2, latency_rounds=1)


def run(alias: str, *, quick: bool, python: str) -> tuple[list[Row], list[str]]:
    """Return the rows, and what is to be said about them."""
    size = QUICK if quick else FULL
    with queueing.yard(alias=alias, python=python, redis="") as place:
        missing = place.missing(PEER)
        if missing is not None:
            return [], [missing]
        rows = [
            enqueueing(place, size),
            handling(place, size, "count", "a task that does nothing", at_least=20),
            handling(place, size, "record", "a task that inserts one row"),
            waking(place, size),
        ]
    return rows, [str(size)]


def enqueueing(place: Yard, size: Size) -> Row:
    """Compare what a caller waits for, in transactions of 500 calls."""
    comparison = Comparison([each.name for each in BOTH])
    for turn in range(size.rounds):
        for each in _in_turn(turn):
            pace = place.seconds_per_call(each, "count", size.enqueued)
            comparison.times[each.name].append(pace)
    section = "Enqueueing a task"
    return compared(comparison, section, OURS.name, PEER.name, bound=1)


def handling(
    place: Yard, size: Size, kind: str, what: str, *, at_least: float | None = None
) -> Row:
    """Compare how many tasks one worker handles, their results included."""
    comparison = Comparison([each.name for each in BOTH])
    for turn in range(size.rounds):
        for each in _in_turn(turn):
            # Apart from what was enqueued above, and never handled.
            pace = place.seconds_per_message(
                each, kind, size.messages(each), database=f"{each.key}_handled"
            )
            comparison.times[each.name].append(pace)
    return compared(
        comparison,
        f"Handling with one worker, {what}",
        OURS.name,
        PEER.name,
        at_least=at_least,
        inverse=True,
    )


def waking(place: Yard, size: Size) -> Row:
    """Compare the time from commit to task, with a worker that is idle."""
    comparison = Comparison([each.name for each in BOTH])
    for _ in range(size.latency_rounds):
        for each in BOTH:
            taken = statistics.median(
                place.latencies(each, size.latencies, database=f"{each.key}_woken")
            )
            comparison.times[each.name].append(taken)
    section = "From commit to task with an idle worker, median"
    return compared(comparison, section, OURS.name, PEER.name, bound=0.1)


def _in_turn(turn: int) -> tuple[Queue, ...]:
    return BOTH if turn % 2 == 0 else BOTH[::-1]

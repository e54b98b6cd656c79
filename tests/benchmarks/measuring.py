"""
Time things in turns, so that whatever slows the machine slows all of them.

What waits for nothing is measured in CPU time, which others on the machine take no
part of; what waits for a database by the clock on the wall.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import statistics
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter, process_time
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Contestant:
    """Something that is timed: seconds for so many calls."""

    name: str
    seconds: Callable[[int], float]


def statement(name: str, source: str, **names: Any) -> Contestant:
    """Return a statement as a user would write it, in a loop of :mod:`timeit`."""
    timer = timeit.Timer(source, timer=process_time, globals=names)
    return Contestant(name, timer.timeit)


def awaiting(
    name: str,
    loop: asyncio.AbstractEventLoop,
    function: Callable[[Any], Any],
    argument: Any,
) -> Contestant:
    """Return ``await function(argument)``, timed inside a loop that is running."""

    async def call(number: int) -> float:
        start = process_time()
        for _ in range(number):
            await function(argument)
        return process_time() - start

    return Contestant(name, lambda number: loop.run_until_complete(call(number)))


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """One contestant's time over another's, round by round."""

    median: float
    low: float
    high: float


class Comparison:
    """The times of several contestants in the same rounds."""

    def __init__(self, names: Sequence[str]) -> None:
        """Start with no rounds."""
        self.times: dict[str, list[float]] = {name: [] for name in names}

    @property
    def rounds(self) -> int:
        return len(next(iter(self.times.values())))

    def seconds(self, name: str) -> float:
        """Return the median over the rounds, for one call."""
        return statistics.median(self.times[name])

    def _ratios(self, name: str, base: str) -> list[float]:
        pairs = zip(self.times[name], self.times[base], strict=True)
        return sorted(one / other for one, other in pairs)

    def ratio(self, name: str, base: str) -> Ratio:
        """Return the median, the least and the greatest of the rounds' ratios."""
        ratios = self._ratios(name, base)
        return Ratio(statistics.median(ratios), ratios[0], ratios[-1])

    def certain(self, name: str, base: str) -> tuple[float, float]:
        """Return the range that has the true median of the ratios, 99 times in 100."""
        ratios = self._ratios(name, base)
        count = len(ratios)
        first = max(0, int((count - 2.58 * count**0.5) / 2))
        return ratios[first], ratios[-1 - first]


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector from choosing whose time it takes."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def in_blocks(
    contestants: Sequence[Contestant], *, rounds: int, block: float = 0.002
) -> Comparison:
    """
    Time blocks of many calls, one block of each contestant a round.

    Args:
        contestants: who is compared; each begins as many rounds as the others.
        rounds: how many.
        block: about how many seconds a block takes.

    """
    comparison = Comparison([each.name for each in contestants])
    numbers = {each.name: _calls_in(block, each) for each in contestants}
    with no_collection():
        for turn in range(rounds):
            first = turn % len(contestants)
            for each in (*contestants[first:], *contestants[:first]):
                number = numbers[each.name]
                comparison.times[each.name].append(each.seconds(number) / number)
    return comparison


def _calls_in(block: float, contestant: Contestant) -> int:
    contestant.seconds(100)  # what is made at first use is made now
    number = 10
    while (taken := contestant.seconds(number)) < block / 4:
        number *= 2
    return max(1, round(number * block / taken))


def call_by_call(
    functions: dict[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int,
    warm_up: int = 20,
) -> Comparison:
    """
    Time single calls in turns; a round's time is the median of its calls.

    For what takes long enough to be timed alone, and now and then much longer: a
    commit that waits for the disk would decide the sum of a block.
    """
    comparison = Comparison(list(functions))
    order = list(functions.items())
    for _name, function in order * warm_up:
        function()
    with no_collection():
        for _ in range(rounds):
            taken: dict[str, list[float]] = {name: [] for name in functions}
            for turn in range(calls):
                first = turn % len(order)
                for name, function in (*order[first:], *order[:first]):
                    start = perf_counter()
                    function()
                    taken[name].append(perf_counter() - start)
            for name, times in taken.items():
                comparison.times[name].append(statistics.median(times))
    return comparison

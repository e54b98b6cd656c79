"""
When the handlers were called: the clock is read inside them, the same for all queues.

``BENCHMARKS_RECORD`` names a file. It gets the seconds from the first counted call to
the last, or, with ``BENCHMARKS_CALLS=each``, the moment of every call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, time

FILE = os.environ.get("BENCHMARKS_RECORD", "")
FIRST = int(os.environ.get("BENCHMARKS_FIRST", "0"))
LAST = int(os.environ.get("BENCHMARKS_LAST", "0"))

_calls = 0
_began = 0.0


def _count(number: int) -> None:
    global _began, _calls
    _calls += 1
    if _calls == FIRST:
        _began = perf_counter()
    elif _calls == LAST:
        seconds = perf_counter() - _began
        _write({"seconds": seconds, "calls": LAST - FIRST})


def _note(number: int) -> None:
    _write({"number": number, "at": time()})


def _write(line: dict[str, float]) -> None:
    with Path(FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


handled: Callable[[int], None] = (
    _note if os.environ.get("BENCHMARKS_CALLS") == "each" else _count
)
"""Note that a handler was called with the message of a number."""

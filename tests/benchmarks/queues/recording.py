"""
When the handlers were called: the clock is read inside them, the same for all queues.

``BENCHMARKS_RECORD`` names a file. It gets the seconds from the first counted call to
the last; with ``BENCHMARKS_CALLS=each`` the moment of every call as a line, and with
``stamps`` the same as eight bytes, which several processes may write to one file.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from time import monotonic, perf_counter, time

FILE = os.environ.get("BENCHMARKS_RECORD", "")
FIRST = int(os.environ.get("BENCHMARKS_FIRST", "0"))
LAST = int(os.environ.get("BENCHMARKS_LAST", "0"))

_calls = 0
_began = 0.0
_stamps: int | None = None


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


def _stamp(_number: int) -> None:
    global _stamps
    if _stamps is None:
        _stamps = os.open(FILE, os.O_WRONLY | os.O_APPEND)
    os.write(_stamps, struct.pack("d", monotonic()))


def _write(line: dict[str, float]) -> None:
    with Path(FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


_WAYS: dict[str, Callable[[int], None]] = {"each": _note, "stamps": _stamp}
handled = _WAYS.get(os.environ.get("BENCHMARKS_CALLS", ""), _count)
"""Note that a handler was called with the message of a number."""

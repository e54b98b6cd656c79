"""Supervise several worker processes: start, restart and end them."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

logger: Final = logging.getLogger("django_cqrs.worker")

VARIABLE: Final = "DJANGO_CQRS_SUPERVISOR"
"""The variable that tells a process its supervisor's pipe."""

# The exit codes of a worker that ended without a crash.
REPLACE: Final = 81
"""It has used its maximum memory: another must take its place."""
STOP: Final = 82
"""A handler failed, and its policy or the worker's bounds say to stop."""


@dataclasses.dataclass(slots=True)
class _Place:
    """The place of one worker, and of those that replace it."""

    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    starts_at: float = 0.0
    in_vain: int = 0
    """The number of workers in a row that ended soon after their start."""


class Supervisor:
    """
    Runs a command in several processes at once.

    A process that ends with exit code 0 has finished. One that crashed is restarted,
    after a pause that grows while restarts fail. When none is left, the supervisor is
    done.

    Its processes hold one end of a pipe, and only the supervisor holds the other: they
    notice when it is gone, however it ended. See :func:`end_with_supervisor`.
    """

    first_pause = 0.5
    longest_pause = 30.0
    # A process older than so many seconds has not crashed at its start.
    steady_time = 30.0
    poll_time = 0.05

    def __init__(self, command: Sequence[str], count: int) -> None:
        """
        Prepare to run a command.

        Args:
            command: the program and its arguments.
            count: the number of processes.

        """
        self._command = list(command)
        self._places = [_Place() for _ in range(count)]
        self._pipe = -1
        # A signal handler may interrupt any code, so it only counts.
        self._wanted_stops = 0
        self._passed_stops = 0
        self._has_failed = False

    def stop(self) -> None:
        """Ask the processes to end; the second time, end them. For signal handlers."""
        self._wanted_stops += 1

    def run(self) -> bool:
        """
        Run until no process is left.

        Returns:
            False if a process has stopped because a handler failed.

        """
        self._pipe, ours = os.pipe()
        try:
            while self._places:
                self._pass_on()
                for place in list(self._places):
                    self._look_after(place)
                time.sleep(self.poll_time)
        finally:
            os.close(ours)  # the processes end by this, even after an error here
            os.close(self._pipe)
        return not self._has_failed

    def _pass_on(self) -> None:
        """Ask the processes to end, or end them, if that is newly wanted."""
        if self._passed_stops == self._wanted_stops:
            return
        is_first = not self._passed_stops
        self._passed_stops = self._wanted_stops  # two at once are sent as one
        for place in self._places:
            if place.process is not None:
                # The sender may have sent SIGTERM to the processes as well: another one
                # must not end them at once.
                end = place.process.terminate if is_first else place.process.kill
                end()

    def _look_after(self, place: _Place) -> None:
        if place.process is None:
            if self._wanted_stops:
                self._places.remove(place)
            elif time.monotonic() >= place.starts_at:
                self._start(place)
            return
        code = place.process.poll()
        if code is None:
            return
        if code == STOP:
            self._has_failed = True
            self._wanted_stops = max(1, self._wanted_stops)
        if code in (0, STOP) or self._wanted_stops:
            self._places.remove(place)
            return
        self._plan(place, code)

    def _start(self, place: _Place) -> None:
        place.process = subprocess.Popen(  # noqa: S603 - what this process is itself
            self._command,
            env={**os.environ, VARIABLE: str(self._pipe)},
            pass_fds=[self._pipe],
            stdin=subprocess.DEVNULL,
            # A key in the terminal, such as Control-C, is for the supervisor alone.
            start_new_session=True,
        )
        place.started = time.monotonic()

    def _plan(self, place: _Place, code: int) -> None:
        """Schedule a replacement in a place, after a pause if others failed."""
        process, place.process = place.process, None
        pause = 0.0
        if time.monotonic() - place.started >= self.steady_time:
            place.in_vain = 0
        else:
            pause = min(self.longest_pause, self.first_pause * 2**place.in_vain)
            place.in_vain = min(place.in_vain + 1, 10)
        place.starts_at = time.monotonic() + pause
        logger.log(
            logging.INFO if code == REPLACE else logging.ERROR,
            "Worker process %d %s; another starts in %.1f s",
            process.pid if process is not None else 0,
            _described(code),
            pause,
        )


def _described(code: int) -> str:
    if code == REPLACE:
        return "has used all the memory it is allowed"
    if code < 0:
        return f"was stopped by signal {-code}"
    return f"crashed with exit code {code}"


def supervised_by() -> int | None:
    """
    Return the pipe of this process's supervisor; None if it has none.

    It is returned once: processes started by this one are not supervised.
    """
    pipe = os.environ.pop(VARIABLE, None)
    if pipe is None:
        return None
    os.set_inheritable(int(pipe), False)
    return int(pipe)


def end_with_supervisor(pipe: int, stop: Callable[[], Any], grace: float) -> None:
    """
    End this process when its supervisor ends, even if that was killed.

    Args:
        pipe: the result of :func:`supervised_by`.
        stop: asks the worker to stop after the current message.
        grace: the seconds after which the process ends in any case.

    """

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        logger.warning("The supervisor has exited; the worker stops")
        stop()
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

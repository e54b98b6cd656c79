"""The jobs of other apps that a worker runs after the messages of each channel."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Final

from django.db import Error

from django_cqrs.buses.registries import Registry
from django_cqrs.jobs import Job, jobs_of
from django_cqrs.logged_errors import loggable
from django_cqrs.outbox.worker.bounds import Progress, StopWorker

logger: Final = logging.getLogger("django_cqrs.worker")


class ChannelJobs:
    """The jobs of one worker, by the aliases of its channels."""

    slice_time = 0.25
    """The time of a job in each round, in seconds, so that messages get their share."""
    longest_pause = 30.0
    """The longest time until a job that raises is run again, in seconds."""

    def __init__(self, registry: Registry, using: str, progress: Progress) -> None:
        """Make the jobs when they are first needed."""
        self._registry = registry
        self._using = using
        self._progress = progress
        self._by_channel: dict[str, list[Job]] = {}
        self._failures: dict[int, int] = {}
        self._paused_until: dict[int, float] = {}

    def run(self, channel: str) -> int:
        """Run the jobs of a channel; return the number of things that they did."""
        jobs = self._by_channel.get(channel)
        if jobs is None:
            jobs = jobs_of(self._registry, channel, self._using)
            self._by_channel[channel] = jobs
        done = 0
        for job in jobs:
            if self._progress.is_over():
                break
            done += self._run(job, channel)
        return done

    def _run(self, job: Job, channel: str) -> int:
        now = time.monotonic()
        if now < self._paused_until.get(id(job), 0.0):
            return 0
        slice_time = min(self.slice_time, max(0.0, self._progress.seconds_left()))
        try:
            done = job.run(now + slice_time)
        except Error:  # the worker waits for an unavailable database
            raise
        except Exception as error:  # a fault of the job itself
            if self._progress.bounds.on_failure:
                self._stop(job, error)
                return 0
            failures = self._failures[id(job)] = self._failures.get(id(job), 0) + 1
            pause = min(self.longest_pause, 2.0 ** min(failures - 1, 10))
            self._paused_until[id(job)] = time.monotonic() + pause
            logger.error(  # noqa: TRY400 - without what may be secret
                "A job of the channel %r failed; it runs again in %.0f s",
                channel,
                pause,
                exc_info=loggable(error),
            )
            return 0
        self._failures.pop(id(job), None)
        if job.failure is not None and self._progress.bounds.on_failure:
            self._stop(job, job.failure)
        return done

    def _stop(self, job: Job, error: Exception) -> None:
        if self._progress.stopped_by is None:
            stopped = StopWorker(f"{job} failed with {type(error).__name__}.")
            stopped.__cause__ = error
            self._progress.stopped_by = stopped

    def close(self) -> None:
        """Let every job give back what it has reserved."""
        for job in self._all():
            try:
                job.close()
            except Error:  # its reservation expires
                logger.debug("%s could not be closed", job, exc_info=True)

    def _all(self) -> Iterator[Job]:
        some: Sequence[Job]
        for some in self._by_channel.values():
            yield from some

"""A worker runs the jobs of other apps after the messages of each channel."""

import logging
import time

import pytest
from django.db import OperationalError, connection

from django_cqrs import Registry, command_handler, jobs
from django_cqrs.channels import channels
from django_cqrs.outbox.pausing import pause
from django_cqrs.outbox.worker import Bounds, StopWorker, Worker
from django_cqrs.outbox.worker.jobs import ChannelJobs
from tests.outbox.work import Work

pytestmark = pytest.mark.django_db


class CountedJob:
    """A job with so many things to do, which it does one a round."""

    failure = None

    def __init__(self, amount=0, error=None):
        self.amount = amount
        self.error = error
        self.deadlines = []
        self.is_closed = False

    def run(self, deadline):
        self.deadlines.append(deadline)
        if self.error is not None:
            raise self.error
        self.amount -= 1
        return int(self.amount >= 0)

    def close(self):
        self.is_closed = True


@pytest.fixture
def offered(monkeypatch):
    """Offer jobs for channels, by the alias; return what was asked for."""
    monkeypatch.setattr(jobs, "_offered", {})
    by_channel, asked = {}, []

    def make(registry, channel, using):
        asked.append((registry, channel, using))
        return by_channel.get(channel, [])

    jobs.offer_jobs("django_cqrs.outbox", make)
    by_channel["asked"] = asked
    return by_channel


def worker_of(registry, *channels, **bounds):
    bounds = Bounds(**{"until_empty": True, **bounds})
    return Worker(registry, channels, using="default", bounds=bounds)


def test_jobs_are_of_installed_apps_and_made_for_a_channel_and_a_database(offered):
    """Only an installed app's maker is asked, with registry, channel and database."""
    job = CountedJob()
    offered["mail"] = [job]
    jobs.offer_jobs("shop.not_installed", lambda *_: [CountedJob()])
    registry = Registry()

    assert jobs.jobs_of(registry, "mail", "default") == [job]
    assert offered["asked"] == [(registry, "mail", "default")]


def test_a_worker_runs_jobs_until_they_have_nothing_to_do(offered):
    """A worker rests, or ends, once its messages and its jobs are done; then it closes
    the jobs."""
    job = CountedJob(3)
    offered["outbox"] = [job]

    worker_of(Registry(), "outbox").run()

    assert job.amount == -1
    assert job.is_closed


def test_a_job_gets_a_slice_of_time(offered):
    """A job is told when its slice ends, a quarter of a second after it begins."""
    job = CountedJob()
    offered["outbox"] = [job]
    before = time.monotonic()

    worker_of(Registry(), "outbox").run()

    [deadline, *_] = job.deadlines
    assert deadline >= before + ChannelJobs.slice_time
    assert deadline <= time.monotonic() + ChannelJobs.slice_time


def test_messages_come_before_jobs_and_between_them(offered):
    """In each round the messages of a channel come first, then its jobs."""
    order = []
    registry = Registry()

    @registry.add
    @command_handler(channel="outbox", name="note")
    def note(command: Work):
        order.append("message")

    class Noting(CountedJob):
        def run(self, deadline):
            order.append("job")
            return super().run(deadline)

    offered["outbox"] = [Noting(2)]
    registry.command_bus.dispatch(Work(1))

    worker_of(registry, "outbox").run()

    assert order[:3] == ["message", "job", "job"]


def test_a_paused_channel_runs_no_job(offered):
    """What an operator has paused is not done, neither messages nor jobs."""
    job = CountedJob(1)
    offered["outbox"] = [job]
    pause("outbox", using="default", by="", reason="")

    worker_of(Registry(), "outbox").run()

    assert job.deadlines == []


def test_a_job_that_raises_pauses_and_the_worker_goes_on(offered, caplog):
    """A fault of a job is logged; it pauses, while the channel's other jobs go on."""
    broken, sound = CountedJob(error=ValueError("broken")), CountedJob(2)
    offered["outbox"] = [broken, sound]

    with caplog.at_level(logging.ERROR, "django_cqrs.worker"):
        worker_of(Registry(), "outbox").run()

    assert len(broken.deadlines) == 1
    assert sound.amount == -1
    assert "A job of the channel 'outbox' failed" in caplog.text


def test_an_error_of_the_database_is_the_workers(offered):
    """An unavailable database is not the job's fault: inside a test's transaction the
    error is raised."""
    offered["outbox"] = [CountedJob(error=OperationalError("gone"))]

    with pytest.raises(OperationalError, match="gone"):
        worker_of(Registry(), "outbox").run()


def test_a_worker_that_stops_at_failures_stops_at_those_of_jobs(offered):
    """`run()` of a channel raises a job's failure, whether or not the job dealt with
    it."""

    class Failing(CountedJob):
        def run(self, deadline):
            self.failure = KeyError("dealt with")
            return super().run(deadline)

    for job, error in (
        (Failing(1), KeyError),
        (CountedJob(error=ValueError("not")), ValueError),
    ):
        offered["outbox"] = [job]
        with pytest.raises(StopWorker) as caught:
            worker_of(Registry(), "outbox", on_failure=True).run()
        assert isinstance(caught.value.__cause__, error)
        with pytest.raises(error):
            channels["outbox"].run(registry=Registry())


def test_a_channel_without_jobs_costs_no_statement(offered):
    """An idle round makes as many statements with a maker of jobs as without one."""
    worker = worker_of(Registry(), "outbox")
    worker.run_once()

    def count():
        worker._looked_after = worker._asked = None  # as long after the last round
        statements = []

        def note(execute, sql, *arguments):
            statements.append(sql)
            return execute(sql, *arguments)

        with connection.execute_wrapper(note):  # the worker empties Django's log
            worker.run_once()
        return len(statements)

    with_maker = count()
    jobs._offered.clear()
    assert with_maker == count() > 0


def test_waking_a_channel_notifies_after_the_commit(django_capture_on_commit_callbacks):
    """On PostgreSQL a channel's worker is woken once, after the commit; elsewhere, and
    with NOTIFY off, it looks by itself."""
    with django_capture_on_commit_callbacks() as callbacks:
        for _ in range(3):
            channels["outbox"].wake(connection)
    channels["memory"].wake(connection)

    assert len(callbacks) == (connection.vendor == "postgresql")

"""Long actions that are left to a worker: who takes one, and what is seen of it."""

import threading
import time
from dataclasses import dataclass
from typing import Annotated

import pytest

from django_cqrs import Sensitive, event_handler, message
from django_cqrs.events import Projections, Row, projection
from django_cqrs.events.models import Generation, ProjectionFailure
from django_cqrs.events.wanted import WantedActions, has_workers, want
from django_cqrs.exceptions import InvalidOption, ProjectionBusy, ProjectionNotFound
from django_cqrs.jobs import jobs_of
from django_cqrs.retries import Retry
from tests.events.projections.support import OrderPlaced, append, project
from tests.events.views.models import Entry, OrderLine, OrderRow
from tests.limits import LIMIT

on_databases = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]
in_a_transaction = pytest.mark.django_db(databases=["default", "other"])


@projection("wanted.inline", views=[OrderRow])
class WantedInline:
    @event_handler
    def placed(self, event: OrderPlaced, row: Annotated[OrderRow, Row("number")]):
        row.changes += 1


at_each: list = []


@projection("wanted.followed", channel="outbox", views=[Entry])
class WantedFollowed:
    @event_handler
    def placed(self, event: OrderPlaced):
        for each in at_each:
            each(event)
        Entry.objects.create(number=event.number)


@projection("wanted.by_hand", on_demand=True, views=[OrderLine])
class WantedByHand:
    @event_handler
    def placed(self, event: OrderPlaced):
        OrderLine.objects.create(order=event.number, sku=event.sku)


@pytest.fixture
def registry():
    at_each.clear()
    return project(WantedInline, WantedFollowed, WantedByHand)


@pytest.fixture
def own(registry):
    return Projections("default", registry=registry)


def worker_of(registry):
    """Return the job of a worker whose first look is at once."""
    return WantedActions(registry, "default")


def finish(worker):
    """Let a worker work until it has nothing in hand."""
    end = time.monotonic() + LIMIT
    worker.run(time.monotonic() + 0.25)
    while worker._thread is not None:
        assert time.monotonic() < end
        worker.run(time.monotonic() + 0.25)


def statuses(own):
    return [
        (each.wanted, each.is_running)
        for each in own.statuses()
        if each.status != "new"
    ]


@in_a_transaction
def test_each_action_is_carried_out_by_a_worker(registry, own):
    """It is noted, taken by the worker's next look, and gone when it is done. [E33.4]"""
    append(registry, *map(OrderPlaced, range(3)))
    for name in ("wanted.followed", "wanted.by_hand"):
        own.init(name)
    worker = worker_of(registry)

    want(own, "wanted.by_hand", "run")
    assert own.status("wanted.by_hand").wanted == "run"
    finish(worker)
    assert own.status("wanted.by_hand").wanted == ""
    assert OrderLine.objects.count() == 3

    OrderRow.objects.update(changes=9)
    worker = worker_of(registry)
    want(own, "wanted.inline", "rebuild")
    finish(worker)
    assert set(OrderRow.objects.values_list("changes", flat=True)) == {1}

    want(own, "wanted.inline", "reset")
    finish(worker_of(registry))
    assert not OrderRow.objects.exists()
    want(own, "wanted.inline", "backfill")
    finish(worker_of(registry))
    assert OrderRow.objects.count() == 3

    want(own, "wanted.inline", "delete")
    finish(worker_of(registry))
    assert own.status("wanted.inline").status == "new"
    assert not OrderRow.objects.exists()


@in_a_transaction
def test_one_action_at_a_time_is_accepted(registry, own, settings):
    """Others are refused with what to do, and nothing is changed. [E33.4]"""
    own.init("wanted.inline")
    with pytest.raises(ProjectionNotFound, match="is not set up"):
        want(own, "wanted.followed", "rebuild")
    with pytest.raises(InvalidOption, match="has no action 'run', but backfill, reb"):
        want(own, "wanted.inline", "run")
    want(own, "wanted.inline", "rebuild")

    with pytest.raises(ProjectionBusy, match="wait for its rebuild, or resume it"):
        want(own, "wanted.inline", "reset")
    assert own.resume("wanted.inline")
    assert own.status("wanted.inline").wanted == ""
    assert not own.resume("wanted.inline")

    Generation.objects.update(status="building")
    with pytest.raises(ProjectionBusy, match="wait for its rebuild"):
        want(own, "wanted.inline", "reset")
    Generation.objects.update(status="live")

    unserved = {"BACKEND": "django_cqrs.channels.OnCommitChannel"}
    settings.DJANGO_CQRS = {"CHANNELS": {"outbox": unserved}}
    assert not has_workers()
    with pytest.raises(InvalidOption, match=r"Run manage.py cqrs_projections reset"):
        want(own, "wanted.inline", "reset")
    assert own.status("wanted.inline").wanted == ""


@message("wanted.secret")
@dataclass(frozen=True)
class WantedSecret:
    code: Annotated[str, Sensitive()]


@projection("wanted.quoting", channel="outbox", retry=Retry(attempts=1), views=[Entry])
class WantedQuoting:
    @event_handler
    def told(self, event: WantedSecret):
        msg = f"not {event.code}"
        raise ValueError(msg)


@in_a_transaction
def test_the_error_of_an_action_is_kept_without_secrets():
    """It stands with the projection until another action is asked for. [E33.4]"""
    registry = project(WantedQuoting, WantedSecret)
    own = Projections("default", registry=registry)
    own.init("wanted.quoting")
    append(registry, WantedSecret("hunter2"))
    worker = worker_of(registry)
    want(own, "wanted.quoting", "rebuild")

    finish(worker)

    status = own.status("wanted.quoting")
    assert status.action_error == "rebuild: ValueError: not ••••••"
    assert isinstance(worker.failure, ValueError)
    assert (status.status, status.wanted) == ("live", "")
    want(own, "wanted.quoting", "reset")
    assert own.status("wanted.quoting").action_error == ""


@in_a_transaction
def test_a_failure_that_fails_again_quotes_no_secret():
    """Also the failure of a retry by hand is masked. [E33.3]"""
    registry = project(WantedQuoting, WantedSecret)
    own = Projections("default", registry=registry)
    own.init("wanted.quoting")
    append(registry, WantedSecret("hunter2"))
    with pytest.raises(ValueError, match="hunter2"):
        own.run("wanted.quoting")
    own.skip("wanted.quoting")
    [failure] = own.failures("wanted.quoting")

    with pytest.raises(ValueError, match="hunter2"):
        own.retry("wanted.quoting", failure.pk)

    failure = ProjectionFailure.objects.get()
    assert failure.error == "not ••••••"
    assert "hunter2" not in failure.traceback


def test_a_worker_has_the_job_where_projections_are(registry):
    """A registry without projections costs its workers nothing. [E33.4]"""
    assert jobs_of(project(), "outbox", "default") == []
    assert [repr(each) for each in jobs_of(registry, "other", "default")] == [
        "<WantedActions of 'default'>"
    ]


class TestWithThreads:
    """The worker goes on with its messages while an action lasts."""

    pytestmark = on_databases

    def test_an_action_does_not_hold_up_its_worker(self, registry, own):
        """Each round ends in time, and what is seen meanwhile is that it runs. [E33.4]"""
        own.init("wanted.followed")
        append(registry, *map(OrderPlaced, range(3)))
        begun, goes_on = threading.Event(), threading.Event()
        at_each.append(lambda _event: (begun.set(), goes_on.wait(LIMIT)))
        want(own, "wanted.followed", "rebuild")
        worker, other = worker_of(registry), worker_of(registry)

        assert worker.run(time.monotonic()) == 1
        assert begun.wait(LIMIT)
        assert worker.run(time.monotonic()) == 1
        assert other.run(time.monotonic()) == 0
        assert ("rebuild", True) in statuses(own)
        assert own.status("wanted.followed").status == "building"
        goes_on.set()
        finish(worker)

        assert statuses(own)[-1] == ("", False)
        assert Entry.objects.count() == 3

    def test_a_worker_that_ends_leaves_the_action_to_another(self, registry, own):
        """It is interrupted between two pages, and nothing of it stays. [E33.4]"""
        own.init("wanted.followed")
        append(registry, *map(OrderPlaced, range(3)))
        begun = threading.Event()
        first, second = worker_of(registry), worker_of(registry)
        at_each.append(lambda _event: (begun.set(), first._ends.wait(LIMIT)))
        want(own, "wanted.followed", "rebuild")

        first.run(time.monotonic())
        assert begun.wait(LIMIT)
        first.close()

        assert own.status("wanted.followed").wanted == "rebuild"
        assert own.status("wanted.followed").status == "live"
        assert not Entry.objects.exists()
        finish(second)
        assert Entry.objects.count() == 3

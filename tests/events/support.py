"""What the tests of the event store share."""

import os
import queue
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import pytest
from django.db import connection, connections, transaction

from django_cqrs import Registry, message
from django_cqrs.events import EventStore, Tag
from django_cqrs.events.reading import Scan
from django_cqrs.events.settling import settled
from tests.limits import LIMIT

on_databases = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]
"""Every test of a module commits, on whatever server the settings name."""

in_a_transaction = pytest.mark.django_db(databases=["default", "other"])
"""A test that commits nothing, which is quicker."""

SOAKS = os.environ.get("CQRS_SOAK") == "1"
"""Whether the long tests run at their full size."""


@message("shop.added")
@dataclass(frozen=True)
class Added:
    number: int


@message("shop.removed")
@dataclass(frozen=True)
class Removed:
    number: int


@message("course.subscribed", tags=["courses"])
@dataclass(frozen=True)
class Subscribed:
    course: Annotated[int | None, Tag("course")]
    students: Annotated[list[UUID], Tag("student")]


def store_of(*classes, using=None):
    """Return a store, with a registry of its own that knows some classes."""
    registry = Registry()
    for each in classes:
        registry.add(each)
    return EventStore(using, registry=registry)


store = store_of(Added, Removed, Subscribed)


def numbers(recorded):
    """Return the numbers of events."""
    return [each.event.number for each in recorded]


def on_a_server():
    if connection.vendor == "sqlite":
        pytest.skip("A case for a server with many connections.")


def only_on(vendor):
    if connection.vendor != vendor:
        pytest.skip(f"A case for {vendor}.")


class Session:
    """A connection in a thread of its own, which does one thing after another."""

    def __init__(self, alias="default"):
        self._alias = alias
        self._work = queue.Queue()
        self._results = queue.Queue()
        self._blocks = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while (work := self._work.get()) is not None:
            function, arguments, options = work
            try:
                self._results.put((function(*arguments, **options), None))
            except BaseException as error:  # noqa: BLE001 - raised by whoever asked
                self._results.put((None, error))
        connections.close_all()

    def start(self, function, *arguments, **options):
        """Let it do something, and do not wait."""
        self._work.put((function, arguments, options))

    def result(self, timeout=LIMIT):
        """Wait for the result of what was started."""
        result, error = self._results.get(timeout=timeout)
        if error is not None:
            raise error
        return result

    def do(self, function, *arguments, **options):
        self.start(function, *arguments, **options)
        return self.result()

    def begin(self):
        """Open a transaction, or a savepoint inside it."""

        def enter():
            block = transaction.atomic(using=self._alias)
            block.__enter__()
            self._blocks.append(block)

        self.do(enter)

    def commit(self):
        self.do(lambda: self._blocks.pop().__exit__(None, None, None))

    def rollback(self):
        class Undone(Exception):
            """What ends the block."""

        def leave():
            self._blocks.pop().__exit__(Undone, Undone(), None)

        self.do(leave)

    def append(self, *numbers, stream=None, **options):
        events = [Added(number) for number in numbers]
        return self.do(store.append, events, stream=stream, **options)

    def end(self):
        while self._blocks:
            self.rollback()
        self._work.put(None)
        self._thread.join(LIMIT)


@contextmanager
def sessions(count=1):
    """Give connections in threads of their own; what they left open is undone."""
    made = [Session() for _ in range(count)]
    try:
        yield made[0] if count == 1 else made
    finally:
        for each in made:
            each.end()


class Follower:
    """Reads what is settled, poll by poll."""

    def __init__(self, query=None, limit=1000):
        self._connection = connections["default"]
        types = store.registry.routes.types
        options = () if query is None else (query,)
        self._scan = Scan(self._connection, types, *options)
        self._limit = limit
        self.position = 0
        self.seen = []

    def poll(self):
        """Return the numbers of the events that are new."""
        bound = settled(self._connection)
        found = []
        while self.position < bound:
            page = self._scan.page(self.position, bound, self._limit)
            found += page.recorded
            self.position = page.position
        self.seen += found
        return numbers(found)

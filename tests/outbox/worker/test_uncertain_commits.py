"""A commit that the server made, and that was reported as failed."""

import pytest
from django.db import OperationalError, connection, connections, transaction

from django_cqrs import Retry
from tests.outbox.support import (
    letters,
    note,
    numbers,
    on_databases,
    registry_of,
    rows,
    send,
    worker_of,
)
from tests.outbox.work import Work
from tests.testapp.models import Note

pytestmark = on_databases


class Server:
    """Loses the connection at the end of a commit, or before it."""

    def __init__(self, monkeypatch):
        self.fails = ""
        self.is_away = 0
        own = connections["default"]
        commit, connect = own._commit, own.connect

        def failing():
            fails, self.fails = self.fails, ""
            if fails != "before":
                commit()
            if fails:
                raise OperationalError("server closed the connection unexpectedly")

        def refusing():
            if self.is_away:
                self.is_away -= 1
                raise OperationalError("connection refused")
            connect()

        monkeypatch.setattr(own, "_commit", failing)
        monkeypatch.setattr(own, "connect", refusing)


@pytest.fixture
def server(monkeypatch, undivided_batches):
    return Server(monkeypatch)


def handled_by(server, when, ran, *, bad=(), is_away=0, leaves=None, **options):
    """Return a worker whose third handler makes the next commit fail, and its tally."""

    def do(command: Work):
        ran.append(command.number)
        note(command)
        transaction.on_commit(lambda: ran.append(f"after {command.number}"))
        if ran.count(3) == 1 and command.number == 3:
            server.fails, server.is_away = when, is_away
            if leaves is not None:
                leaves()
        if command.number in bad:
            raise ValueError

    registry = registry_of(do, **options)
    send(registry, 1, 2, 3)
    return worker_of(registry)


@pytest.mark.parametrize("when", ["", "after"])
def test_what_was_committed_is_counted_as_handled(server, when):
    """Once, as without the failure: no handler is called again, and callbacks run."""
    ran = []
    worker = handled_by(server, when, ran)

    tally = worker.run()

    assert numbers() == [1, 2, 3]
    assert ran == [1, 2, 3, "after 1", "after 2", "after 3"]
    assert (tally.handled, tally.failed, tally.dead) == (3, 0, 0)
    assert rows() == []


def test_what_was_not_committed_is_handled_anew(server):
    """And counted once."""
    ran = []
    tally = handled_by(server, "before", ran).run()

    assert numbers() == [1, 2, 3]
    assert ran == [1, 2, 3, 1, "after 1", 2, "after 2", 3, "after 3"]
    assert (tally.handled, tally.failed, tally.dead) == (3, 0, 0)
    assert rows() == []


@pytest.mark.parametrize("when", ["", "after"])
@pytest.mark.parametrize("attempts", [1, 2])
def test_failures_that_were_committed_are_counted_and_logged(
    server, when, attempts, caplog
):
    """Both those that are retried and dead letters."""
    ran = []
    options = {"retry": Retry(attempts=attempts, delay=600, jitter=False)}
    tally = handled_by(server, when, ran, bad=(2, 3), **options).run()

    assert numbers() == [1]
    assert (tally.handled, tally.failed) == (1, 2)
    assert tally.dead == len(letters()) == (2 if attempts == 1 else 0)
    assert len(rows()) == (0 if attempts == 1 else 2)
    assert sum("failed at attempt 1" in each for each in caplog.messages) == 2


@pytest.mark.parametrize("when", ["", "after", "before"])
def test_a_message_with_a_transaction_of_its_own_is_counted_too(server, when):
    """The commit that fails is that of its settlement."""
    ran = []

    def leaves():
        server.fails = ""
        transaction.on_commit(lambda: setattr(server, "fails", when))

    tally = handled_by(server, when, ran, leaves=leaves, atomic=False).run()

    assert tally.handled == 3
    assert [each for each in ran if isinstance(each, int)] == [1, 2, 3]
    assert rows() == []


@pytest.mark.parametrize("number", [1, 2])
def test_it_is_counted_though_the_database_was_away_for_a_while(server, number):
    """What came of the commit is found out when it is back."""
    if connection.vendor == "sqlite":
        pytest.skip("A case for a server.")
    ran = []
    tally = handled_by(server, "after", ran, is_away=number).run()

    assert numbers() == [1, 2, 3]
    assert [each for each in ran if isinstance(each, int)] == [1, 2, 3]
    assert tally.handled == 3
    assert rows() == []


def test_after_the_end_of_the_lease_nothing_is_counted(server):
    """Somebody else may have handled what is no longer there."""
    ran = []
    worker = handled_by(server, "after", ran)
    worker._handler.heartbeat.lasts = lambda: False

    tally = worker.run()

    assert numbers() == [1, 2, 3]
    assert tally.handled == 0
    assert rows() == []


def test_a_handler_that_ends_the_transaction_is_counted_too(server):
    """The commit that fails is that of what came before it."""
    ran = []

    def end():
        server.fails = ""
        with connection.cursor() as cursor:
            cursor.execute("COMMIT")
        server.fails = "after"

    options = {"retry": Retry(attempts=1)}
    tally = handled_by(server, "after", ran, leaves=end, **options).run()

    assert sorted(Note.objects.values_list("number", flat=True)) == [1, 2, 3]
    assert (tally.handled, tally.dead) == (2, 1)
    assert rows() == []

"""The worker beside packages and servers that come between it and PostgreSQL."""

from __future__ import annotations

import pytest
from django.db import connection

from django_cqrs import Registry, Retry, command_handler
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from django_cqrs.outbox.worker import Bounds, Worker
from tests.tried.shop.models import Row

pytestmark = pytest.mark.django_db(transaction=True)

ISOLATION = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


def work(registry):
    bounds = Bounds(until_empty=True)
    return Worker(registry, ["outbox"], using="default", bounds=bounds).run()


def registry_of(*handlers):
    registry = Registry()
    for each in handlers:
        registry.add(each)
    return registry


def test_what_pgbulk_copied_is_undone_with_the_handler_that_fails():
    """
    django-pgbulk: its COPY is undone where the handler raises, and stays where it
    returns.
    """
    pgbulk = pytest.importorskip("pgbulk")

    @command_handler("load", name="load", channel="outbox", retry=Retry(attempts=1))
    def load(number: int) -> None:
        pgbulk.copy(Row, [Row(number=number), Row(number=number)])
        if number == 2:
            raise ValueError(number)

    registry = registry_of(load)
    registry.command_bus.dispatch(1, route="load")
    registry.command_bus.dispatch(2, route="load")
    work(registry)

    assert list(Row.objects.values_list("number", flat=True)) == [1, 1]
    assert DeadLetter.objects.count() == 1


@pytest.mark.parametrize("level", ISOLATION)
def test_a_worker_handles_at_every_isolation_level(level):
    """PostgreSQL: messages are handled once at each isolation level of the session."""

    @command_handler("store", name="store", channel="outbox")
    def store(number: int) -> None:
        Row.objects.create(number=number)

    registry = registry_of(store)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('default_transaction_isolation', %s, false)",
            [level.lower()],
        )
    try:
        for number in range(20):
            registry.command_bus.dispatch(number, route="store")
        work(registry)
    finally:
        connection.close()

    assert sorted(Row.objects.values_list("number", flat=True)) == list(range(20))
    assert OutboxMessage.objects.count() == 0

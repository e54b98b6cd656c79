"""Which rows are locked, and by what."""

from __future__ import annotations

from functools import cache
from typing import Annotated

import pytest
from django.db import connection, models
from django.db.transaction import atomic

from django_cqrs import (
    CommandBus,
    Registry,
    command_handler,
    event_handler,
    query_handler,
)
from django_cqrs.channels import channels
from django_cqrs.exceptions import ConcurrencyError
from django_cqrs.modelling import Fetch, aggregate
from tests.modelling.boxes import MODELS, Back, Inner, put

pytestmark = [pytest.mark.django_db, pytest.mark.database]

BOX = MODELS["Box"]

QUERYSETS = {
    "annotate": lambda rows: rows.annotate(number=models.Count("pk")),
    "distinct": lambda rows: rows.distinct(),
    "window": lambda rows: rows.annotate(
        place=models.Window(models.functions.RowNumber())
    ),
    "plain": lambda rows: rows,
}


@cache
def computed(name):
    """Return a box whose default manager computes its rows."""

    class Computed(models.Manager):
        def get_queryset(self):
            return QUERYSETS[name](super().get_queryset())

    meta = type("Meta", (), {"proxy": True, "app_label": "modelling"})
    # Local, so that the project's registry does not find it.
    own_name = f"{name.title()}Box"
    members = {
        "Meta": meta,
        "__module__": __name__,
        "__qualname__": f"computed.<locals>.{own_name}",
        "objects": Computed(),
    }
    return aggregate(type(own_name, (BOX,), members))


def locking(call):
    """Return how many statements with a lock on a box a call has executed."""
    seen = []

    def look(execute, sql, params, many, context):
        seen.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(look):
        call()
    table = BOX._meta.db_table
    return sum(table in sql and " UPDATE" in sql and "SELECT" in sql for sql in seen)


@pytest.mark.parametrize("name", QUERYSETS)
def test_a_default_manager_that_computes_its_rows_can_be_acted_on(name):
    """The bare row is locked where the database cannot lock what is computed."""
    kind = computed(name)
    registry = Registry()
    registry.add(kind)
    put("Box", 7)

    locks = locking(lambda: registry.command_bus.dispatch(Inner(7), route="box.inner"))

    assert BOX.objects.get().b == 1
    assert locks == (0 if connection.vendor == "sqlite" else 1)


def fetching(registry, channel, **options):
    """Return what calls a handler of each kind that fetches a box."""
    box = Annotated[BOX, Fetch("box_id", **options)]

    @command_handler("fetch.now")
    def now(command: Inner, box: None) -> None: ...

    @command_handler("fetch.later", channel=channel)
    def later(command: Inner, box: None) -> None: ...

    @event_handler(channel=channel)
    def heard_later(event: Back, box: None) -> None: ...

    @event_handler("fetch.heard")
    def heard(event: Back, box: None) -> None: ...

    @query_handler("fetch.asked")
    def asked(query: Inner, box: None) -> int:
        return box.b

    for each in (now, later, heard_later, heard, asked):
        each.__annotations__["box"] = box
        registry.add(each)


CALLS = {
    "command": lambda r: r.command_bus.dispatch(Inner(7), route="fetch.now"),
    "command on a channel": lambda r: (
        r.command_bus.dispatch(Inner(7), route="fetch.later"),
        channels["outbox"].run(registry=r),
    ),
    "event on a channel": lambda r: (
        r.event_bus.publish(Back(7)),
        channels["outbox"].run(registry=r),
    ),
    "event": lambda r: r.event_bus.publish(Back(7), route="fetch.heard"),
    "query": lambda r: r.query_bus.ask(Inner(7), route="fetch.asked"),
}


@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize("kind", CALLS)
def test_what_is_fetched_is_locked_inside_a_command_and_nowhere_else(kind, lock):
    """A handler of events on a channel may take long: it only reads the row."""
    registry = Registry()
    fetching(registry, "outbox", lock=lock)
    put("Box", 7)

    expected = int(lock and kind.startswith("command"))
    found = locking(lambda: CALLS[kind](registry))
    assert found == (0 if connection.vendor == "sqlite" else expected)


def test_what_is_fetched_without_a_lock_is_not_saved_over_its_unit_of_work():
    """An object that is only read may be saved all the same, and is guarded."""

    @event_handler(channel="outbox")
    def hear(event: Back, box: None, commands: CommandBus) -> None:
        commands.dispatch(Inner(7), route="box.inner")
        box.a += 1
        with pytest.raises(ConcurrencyError), atomic():
            box.save()

    hear.__annotations__["box"] = Annotated[BOX, Fetch("box_id")]
    registry = Registry()

    @aggregate
    class Deaf(BOX):
        back = None

        class Meta:
            proxy = True
            app_label = "modelling"

    for each in (Deaf, hear):
        registry.add(each)
    put("Box", 7)
    registry.event_bus.publish(Back(7))
    channels["outbox"].run(registry=registry)

    assert BOX.objects.values_list("a", "b").get() == (0, 1)

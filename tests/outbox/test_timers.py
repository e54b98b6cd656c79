"""What the end of a saga takes back: its own timers, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection, transaction

from django_cqrs import Registry, Retry, command_handler
from django_cqrs.channels import channels
from django_cqrs.declaration.key_sources import as_key
from django_cqrs.documents import document
from django_cqrs.documents.models import Document
from django_cqrs.modelling import Saga, saga
from django_cqrs.modelling.sagas import SagaSubject
from django_cqrs.outbox.models import (
    DeadLetter,
    InboxEntry,
    JournalEntry,
    OutboxMessage,
    Throughput,
)
from tests.outbox.support import letters, work

pytestmark = [
    pytest.mark.database,
    pytest.mark.django_db(transaction=True, databases=["default"]),
]

AFTER = timedelta(hours=1)


def sagas_on(channel, *, retry=None, reached=None):
    """Return a registry of a saga with timers, reminders and what fails on a channel."""

    @saga(identifier=("name", "part"))
    @document("timers.box")
    @dataclass(kw_only=True)
    class Box(Saga):
        name: str
        part: str = ""

        @command_handler("box.open")
        @classmethod
        def open(cls, key: list[str]) -> Box:
            return cls(name=key[0], part=key[1])

        @command_handler("box.timeout", name="timeout", channel=channel, delay=AFTER)
        def timeout(self) -> None:
            (reached if reached is not None else []).append("timeout")

        @command_handler(
            "box.old", name="new", aliases=["old"], channel=channel, delay=AFTER
        )
        def renamed(self) -> None: ...

        @command_handler("box.remind", name="remind", channel=channel)
        def remind(self) -> None: ...

        @command_handler("box.fail", name="fail", channel=channel, retry=retry)
        def fail(self) -> None:
            raise ValueError

        @command_handler(
            "box.fail_late",
            name="fail_late",
            channel=channel,
            delay=AFTER,
            retry=retry,
        )
        def fail_late(self) -> None:
            raise ValueError

        @command_handler("box.close")
        def close(self, fails: bool = False) -> None:
            self.complete()

    registry = Registry()
    registry.add(Box)
    return registry


def waiting(channel):
    if channel == "memory":
        return sorted(
            (each.endpoint, each.subject) for each in channels["memory"].waiting()
        )
    return sorted(OutboxMessage.objects.values_list("endpoint", "subject"))


@pytest.fixture(autouse=True)
def _empty():
    channels["memory"].clear()
    yield
    channels["memory"].clear()


def send(registry, route, *key, **options):
    registry.command_bus.dispatch(route=route, aggregate_id=key, **options)


@pytest.mark.parametrize("channel", ["outbox", "memory"])
def test_a_completed_saga_takes_back_its_timers_and_no_delayed_message(channel):
    """
    A timer is a message for a handler that says `delay=`, whatever delay it was sent
    with. A message with a delay of the call, for a handler without, is none.
    """
    registry = sagas_on(channel)
    registry.command_bus.dispatch(["a", "b"], route="box.open")
    send(registry, "box.timeout", "a", "b")
    send(registry, "box.timeout", "a", "b", delay=5)
    send(registry, "box.old", "a", "b")
    send(registry, "box.remind", "a", "b", delay=600)
    send(registry, "box.close", "a", "b")

    assert [endpoint for endpoint, _ in waiting(channel)] == ["remind"]


def test_timers_under_a_former_name_of_their_handler_are_taken_back():
    """What was sent before its handler was renamed is a timer like the others."""
    registry = sagas_on("outbox")
    registry.command_bus.dispatch(["a", "b"], route="box.open")
    send(registry, "box.old", "a", "b")
    OutboxMessage.objects.update(endpoint="old")
    send(registry, "box.close", "a", "b")

    assert waiting("outbox") == []


@pytest.mark.parametrize("route", ["box.fail", "box.fail_late"])
def test_what_waits_for_its_next_attempt_outlives_its_saga(route):
    """
    A message that was tried is none of a saga's timers, even if its handler says
    `delay=`: it ends as its retry policy says.
    """
    registry = sagas_on("outbox", retry=Retry(attempts=2, delay=60))
    registry.command_bus.dispatch(["a", "b"], route="box.open")
    send(registry, route, "a", "b")
    channels["outbox"].advance(AFTER)
    work(registry)
    send(registry, "box.close", "a", "b")

    (row,) = OutboxMessage.objects.all()
    assert (row.endpoint, row.attempts) == (route.removeprefix("box."), 1)
    channels["outbox"].advance(AFTER)
    work(registry)
    assert OutboxMessage.objects.count() == 0
    # One that comes late as a timeout has nothing to do; another raises.
    assert len(letters()) == (1 if route == "box.fail" else 0)


def test_a_timer_that_was_tried_in_an_outage_outlives_its_saga():
    """Such an attempt is not counted, and yet it was one."""
    registry = sagas_on("outbox")
    registry.command_bus.dispatch(["a", "b"], route="box.open")
    send(registry, "box.timeout", "a", "b")
    OutboxMessage.objects.update(last_error="the disk is full")
    send(registry, "box.close", "a", "b")

    assert [endpoint for endpoint, _ in waiting("outbox")] == ["timeout"]


KEYS = [
    ("box", ""),
    ("Box", ""),
    ("bóx", ""),
    ("box,", ""),
    ("box", ","),
    ("a,b", "c"),
    ("a", "b,c"),
    ("a','b", "c"),
    ("a", "b','c"),
    ("'a'", "b"),
    ("x" * 90, "y" * 90),
    ("x" * 91, "y" * 89),
]


@pytest.mark.parametrize("channel", ["outbox", "memory"])
@pytest.mark.parametrize("key", KEYS)
def test_the_timers_of_other_sagas_stay_whatever_their_keys(channel, key):
    """
    Keys are compared byte by byte on every database, and those of several parts are
    told apart whatever the parts hold.
    """
    registry = sagas_on(channel)
    for each in KEYS:
        registry.command_bus.dispatch(list(each), route="box.open")
        send(registry, "box.timeout", *each)
    before = waiting(channel)
    assert len({subject for _, subject in before}) == len(KEYS)
    send(registry, "box.close", *key)

    gone = [each for each in before if each not in waiting(channel)]
    assert len(gone) == 1
    assert len(waiting(channel)) == len(KEYS) - 1


@pytest.mark.parametrize("channel", ["outbox", "memory"])
def test_timers_stay_where_the_end_of_their_saga_is_rolled_back(channel):
    """They are taken back with the transaction that ends the saga, or not at all."""
    registry = sagas_on(channel)
    registry.command_bus.dispatch(["a", "b"], route="box.open")
    send(registry, "box.timeout", "a", "b")
    for block in (transaction.atomic, _savepoint):
        with suppress(ZeroDivisionError), block():
            send(registry, "box.close", "a", "b")
            assert waiting(channel) == []
            raise ZeroDivisionError

        assert [endpoint for endpoint, _ in waiting(channel)] == ["timeout"]
    send(registry, "box.close", "a", "b")
    assert waiting(channel) == []


class _savepoint:
    """A block that is undone inside a transaction that commits."""

    def __enter__(self):
        self._blocks = transaction.atomic(), transaction.atomic()
        for block in self._blocks:
            block.__enter__()

    def __exit__(self, *error):
        outer, inner = self._blocks
        inner.__exit__(*error)
        outer.__exit__(None, None, None)


def test_the_journal_says_which_timers_were_taken_back(settings):
    """An entry for each: `cancelled`, with the ids of the message."""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": timedelta(days=1)}
    registry = sagas_on("outbox")
    registry.command_bus.dispatch(["a", "b"], route="box.open")
    send(registry, "box.timeout", "a", "b")
    (timer,) = OutboxMessage.objects.all()
    send(registry, "box.close", "a", "b")

    (entry,) = JournalEntry.objects.filter(outcome="cancelled")
    assert (
        entry.message_id,
        entry.correlation_id,
        entry.endpoint,
        entry.channel,
        entry.subject,
        entry.attempts,
        entry.duration,
        entry.error,
    ) == (
        timer.message_id,
        timer.correlation_id,
        "timeout",
        "outbox",
        timer.subject,
        0,
        None,
        "",
    )
    assert OutboxMessage.objects.count() == 0


# -------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a,b", "c"), ("a", "b,c")),
        (("a", "b"), "'a','b'"),
        (("a",), "'a'"),
        ((("a", "b"), "c"), ("a", "b", "c")),
        ((("a", "b"),), ("'a','b'",)),
        ("x" * 256, as_key("x" * 256)),
        ("a ", "a"),
        ("a\x00", "a"),
        ("a\ud800", "a\ud801"),
        ("É", "e"),
    ],
)
def test_no_two_keys_are_stored_as_one(one, other):
    """What looks like a tuple's key, or like a hash, is stored as another hash."""
    assert as_key(one) != as_key(other)
    as_key(one).encode()


@pytest.mark.parametrize(
    ("model", "column"),
    [
        (model, column)
        for model in (OutboxMessage, DeadLetter, JournalEntry)
        for column in ("channel", "endpoint", "name", "subject")
    ]
    + [
        (OutboxMessage, "ordering_key"),
        (DeadLetter, "ordering_key"),
        (InboxEntry, "endpoint"),
        (InboxEntry, "key"),
        (Throughput, "channel"),
        (Document, "collection"),
        (Document, "key"),
    ],
)
def test_every_name_and_key_is_compared_byte_by_byte(model, column):
    """A column by which rows are found tells "mail" from "Mail" and "máil"."""
    if connection.vendor != "mysql":
        pytest.skip("Other databases compare text byte by byte of themselves.")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT collation_name FROM information_schema.columns WHERE "
            "table_schema = DATABASE() AND table_name = %s AND column_name = %s",
            [model._meta.db_table, column],
        )
        assert cursor.fetchone() == ("utf8mb4_bin",)


def test_a_worker_of_mail_does_not_handle_what_waits_in_a_channel_called_Mail(settings):
    """The aliases of channels are told apart byte by byte."""
    outbox = {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"}
    settings.DJANGO_CQRS = {"CHANNELS": {"mail": outbox, "Mail": outbox}}
    seen = []
    registry = Registry()
    for alias in ("mail", "Mail"):

        @command_handler(alias, name=f"to {alias}", channel=alias)
        def handle(text: str) -> None:
            seen.append(text)

        registry.add(handle)
        registry.command_bus.dispatch(alias, route=alias)
    work(registry, channels=("mail",))

    assert seen == ["mail"]


def test_an_object_is_called_by_a_text_that_every_database_can_hold():
    """A hash stands for a key that is too long, or ends in a space."""
    registry = sagas_on("outbox")
    subject = next(
        each.subject for each in registry.routes.endpoints if each.name == "timeout"
    )
    assert isinstance(subject, SagaSubject)
    found: list[Any] = [
        subject.key_of((text, ""))
        for text in ("a", "a" * 500, "a" * 501, "\x00", "\ud800")
    ]
    assert len(set(found)) == len(found)
    assert all(len(each) <= 255 for each in found)
    assert found[0].endswith("Box:'a',''")
    for each in found:
        each.encode()


def test_the_migrations_of_the_outbox_are_complete():
    """Nothing is left that `makemigrations` would write."""
    call_command("makemigrations", "--check", "--dry-run", "django_cqrs_outbox")


def test_our_own_models_raise_no_warning_of_django():
    """No check speaks of conditions that MySQL and MariaDB have no indexes for."""
    found = [
        message
        for label in ("django_cqrs_outbox", "django_cqrs_documents")
        for model in apps.get_app_config(label).get_models()
        for message in model.check(databases=["default"])
    ]
    assert found == []

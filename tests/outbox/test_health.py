"""What is wrong with an outbox, as a function and as a check of django-health-check."""

import json
from datetime import timedelta
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection
from django.db.backends.signals import connection_created
from django.test import AsyncClient, override_settings
from django.urls import path
from django.utils import timezone
from health_check.views import HealthCheckView

from django_cqrs import Retry
from django_cqrs.contrib.health_check import Outbox
from django_cqrs.outbox.health import Problem, find_problems
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State, WorkerRecord
from django_cqrs.outbox.statistics import LOOKED
from tests.outbox.support import (
    LONG_AGO,
    analyze,
    note,
    on_databases,
    registry_of,
    rows,
    rows_read,
    send,
    store_many,
    work,
)
from tests.outbox.work import Work

pytestmark = on_databases

urlpatterns = [
    path(
        "health/",
        HealthCheckView.as_view(
            checks=["django_cqrs.contrib.health_check.Outbox"],
        ),
    ),
    path(
        "patient/",
        HealthCheckView.as_view(
            checks=[(Outbox, {"max_age": timedelta(days=1), "max_dead": 5})]
        ),
    ),
]


def fail(command: Work):
    """A handler that fails."""
    raise ValueError


@pytest.fixture
def registry():
    return registry_of(note)


def bury(*numbers, using="default"):
    registry = registry_of(fail, retry=Retry(attempts=1))
    send(registry, *numbers, using=using)
    work(registry, using=using)


def be_late(**times):
    OutboxMessage.objects.update(sent_at=timezone.now() - timedelta(**times))


@pytest.fixture(autouse=True)
def _worker():
    """A worker lives: that none does is a problem of its own."""
    now = timezone.now()
    for alias in ("default", "other"):
        WorkerRecord.objects.using(alias).create(
            name="living", channels="gone\noutbox", started_at=now, seen_at=now
        )


@pytest.fixture
def broken():
    """The database is away, for every thread."""
    settings = connection.settings_dict
    nowhere = {"HOST": "127.0.0.1", "PORT": "1"}
    if connection.vendor == "sqlite":
        nowhere = {"NAME": "/nowhere/at/all.sqlite3"}
    before = {key: settings[key] for key in nowhere}
    connection.close()
    settings.update(nowhere)
    yield
    connection.close()
    settings.update(before)


# ---------------------------------------------------------------------------- function


def test_nothing_is_wrong(registry):
    """Messages that have just been sent are no problem. [C09.4]"""
    send(registry, 1, 2)

    assert find_problems() == []


def test_messages_wait_too_long(registry):
    """Each channel has its own sentence. [C09.4]"""
    send(registry, 1, 2)
    be_late(hours=1)
    send(registry, 3)
    send(registry, 4)
    OutboxMessage.objects.filter(pk=rows()[-1].pk).update(channel="gone")
    OutboxMessage.objects.filter(channel="gone").update(
        sent_at=timezone.now() - timedelta(minutes=7, seconds=3)
    )

    assert find_problems() == [
        Problem(
            kind="late",
            channel="gone",
            text="1 message has waited in the channel 'gone' for more than 0:05:00, "
            "the oldest for 0:07:03.",
        ),
        Problem(
            kind="late",
            channel="outbox",
            text="2 messages have waited in the channel 'outbox' for more than 0:05:00, "
            "the oldest for 1:00:00.",
        ),
    ]


def test_what_is_late_is_for_the_caller_to_say(registry):
    """Some channels may take their time."""
    send(registry, 1)
    be_late(minutes=2)

    assert find_problems() == []
    assert [each.kind for each in find_problems(max_age=timedelta(minutes=1))] == [
        "late"
    ]
    assert find_problems(max_age=timedelta(minutes=1), channels=["gone"]) == []
    be_late(days=9)
    assert find_problems(max_age=None) == []


def test_delayed_and_parked_messages_are_not_late(registry):
    """Nobody is to have handled them yet."""
    send(registry, 1, delay=60)
    send(registry, 2)
    OutboxMessage.objects.filter(state=State.READY).update(state=State.PARKED)
    be_late(days=1)

    assert find_problems() == []


def test_without_a_worker_delayed_messages_become_late(registry):
    """They are due, and nobody has released them. [C09.4]"""
    send(registry, 1, delay=60)
    OutboxMessage.objects.update(available_at=timezone.now() - timedelta(hours=1))

    assert [each.kind for each in find_problems()] == ["late"]


def test_messages_are_dead():
    """One is one too many, unless the caller says otherwise. [C09.4]"""
    bury(1, 2)

    assert find_problems() == [
        Problem(
            kind="dead",
            channel="outbox",
            text="There are 2 dead letters in the channel 'outbox'.",
        )
    ]
    assert [str(each) for each in find_problems(max_dead=1)] == [
        "There are 2 dead letters in the channel 'outbox'."
    ]
    assert find_problems(max_dead=2) == []
    assert find_problems(max_dead=None) == []
    assert find_problems(channels=["gone"]) == []


def test_one_dead_letter_is_one():
    """The sentence is one."""
    bury(1)

    assert [str(each) for each in find_problems()] == [
        "There is 1 dead letter in the channel 'outbox'."
    ]


def test_each_database_is_asked_for_itself():
    """A dead letter of another is not seen."""
    bury(1, using="other")

    assert find_problems() == []
    assert [each.kind for each in find_problems(using="other")] == ["dead"]


def test_no_database(broken, caplog):
    """That is a problem like others; what the driver says is for the log alone. [C09.4]"""
    found = find_problems()

    assert [(each.kind, each.channel, str(each)) for each in found] == [
        (
            "unreadable",
            None,
            "Outbox of the database 'default' cannot be read (OperationalError).",
        )
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "Outbox of 'default' cannot be read"
    ]


def test_it_takes_a_few_statements(registry, django_assert_max_num_queries):
    """It may be asked often; each channel costs one more, for its priorities."""
    send(registry, 1, 2)
    bury(3)

    with django_assert_max_num_queries(10):
        find_problems()


def bury_many(count):
    DeadLetter.objects.bulk_create(
        DeadLetter(
            channel="outbox",
            endpoint="note",
            payload=b"{}",
            headers=b"{}",
            message_id=uuid4(),
            correlation_id=uuid4(),
            sent_at=LONG_AGO,
            sequence=number,
            reason="failed",
            failed_at=LONG_AGO,
        )
        for number in range(count)
    )


def kinds(**options):
    return [(each.kind, each.channel) for each in find_problems(**options)]


@pytest.mark.parametrize(
    "columns",
    [
        {"state": State.READY},
        {"state": State.CLAIMED},
        {"state": State.ABANDONED},
        {"state": State.FORWARDED},
        {"state": State.DELAYED, "available_at": LONG_AGO},
    ],
    ids=lambda columns: columns["state"].name,
)
def test_of_many_late_messages_it_says_at_least_how_many(columns):
    """Whatever state they are in; up to that number it is exact."""
    store_many(LOOKED - 1, **columns)
    (exact,) = find_problems()
    assert str(exact).startswith(f"{LOOKED - 1} messages have waited in the channel")

    store_many(2, **columns)
    (least,) = find_problems()
    assert str(least).startswith(f"At least {LOOKED} messages have waited in the")


def test_of_many_dead_letters_it_says_at_least_how_many():
    """A bound that is higher than that is counted up to."""
    bury_many(LOOKED + 5)

    assert [str(each) for each in find_problems()] == [
        f"There are at least {LOOKED} dead letters in the channel 'outbox'."
    ]
    assert find_problems(max_dead=LOOKED + 5) == []
    assert [str(each) for each in find_problems(max_dead=LOOKED + 4)] == [
        f"There are at least {LOOKED + 5} dead letters in the channel 'outbox'."
    ]


def test_a_late_message_of_any_priority_is_found_behind_many_that_are_not():
    """A flood of others comes before it at each claim, and it is not seen to wait."""
    soon = {"sent_at": timezone.now()}
    store_many(LOOKED + 1, priority=9, **soon)
    store_many(1, priority=5)
    store_many(1, priority=0, **soon)

    assert kinds() == [("late", "outbox")]
    assert str(find_problems()[0]).startswith("1 message has waited in the channel")


@pytest.mark.parametrize("late", [False, True], ids=["on time", "late"])
def test_it_reads_no_more_where_much_more_waits(late):
    """A million messages take it no longer than some thousands."""
    moment = {} if late else {"sent_at": timezone.now() + timedelta(days=1)}
    later = timezone.now() + timedelta(days=1)

    def more():
        store_many(1500, **moment)
        store_many(1500, state=State.DELAYED, available_at=later, **moment)
        bury_many(1500)
        analyze()

    more()
    find_problems()
    before = rows_read(find_problems)
    more()
    more()

    assert rows_read(find_problems) < 1.2 * before


# ----------------------------------------------------------------------------- plug-in


async def answer(url):
    with override_settings(ROOT_URLCONF=__name__):
        response = await AsyncClient().get(url, {"format": "json"})
    return response.status_code, list(json.loads(response.content).values())


async def test_the_check_of_django_health_check(registry):
    """It is well, until something is not. [C09.4]"""
    assert await answer("/health/") == (200, ["OK"])

    await sync_to_async(bury)(1)

    assert await answer("/health/") == (
        500,
        ["Warning: There is 1 dead letter in the channel 'outbox'."],
    )
    assert await answer("/patient/") == (200, ["OK"])


async def test_the_check_without_a_database(broken):
    """It is reported as unavailable, with nothing of what the driver says."""
    text = "Outbox of the database 'default' cannot be read (OperationalError)."

    assert await answer("/health/") == (500, [f"Unavailable: {text}"])


def test_the_label_of_the_check():
    """What tells two of them apart is in their label."""
    check = Outbox(alias="other", channels=["mail"])

    assert repr(check) == (
        "Outbox(alias='other', channels=['mail'], "
        "max_age=datetime.timedelta(seconds=300), max_dead=0)"
    )


def test_the_check_leaves_no_connection_behind():
    """The threads that it runs in are nobody's to clean up."""
    opened = set()  # one may connect twice: MariaDB's is asked for its version

    def listen(sender, connection, **kwargs):
        opened.add(connection)

    connection_created.connect(listen)
    try:
        async_to_sync(Outbox().run)()
    finally:
        connection_created.disconnect(listen)

    assert [each.connection for each in opened] == [None]

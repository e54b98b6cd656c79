"""The outbox channel: rows with the data, or none."""

import contextlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import pytest
from django.db import connection, connections, transaction
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone

from django_cqrs import (
    CommandBus,
    EventBus,
    Registry,
    command_handler,
    event_handler,
    message,
)
from django_cqrs.channels import Envelope, channels
from django_cqrs.exceptions import MessageConversionError, UnknownMessage
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.store import insertion
from django_cqrs.testing.channels import ChannelConformance
from tests.outbox.support import (
    numbers,
    on_databases,
    rows,
    second_connection,
    work,
)
from tests.outbox.work import Work
from tests.testapp.models import Note

pytestmark = on_databases


class Refused(Exception):
    """What is raised on purpose."""


@dataclass(frozen=True)
class Run:
    """A command, handled at once, that does what it carries."""

    steps: object


@dataclass(frozen=True)
class Loose:
    """A class that no registry knows."""


registry = Registry()


def run(command: Run):
    return command.steps()


@registry.add
@command_handler(name="run")
def run_here(command: Run):
    return run(command)


@registry.add
@command_handler(name="do", channel="outbox")
def do(command: Work) -> None:
    Note.objects.create(text="done", number=command.number)


def send(number=1, **fields):
    registry.command_bus.dispatch(Work(number, **fields))


def dispatch(steps):
    return registry.command_bus.dispatch(Run(steps))


def waiting(using="default"):
    """The numbers of what waits, in order of sending."""
    return [
        int(bytes(row.payload).split(b":")[1].split(b",")[0]) for row in rows(using)
    ]


class TestConformance(ChannelConformance):
    """The outbox is a channel as every channel must be."""

    alias = "outbox"

    def run_waiting(self):
        work(self.registry, using=self.using)


class TestConformanceElsewhere(TestConformance):
    """So is the one of another database."""

    using = "other"


def test_with_the_command_that_sends_it():
    """A message is there when its command has committed. [C01.1]"""
    dispatch(lambda: (Note.objects.create(text="data"), send(1)))

    assert waiting() == [1]
    (row,) = rows()
    assert (row.channel, row.endpoint, row.name) == ("outbox", "do", "outbox.work")
    assert (row.state, row.attempts, row.token) == (State.READY, 0, 0)
    assert (row.owner, row.available_at, row.expires_at) == (None, None, None)
    assert bytes(row.payload) == b'{"number":1,"how":"write"}'
    assert bytes(row.headers) == b"{}"


@message("o'clock % \\ {x}")
@dataclass(frozen=True)
class Odd:
    """A message whose name needs every kind of care in a statement."""

    number: int


def test_under_names_that_a_statement_must_quote():
    """Whatever a name is made of, it is stored as it is, and found again. [C01.1]"""
    name = "it's \\' 100 %s; -- \"\"{} é"
    handled = []
    registry = Registry()

    @registry.add
    @command_handler(name=name, channel="outbox")
    def keep(command: Odd):
        handled.append(command)

    registry.command_bus.dispatch(Odd(1))
    (row,) = rows()
    work(registry)

    assert (row.endpoint, row.name) == (name, "o'clock % \\ {x}")
    assert handled == [Odd(1)]


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("cause", [None, UUID(int=7)], ids=["no cause", "a cause"])
@pytest.mark.parametrize("headers", [b"{}", b'{"it\'s": "\\\\ %s"}'])
def test_a_message_is_the_same_row_however_it_is_written(
    monkeypatch, settings, use_tz, cause, headers
):
    """One message, of which the text of its statement is made, and one of several."""
    settings.USE_TZ = use_tz
    envelope = Envelope(
        endpoint="do",
        name="",
        version=0,
        payload=bytes(range(256)),
        headers=headers,
        message_id=UUID(int=2**128 - 1),
        correlation_id=UUID(int=1),
        causation_id=cause,
        timestamp=datetime(2026, 5, 1, 12, 0, 0, 7, tzinfo=UTC),
        sequence=2**62,
        priority=-3,
    )

    insertion.insert(connection, "outbox", [envelope])
    monkeypatch.setattr(insertion, "_is_plain", lambda envelope: False)
    insertion.insert(connection, "outbox", [envelope])
    insertion.insert(connection, "outbox", [envelope, envelope])

    stored = OutboxMessage.objects.values_list(*insertion.INSERTED_COLUMNS)
    first, *others = (
        [bytes(v) if isinstance(v, memoryview) else v for v in row] for row in stored
    )
    assert others == [first] * 3
    assert first[4:6] == [envelope.payload, envelope.headers]


def test_a_message_needs_few_parameters():
    """Its content, and its names too where no driver quotes them once."""
    connection.ensure_connection()
    said = []
    with connection.execute_wrapper(
        lambda execute, sql, values, *rest: (
            said.append((sql, values)),
            execute(sql, values, *rest),
        )[1]
    ):
        send(1)

    ((statement, values),) = (each for each in said if "outboxmessage" in each[0])
    assert len(values) == (5 if connection.vendor == "postgresql" else 8)
    assert "number" not in statement


def test_not_with_a_command_that_fails():
    """A command that raises sends nothing. [C01.1]"""

    def steps():
        send(1)
        raise Refused

    with pytest.raises(Refused):
        dispatch(steps)

    assert waiting() == []


def test_not_with_a_nested_command_whose_failure_is_caught():
    """Its messages are gone with its writes; those around it are sent. [C01.1]"""

    def inner():
        send(2)
        raise Refused

    def steps():
        send(1)
        with pytest.raises(Refused):
            dispatch(inner)
        send(3)

    dispatch(steps)

    assert waiting() == [1, 3]


def test_not_with_an_inner_atomic_whose_failure_is_caught():
    """What was sent inside a block of the user's own shares its fate. [C01.1]"""

    def steps():
        send(1)
        with contextlib.suppress(Refused), transaction.atomic():
            send(2)
            raise Refused
        with transaction.atomic():
            send(3)

    dispatch(steps)

    assert waiting() == [1, 3]


@pytest.mark.parametrize("fails", [False, True])
def test_with_a_plain_atomic_block(fails):
    """Outside any command it shares the transaction that is open. [C01.1]"""
    try:
        with transaction.atomic():
            send(1)
            with second_connection() as other, other.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM django_cqrs_outbox_outboxmessage")
                assert cursor.fetchone() == (0,)
            if fails:
                raise Refused
    except Refused:
        pass

    assert waiting() == ([] if fails else [1])


def view(request, *, fails):
    send(1)
    if fails:
        raise Refused
    return HttpResponse()


urlpatterns = [
    path("works/", view, {"fails": False}),
    path("fails/", view, {"fails": True}),
]


@pytest.mark.urls("tests.outbox.test_channel")
@pytest.mark.parametrize("fails", [False, True])
def test_with_the_request_under_atomic_requests(fails, monkeypatch):
    """A request that fails has sent nothing. [C01.1]"""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    client = Client(raise_request_exception=False)

    response = client.get("/fails/" if fails else "/works/")

    assert response.status_code == (500 if fails else 200)
    assert waiting() == ([] if fails else [1])


def test_one_row_for_each_endpoint():
    """Every subscriber has a row of its own; one failing runs no other again. [C01.2]"""
    called = []
    several = Registry()

    @several.add
    @event_handler(name="first", channel="outbox")
    def first(event: Work):
        called.append("first")

    @several.add
    @event_handler(name="second", channel="outbox")
    def second(event: Work):
        called.append("second")
        if called.count("second") == 1:
            raise Refused

    several.event_bus.publish(Work(1))

    one, two = rows()
    assert (one.endpoint, two.endpoint) == ("first", "second")
    assert one.message_id == two.message_id
    assert one.sequence < two.sequence

    assert work(several).handled == 1
    OutboxMessage.objects.update(available_at="2000-01-01T00:00:00Z")
    assert work(several).handled == 1
    assert called == ["first", "second", "second"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_publish_outside_any_transaction(fails):
    """Its rows are stored in one, after its synchronous handlers, if those succeeded. [C01.3]"""
    several = Registry()

    @several.add
    @event_handler(name="now", priority=-1)
    def now(event: Work):
        assert rows() == []
        if fails:
            raise Refused

    for name in ("first", "second"):
        named = event_handler(name=name, channel="outbox")
        several.add(named(_subscriber(name)))

    with CaptureQueriesContext(connection) as queries:
        try:
            several.event_bus.publish(Work(1))
        except Refused:
            assert fails

    assert len(rows()) == (0 if fails else 2)
    begun = [each["sql"] for each in queries if each["sql"].startswith("BEGIN")]
    assert len(begun) == (0 if fails else 1)


def _subscriber(name):
    def subscriber(event: Work):
        pass

    subscriber.__name__ = subscriber.__qualname__ = name
    return subscriber


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Work("one"), MessageConversionError),
        (Work(math.nan), MessageConversionError),
        (Loose(), UnknownMessage),
    ],
)
def test_what_would_not_come_back_raises_at_the_send(message, error):
    """It raises where it is sent, and its command is rolled back. [C01.4]"""
    strict = Registry()

    @strict.add
    @command_handler(name="run")
    def run_there(command: Run):
        return run(command)

    @strict.add
    @event_handler(name="on_anything", channel="outbox")
    def on_anything(event: object):
        pass

    @strict.add
    @event_handler(name="on_work", channel="outbox")
    def on_work(event: Work):
        pass

    def steps():
        Note.objects.create(text="data")
        strict.event_bus.publish(message)

    with pytest.raises(error):
        strict.command_bus.dispatch(Run(steps))

    assert rows() == []
    assert numbers() == []


def test_a_commands_messages_are_one_insert(django_assert_num_queries):
    """However many it sends: BEGIN, one INSERT, COMMIT, and where it is, one NOTIFY."""

    def steps():
        for number in range(30):
            send(number)

    dispatch(steps)
    OutboxMessage.objects.all().delete()
    channels["outbox"]._last_notifications.clear()

    with CaptureQueriesContext(connection) as queries:
        dispatch(steps)

    words = [each["sql"].split()[0] for each in queries]
    wake = ["NOTIFY"] if connection.vendor == "postgresql" else []
    assert words == ["BEGIN", "INSERT", "COMMIT", *wake]
    assert waiting() == list(range(30))


def test_more_than_a_statement_takes_is_parted(monkeypatch):
    """The parameters of a statement are limited: then there are several, all or none."""
    monkeypatch.setattr(insertion, "_rows_per_statement", lambda connection: 7)

    def steps():
        for number in range(30):
            send(number)

    with CaptureQueriesContext(connection) as queries:
        dispatch(steps)

    inserts = [each for each in queries if each["sql"].startswith("INSERT")]
    assert len(inserts) == 5
    assert waiting() == list(range(30))


def test_as_many_rows_as_the_database_takes():
    """10,000 messages of one command: no statement has too many parameters."""

    def steps():
        for number in range(10_000):
            send(number)

    dispatch(steps)

    assert OutboxMessage.objects.count() == 10_000


def test_each_alias_has_its_own_outbox():
    """A message is stored beside the data it speaks of, on that database. [C10.2]"""
    two = Registry()

    @two.add
    @command_handler(name="elsewhere", using="other")
    def elsewhere(command: Run, commands: CommandBus):
        Note.objects.using("other").create(text="data")
        commands.dispatch(Work(1))

    @two.add
    @command_handler(name="do", channel="outbox", using="other")
    def write(command: Work):
        Note.objects.using("other").create(text="done", number=command.number)

    two.command_bus.dispatch(Run(None))
    two.command_bus.dispatch(Work(2))

    assert rows() == []
    assert waiting("other") == [1, 2]
    assert work(two).handled == 0
    assert work(two, using="other").handled == 2
    assert numbers("other") == [0, 1, 2]


def test_a_handler_of_a_channel_may_send_on():
    """What handlers send is stored with their own transaction, and then handled."""
    chain = Registry()

    @chain.add
    @command_handler(name="count", channel="outbox")
    def count(command: Work, commands: CommandBus, events: EventBus):
        Note.objects.create(text="done", number=command.number)
        if command.number:
            commands.dispatch(Work(command.number - 1))

    chain.command_bus.dispatch(Work(3))

    assert work(chain).handled == 4
    assert numbers() == [3, 2, 1, 0]


@pytest.mark.parametrize("use_tz", [True, False])
def test_times_come_back_as_they_were(settings, use_tz):
    """Also where the project uses no time zones, a message's time is an instant."""
    settings.USE_TZ = use_tz
    settings.TIME_ZONE = "Asia/Tokyo"
    for each in connections.all():
        each.close()
        for name in ("timezone", "timezone_name"):
            each.__dict__.pop(name, None)
    seen = []
    timed = Registry()

    @timed.add
    @command_handler(name="do", channel="outbox")
    def see(command: Work):
        from django_cqrs.messages import current

        seen.append(current.get().timestamp)

    @timed.add
    @command_handler(name="run")
    def send_on(command: Run, commands: CommandBus):
        commands.dispatch(Work(1), expires=60)
        commands.dispatch(Work(2), delay=60)

    before = datetime.now(UTC)
    timed.command_bus.dispatch(Run(None))
    tally = work(timed)
    assert (tally.handled, tally.expired) == (1, 0)
    assert before <= seen[0] <= datetime.now(UTC)
    (row,) = rows()
    assert row.available_at > timezone.now()

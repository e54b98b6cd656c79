"""``manage.py cqrs_stats``, and how workers count what they handle."""

import io
import json
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_cqrs import Retry
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, State, Throughput
from django_cqrs.outbox.statistics import LOOKED, ChannelStatistics, statistics_of
from django_cqrs.outbox.store import replay
from django_cqrs.outbox.worker import Worker
from django_cqrs.outbox.worker.throughput import ThroughputRecorder
from tests.outbox.support import (
    letters,
    note,
    on_databases,
    registry_of,
    rows,
    send,
    work,
    worker_of,
)
from tests.outbox.work import Work

pytestmark = on_databases


def break_down(command: Work):
    """A handler that fails where it is told to."""
    note(command)
    if command.how == "fail":
        raise ValueError


@pytest.fixture
def registry():
    return registry_of(break_down, retry=Retry(attempts=1))


def output_of(*arguments):
    stdout = io.StringIO()
    call_command("cqrs_stats", *arguments, stdout=stdout, no_color=True)
    return stdout.getvalue()


def aged(**times):
    """Let one message of those that wait be as old as that."""
    row = rows()[0]
    row.sent_at = timezone.now() - timedelta(**times)
    row.save()
    return row


def throughput(using="default"):
    found = Throughput.objects.using(using).order_by("minute", "channel")
    return list(found.values_list("channel", "handled", "failed"))


# ------------------------------------------------------------------------------ figures


def test_pending_oldest_dead_delayed_and_throughput(registry):
    """All of it by channel, those of the settings first. [C09.4]"""
    send(registry, 1, 2, 3)
    send(registry, 4, how="fail")
    work(registry)
    send(registry, 5, 6)
    aged(hours=2, minutes=3)
    send(registry, 7, delay=60)

    lines = output_of().splitlines()

    assert lines[0].split("  ")[0] == "Channel"
    assert " ".join(lines[0].split()) == (
        "Channel Pending Oldest Delayed Dead "
        "Handled 5 min Handled 1 h Handled 24 h Failed 1 h"
    )
    assert [line.split() for line in lines[2:]] == [
        ["outbox", "2", "2:03:00", "1", "1", "3", "3", "3", "1"]
    ]


def test_as_json(registry):
    """The shape has a version. [C09.4]"""
    send(registry, 1)
    work(registry)
    send(registry, 2)
    aged(seconds=90)

    document = json.loads(output_of("--format", "json"))

    (channel,) = document.pop("channels")
    assert document.pop("at") <= timezone.now().isoformat()
    assert document == {"version": 1, "database": "default"}
    assert 90 <= channel.pop("oldest_seconds") < 100
    assert channel == {
        "channel": "outbox",
        "pending": 1,
        "delayed": 0,
        "parked": 0,
        "dead": 0,
        "handled": {"5_minutes": 1, "hour": 1, "day": 1},
        "failed": {"5_minutes": 0, "hour": 0, "day": 0},
    }


def test_an_empty_channel():
    """It is there with nothing in it, and no column that none needs."""
    lines = output_of().splitlines()

    assert " ".join(lines[0].split()) == (
        "Channel Pending Oldest Delayed Dead Handled 5 min Handled 1 h Handled 24 h"
    )
    assert lines[2].split() == ["outbox", "0", "0", "0", "0", "0", "0"]


def test_a_channel_that_the_settings_have_no_more(registry):
    """What waits there is seen: nobody else would tell."""
    send(registry, 1)
    OutboxMessage.objects.update(channel="gone")

    assert [(each.channel, each.pending) for each in statistics_of()] == [
        ("outbox", 0),
        ("gone", 1),
    ]


def test_only_some_channels(registry):
    """Those that are named, in that order."""
    send(registry, 1)
    OutboxMessage.objects.update(channel="gone")

    assert [each.channel for each in statistics_of(channels=["outbox"])] == ["outbox"]
    assert output_of("outbox").splitlines()[2].split()[:2] == ["outbox", "0"]


def test_each_database_has_figures_of_its_own(registry):
    """An outbox is that of its database. [C10.2]"""
    send(registry, 1, using="default")
    send(registry, 2, 3, using="other")
    work(registry, using="other")
    send(registry, 4, 5, using="other")

    default, other = (statistics_of(using)[0] for using in ("default", "other"))

    assert (default.pending, default.handled["day"]) == (1, 0)
    assert (other.pending, other.handled["day"]) == (2, 2)
    assert output_of("--database", "other").splitlines()[2].split()[1] == "2"


@pytest.mark.parametrize("state", [State.CLAIMED, State.ABANDONED, State.FORWARDED])
def test_what_somebody_holds_is_pending(registry, state):
    """It is not handled before it has gone."""
    send(registry, 1)
    OutboxMessage.objects.update(state=state)

    assert statistics_of()[0].pending == 1


def test_what_is_due_and_still_delayed_is_pending(registry):
    """It is a worker that would release it, and there may be none."""
    send(registry, 1, delay=3600)
    OutboxMessage.objects.update(available_at=timezone.now() - timedelta(seconds=50))

    (found,) = statistics_of()

    assert (found.pending, found.delayed) == (1, 0)
    assert 50 <= found.oldest_seconds < 60


def test_waiting_begins_with_the_end_of_the_delay(registry):
    """A message that was delayed for a day is not a day late."""
    send(registry, 1, delay=3600)
    OutboxMessage.objects.update(
        sent_at=timezone.now() - timedelta(days=1), available_at=timezone.now()
    )

    assert statistics_of()[0].oldest_seconds < 10


def test_waiting_begins_anew_with_a_replay(registry):
    """What failed last week and is put back now is not a week late."""
    send(registry, 1, how="fail")
    aged(days=7)
    work(registry)
    assert DeadLetter.objects.get().sent_at < timezone.now() - timedelta(days=6)
    replay(letters(), using="default")

    assert statistics_of()[0].oldest_seconds < 10


def test_what_is_parked_is_told_apart(registry):
    """It cannot be handled before the one ahead of it: no worker is late with it."""
    send(registry, 1, 2)
    row = aged(days=1)
    row.state = State.PARKED
    row.save()

    (found,) = statistics_of()

    assert (found.pending, found.parked) == (1, 1)
    assert found.oldest_seconds < 10
    assert output_of().splitlines()[0].split()[4] == "Parked"


def test_a_window_ends(registry):
    """What was done before it is not in it."""
    now = timezone.now()
    for minutes, handled in ((1, 1), (30, 10), (600, 100), (1500, 1000)):
        minute = now - timedelta(minutes=minutes)
        Throughput.objects.create(minute=minute, channel="outbox", handled=handled)

    assert statistics_of()[0].handled == {"5_minutes": 1, "hour": 11, "day": 111}


def test_three_statements(registry, django_assert_num_queries):
    """However many channels and messages there are."""
    send(registry, 1, 2)
    work(registry)
    OutboxMessage.objects.update(channel="gone")

    with django_assert_num_queries(3):
        statistics_of()


def many(number, *, channel="outbox", state=State.READY, **values):
    """Store messages that differ in little."""
    now = timezone.now()
    return OutboxMessage.objects.bulk_create(
        OutboxMessage(
            **{
                "channel": channel,
                "endpoint": "note",
                "payload": b"{}",
                "headers": b"{}",
                "message_id": uuid4(),
                "correlation_id": uuid4(),
                "sent_at": now,
                "sequence": place,
                "state": state,
                **values,
            }
        )
        for place in range(number)
    )


def bury_all(channel):
    """Make dead letters of what waits in a channel."""
    for row in rows():
        if row.channel == channel:
            shared = {
                field.attname: getattr(row, field.attname)
                for field in DeadLetter._meta.concrete_fields
                if field.attname != "id" and hasattr(row, field.attname)
            }
            DeadLetter.objects.create(**shared, failed_at=timezone.now())
            row.delete()


def test_counting_stops_where_it_is_told():
    """A figure that is as high means "or more"; what is below is exact. [C09.4]"""
    many(4, channel="dead")
    bury_all("dead")
    later = timezone.now() + timedelta(days=1)
    many(2)
    many(3, state=State.CLAIMED)
    many(2, state=State.DELAYED, available_at=later)
    many(6, state=State.PARKED)
    many(3, channel="few")

    found = {each.channel: each for each in statistics_of(at_most=4)}

    assert {
        name: (each.pending, each.delayed, each.parked, each.dead)
        for name, each in found.items()
    } == {"outbox": (4, 2, 4, 0), "few": (3, 0, 0, 0), "dead": (0, 0, 0, 4)}


def test_counting_reads_no_further():
    """No select counts rows beyond the limit, nor looks at the age of more. [C09.4]"""
    many(2)
    counts = (5, 10_000)

    with CaptureQueriesContext(connection) as queries:
        for at_most in counts:
            statistics_of(at_most=at_most)

    for at_most, place in zip(counts, (1, 4), strict=True):
        selects = queries[place]["sql"].split(" UNION ALL ")
        assert len(selects) == 10
        ages = [sql for sql in selects if "MIN(since)" in sql]
        assert len(ages) == 4
        for sql in selects:
            limit = min(at_most, LOOKED) if sql in ages else at_most
            assert sql.rstrip().endswith(f"LIMIT {limit}) r")


@pytest.mark.parametrize("at_most", [None, 10, 10_000])
def test_figures_are_the_same_where_all_is_counted(at_most):
    """Whether counting may stop makes no difference below. [C09.4]"""
    now = timezone.now()
    for minutes, values in enumerate(
        (
            {"state": State.READY},
            {"state": State.READY, "priority": 5},
            {"state": State.READY, "priority": -5},
            {"state": State.FORWARDED},
            {"state": State.ABANDONED, "channel": "gone"},
            {"state": State.DELAYED, "available_at": now - timedelta(hours=1)},
        ),
        start=1,
    ):
        many(1, sent_at=now - timedelta(minutes=minutes, hours=3), **values)
    many(1, channel="early", state=State.DELAYED, available_at=now + timedelta(hours=1))

    outbox, early, gone = statistics_of(at_most=at_most)

    assert [each.channel for each in (outbox, early, gone)] == [
        "outbox",
        "early",
        "gone",
    ]
    assert (outbox.pending, early.pending, gone.pending) == (5, 0, 1)
    assert (outbox.delayed, early.delayed, gone.delayed) == (0, 1, 0)
    assert 3 * 3600 + 240 <= outbox.oldest_seconds < 3 * 3600 + 250
    assert early.oldest_seconds is None
    assert 3 * 3600 + 300 <= gone.oldest_seconds < 3 * 3600 + 310


def test_the_oldest_where_more_wait():
    """Low priority waits longest, however much of a high one is before it. [C09.4]"""
    now = timezone.now()
    many(8, priority=9, sent_at=now)
    many(1, priority=1, sent_at=now - timedelta(hours=2))

    (found,) = statistics_of(at_most=5)

    assert found.pending == 5
    assert 7200 <= found.oldest_seconds < 7210


@pytest.mark.parametrize("at_most", [None, 3])
def test_as_many_statements_for_many_channels(at_most, django_assert_num_queries):
    """One statement is for up to twenty, and nothing is asked for each row."""
    for place in range(19):
        many(place % 3 + 1, channel=f"channel {place:02}")
    with django_assert_num_queries(3):
        found = statistics_of(at_most=at_most)
    many(1, channel="one more")
    with django_assert_num_queries(4):
        more = statistics_of(at_most=at_most)

    assert [each.pending for each in found] == [0, *[1, 2, 3] * 6, 1]
    assert [each.pending for each in more] == [0, *[1, 2, 3] * 6, 1, 1]


def test_a_channel_with_nothing_has_the_same_keys():
    """No reader has to ask whether a figure is there."""
    assert statistics_of(channels=["none"]) == [
        ChannelStatistics(
            channel="none",
            handled={"5_minutes": 0, "hour": 0, "day": 0},
            failed={"5_minutes": 0, "hour": 0, "day": 0},
        )
    ]


@pytest.mark.parametrize(
    ("alias", "text"),
    [
        ("outbx", "Channel 'outbx' is not in DJANGO_CQRS['CHANNELS']."),
        ("memory", "<InMemoryChannel 'memory'> is not an outbox: it stores no"),
    ],
)
def test_a_channel_that_is_none(alias, text):
    """It is refused as the worker refuses it."""
    with pytest.raises(CommandError) as caught:
        output_of(alias)

    assert str(caught.value).startswith(text)


# ----------------------------------------------------------------------------- counting


def test_a_worker_counts_by_the_minute(registry):
    """One row for a channel and minute, which every worker adds to. [C09.4]"""
    send(registry, 1, 2)
    work(registry)
    send(registry, 3)
    send(registry, 4, how="fail")
    work(registry)

    assert throughput() == [("outbox", 3, 1)]


def test_a_message_that_is_tried_again_counts_each_time():
    """An attempt that fails is one, and so is the one that does not."""
    calls = []

    def fail_once(command: Work):
        calls.append(command)
        if len(calls) == 1:
            raise ValueError

    from django_cqrs import Registry, command_handler

    registry = Registry()
    retry = Retry(attempts=2, delay=0, jitter=False)
    registry.add(command_handler(name="f", channel="outbox", retry=retry)(fail_once))
    send(registry, 1)

    work(registry)

    assert throughput() == [("outbox", 1, 1)]


def test_counting_costs_a_batch_nothing(registry, monkeypatch):
    """No statement, until it is time to write it down; then one for a channel."""
    worker = worker_of(registry)
    Throughput.objects.create(
        minute=timezone.now().replace(second=0, microsecond=0), channel="outbox"
    )
    said = []

    def listen(execute, sql, params, many, context):
        if Throughput._meta.db_table in sql:
            said.append(sql.split()[0])
        return execute(sql, params, many, context)

    with connection.execute_wrapper(listen):
        send(registry, 1)
        assert worker.run_once() == 1
        assert said == []

        monkeypatch.setattr(ThroughputRecorder, "write_time", 0)
        send(registry, 2)
        assert worker.run_once() == 1

    in_a_new_minute = ["UPDATE", "INSERT", "UPDATE", "DELETE"]
    assert said in (["UPDATE"], in_a_new_minute, ["UPDATE", *in_a_new_minute])
    assert sum(handled for _, handled, _ in throughput()) == 2


def test_what_is_older_than_a_day_goes(registry):
    """The table stays bounded, and nobody has to see to it."""
    long_ago = timezone.now() - timedelta(days=1, minutes=2)
    Throughput.objects.create(minute=long_ago, channel="outbox", handled=5)
    Throughput.objects.create(minute=long_ago, channel="gone", handled=5)
    send(registry, 1)

    work(registry)

    assert throughput() == [("outbox", 1, 0)]


def test_two_workers_begin_a_minute_at_once(monkeypatch):
    """Both find no row, and both counts are there."""
    from tests.outbox.support import second_connection

    minute = timezone.now().replace(second=0, microsecond=0)
    meter = ThroughputRecorder("default")
    original = type(Throughput.objects.all()).bulk_create

    def late(queryset, objects, **options):
        table = Throughput._meta.db_table
        with second_connection() as other, other.cursor() as cursor:
            adapted = connection.ops.adapt_datetimefield_value(minute)
            cursor.execute(
                f"INSERT INTO {table} (minute, channel, handled, failed) "
                f"VALUES (%s, %s, 7, 0)",
                [adapted, "outbox"],
            )
        return original(queryset, objects, **options)

    monkeypatch.setattr(type(Throughput.objects.all()), "bulk_create", late)
    meter._add(minute, "outbox", 3, 1)

    assert throughput() == [("outbox", 10, 1)]


def test_an_outage_loses_no_count(registry, monkeypatch):
    """What could not be written down is written down next time."""
    send(registry, 1)
    worker = worker_of(registry)
    worker.run_once()
    meter = worker._handler.throughput

    def away(*_):
        raise OperationalError

    with monkeypatch.context() as patch:
        patch.setattr(meter, "_add", away)
        with pytest.raises(OperationalError):
            meter.write()
        meter.write_at_last()  # raises nothing
    meter.write()

    assert throughput() == [("outbox", 1, 0)]


def test_a_count_does_not_end_a_worker(registry, monkeypatch):
    """Where it cannot be written down at the end, the messages are handled all the same."""

    def away(*_):
        raise OperationalError

    monkeypatch.setattr(ThroughputRecorder, "_add", away)
    send(registry, 1)

    assert work(registry).handled == 1
    assert rows() == []


def test_what_an_engine_handles_is_counted(registry):
    """Its tasks count as workers do."""
    send(registry, 1, 2)
    OutboxMessage.objects.update(state=State.FORWARDED)

    worker = Worker(registry, (), using="default")
    worker.handle_forwarded([row.pk for row in rows()])

    assert throughput() == [("outbox", 2, 0)]


def test_each_database_counts_for_itself(registry):
    """The counts stand beside the messages."""
    send(registry, 1, using="other")

    work(registry, using="other")

    assert (throughput(), throughput("other")) == ([], [("outbox", 1, 0)])
    assert connections["other"].vendor == connection.vendor

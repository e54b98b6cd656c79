"""`cqrs_events check`, and what `check --database` says of a store."""

import io
import json
import sys
from uuid import uuid4

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connection

from django_cqrs.events.columns import EVENT
from django_cqrs.events.models import (
    AppendFloor,
    ArchivedEvent,
    Bucket,
    EventTag,
    NaturalKey,
    Snapshot,
    StoredEvent,
    Stream,
)
from django_cqrs.events.positions import FUNCTIONS, complete
from django_cqrs.times import TimeFromNow
from tests.events.support import Added, Subscribed, on_databases, only_on, store

pytestmark = on_databases


def texts(*arguments):
    """Return what the command finds, and that it fails where it finds something."""
    out = io.StringIO()
    code = 0
    try:
        call_command("cqrs_events", "check", *arguments, format="json", stdout=out)
    except CommandError as error:
        code = error.returncode
    found = [each["text"] for each in json.loads(out.getvalue())["faults"]]
    assert code == bool(found)
    return found


def checked():
    return [
        (each.msg.partition(": ")[2], each.hint)
        for each in run_checks(databases=["default"])
        if each.id == "django_cqrs_events.E018"
    ]


def execute(statement, *parameters):
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def fill():
    """Append to four streams, one of them with tags."""
    complete(connection, EVENT)  # the rows to be locked were flushed
    for name in ("basket-1", "basket-2", "log"):
        store.append([Added(1), Added(2), Added(3)], stream=name)
    return store.append(Subscribed(7, []), stream="course-7").position


def test_e34_4_a_sound_store_has_no_faults():
    """The command says so, and exits with 0. [E34.4]"""
    fill()
    out = io.StringIO()

    call_command("cqrs_events", "check", stdout=out)

    assert out.getvalue() == "No faults.\n"
    assert checked() == []


def test_e34_4_a_hole_in_a_stream():
    """A version that is missing in the middle, or before the first, names its stream. [E34.4]"""
    fill()
    first, second = (Stream.objects.get(key=key).pk for key in ("1", "2"))
    StoredEvent.objects.filter(stream_id=first, version=2).delete()
    StoredEvent.objects.filter(stream_id=second, version=1).delete()

    assert texts() == ["Versions are missing in streams: basket-1, basket-2."]
    assert texts("--quick") == []


def test_e34_4_an_archived_event_is_no_hole_unless_it_is_live_as_well():
    """Both tables together have each version once. [E34.4]"""
    fill()
    stream = Stream.objects.get(category="basket", key="1")
    row = StoredEvent.objects.filter(stream_id=stream.pk).order_by("version").first()
    values = {f.attname: getattr(row, f.attname) for f in ArchivedEvent._meta.fields}
    ArchivedEvent.objects.create(**values)

    found = texts()
    row.delete()

    assert found == [
        "Versions are missing in streams: basket-1.",
        f"Events are both live and archived, at positions: {values['position']}.",
    ]
    assert texts() == []


def test_e34_4_tags_without_events_and_events_without_tags():
    """Either would let a decision see other events than there are. [E34.4]"""
    position = fill()
    EventTag.objects.filter(position=position, tag="course:7").delete()
    EventTag.objects.create(tag="course:9", position=10**9, name="shop.added")

    assert texts() == [
        "There are tags of events that do not exist, at positions: 1000000000.",
        f"Events are not found by their tags, at positions: {position}.",
    ]


def test_e34_4_rows_of_streams_that_are_gone():
    """Natural keys, snapshots and events belong to a stream. [E34.4]"""
    fill()
    gone = Stream.objects.get(category="log")
    Stream.objects.filter(pk=gone.pk).delete()
    key = NaturalKey.objects.create(category="log", value="x", stream_id=gone.pk)
    other = Stream.objects.get(key="1")
    Snapshot.objects.create(
        stream_id=other.pk, version=4, state={}, taken_at=TimeFromNow()
    )

    assert texts() == [
        f"There are events of streams without a row: {gone.pk}.",
        f"There are natural keys without their streams, with ids: {key.pk}.",
        (
            "There are snapshots of versions that do not exist, of streams with the "
            f"ids: {other.pk}."
        ),
    ]


def test_E018_and_e34_4_a_sequence_that_is_behind():
    """New events would be refused, or be below what followers have passed. [E34.4]"""
    last = fill()
    row = StoredEvent.objects.get(pk=last)
    values = {f.attname: getattr(row, f.attname) for f in ArchivedEvent._meta.fields}
    values |= {"position": last + 100, "event_id": uuid4(), "version": 2, "headers": {}}
    ArchivedEvent.objects.create(**values)

    [text] = texts()
    [(same, hint)] = checked()
    assert text == same
    assert text.startswith(
        f"The sequence of positions is at {last}, and there are events up to position "
        f"{last + 100}"
    )

    execute(hint.partition("in SQL: ")[2])
    assert texts() == []
    assert store.append(Added(1)).position == last + 101


def test_e34_4_a_function_that_is_missing():
    """`migrate` makes it anew; without it nothing can be appended or followed. [E34.4] {P}"""
    only_on("postgresql")
    table = connection.ops.quote_name(EVENT)
    try:
        execute(f"ALTER TABLE {table} ALTER COLUMN position DROP DEFAULT")
        [(text, _)] = checked()
        assert text == (
            f"The default of {EVENT}.position is not the function {FUNCTIONS[0]}(), so "
            "that followers may skip events."
        )
        for name in FUNCTIONS:
            execute(f"DROP FUNCTION {name}")
        expected = [f"The function {name}() is missing." for name in FUNCTIONS]

        assert texts() == expected
        assert checked() == [
            (text, "Run manage.py migrate --database=default.") for text in expected
        ]
    finally:
        complete(connection, EVENT)
    assert checked() == []


def test_E018_and_e15_16_a_sequence_with_a_cache(monkeypatch):
    """Each connection would append below what others have committed. [E15.16] {P}"""
    only_on("postgresql")
    name = f"{EVENT}_position"
    try:
        execute(f"ALTER SEQUENCE {name} CACHE 20")
        [(text, hint)] = checked()
        # `migrate` cannot fix it, so that it says so as well.
        monkeypatch.setattr(sys, "argv", ["manage.py", "migrate"])
        assert checked() == [(text, hint)]
        assert text.startswith(f"The sequence {name} has a cache of 20: ")
        execute(hint.partition("in SQL: ")[2])
    finally:
        execute(f"ALTER SEQUENCE {name} CACHE 1")
    assert checked() == []


def test_rows_that_decisions_lock_are_missing(monkeypatch):
    """`migrate` inserts them, and is not stopped by the check. [E34.4] {M}"""
    only_on("mysql")
    complete(connection, EVENT)
    Bucket.objects.filter(pk__lt=6).delete()

    assert checked() == [
        (
            "6 of the 256 rows that decisions lock are missing.",
            "Run manage.py migrate --database=default.",
        )
    ]
    monkeypatch.setattr(sys, "argv", ["manage.py", "migrate"])
    assert checked() == []
    complete(connection, EVENT)


def test_floors_that_nobody_cleans_up():
    """Their number is bounded where somebody appends or follows. [E34.4] {M}"""
    only_on("mysql")
    complete(connection, EVENT)
    AppendFloor.objects.bulk_create(
        AppendFloor(floor=1, thread=1, taken_at=TimeFromNow()) for _ in range(1001)
    )

    [text] = texts()

    assert text == "1001 floors of ended transactions have not been cleaned up."


def test_a_database_without_the_tables(monkeypatch):
    """The command says what to do; the check leaves it to whoever needs them."""
    introspection = type(connection.introspection)
    monkeypatch.setattr(introspection, "table_names", lambda *_args, **_options: [])

    with pytest.raises(CommandError) as caught:
        call_command("cqrs_events", "head")

    assert str(caught.value) == (
        "The database 'default' does not have the tables of events. Create them: "
        "python manage.py migrate --database default"
    )

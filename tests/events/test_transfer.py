"""``cqrs_events export`` and ``import``: a whole store as lines of JSON."""

import io
import json
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from django_cqrs.events.columns import EVENT
from django_cqrs.events.models import (
    ArchivedEvent,
    EventTag,
    NaturalKey,
    StoredEvent,
    Stream,
)
from django_cqrs.events.positions import complete
from django_cqrs.times import TimeFromNow
from tests.events.support import (
    Added,
    Removed,
    Subscribed,
    in_a_transaction,
    numbers,
    store,
    store_of,
)

pytestmark = [pytest.mark.database, in_a_transaction]

other = store_of(Added, Removed, Subscribed, using="other")


def run(*arguments):
    out = io.StringIO()
    call_command("cqrs_events", *arguments, stdout=out)
    return out.getvalue()


def fill():
    """Append events with headers, tags and links, and archive one stream."""
    store.append([Added(1), Added(2)], stream="basket-1", headers={"who": "ada 😀"})
    store.append([Added(3), Removed(4)], stream="basket-2")
    store.append(Subscribed(7, [uuid4(), uuid4()]))
    store.link("big", list(store.read("basket-1")))
    archived = Stream.objects.get(key="2")
    for row in StoredEvent.objects.filter(stream_id=archived.pk):
        fields = ArchivedEvent._meta.fields
        ArchivedEvent.objects.create(
            **{each.attname: getattr(row, each.attname) for each in fields}
        )
        row.delete()
    Stream.objects.filter(pk=archived.pk).update(archived_at=TimeFromNow())
    Stream.objects.create(
        category="gone", key="1", created_at=TimeFromNow(), deleted_at=TimeFromNow()
    )
    NaturalKey.objects.create(category="basket", value="a ", stream_id=archived.pk)
    store.append(Added(5), stream="basket-1")


def content(using):
    """Return all that a store holds, without positions and the keys of rows."""
    streams = {each.pk: each for each in Stream.objects.using(using)}
    rows = [
        (row, model is ArchivedEvent)
        for model in (StoredEvent, ArchivedEvent)
        for row in model.objects.using(using)
    ]
    ids = {row.pk: row.event_id for row, _ in rows}
    rows.sort(key=lambda pair: pair[0].pk)
    return {
        "streams": sorted(
            (
                str(each),
                each.created_at,
                each.archived_at,
                each.deleted_at,
                each.first_version,
            )
            for each in streams.values()
        ),
        "events": [
            (
                str(streams.get(row.stream_id)),
                is_archived,
                ids.get(row.link_to),
                *(
                    getattr(row, field.attname)
                    for field in ArchivedEvent._meta.fields
                    if field.attname not in ("stream_id", "position", "link_to")
                ),
            )
            for row, is_archived in rows
        ],
        "tags": sorted(
            (each.tag, each.name, ids[each.position])
            for each in EventTag.objects.using(using)
        ),
        "keys": [
            (each.category, each.value, str(streams[each.stream_id]))
            for each in NaturalKey.objects.using(using)
        ],
    }


@pytest.fixture
def exported(tmp_path):
    """Return a file with all that a store holds."""
    fill()
    file = tmp_path / "events.jsonl"
    run("export", "--output", str(file))
    return file


def test_e34_3_an_import_into_an_empty_store_makes_it_equal(exported):
    """Streams, events, links, tags and keys are as they were; again, nothing is added. [E34.3]"""
    said = run("import", str(exported), "--database", "other")

    assert said.startswith("Added 4 streams, 8 events and 1 natural keys.\n")
    assert "backfill" in said
    assert content("other") == content("default")
    assert numbers(other.read("big")) == [1, 2]
    complete(connections["other"], EVENT)  # the rows to be locked may be flushed
    assert run("check", "--database", "other") == "No faults.\n"

    again = run("import", str(exported), "--database", "other")
    assert again == "Added 0 streams, 0 events and 0 natural keys.\n"
    assert content("other") == content("default")
    assert run("export") == run("export", "--database", "other")


def test_e34_3_an_import_goes_on_where_it_has_stopped(exported):
    """What is there already is passed by, and the rest added. [E34.3]"""
    lines = exported.read_text().splitlines(keepends=True)
    part = exported.with_name("part.jsonl")
    part.write_text("".join(lines[:8]))
    run("import", str(part), "--database", "other")

    run("import", str(exported), "--database", "other")

    assert content("other") == content("default")


def test_events_are_added_behind_those_of_the_store(exported):
    """A follower that has passed the present ones gets those that are imported."""
    last = other.append(Added(9), stream="basket-9").position

    run("import", str(exported), "--database", "other")

    found = list(other.read_all(after=last))
    assert [(each.stream, each.version) for each in found] == [
        ("basket-1", 1),
        ("basket-1", 2),
        (None, None),
        ("basket-1", 3),
    ]
    assert other.append(Added(6), stream="basket-1").version == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "Line 2 is not one of an export: "),
        ("{", "Line 2 is not one of an export: "),
        ('{"kind": "row"}', "Line 2 is not one of an export: KeyError('row')"),
        ('{"kind": "stream", "stream": "-"}', "cannot be the name of a stream"),
        ('{"kind": "event", "stream": null}', "KeyError('event_version')"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_imported(exported, line, said):
    """The file is read once before anything is added."""
    lines = exported.read_text().splitlines()
    changed = [lines[0], line or "[1]", *lines[1:]]
    exported.write_text("\n".join(changed))

    with pytest.raises(CommandError) as caught:
        run("import", str(exported), "--database", "other")

    assert said in str(caught.value)
    assert not Stream.objects.using("other").exists()


def test_another_file_and_another_store_are_refused(exported, tmp_path):
    """A file without the first line, an event at a version that is taken, a key of another stream."""
    strange = tmp_path / "strange.jsonl"
    strange.write_text('{"format": "django_cqrs.events", "version": 2}\n')
    with pytest.raises(CommandError, match="Line 1 is not the beginning of an export"):
        run("import", str(strange), "--database", "other")
    with pytest.raises(CommandError, match="Cannot read"):
        run("import", str(tmp_path / "nothing"), "--database", "other")
    with pytest.raises(CommandError, match=r"Cannot write .* File exists\."):
        run("export", "--output", str(exported))

    other.append(Added(8), stream="basket-1")
    with pytest.raises(CommandError, match="The store has other events at the version"):
        run("import", str(exported), "--database", "other")
    assert numbers(other.read("basket-1")) == [8]


def test_a_key_of_another_stream_is_refused(exported):
    """It would belong to two streams."""
    stream = Stream.objects.using("other").create(
        category="basket", key="7", created_at=TimeFromNow()
    )
    NaturalKey.objects.using("other").create(
        category="basket", value="a ", stream_id=stream.pk
    )

    with pytest.raises(CommandError, match="Another stream has the natural key of"):
        run("import", str(exported), "--database", "other")


def test_a_line_of_an_event(exported):
    """Each is an object with the id, the stream and the version of an event."""
    lines = [json.loads(line) for line in exported.read_text().splitlines()]

    assert lines[0] == {"format": "django_cqrs.events", "version": 1}
    event = next(each for each in lines if each.get("kind") == "event")
    assert (event["stream"], event["event_version"]) == ("basket-1", 1)
    assert event["payload"] == {"number": 1}
    assert event["is_archived"] is False

"""``cqrs_schema --stored``: what waits in the database, and cannot be read."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command

from django_cqrs import command_handler, message
from django_cqrs.conversion import upcaster
from django_cqrs.documents.models import Document
from django_cqrs.events.models import StoredEvent
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from tests.support import registry_of

pytestmark = [pytest.mark.django_db, pytest.mark.database]

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@message("waiting.sold", version=3, aliases=["waiting.was_sold"])
@dataclass
class Sold:
    number: int
    currency: str


@upcaster("waiting.sold", version=1)
def number_it(payload):
    return {"number": int(payload["text"])}


@upcaster("waiting.sold", version=2)
def add_currency(payload):
    return {**payload, "currency": "EUR"}


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    @command_handler(name="waiting.sell", channel="outbox")
    def sell(command: Sold) -> None: ...

    @command_handler("waiting.count", name="waiting.count", channel="outbox")
    def count(number: int) -> None: ...

    made = registry_of(sell, count)
    monkeypatch.setattr("django_cqrs.management.commands.cqrs_schema.registry", made)


def store(model, payload, name="waiting.sold", version=3, endpoint="waiting.sell"):
    more = {"reason": "failed", "failed_at": NOW} if model is DeadLetter else {}
    return model(
        channel="outbox",
        endpoint=endpoint,
        name=name,
        version=version,
        payload=payload.encode(),
        headers=b"{}",
        message_id=uuid4(),
        correlation_id=uuid4(),
        sent_at=NOW,
        sequence=1,
        **more,
    )


def counted():
    out = io.StringIO()
    try:
        call_command("cqrs_schema", "--stored", stdout=out)
    except CommandError as error:
        rows = [re.split(" {2,}", each.strip()) for each in out.getvalue().splitlines()]
        return error.returncode, [*rows[2:], str(error)]
    return 0, out.getvalue()


def test_g02_5_what_this_code_reads_is_no_finding():
    """Each version by its upcasters, an alias, and a plain value by its handler."""
    OutboxMessage.objects.bulk_create(
        [
            store(OutboxMessage, '{"number": 1, "currency": "USD"}'),
            store(OutboxMessage, '{"number": 1}', version=2),
            store(OutboxMessage, '{"text": "1"}', name="waiting.was_sold", version=1),
            store(OutboxMessage, "7", name="", version=0, endpoint="waiting.count"),
        ]
    )

    assert counted() == (0, "This code reads all 4 stored payloads.\n")


def test_g02_5_what_it_cannot_read_is_counted_by_name_and_version():
    """Dead letters apart; neither a value nor a key of a payload is shown."""
    secret = '{"number": "secret", "currency": 1}'
    OutboxMessage.objects.bulk_create(
        [
            *(store(OutboxMessage, secret) for _ in range(600)),
            store(OutboxMessage, '{"text": "secret"}', version=1),
            store(OutboxMessage, "{}", version=9),
            store(OutboxMessage, "{}", name="waiting.gone"),
            store(OutboxMessage, '"x"', name="", version=0, endpoint="waiting.count"),
            store(OutboxMessage, '{"number": 1, "currency": "USD"}'),
        ]
    )
    DeadLetter.objects.bulk_create([store(DeadLetter, secret) for _ in range(2)])

    code, found = counted()

    assert code == 1
    gone = (
        "No registered message class is named 'waiting.gone'. If it was renamed, give "
        "the old name in @message(aliases=[...])."
    )
    newer = (
        "'waiting.sold' was stored in version 9, but tests.schema_lock.test_waiting.Sold "
        "has version 3 here: this process runs older code."
    )
    assert found == [
        ["2", "dead letter", "waiting.sold 3", "number: int_type"],
        ["1", "waiting message", "value 0", "int_type"],
        ["1", "waiting message", "waiting.gone 3", gone],
        ["1", "waiting message", "waiting.sold 1", "upcaster"],
        ["600", "waiting message", "waiting.sold 3", "number: int_type"],
        ["1", "waiting message", "waiting.sold 9", newer],
        "This code cannot read 606 of 607 stored payloads.",
    ]


def test_g02_5_events_and_documents_are_counted_too():
    """Links hold no payload of their own, and an unknown collection is not judged."""

    def event(payload, shape=3, **options):
        return StoredEvent(
            name="waiting.sold",
            shape=shape,
            payload=payload,
            headers={},
            event_id=uuid4(),
            correlation_id=uuid4(),
            recorded_at=NOW,
            **options,
        )

    StoredEvent.objects.bulk_create(
        [
            event({"number": 1, "currency": "USD"}),
            event({"number": 2}, shape=2),
            event({"number": 3}),
            event({}, link_to=1),
        ]
    )
    Document.objects.create(
        collection="waiting.unknown",
        key="1",
        content={},
        created_at=NOW,
        updated_at=NOW,
    )

    code, found = counted()

    assert code == 1
    assert found == [
        ["1", "event", "waiting.sold 3", "currency: missing"],
        "This code cannot read 1 of 5 stored payloads.",
    ]

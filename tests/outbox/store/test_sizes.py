"""What a server takes at once: statements are divided by bytes as well as by rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_cqrs import CommandBus, Header, Registry, command_handler
from django_cqrs.documents import DocumentStore
from django_cqrs.exceptions import StatementTooLarge
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from django_cqrs.outbox.store import put_back, replay
from django_cqrs.statements import MOST_BYTES, portions
from tests.outbox.support import letters, on_databases, rows, work

pytestmark = on_databases


@dataclass(frozen=True)
class Big:
    text: str


def registry_of_big(**options):
    @command_handler("big", name="big", channel="outbox", **options)
    def take(text: str) -> None: ...

    @command_handler("send_big")
    def send_big(sizes: list[int], commands: CommandBus) -> None:
        for size in sizes:
            commands.dispatch("x" * size, route="big")

    registry = Registry()
    registry.add(take)
    registry.add(send_big)
    return registry


def dead(count, size, **values):
    now = timezone.now()
    made = (
        DeadLetter(
            channel="outbox",
            endpoint="big",
            payload=b"x" * size,
            headers=b"{}",
            message_id=uuid4(),
            correlation_id=uuid4(),
            sent_at=now,
            sequence=place,
            reason="failed",
            failed_at=now,
            **values,
        )
        for place in range(count)
    )
    DeadLetter.objects.bulk_create(made, batch_size=1 if size > 100_000 else 20)
    return letters()


@pytest.mark.parametrize("sizes", [[60_000] * 150, [3_000_000] * 6, [10] * 3])
def test_a_command_may_send_more_than_one_statement_can_hold(sizes):
    """All of them are stored, in their order, whatever they weigh together."""
    registry = registry_of_big()
    with CaptureQueriesContext(connection) as queries:
        registry.command_bus.dispatch(sizes, route="send_big")

    assert [len(bytes(row.payload)) for row in rows()] == [
        size + len(b'""') for size in sizes
    ]
    inserts = [each for each in queries if "INSERT INTO" in each["sql"][:20]]
    assert len(inserts) == (1 if sum(sizes) < 1000 else len(inserts))


@pytest.mark.parametrize(("count", "size"), [(150, 60_000), (3, 10)])
@pytest.mark.parametrize("how", ["function", "batch", "command"])
def test_dead_letters_of_any_size_are_put_back(count, size, how, capsys):
    """Together they may be more than one statement can hold, by each way."""
    found = dead(count, size)
    if how == "function":
        assert replay(found, using="default") == count
    elif how == "batch":
        assert len(put_back(found, using="default")) == count
    else:
        call_command("cqrs_failed", "replay", all=True)
        assert capsys.readouterr().out == f"Replayed {count}.\n"

    assert [row.sequence for row in rows()] == list(range(count))
    assert letters() == []


@pytest.mark.parametrize("ago", [timedelta(seconds=1), timedelta(days=400)])
@pytest.mark.parametrize("how", ["function", "batch", "command"])
def test_a_replayed_dead_letter_is_handled_although_its_time_was_over(ago, how):
    """Who puts one back wants it handled: it no longer expires."""
    seen = []

    @command_handler("mail", name="big", channel="outbox", expires=60)
    def mail(text: str) -> None:
        seen.append(text)

    registry = Registry()
    registry.add(mail)
    found = dead(1, 0, expires_at=timezone.now() - ago)
    DeadLetter.objects.update(payload=b'"a"')
    found = letters()
    if how == "function":
        replay(found, using="default")
    elif how == "batch":
        put_back(found, using="default")
    else:
        call_command("cqrs_failed", "replay", str(found[0].pk))
    tally = work(registry)

    assert (tally.handled, tally.expired) == (1, 0)
    assert seen == ["a"]


def test_a_message_that_no_statement_can_hold_is_refused_with_the_reason():
    """The error says what is too large, for which limit, and what to do."""
    if connection.vendor != "mysql":
        pytest.skip("Other servers take any length.")
    registry = registry_of_big()
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        (limit,) = cursor.fetchone()
    with pytest.raises(StatementTooLarge) as raised:
        registry.command_bus.dispatch("x" * limit, route="big")
    assert str(raised.value) == (
        "A message for big cannot be stored in the database 'default': the statement "
        f"has up to {2 * (limit + 4) + 4096:,} bytes, and the server takes {limit:,} "
        "(max_allowed_packet). Keep the data elsewhere and store a reference to it, "
        "or raise max_allowed_packet."
    )
    connection.close()
    assert OutboxMessage.objects.count() == 0


def test_what_is_kept_too_large_by_a_document_or_a_key_is_refused_with_the_reason():
    """Documents and remembered results stand in one statement too."""
    if connection.vendor != "mysql":
        pytest.skip("Other servers take any length.")
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        (limit,) = cursor.fetchone()
    store = DocumentStore(Big, collection="sizes.big")
    with pytest.raises(StatementTooLarge, match=r"^Big 'k' in 'sizes.big' cannot be"):
        store.add("k", Big("x" * limit))
    connection.close()

    @command_handler("answer", name="answer", idempotency_key=Header("key"))
    def answer(size: int) -> str:
        return "x" * size

    registry = Registry()
    registry.add(answer)
    with pytest.raises(
        StatementTooLarge,
        match=r"^The stored answer for duplicates of a message for answer cannot be",
    ):
        registry.command_bus.dispatch(limit, route="answer", headers={"key": "1"})
    connection.close()


@pytest.mark.parametrize(
    ("sizes", "rows", "expected"),
    [
        ([], 2, [[]]),
        ([1, 1, 1], 2, [[1, 1], [1]]),
        ([MOST_BYTES * 2, 1, MOST_BYTES * 2], 9, None),
        ([MOST_BYTES // 2 + 1] * 3, 9, None),
    ],
)
def test_portions_keep_the_order_and_leave_out_nothing(sizes, rows, expected):
    """One that is too large stands alone."""
    found = [list(part) for part in portions(connection, sizes, int, rows=rows)]
    assert [each for part in found for each in part] == sizes
    assert found == (expected or [[each] for each in sizes])

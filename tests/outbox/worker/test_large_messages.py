"""Messages of any size: what a worker has in memory of them at once."""

import logging
import tracemalloc
from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.db import connection

from django_cqrs import Message, Registry, Retry, command_handler, message
from django_cqrs.outbox.models import OutboxMessage, State
from django_cqrs.outbox.store import Store
from django_cqrs.outbox.store.rows import LARGEST_CLAIMED
from django_cqrs.outbox.worker.handling import ClaimHandler
from tests.outbox.support import letters, on_databases, rows, work, worker_of

pytestmark = [*on_databases, pytest.mark.usefixtures("undivided_batches")]

LARGE = LARGEST_CLAIMED + 1
LEASE = timedelta(seconds=30)


@message("test.big")
@dataclass(frozen=True)
class Big:
    number: int
    text: str


@pytest.fixture
def seen():
    """Return what the handler was called with: numbers, lengths, the header."""
    return []


def registry_of_big(seen, *, channel="outbox", **options):
    @command_handler(name="take", channel=channel, **options)
    def take(command: Big, received: Message) -> None:
        seen.append((command.number, len(command.text), received.headers.get("note")))
        if command.number < 0:
            raise ValueError

    registry = Registry()
    registry.add(take)
    return registry


def send(registry, *sizes, first=1, headers=None):
    for number, size in enumerate(sizes, start=first):
        registry.command_bus.dispatch(Big(number, "x" * size), headers=headers)


@pytest.mark.parametrize("key", [None, "number", lambda each: "one"])
def test_messages_of_all_sizes_are_handled_as_they_were_sent(seen, key):
    """In their order, also those that are read with the claim and later."""
    sizes = [1, LARGE, 5, 3 * 2**20, 2 * 2**20, LARGE, 1]
    registry = registry_of_big(seen, ordering_key=key)
    send(registry, *sizes)

    assert work(registry).handled == len(sizes)
    assert seen == [(n, size, None) for n, size in enumerate(sizes, start=1)]
    assert rows() == []


def test_large_headers_are_read_as_large_payloads_are(seen):
    """Together they are what is bounded."""
    registry = registry_of_big(seen)
    send(registry, 1, 1, headers={"note": "x" * LARGE})
    send(registry, 1, first=3, headers={"note": "y"})

    assert [each.is_loaded for each in claimed_of(3)] == [False, False, True]
    OutboxMessage.objects.update(state=State.READY)
    assert work(registry).handled == 3
    assert [note for _, _, note in seen] == ["x" * LARGE, "x" * LARGE, "y"]


def claimed_of(limit):
    return Store("default").claim("outbox", limit=limit, owner="me", lease=LEASE)


@pytest.mark.parametrize("key", [None, "number"])
def test_a_claim_reads_no_more_than_so_many_bytes_of_a_message(seen, key):
    """The limit is that of the payload and the headers together."""
    rest = len('{"number":1,"text":""}') + len("{}")
    send(
        registry_of_big(seen, ordering_key=key),
        LARGEST_CLAIMED - rest,
        LARGEST_CLAIMED - rest + 1,
    )
    sizes = [len(bytes(row.payload)) + len(bytes(row.headers)) for row in rows()]

    small, large = claimed_of(2)

    assert sizes == [LARGEST_CLAIMED, LARGEST_CLAIMED + 1]
    assert (small.is_loaded, small.size) == (True, LARGEST_CLAIMED)
    assert len(small.envelope.payload) == LARGEST_CLAIMED - 2
    assert (large.is_loaded, large.size) == (False, LARGEST_CLAIMED + 1)
    assert large.envelope.payload == large.envelope.headers == b""


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("key", [None, "number"])
def test_the_memory_of_a_worker_does_not_grow_with_its_claim(seen, key, outside):
    """Of 48 MB that it claims at once only a few are in memory, whatever handles them."""
    registry = registry_of_big(seen, ordering_key=key, atomic=not outside)
    send(registry, *[2**20] * 48)
    worker = worker_of(registry)
    tracemalloc.start()
    try:
        worker.run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert worker.tally.handled == 48
    # A driver has what it has read twice or thrice, and what is decoded comes on top.
    assert peak < 8 * ClaimHandler.loaded_bytes


def test_small_messages_cost_no_statement_more_and_large_ones_are_read_together(seen):
    """What is read at once is bounded by bytes."""
    registry = registry_of_big(seen)
    statements = {}
    for size in (10, LARGE, ClaimHandler.loaded_bytes):
        send(registry, *[size] * 4)
        said = []
        with connection.execute_wrapper(
            lambda execute, sql, *rest: (said.append(sql), execute(sql, *rest))[1]  # noqa: B023
        ):
            worker_of(registry).run_once()
        statements[size] = sum(
            "payload" in each and "LENGTH" not in each for each in said
        )

    assert list(statements.values()) == [0, 1, 4]
    assert len(seen) == 12


def test_a_large_message_that_fails_keeps_its_bytes(seen):
    """Also one that nobody tries any more, since it has killed its workers."""
    registry = registry_of_big(seen, retry=Retry(attempts=1))
    send(registry, LARGE, first=-1)
    send(registry, LARGE, first=1, headers={"note": "x"})
    OutboxMessage.objects.filter(sequence=rows()[1].sequence).update(
        state=State.ABANDONED, attempts=9
    )
    sent = [(bytes(row.payload), bytes(row.headers)) for row in rows()]

    assert work(registry).dead == 2
    assert [(bytes(each.payload), bytes(each.headers)) for each in letters()] == sent
    assert [each.reason for each in letters()] == ["failed", "poison"]


@pytest.mark.parametrize("key", [None, lambda each: "one"])
@pytest.mark.parametrize("how", ["deleted", "taken"])
def test_one_that_is_lost_before_it_was_read_is_left_alone(seen, how, key, caplog):
    """Somebody else has it; of another key the others are handled."""
    registry = registry_of_big(seen, ordering_key=key)
    send(registry, LARGE, 1, LARGE)
    worker = worker_of(registry)
    owner = worker._next_owner()
    claimed = worker.store.claim("outbox", limit=9, owner=owner, lease=LEASE)
    first = OutboxMessage.objects.filter(pk=claimed[0].pk)
    if how == "deleted":
        first.delete()
    else:
        first.update(owner="somebody")

    with caplog.at_level(logging.WARNING, "django_cqrs"):
        worker._handle_claim(owner, claimed)

    assert [number for number, _, _ in seen] == ([] if key else [2, 3])
    (said,) = caplog.messages
    assert said == (
        f"Message {claimed[0].envelope.message_id} for take is left to another worker: "
        "its lease expired"
    )

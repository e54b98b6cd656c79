"""Rows that no channel has written: made by hand, restored, or of another version."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import hypothesis
import pytest
from django.db import connection
from django.utils import timezone
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from django_cqrs import Retry
from django_cqrs.outbox.models import (
    DeadLetter,
    JournalEntry,
    OutboxMessage,
    Reason,
    State,
)
from django_cqrs.outbox.timeline import correlations_of, timeline_of
from tests.outbox.support import (
    examples,
    letters,
    numbers,
    on_databases,
    registry_of,
    rows,
    send,
    state_of,
    work,
)
from tests.outbox.work import Work
from tests.testapp.models import Note

pytestmark = on_databases

MOST = 2**31 - 1


def note(command: Work):
    if command.how == "fail":
        raise ValueError
    Note.objects.create(text=command.how, number=command.number)


def registry_of_notes():
    return registry_of(note, retry=Retry(attempts=3, delay=0), ordering_key="number")


# -------------------------------------------------------------------------------- rows

PAYLOADS = [
    b'{"number":1,"how":"write"}',
    b'{"number":2,"how":"fail"}',
    b'{"number":null}',
    b"",
    b"null",
    b"\xff\x00",
    b"[" * 20_000,
    b"1" * 5_000,
]
HEADERS = [b"{}", b"", b"[]", b"\xff", b'{"django_cqrs.trace":1}', b'{"a":{"b":[1]}}']
TEXTS = ["", "note", "Note", "nöte", "outbox.work", "x" * 100, "☃", "'", "a b "]
if connection.vendor != "postgresql":
    TEXTS.append("\x00")
TIMES = [
    datetime(1, 1, 2, tzinfo=UTC) if connection.vendor != "mysql" else None,
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2100, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 30, tzinfo=UTC),
]
TIMES = [each for each in TIMES if each is not None]


def numbers_between(low, high):
    return st.sampled_from([low, low + 1, 0, 1, 2, high - 1, high]).filter(
        lambda number: low <= number <= high
    )


def shared():
    return {
        "channel": st.just("outbox"),
        "endpoint": st.sampled_from(["note", "note", "note", *TEXTS]),
        "name": st.sampled_from(["outbox.work", "outbox.work", *TEXTS]),
        "version": numbers_between(0, 32767),
        "payload": st.sampled_from(PAYLOADS),
        "headers": st.sampled_from(HEADERS),
        "message_id": st.uuids(version=4),
        "correlation_id": st.uuids(version=4),
        "causation_id": st.none() | st.uuids(version=4),
        "sent_at": st.sampled_from(TIMES),
        "sequence": numbers_between(-(2**63), 2**63 - 1),
        "priority": numbers_between(-(2**31), MOST),
        "expires_at": st.none() | st.sampled_from(TIMES),
        "ordering_key": st.none() | st.sampled_from(["1", "1", "", "x"]),
        "subject": st.sampled_from(TEXTS),
        "attempts": numbers_between(0, MOST),
    }


MESSAGES = st.fixed_dictionaries(
    {
        **shared(),
        "state": st.sampled_from([*State.values, 99]),
        "available_at": st.none() | st.sampled_from(TIMES),
        "owner": st.none() | st.sampled_from(TEXTS),
        "lease_expires_at": st.none() | st.sampled_from(TIMES),
        "token": numbers_between(-(2**63), 2**63 - 1),
    }
)
LETTERS = st.fixed_dictionaries(
    {
        **shared(),
        "reason": st.sampled_from([*Reason.values, "strange"]),
        "exception": st.sampled_from(TEXTS),
        "error": st.sampled_from(TEXTS),
        "traceback": st.sampled_from(TEXTS),
        "failed_at": st.sampled_from(TIMES),
    }
)


def plain(**values: Any) -> dict[str, Any]:
    """Return the columns that a message and a dead letter share, as they should be."""
    now = timezone.now()
    return {
        "channel": "outbox",
        "endpoint": "note",
        "name": "outbox.work",
        "payload": PAYLOADS[0],
        "headers": b"{}",
        "message_id": "0198d3b0-0000-7000-8000-000000000000",
        "correlation_id": "0198d3b0-0000-7000-8000-000000000000",
        "sent_at": now,
        "sequence": 1,
        **values,
    }


def dead(**values: Any) -> dict[str, Any]:
    return {**plain(reason="failed", failed_at=timezone.now()), **values}


def test_no_row_ends_a_worker(say, settings):
    """
    Whatever the columns of messages and dead letters hold, a worker goes on.

    What it cannot handle is a dead letter, or stays; what is beside it is handled, and
    the timeline can be read.
    """
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": 1000}
    registry = registry_of_notes()

    @hypothesis.settings(
        max_examples=examples(say),
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.lists(MESSAGES, max_size=5), st.lists(LETTERS, max_size=3))
    @example(
        [
            plain(ordering_key="1", state=1, attempts=1, available_at=TIMES[-1]),
            plain(ordering_key="1", sequence=2),
        ],
        [dead(ordering_key="1")],
    )
    @example(
        [
            plain(ordering_key="1", state=3, lease_expires_at=TIMES[-1]),
            plain(ordering_key="1", sequence=2),
        ],
        [dead(ordering_key="1")],
    )
    @example([plain(attempts=MOST) | {"payload": PAYLOADS[1]}], [])
    @example([plain(attempts=MOST, state=3)], [])
    @example([plain(token=2**63 - 1)], [])
    @example([plain(token=2**63 - 1, ordering_key="1")], [])
    def handles(messages, dead_letters):
        for model, found in ((OutboxMessage, messages), (DeadLetter, dead_letters)):
            for values in found:
                model.objects.create(**values)
        send(registry, 4711)
        try:
            work(registry)
            work(registry)
            assert 4711 in numbers()
            for model in (OutboxMessage, DeadLetter, JournalEntry):
                found = set(model.objects.values_list("correlation_id", "subject"))
                for correlation_id, subject in found:
                    timeline_of([correlation_id], using="default").placed()
                    correlations_of(subject, using="default")
        finally:
            JournalEntry.objects.all().delete()
            OutboxMessage.objects.all().delete()
            DeadLetter.objects.all().delete()
            Note.objects.all().delete()

    handles()


@pytest.mark.parametrize(
    ("values", "handled"),
    [
        ({"state": State.PARKED}, True),
        ({"state": State.DELAYED}, True),
        ({"state": State.CLAIMED, "owner": "somebody"}, True),
        ({"state": State.FORWARDED, "owner": "somebody"}, True),
        ({"state": State.PARKED, "ordering_key": "1"}, True),
        ({"state": State.DELAYED, "available_at": TIMES[-1]}, False),
        ({"state": State.CLAIMED, "owner": "x", "lease_expires_at": TIMES[-1]}, False),
    ],
)
def test_a_row_that_waits_for_nothing_is_handled(values, handled):
    """
    Parked without a key, delayed without a time, held without an end of the lease:
    nothing would ever end that, so a worker does.
    """
    OutboxMessage.objects.create(**plain(**values))
    work(registry_of_notes())

    assert numbers() == ([1] if handled else [])
    assert len(rows()) == (0 if handled else 1)


@pytest.mark.parametrize("state", [State.DELAYED, State.ABANDONED])
def test_a_message_and_a_dead_letter_of_one_key_may_have_one_number(state):
    """Two processes can stamp the same nanosecond: what comes after both is parked."""
    DeadLetter.objects.create(**dead(ordering_key="1"))
    OutboxMessage.objects.create(
        **plain(ordering_key="1", state=state, attempts=1, available_at=TIMES[-1])
    )
    later = {**plain(ordering_key="1", sequence=2), "payload": b'{"number":2}'}
    OutboxMessage.objects.create(**later)
    work(registry_of_notes())

    assert state_of(2) == ["PARKED"]
    assert numbers() == []


@pytest.mark.parametrize("attempts", [MOST, MOST - 1])
@pytest.mark.parametrize("state", [State.READY, State.ABANDONED])
def test_a_row_with_the_most_attempts_is_a_dead_letter(attempts, state):
    """Attempts are counted up to the highest number that every database can store."""
    OutboxMessage.objects.create(
        **{**plain(attempts=attempts, state=state), "payload": PAYLOADS[1]}
    )
    work(registry_of_notes())

    (letter,) = letters()
    assert letter.attempts == (MOST if state is State.READY else attempts)
    assert rows() == []

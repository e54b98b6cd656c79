"""``manage.py cqrs_prune``: the tables stay bounded, and nothing else goes."""

import io
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_cqrs import Registry, Retry, command_handler
from django_cqrs.exceptions import InvalidOption
from django_cqrs.outbox.models import (
    DeadLetter,
    InboxEntry,
    JournalEntry,
    OutboxMessage,
    State,
    StoredTaskResult,
    Throughput,
)
from django_cqrs.outbox.pruning import prune
from tests.outbox.support import (
    letters,
    note,
    numbers,
    on_databases,
    registry_of,
    rows,
    send,
    state_of,
    work,
)
from tests.outbox.work import Work

pytestmark = on_databases


def break_down(command: Work):
    """A handler that fails where it is told to."""
    note(command)
    if command.how == "fail":
        raise ValueError


def output_of(*arguments, **options):
    stdout = io.StringIO()
    call_command("cqrs_prune", *arguments, stdout=stdout, no_color=True, **options)
    return stdout.getvalue()


def seen(number, using="default", **ago):
    """Keys that were seen so long ago."""
    InboxEntry.objects.using(using).bulk_create(
        InboxEntry(
            endpoint="note",
            key=str(uuid4()),
            message_id=UUID(int=place),
            created_at=timezone.now() - timedelta(**ago),
        )
        for place in range(number)
    )


def counted(number, **ago):
    """Minutes in which something was done, the last of them so long ago."""
    last = timezone.now() - timedelta(**ago)
    Throughput.objects.bulk_create(
        Throughput(minute=last - timedelta(minutes=place), channel="outbox", handled=1)
        for place in range(number)
    )


def died(number, **ago):
    """Dead letters that were given up so long ago."""
    moment = timezone.now() - timedelta(**ago)
    return DeadLetter.objects.bulk_create(
        DeadLetter(
            channel="outbox",
            endpoint="note",
            payload=b"{}",
            headers=b"{}",
            message_id=uuid4(),
            correlation_id=uuid4(),
            sent_at=moment,
            sequence=place,
            reason="failed",
            failed_at=moment,
        )
        for place in range(number)
    )


def test_what_is_out_of_its_time_goes():
    """Keys out of the window, counts of the day before; the others stay. [C09.5]"""
    seen(3, days=8)
    seen(2, days=6)
    counted(4, days=1, minutes=1)
    counted(5, minutes=1)

    assert output_of() == (
        "Deleted 3 inbox entries.\n"
        "Deleted 4 minutes of throughput.\n"
        "Deleted 0 journal entries.\n"
        "Deleted 0 task results.\n"
    )

    assert InboxEntry.objects.count() == 2
    assert Throughput.objects.count() == 5


def test_the_window_is_that_of_the_settings(settings):
    """A key is kept for as long as it counts, and no longer. [C09.5]"""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "IDEMPOTENCY_WINDOW": 60}
    seen(1, seconds=61)
    seen(1, seconds=30)

    assert output_of().splitlines()[0] == "Deleted 1 inbox entry."

    assert InboxEntry.objects.count() == 1


def test_in_batches_of_a_size():
    """No statement deletes more rows than it was told. [C06.4]"""
    seen(7, days=8)
    died(7, days=40)

    with CaptureQueriesContext(connection) as queries:
        output_of("--batch-size", "3", "--dead-letters-older-than", "30d")

    deletes = [each["sql"] for each in queries if each["sql"].startswith("DELETE")]
    for model in (InboxEntry, DeadLetter):
        own = [sql for sql in deletes if model._meta.db_table in sql]
        assert [sql.count(",") for sql in own] == [2, 2, 0]
        assert not model.objects.exists()


def test_dead_letters_go_only_when_asked():
    """They are what somebody has to look at: no age, no deletion. [C09.5]"""
    died(2, days=400)
    kept = died(1, days=29)

    assert "dead" not in output_of()
    assert DeadLetter.objects.count() == 3

    said = output_of("--dead-letters-older-than", "30 days").splitlines()[-1]
    assert said == "Deleted 2 dead letters."
    assert [each.failed_at for each in letters()] == [each.failed_at for each in kept]


def test_messages_that_wait_stay():
    """However old they are: nobody has handled them. [C09.5]"""
    registry = registry_of(note)
    send(registry, 1)
    OutboxMessage.objects.update(sent_at=timezone.now() - timedelta(days=900))

    output_of("--dead-letters-older-than", "1d")

    assert len(rows()) == 1


def test_what_waited_behind_a_pruned_letter_goes_on():
    """Its key is free again, and in order. [C07.2]"""
    registry = Registry()
    registry.add(
        command_handler(
            name="break_down",
            channel="outbox",
            retry=Retry(attempts=1),
            ordering_key=lambda message: "a key",
        )(break_down)
    )
    send(registry, 1, how="fail")
    send(registry, 2, 3)
    work(registry)
    assert state_of(2, 3) == [State.PARKED.name] * 2
    DeadLetter.objects.update(failed_at=timezone.now() - timedelta(days=31))

    output_of("--dead-letters-older-than", "30d")
    work(registry)

    assert numbers() == [2, 3]


def test_a_dry_run_deletes_nothing():
    """It says what it would do."""
    seen(3, days=8)
    counted(1, days=2)
    died(2, days=40)

    assert output_of("--dry-run", "--dead-letters-older-than", "30d") == (
        "Would delete 3 inbox entries.\n"
        "Would delete 1 minute of throughput.\n"
        "Would delete 0 journal entries.\n"
        "Would delete 0 task results.\n"
        "Would delete 2 dead letters.\n"
    )

    assert InboxEntry.objects.count() == 3
    assert Throughput.objects.count() == 1
    assert DeadLetter.objects.count() == 2


def test_only_one_database():
    """Each has tables of its own."""
    seen(1, days=8)
    seen(2, using="other", days=8)

    said = output_of("--database", "other").splitlines()[0]

    assert said == "Deleted 2 inbox entries."
    assert InboxEntry.objects.using("default").count() == 1


def test_verbosity():
    """Nothing, what was done, or since when as well."""
    assert output_of("--verbosity", "0") == ""
    line = output_of("--verbosity", "2").splitlines()[0]
    before = timezone.now() - timedelta(days=7)
    assert line.startswith(f"Deleted 0 inbox entries, made before {before:%Y-%m-%d}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30d", timedelta(days=30)),
        ("12h", timedelta(hours=12)),
        ("90m", timedelta(minutes=90)),
        ("1.5h", timedelta(minutes=90)),
        ("30 days", timedelta(days=30)),
        ("30 00:00:00", timedelta(days=30)),
        ("P2DT3H", timedelta(days=2, hours=3)),
        ("00:10:00", timedelta(minutes=10)),
    ],
)
def test_ages(text, expected):
    """As Django reads durations, and the short form that people write."""
    now = timezone.now()
    died(1)
    DeadLetter.objects.update(failed_at=now - expected + timedelta(minutes=1))
    assert "Deleted 0 dead" in output_of("--dead-letters-older-than", text)
    DeadLetter.objects.update(failed_at=now - expected - timedelta(minutes=1))
    assert "Deleted 1 dead" in output_of("--dead-letters-older-than", text)


@pytest.mark.parametrize(
    "text",
    ["30", "2592000.5", "", "P", "T", "-30d", "soon", "30 moons", "99999999999d"],
)
def test_what_is_no_age(text):
    """A bare number says neither days nor seconds: what is lost is permanently lost."""
    seen(1, days=8)
    died(1, days=4000)

    with pytest.raises(CommandError) as caught:
        output_of(f"--dead-letters-older-than={text}")

    assert str(caught.value) == (
        f"Error: argument --dead-letters-older-than: {text!r} is not a valid age: "
        "give a number with a unit, such as 30d or 12h."
    )
    assert DeadLetter.objects.exists()
    assert InboxEntry.objects.exists()


def test_an_age_that_no_row_can_have():
    """It is refused before anything is deleted."""
    seen(1, days=8)

    with pytest.raises(CommandError) as caught:
        output_of("--dead-letters-older-than", "900000d")

    assert str(caught.value) == "No dead letter can be as old as 900000 days, 0:00:00."
    assert InboxEntry.objects.exists()


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("0", "'0' is not a whole number of at least 1."),
        ("10001", "10001 rows are too many for one statement: 10000 at most."),
    ],
)
def test_a_batch_that_is_none(size, said):
    """One error says what may be given."""
    with pytest.raises(CommandError, match="--batch-size") as caught:
        output_of("--batch-size", size)

    assert str(caught.value).endswith(said)


def test_from_code():
    """A periodic task calls the function, with seconds or a timedelta."""
    died(1, minutes=2)
    died(1, minutes=1)

    done = list(prune(dead_letters=90))

    assert [(each.model, each.count) for each in done] == [
        (InboxEntry, 0),
        (Throughput, 0),
        (JournalEntry, 0),
        (StoredTaskResult, 0),
        (DeadLetter, 1),
    ]
    for wrong in (-1, "30d", True):
        with pytest.raises(InvalidOption, match="dead_letters"):
            list(prune(dead_letters=wrong))
    assert DeadLetter.objects.count() == 1

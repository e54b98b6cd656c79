"""A replay of very many dead letters is handed to the worker, which loses none."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta
from html import unescape

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.db import IntegrityError, connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from django_cqrs import Registry, command_handler
from django_cqrs.outbox.admin import dead_letters
from django_cqrs.outbox.models import DeadLetter, OutboxMessage, ReplayBatch
from django_cqrs.outbox.worker import Bounds, Worker
from django_cqrs.outbox.worker.replays import replay_next, replays_in_progress

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.database,
    pytest.mark.urls("tests.outbox.desk_urls"),
]

LETTERS = "/admin/django_cqrs_outbox/deadletter/"
MANY = dead_letters.AT_ONCE + 1


def bury(count):
    moment = timezone.now()
    DeadLetter.objects.bulk_create(
        DeadLetter(
            channel="outbox",
            endpoint="replays.handle",
            payload=b"%d" % number,
            headers=b"{}",
            message_id=uuid.uuid4(),
            correlation_id=uuid.uuid4(),
            sent_at=moment,
            sequence=number,
            attempts=3,
            reason="failed",
            failed_at=moment,
        )
        for number in range(count)
    )


def replay_all(client):
    """Choose all dead letters of the list, and confirm it."""
    data = {
        "action": "replay_selected",
        "_selected_action": [DeadLetter.objects.first().pk],
        "index": 0,
        "select_across": 1,
        "post": "yes",
    }
    return client.post(LETTERS, data, follow=True)


def text_of(answer, mark):
    found = re.findall(rf"{mark}[^>]*>(.*?)</", answer.content.decode(), re.DOTALL)
    return [unescape(" ".join(each.split())) for each in found]


def channels_page(client):
    page = reverse("admin:django_cqrs_outbox_channels")
    return text_of(client.get(page), '<p class="cqrs-note" role="status"')


def refuse_deletion(execute, sql, params, many, context):
    """Fail as a database does whose trigger refuses a statement."""
    if sql.startswith("DELETE") and DeadLetter._meta.db_table in sql:
        raise IntegrityError("a trigger refuses it\nDETAIL: the row has a secret")
    return execute(sql, params, many, context)


def test_many_dead_letters_are_handed_to_the_worker(admin_client, admin_user):
    """
    The page answers at once and moves nothing: it writes down what is to be replayed.

    The statements of the request do not grow with the letters. The page of channels
    says how many are left, whom to ask, and since when.
    """
    bury(MANY)

    with CaptureQueriesContext(connection) as queries:
        answer = replay_all(admin_client)

    (said,) = text_of(answer, '<li class="success"')
    assert said == (
        "1001 dead letters are handed to the worker, which replays them. The page of "
        "channels shows how many are left."
    )
    assert DeadLetter.objects.count() == MANY
    assert OutboxMessage.objects.count() == 0
    assert [each.count for each in ReplayBatch.objects.order_by("pk")] == [500, 500, 1]
    (progress,) = replays_in_progress("default")
    assert (progress.total, progress.left, progress.user_name) == (MANY, MANY, "admin")
    changes = [
        each["sql"].split()[0]
        for each in queries
        if "django_cqrs_outbox" in each["sql"].partition("(")[0]
        and not each["sql"].startswith("SELECT")
    ]
    assert changes == ["INSERT"]
    (note,) = channels_page(admin_client)
    assert note.startswith("A worker replays 1001 dead letters, as admin asked at ")
    assert note.endswith(": 1001 are left.")


def test_the_worker_replays_what_was_handed_over(admin_client, admin_user):
    """
    The worker puts back one batch at a time, in order, and handles what it put back.

    Each dead letter has an entry in its history, by whoever asked for the replay.
    """
    bury(MANY)
    replay_all(admin_client)

    assert replay_next("default") == 500
    assert (DeadLetter.objects.count(), OutboxMessage.objects.count()) == (501, 500)
    (progress,) = replays_in_progress("default")
    assert (progress.total, progress.left) == (MANY, 501)
    assert list(
        OutboxMessage.objects.order_by("pk").values_list("sequence", flat=True)
    ) == list(range(500))
    handled = []

    @command_handler("replays.handle", name="replays.handle", channel="outbox")
    def handle(number: int) -> None:
        handled.append(number)

    registry = Registry()
    registry.add(handle)
    bounds = Bounds(until_empty=True)
    Worker(registry, ["outbox"], using="default", bounds=bounds).run()

    assert sorted(handled) == list(range(MANY))
    assert DeadLetter.objects.count() == 0
    assert OutboxMessage.objects.count() == 0
    assert ReplayBatch.objects.count() == 0
    entries = LogEntry.objects.filter(action_flag=CHANGE, user=admin_user)
    assert set(entries.values_list("change_message", flat=True)) == {"Replayed."}
    assert entries.values("object_id").distinct().count() == MANY
    assert channels_page(admin_client) == []


def test_a_batch_that_fails_loses_nothing(admin_client):
    """
    A batch is put back as a whole or not at all, and is tried again after a while.

    The others go on meanwhile; the page of channels says how it failed.
    """
    bury(MANY)
    replay_all(admin_client)
    first = ReplayBatch.objects.order_by("pk").first()

    with connection.execute_wrapper(refuse_deletion):  # after the insert
        assert replay_next("default") == 0

    assert (DeadLetter.objects.count(), OutboxMessage.objects.count()) == (MANY, 0)
    first.refresh_from_db()
    assert first.attempts == 1
    assert first.available_at > timezone.now()
    assert first.error == "IntegrityError: a trigger refuses it"
    (note,) = channels_page(admin_client)
    assert note.endswith(
        ": 1001 are left. A batch has failed once and is tried again: IntegrityError: "
        "a trigger refuses it"
    )

    # A busy machine is slower than the pause.
    later = timezone.now() + timedelta(hours=1)
    ReplayBatch.objects.filter(pk=first.pk).update(available_at=later)
    assert [replay_next("default") for _ in range(3)] == [500, 1, 0]
    assert (DeadLetter.objects.count(), OutboxMessage.objects.count()) == (500, 501)

    ReplayBatch.objects.update(available_at=timezone.now())
    assert replay_next("default") == 500
    assert (DeadLetter.objects.count(), OutboxMessage.objects.count()) == (0, MANY)
    assert ReplayBatch.objects.count() == 0


def test_a_letter_that_is_gone_is_passed_over(admin_client):
    """What somebody else has replayed or deleted meanwhile is not put back twice."""
    bury(MANY)
    replay_all(admin_client)
    DeadLetter.objects.filter(sequence__lt=100).delete()

    assert [replay_next("default") for _ in range(4)] == [500, 500, 1, 0]

    assert OutboxMessage.objects.count() == MANY - 100
    assert replays_in_progress("default") == []


def test_a_deleted_user_stops_no_replay(admin_client, admin_user):
    """Without the one who asked for it there is no history to write, and no error."""
    bury(MANY)
    replay_all(admin_client)
    admin_user.delete()

    assert replay_next("default") == 500
    assert LogEntry.objects.count() == 0


def test_few_dead_letters_are_replayed_at_once(admin_client):
    """Up to the bound the page itself puts them back, and says how many."""
    bury(MANY - 1)

    answer = replay_all(admin_client)

    assert text_of(answer, '<li class="success"') == ["Replayed 1000."]
    assert OutboxMessage.objects.count() == MANY - 1
    assert ReplayBatch.objects.count() == 0

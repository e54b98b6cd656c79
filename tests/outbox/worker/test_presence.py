"""The workers that a database knows of, and channels that somebody has paused."""

from __future__ import annotations

import io
import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.transaction import atomic

from django_cqrs import clock
from django_cqrs.exceptions import InvalidChannel
from django_cqrs.outbox import attendance
from django_cqrs.outbox.attendance import ALIVE, LivingWorker, living_workers
from django_cqrs.outbox.health import find_problems
from django_cqrs.outbox.models import OutboxMessage, PausedChannel, WorkerRecord
from django_cqrs.outbox.pausing import pause, paused_channels, resume
from django_cqrs.outbox.worker import Worker
from django_cqrs.outbox.worker.presence import KEPT, Presence
from django_cqrs.signals import (
    batch_finished,
    batch_started,
    worker_started,
    worker_stopped,
)
from tests.outbox.support import note, on_databases, registry_of, send, worker_of

pytestmark = on_databases


@pytest.fixture
def registry(settings):
    outbox = settings.DJANGO_CQRS["CHANNELS"]["outbox"]
    settings.DJANGO_CQRS = {"CHANNELS": {"outbox": outbox, "mail": outbox}}
    return registry_of(note)


def recorded(name="gone", channels=("outbox",), ago=timedelta(0), **fields):
    """Keep the row of a worker that gave its last sign of life some time ago."""
    at = clock.now() - ago
    return WorkerRecord.objects.create(
        name=name,
        channels=attendance.as_text(channels),
        started_at=at,
        seen_at=at,
        **fields,
    )


def names():
    return sorted(WorkerRecord.objects.values_list("name", flat=True))


def output_of(*arguments, **options):
    out = io.StringIO()
    call_command(*arguments, stdout=out, **options)
    return out.getvalue()


# ------------------------------------------------------------------------- workers


def test_a_worker_is_known_while_it_runs_and_since_when_it_has_stopped(registry):
    """It adds itself when it starts; when it stops, its row says so."""
    seen = []
    worker = worker_of(registry, channels=["outbox", "mail"])

    def look(**_kwargs):
        worker._attend()
        seen.extend(living_workers())

    batch_started.connect(look)
    try:
        send(registry, 1)
        worker.run()
    finally:
        batch_started.disconnect(look)

    [living] = seen
    assert living == LivingWorker(
        name=worker.name,
        channels=("mail", "outbox"),
        since=living.since,
        seen_at=living.seen_at,
    )
    assert living_workers() == []
    [row] = WorkerRecord.objects.all()
    assert row.stopped_at is not None


def test_a_worker_inside_a_transaction_is_not_recorded(registry):
    """A test's run of a channel is no process that somebody could look for."""
    with atomic():
        worker_of(registry).run()

    assert names() == []


def test_a_sign_of_life_costs_one_statement_now_and_then(registry):
    """Between two of them a round has as many statements as ever."""
    worker = worker_of(registry)
    worker.run_once()
    worker._asked = worker._asked + 3600
    seen = []

    def see(execute, sql, *rest):
        seen.append(sql)
        return execute(sql, *rest)

    with connection.execute_wrapper(see):
        worker.run_once()
        quiet = len(seen)
        worker._presence._beat -= Presence.beat_time
        worker.run_once()

    assert not any("workerrecord" in each for each in seen[:quiet])
    [beat] = [each for each in seen[quiet:] if "workerrecord" in each]
    assert beat.startswith("UPDATE")


def test_a_busy_worker_gives_its_signs_of_life_from_its_other_thread(registry):
    """A handler may take longer than a dead worker counts as living."""
    worker = worker_of(registry)
    worker._presence.beat()
    WorkerRecord.objects.update(seen_at=clock.now() - 2 * ALIVE)
    assert not worker._presence.is_overdue()
    worker._presence._beat -= Presence.beat_time * 1.5

    assert worker._presence.is_overdue()
    assert worker._handler.heartbeat.presence is worker._presence
    worker._handler.heartbeat.beat()
    assert [each.name for each in living_workers()] == [worker.name]
    assert not worker._presence.is_overdue()


def test_the_rows_of_workers_that_have_ended_go_away(registry):
    """The next one of the same channels deletes them, and any one after a day."""
    recorded("killed", ago=2 * ALIVE + timedelta(seconds=1))
    recorded("stopped", stopped_at=clock.now())
    recorded("living")
    recorded("another's", ["mail"], ago=timedelta(hours=3))
    recorded("old", ["mail"], ago=KEPT + timedelta(minutes=1))
    worker = worker_of(registry)
    worker._presence.beat()

    assert names() == sorted(["living", "another's", worker.name])


def test_a_row_that_somebody_has_deleted_comes_back(registry):
    """Its worker still lives."""
    worker = worker_of(registry)
    worker._presence.beat()
    WorkerRecord.objects.all().delete()
    worker._presence.beat()

    assert names() == [worker.name]


def test_a_dead_worker_is_not_among_the_living():
    """After a minute without a sign of life it counts as dead."""
    recorded("dead", ago=ALIVE + timedelta(seconds=1))
    recorded("stopped", stopped_at=clock.now())
    recorded("alive", ago=ALIVE - timedelta(seconds=10))

    assert [each.name for each in living_workers()] == ["alive"]


# ------------------------------------------------------------------------- health


def absent(**options):
    return [
        str(each)
        for each in find_problems(channels=["outbox"], max_age=None, **options)
        if each.kind == "worker"
    ]


@pytest.mark.parametrize(
    ("minutes", "is_said"), [(7, True), (4, False), (0, False)], ids=str
)
def test_a_channel_without_a_worker_is_a_problem(minutes, is_said):
    """Since its last worker's last sign of life, however it ended."""
    recorded("mine", ago=timedelta(minutes=minutes))
    recorded("other", ["mail"])

    said = "".join(absent())
    expected = "No worker has handled the channel 'outbox' for 0:" if is_said else ""
    assert said[: len(expected) or None] == expected
    assert absent(max_absence=None) == []


def test_a_channel_that_never_had_a_worker_counts_from_its_oldest_message(registry):
    """A new channel is not a problem at once."""
    send(registry, 1)
    assert absent() == []
    OutboxMessage.objects.update(sent_at=clock.now() - timedelta(minutes=9))

    [said] = absent()
    assert said.startswith(
        "No worker has handled the channel 'outbox' within a day; its oldest message "
        "has waited for 0:"
    )


def test_a_paused_channel_needs_no_worker(registry):
    """Nobody would handle its messages."""
    recorded(ago=timedelta(minutes=7))
    pause("outbox")

    assert absent() == []


# ------------------------------------------------------------------------- pausing


def test_the_messages_of_a_paused_channel_wait(registry):
    """They are handled when it is resumed."""
    send(registry, 1)
    assert pause("outbox", by="ada", reason="the printer is away")
    worker = worker_of(registry)
    assert worker.run().handled == 0
    assert worker.paused_channels() == ["outbox"]
    assert resume("outbox")

    assert worker_of(registry).run().handled == 1


def test_a_running_worker_notices_a_pause_and_its_end(registry):
    """It looks once a second, and not in every round."""
    worker = worker_of(registry)
    worker.run_once()
    send(registry, 1)
    pause("outbox")
    worker._asked -= Worker.pause_time
    assert worker.run_once() == 0
    resume("outbox")
    assert worker.run_once() == 0
    worker._asked -= Worker.pause_time

    assert worker.run_once() == 1


def test_messages_that_a_dead_worker_left_wait_too(registry):
    """A paused channel is left alone altogether."""
    send(registry, 1)
    OutboxMessage.objects.update(state=3)  # abandoned
    pause("outbox")

    assert worker_of(registry).run().taken == 0


def test_pausing_twice_changes_nothing():
    """Who was first is what others see."""
    assert pause("outbox", by="ada", reason="one")
    assert not pause("outbox", by="bob", reason="two")
    assert paused_channels()["outbox"].reason == "one"
    assert resume("outbox")
    assert not resume("outbox")


def test_only_a_channel_of_the_settings_can_be_paused(registry):
    """A misspelt alias would leave the channel that was meant running."""
    with pytest.raises(InvalidChannel, match="'outbx' is not in DJANGO_CQRS"):
        pause("outbx")

    assert paused_channels() == {}


# ------------------------------------------------------------------------- commands


def test_the_command_pauses_and_resumes_channels(registry):
    """It says what it has done, and whether it was done already."""
    assert output_of("cqrs_channels", "pause", "outbox", reason="a move") == (
        "Paused outbox.\n"
    )
    assert output_of("cqrs_channels", "pause", "outbox") == "Already paused: outbox.\n"
    recorded("host:1:ab")
    listed = output_of("cqrs_channels", "list")
    assert "Workers" in listed
    assert ": a move" in listed
    assert output_of("cqrs_channels", "resume", "outbox") == "Resumed outbox.\n"
    assert output_of("cqrs_channels", "resume", "outbox") == "Not paused: outbox.\n"
    assert not PausedChannel.objects.exists()


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_the_command_refuses_a_channel_that_does_not_exist(action):
    """Nothing is paused, not even the one that exists."""
    with pytest.raises(CommandError, match="nowhere"):
        output_of("cqrs_channels", action, "outbox", "nowhere")

    assert not PausedChannel.objects.exists()


def test_the_command_resumes_a_channel_that_the_settings_have_lost():
    """A row that nobody needs can be removed."""
    PausedChannel.objects.create(channel="lost", paused_at=clock.now())

    assert output_of("cqrs_channels", "resume", "lost") == "Resumed lost.\n"


def test_a_worker_that_ends_names_the_paused_channel(registry):
    """cqrs_worker --until-empty exits with 1 where messages remain."""
    pause("outbox")

    with pytest.raises(CommandError, match="an operator has paused it"):
        output_of("cqrs_worker", "outbox", "--until-empty")


def test_the_figures_name_workers_and_paused_channels():
    """In the table's text, and in JSON."""
    recorded("host:1:ab", ["outbox", "mail"])
    pause("outbox", by="ada")
    text = output_of("cqrs_stats")
    found = json.loads(output_of("cqrs_stats", format="json"))

    assert "Worker host:1:ab handles mail, outbox." in text
    assert "Channel outbox is paused since" in text
    assert "by ada." in text
    assert found["paused_channels"] == ["outbox"]
    assert [each["channels"] for each in found["workers"]] == [["mail", "outbox"]]


def test_all_channels_are_handled_by_one_word():
    """In the order of the settings; those that are no outbox are left out."""
    text = output_of("cqrs_worker", "--all", "--until-empty")

    assert text.startswith("Handling outbox of 'default'.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give the aliases of the channels to handle, or --all"),
        (["outbox", "--all"], "Give either --all or the channels outbox, not both"),
    ],
    ids=str,
)
def test_channels_are_given_in_one_way(arguments, said):
    """Neither none, nor twice."""
    with pytest.raises(CommandError, match=said):
        output_of("cqrs_worker", *arguments, "--until-empty")


def test_all_channels_may_be_none(settings):
    """A worker without a channel would do nothing for ever."""
    settings.DJANGO_CQRS = {
        "CHANNELS": {"memory": {"BACKEND": "django_cqrs.channels.InMemoryChannel"}}
    }

    with pytest.raises(CommandError, match=r"No channel in .* is an outbox"):
        output_of("cqrs_worker", "--all")


# ------------------------------------------------------------------------- signals


@pytest.fixture
def told():
    """Collect the signals of workers."""
    found = []
    signals = {
        "started": worker_started,
        "batch": batch_started,
        "batch over": batch_finished,
        "stopped": worker_stopped,
    }
    receivers = []
    for name, signal in signals.items():

        def receive(sender, signal, name=name, **about):
            found.append((name, sender, about))

        receivers.append((signal, receive))
        signal.connect(receive)
    yield found
    for signal, receive in receivers:
        signal.disconnect(receive)


def test_a_worker_tells_of_its_start_its_batches_and_its_end(registry, told):
    """Each signal has the worker's name; batches have their channel and number."""
    send(registry, 1)
    send(registry, 1)
    worker = worker_of(registry)
    worker.run()

    same = {"worker": worker.name, "using": "default"}
    batch = {**same, "channel": "outbox", "count": 2}
    assert told == [
        ("started", Worker, {**same, "channels": ("outbox",)}),
        ("batch", Worker, batch),
        ("batch over", Worker, batch),
        ("stopped", Worker, {**same, "channels": ("outbox",), "tally": worker.tally}),
    ]


def test_a_receiver_that_fails_ends_nothing(registry, caplog):
    """Its exception is logged, and the messages are handled."""

    def fail(**_kwargs):
        raise ArithmeticError

    signals = (worker_started, batch_started, batch_finished, worker_stopped)
    for signal in signals:
        signal.connect(fail)
    try:
        send(registry, 1)
        assert worker_of(registry).run().handled == 1
    finally:
        for signal in signals:
            signal.disconnect(fail)
    assert "ArithmeticError" in caplog.text

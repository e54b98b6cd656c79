"""
Tasks as a worker handles them, and the results that remain.

The groups of behaviours that Django's own tests, and those of django-tasks-db, ask of a
backend and of its worker: return values and their JSON form; failures of any exception,
with class and traceback; exits; the context; async tasks; queues, priorities and times;
a path that leads nowhere; signals and logs in their order; results that are missing, of
another task, or no longer kept. Beside them what the outbox adds: retries, dead letters
and their replay, writes that share the fate of their task, several workers.
"""

import logging
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from django_cqrs import Retry
from django_cqrs.buses.registries import registry
from django_cqrs.channels import channels
from django_cqrs.outbox.models import (
    DeadLetter,
    JournalEntry,
    OutboxMessage,
    State,
    StoredTaskResult,
)
from django_cqrs.outbox.store.dead_letters import replay
from django_cqrs.outbox.tasks.djangos import from_tasks
from django_cqrs.outbox.timeline import timeline_of
from tests.outbox.support import (
    letters,
    numbers,
    registry_of,
    rows,
    send,
    worker_of,
)
from tests.outbox.support import (
    note as note_work,
)
from tests.outbox.tasks import work
from tests.outbox.tasks.conftest import backend

pytestmark = pytest.mark.django_db(databases=["default", "other"])

DoesNotExist = from_tasks("exceptions.TaskResultDoesNotExist")


def finished(result, status):
    """Check what every finished result has; return it."""
    result.refresh()
    assert result.status == status
    assert result.is_finished
    assert result.enqueued_at <= result.started_at <= result.last_attempted_at
    assert result.last_attempted_at <= result.finished_at
    assert result.attempts == len(result.worker_ids) >= 1
    return result


def patient(attempts, **options):
    return backend(retry=Retry(attempts=attempts, delay=0), **options)


# Success ------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [work.noop, work.anoop])
def test_a_task_is_called(task, run_tasks):
    """Once, with its arguments; its message is gone and its result says so."""
    result = task.enqueue(1, two=[3])

    assert run_tasks().handled == 1
    assert work.seen == [((1,), {"two": [3]})]
    assert rows() == letters() == []
    assert finished(result, "SUCCESSFUL").return_value is None
    assert result.errors == []
    assert run_tasks().handled == 0


@pytest.mark.parametrize(
    "value", [0, "", [1, {"a": None}], {"ä": "\x00"}, True, 1.5, 2**70]
)
def test_return_values(value, run_tasks):
    """They come back as they were returned."""
    result = work.give_back.enqueue(value)
    run_tasks()

    assert finished(result, "SUCCESSFUL").return_value == value
    assert work.give_back.get_result(result.id) == result


def test_a_task_that_enqueues_another(run_tasks):
    """The other one is handled too, and both are in one timeline."""
    result = work.enqueue_other.enqueue(4)
    assert run_tasks().handled == 2

    [status, call] = work.seen
    assert (status, call) == ("READY", ((4,), {}))
    other = finished(result, "SUCCESSFUL").return_value
    assert work.noop.get_result(other).args == [4]
    first, second = StoredTaskResult.objects.order_by("enqueued_at")
    assert first.correlation_id == second.correlation_id


def test_the_channel_in_a_test(run_tasks):
    """A test runs tasks as it runs messages: without a worker."""
    result = work.answer.enqueue()

    assert channels["outbox"].run() == 1
    assert finished(result, "SUCCESSFUL").return_value == 42


# Failure ------------------------------------------------------------------------------


def test_a_task_that_fails(settings, run_tasks):
    """The last failure makes a result with the class and the traceback."""
    settings.TASKS = {"default": patient(1)}
    result = work.fail.enqueue()
    run_tasks()

    [error] = finished(result, "FAILED").errors
    assert error.exception_class is ValueError
    assert error.traceback.endswith("ValueError: This task fails.\n")
    assert "work.py" in error.traceback
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value
    [letter] = letters()
    assert str(letter.message_id) == result.id
    assert letter.endpoint == "django.tasks:default:tests.outbox.tasks.work.fail"
    assert (letter.exception, letter.error) == (
        "builtins.ValueError",
        "This task fails.",
    )


def test_an_exception_in_an_exception(settings, run_tasks):
    """Its text is what Python makes of it."""
    settings.TASKS = {"default": patient(1)}
    result = work.fail_strangely.enqueue()
    run_tasks()

    [error] = finished(result, "FAILED").errors
    assert 'ValueError(ValueError("inside"))' in error.traceback


def test_a_task_that_exits(settings, run_tasks):
    """It fails, and the worker goes on."""
    settings.TASKS = {"default": patient(1)}
    result, after = work.leave.enqueue(), work.answer.enqueue()
    tally = run_tasks()

    assert (tally.handled, tally.failed) == (1, 1)
    [error] = finished(result, "FAILED").errors
    assert error.exception_class is SystemExit
    assert error.traceback.endswith("SystemExit: This task leaves.\n")
    assert finished(after, "SUCCESSFUL").return_value == 42


def test_an_interrupted_worker(run_tasks):
    """Ctrl-C ends the worker; the task has no result, and waits to be tried again."""
    result = work.interrupt.enqueue()

    with pytest.raises(KeyboardInterrupt):
        run_tasks()
    result.refresh()
    assert (result.status, result.attempts) == ("READY", 0)
    assert [row.state for row in rows()] == [State.ABANDONED]


@pytest.mark.parametrize(
    ("task", "kind", "text"),
    [
        (work.give_unsupported, TypeError, "Unsupported type: <class 'object'>"),
        (work.give_nan, ValueError, "Out of range float values"),
    ],
)
def test_a_return_value_without_a_json_form(task, kind, text, run_tasks):
    """The task fails at once: another attempt would return the same."""
    result = task.enqueue()
    assert run_tasks().dead == 1

    [error] = finished(result, "FAILED").errors
    assert error.exception_class is kind
    assert text in error.traceback
    assert f"The return value of the task {task.module_path} has" in error.traceback
    assert numbers() == []
    assert len(letters()) == 1


def test_a_dropped_task(settings, run_tasks):
    """A policy without dead letters leaves the result alone."""
    retry = Retry(attempts=1, final_failure="drop")
    settings.TASKS = {"default": backend(retry=retry)}
    result = work.fail.enqueue()
    run_tasks()

    assert rows() == letters() == []
    assert finished(result, "FAILED").errors


# Retries ------------------------------------------------------------------------------


def test_the_context(run_tasks):
    """A task that takes it sees its own result, and the number of the attempt."""
    result = work.attempts.enqueue(number=1)
    run_tasks(again=2)

    assert work.seen == [(1, "RUNNING", 0), (2, "RUNNING", 1), (3, "RUNNING", 2)]
    assert finished(result, "SUCCESSFUL").return_value == 3
    assert result.attempts == 3


def test_the_context_has_the_id(run_tasks):
    """It is the id that the caller knows."""
    result = work.own_id.enqueue()
    run_tasks()

    assert finished(result, "SUCCESSFUL").return_value == result.id


def test_only_the_newest_errors_are_kept(settings, run_tasks):
    """A task that is retried very often has a result of a limited size."""
    settings.TASKS = {"default": patient(23)}
    result = work.fail.enqueue()
    run_tasks(again=22)

    assert finished(result, "FAILED").attempts == 23
    assert len(result.errors) == 20


# Queues, priorities, times ------------------------------------------------------------


def test_a_worker_of_another_channel(settings, run_tasks):
    """It leaves the task alone."""
    settings.DJANGO_CQRS = {
        "CHANNELS": {
            alias: {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"}
            for alias in ("outbox", "mail")
        }
    }
    settings.TASKS = {"default": {**backend(), "OPTIONS": {}}}
    work.noop.using(queue_name="mail").enqueue(1)

    assert run_tasks().handled == 0
    assert run_tasks(channels=("mail",)).handled == 1
    assert work.noop.get_result(str(StoredTaskResult.objects.get().pk)).task == (
        work.noop.using(queue_name="mail")
    )


def test_a_queue_that_is_gone(settings, run_tasks):
    """The tasks that wait in it are still called, and their results read."""
    result = work.noop.using(queue_name="old").enqueue()
    settings.TASKS = {"default": {**backend(), "QUEUES": ["default"]}}

    assert run_tasks().handled == 1
    assert finished(result, "SUCCESSFUL").task.queue_name == "old"


# Claims -------------------------------------------------------------------------------


# Paths --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("tests.outbox.tasks.gone.noop", "No module named 'tests.outbox.tasks.gone'"),
        ("tests.outbox.tasks.work.gone", 'does not define a "gone" attribute'),
        ("tests.outbox.tasks.work.not_a_task", "is not a task"),
        ("subprocess.run", "is not a task"),
    ],
)
def test_a_path_that_leads_nowhere(path, text, run_tasks):
    """The message becomes a dead letter, and other tasks are handled."""
    result = work.noop.enqueue()
    OutboxMessage.objects.update(endpoint=f"django.tasks:default:{path}")
    after = work.answer.enqueue()
    tally = run_tasks()

    assert (tally.handled, tally.dead) == (1, 1)
    [letter] = letters()
    assert letter.reason == "unknown_endpoint"
    assert text in letter.error
    with pytest.raises(ImportError, match=r"The task .django[.]tasks:default:"):
        work.noop.get_result(result.id)
    assert StoredTaskResult.objects.get(pk=result.id).status == "FAILED"
    assert finished(after, "SUCCESSFUL")


def test_a_backend_that_is_gone(settings, run_tasks):
    """Its messages become dead letters, which can be replayed when it is back."""
    settings.TASKS = {"default": backend(), "second": backend()}
    result = work.answer.using(backend="second").enqueue()
    settings.TASKS = {"default": backend()}
    assert run_tasks().dead == 1
    assert letters()[0].reason == "unknown_endpoint"

    settings.TASKS = {"default": backend(), "second": backend()}
    replay(DeadLetter.objects.all(), using="default")
    assert run_tasks().handled == 1
    assert finished(result, "SUCCESSFUL").return_value == 42
    assert result.backend == result.task.backend == "second"


def test_a_payload_that_is_damaged(run_tasks):
    """It is a dead letter with that reason, and the task was never called."""
    work.noop.enqueue()
    OutboxMessage.objects.update(payload=b'{"args": 7}')
    run_tasks()

    assert letters()[0].reason == "undecodable"
    assert StoredTaskResult.objects.get().status == "FAILED"
    assert work.seen == []


# Signals and logs ---------------------------------------------------------------------


def test_the_signals_of_a_success(signalled, run_tasks, caplog):
    """Started inside the attempt, finished after the commit, each once."""
    result = work.noop.enqueue()
    with caplog.at_level(logging.INFO):
        run_tasks()

    assert [(name, status) for name, _, status, _ in signalled] == [
        ("task_enqueued", "READY"),
        ("task_started", "RUNNING"),
        ("task_finished", "SUCCESSFUL"),
    ]
    assert {(sender, each) for _, sender, _, each in signalled} == {
        ("OutboxTaskBackend", result.id)
    }
    lines = [each for each in caplog.messages if result.id in each]
    assert [line.rpartition("=")[2] for line in lines] == ["RUNNING", "SUCCESSFUL"]
    assert "NoneType" not in caplog.text


def test_the_signals_of_a_failure(settings, signalled, run_tasks, caplog):
    """An attempt that is followed by another finishes nothing."""
    settings.TASKS = {"default": patient(2)}
    work.fail.enqueue()
    with caplog.at_level(logging.INFO):
        run_tasks(again=1)

    assert [(name, status) for name, _, status, _ in signalled] == [
        ("task_enqueued", "READY"),
        ("task_started", "RUNNING"),
        ("task_started", "RUNNING"),
        ("task_finished", "FAILED"),
    ]
    [record] = [
        each
        for each in caplog.records
        if each.name.startswith("django") and "state=FAILED" in each.getMessage()
    ]
    assert record.levelname == "ERROR"
    assert record.exc_info[0] is ValueError


def test_a_receiver_that_fails(run_tasks):
    """It is logged by Django; the task succeeds."""
    signal = from_tasks("signals.task_finished")

    def receive(**_):
        raise ValueError("of a receiver")

    signal.connect(receive)
    try:
        result = work.answer.enqueue()
        assert run_tasks().handled == 1
    finally:
        signal.disconnect(receive)
    assert finished(result, "SUCCESSFUL").return_value == 42


# Results that are not there -----------------------------------------------------------


@pytest.mark.parametrize("key", ["123", "", str(uuid.UUID(int=7)), "x" * 40])
def test_a_missing_result(key):
    """An id that no task has, or that is none."""
    with pytest.raises(DoesNotExist):
        work.noop.get_result(key)
    with pytest.raises(DoesNotExist):
        from_tasks("default_task_backend").get_result(key)


def test_the_id_of_a_command():
    """A message that is no task has no result."""
    own = registry_of(note_work)
    send(own, 1)

    with pytest.raises(DoesNotExist):
        work.noop.get_result(str(rows()[0].message_id))


def test_the_result_of_another_task(run_tasks):
    """Django's own rule holds, before and after the task was called."""
    result = work.noop.enqueue()
    mismatch = from_tasks("exceptions.TaskResultMismatch")

    for _ in range(2):
        with pytest.raises(mismatch, match="Task does not match"):
            work.answer.get_result(result.id)
        run_tasks()


def test_a_deleted_message(run_tasks):
    """A task that was tried, and whose message was deleted, has failed."""
    result = work.fail_once.enqueue()
    run_tasks()
    OutboxMessage.objects.all().delete()

    result.refresh()
    assert (result.status, len(result.errors)) == ("FAILED", 1)


def test_a_worker_of_tasks_deletes_old_results(run_tasks):
    """A project that never prunes has a table of a limited size."""
    old = work.answer.enqueue()
    run_tasks()
    before = datetime.now(UTC) - timedelta(days=15)
    StoredTaskResult.objects.filter(pk=old.id).update(last_attempted_at=before)

    worker = worker_of(registry)
    work.answer.enqueue()
    worker.run_once()
    worker._swept = None
    worker._looked_after = None
    worker.run_once()
    assert StoredTaskResult.objects.count() == 1


# Operators ----------------------------------------------------------------------------


def test_the_journal_and_the_timeline(settings, run_tasks):
    """A task is a message there, under its path."""
    settings.DJANGO_CQRS = {**settings.DJANGO_CQRS, "JOURNAL": 86400}
    result = work.answer.enqueue()
    run_tasks()

    [entry] = JournalEntry.objects.all()
    assert str(entry.message_id) == result.id
    assert entry.endpoint == "django.tasks:default:tests.outbox.tasks.work.answer"
    assert (entry.kind, entry.outcome) == ("command", "handled")
    story = timeline_of([entry.correlation_id], using="default")
    assert [str(each.message_id) for each in story.starts] == [result.id]

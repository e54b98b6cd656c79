"""
Tasks where the database matters: transactions, claims, times, columns.

The groups of behaviours are those of the modules beside this one; these cases run on
every database.
"""

from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import call_command
from django.db import transaction

from django_cqrs import Registry, Retry, command_handler
from django_cqrs.buses.registries import registry
from django_cqrs.exceptions import BrokenTransaction
from django_cqrs.outbox.models import (
    DeadLetter,
    OutboxMessage,
    State,
    StoredTaskResult,
)
from django_cqrs.outbox.store.dead_letters import replay
from django_cqrs.outbox.tasks.djangos import from_tasks
from tests.outbox.support import (
    make_due,
    numbers,
    on_databases,
    registry_of,
    rows,
    send,
    worker_of,
)
from tests.outbox.support import (
    note as note_work,
)
from tests.outbox.support import work as handle
from tests.outbox.tasks import work
from tests.outbox.tasks.conftest import backend
from tests.outbox.work import Work

pytestmark = on_databases

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


def test_many_tasks_in_one_batch(run_tasks):
    """Each has its own result, whatever becomes of the others."""
    good = [work.note.enqueue(number) for number in range(5)]
    bad = [work.note_and_fail.enqueue(number) for number in range(5, 8)]

    tally = run_tasks()
    assert (tally.handled, tally.failed) == (5, 3)
    assert [finished(each, "SUCCESSFUL").return_value for each in good] == [*range(5)]
    for each in bad:
        each.refresh()
        assert each.status == "READY"
        assert each.attempts == len(each.errors) == 1
    assert sorted(numbers()) == [*range(5)]


def test_one_worker_for_both_worlds(run_tasks):
    """Commands and tasks wait in one channel and are handled by one worker."""
    own = registry_of(note_work)
    send(own, 1)
    result = work.note.enqueue(2)
    send(own, 3)

    assert worker_of(own).run().handled == 3
    assert sorted(numbers()) == [1, 2, 3]
    assert finished(result, "SUCCESSFUL").return_value == 2


def test_the_transaction_of_a_task(run_tasks):
    """A task runs in one, so its writes and its result are committed together."""
    result = work.is_in_transaction.enqueue()
    run_tasks()

    assert finished(result, "SUCCESSFUL").return_value is True


def test_outside_a_transaction(settings, run_tasks):
    """With the option, tasks are called in autocommit mode, and keep their results."""
    settings.TASKS = {"default": patient(1, atomic=False)}
    good, bad = work.is_in_transaction.enqueue(), work.note_and_fail.enqueue(7)
    run_tasks()

    assert finished(good, "SUCCESSFUL").return_value is False
    assert finished(bad, "FAILED").errors[0].exception_class is ValueError
    assert numbers() == [7]


def test_a_failed_task_writes_nothing(settings, run_tasks):
    """Its writes are undone with it; its result is kept."""
    settings.TASKS = {"default": patient(1)}
    result = work.note_and_fail.enqueue(1)
    run_tasks()

    assert numbers() == []
    assert finished(result, "FAILED").errors


def test_a_task_that_ends_the_transaction_of_its_worker(settings, run_tasks):
    """It is at fault, and fails; the tasks around it succeed."""
    before = work.note.enqueue(1)
    result = work.commit_itself.enqueue()
    after = work.note.enqueue(2)
    run_tasks()

    [error] = finished(result, "FAILED").errors
    assert error.exception_class is BrokenTransaction
    for each in (before, after):
        assert finished(each, "SUCCESSFUL")


def test_a_task_is_retried(run_tasks):
    """After a failure it is ready again, with its error; later it succeeds."""
    result = work.fail_once.enqueue()
    run_tasks()

    result.refresh()
    assert result.status == "READY"
    assert not result.is_finished
    assert result.finished_at is None
    assert result.attempts == 1
    first = result.started_at
    [error] = result.errors
    assert error.exception_class is ValueError

    make_due()
    run_tasks()
    assert finished(result, "SUCCESSFUL").return_value == "done"
    assert result.attempts == 2
    assert result.started_at == first < result.last_attempted_at
    assert len(result.errors) == 1


def test_a_replayed_task(settings, run_tasks):
    """It waits again, with its errors, and may succeed."""
    settings.TASKS = {"default": patient(1)}
    result = work.fail_once.enqueue()
    run_tasks()
    finished(result, "FAILED")

    replay(DeadLetter.objects.all(), using="default")
    result.refresh()
    assert result.status == "READY"
    assert result.finished_at is None
    assert len(result.errors) == 1
    run_tasks()
    assert finished(result, "SUCCESSFUL").return_value == "done"
    assert result.attempts == 2
    assert len(result.errors) == 1


def test_the_order_of_tasks(run_tasks):
    """Higher priorities come first, and equal ones in the order of enqueueing."""
    for number, priority in enumerate((0, -100, 100, 0, 7)):
        work.noop.using(priority=priority).enqueue(number)
    run_tasks()

    assert [args[0] for args, _ in work.seen] == [2, 4, 0, 3, 1]


def test_a_task_waits_for_its_time(run_tasks):
    """Before it, it is not called, whatever its priority is."""
    later = datetime.now(UTC) + timedelta(hours=1)
    result = work.noop.using(run_after=later, priority=100).enqueue()

    assert run_tasks().handled == 0
    result.refresh()
    assert result.status == "READY"
    make_due()
    assert run_tasks().handled == 1
    assert finished(result, "SUCCESSFUL").task.run_after == later


def test_a_running_task():
    """It is running from the claim of a worker on."""
    result = work.noop.enqueue()
    worker = worker_of(registry)
    worker.store.claim("outbox", limit=1, owner="w:1", lease=timedelta(minutes=1))

    result.refresh()
    assert result.status == "RUNNING"
    assert not result.is_finished


def test_a_task_that_kills_its_workers(settings, run_tasks):
    """It is not called again, and its result says that it was unable to start."""
    settings.TASKS = {"default": patient(1)}
    result = work.noop.enqueue()
    OutboxMessage.objects.update(state=State.ABANDONED, attempts=1)
    assert run_tasks().dead == 1

    result.refresh()
    assert (result.status, result.attempts) == ("FAILED", 0)
    assert result.started_at is result.last_attempted_at is None
    assert result.finished_at is not None
    assert "crashed" in result.errors[0].traceback
    assert work.seen == []


def test_old_results_are_pruned(settings, run_tasks, capsys):
    """After the time in the settings; those of waiting tasks stay."""
    old, new = work.answer.enqueue(), work.answer.enqueue()
    run_tasks()
    before = datetime.now(UTC) - timedelta(days=14, minutes=1)
    StoredTaskResult.objects.filter(pk=old.id).update(last_attempted_at=before)

    call_command("cqrs_prune", dry_run=True)
    assert "Would delete 1 task result." in capsys.readouterr().out
    call_command("cqrs_prune")
    assert "Deleted 1 task result." in capsys.readouterr().out
    with pytest.raises(DoesNotExist):
        old.refresh()
    assert finished(new, "SUCCESSFUL")


async def _enqueue_and_read():
    result = await work.anoop.aenqueue(1)
    read = await work.anoop.aget_result(result.id)
    await result.arefresh()
    return result, read


def test_enqueue_in_async_code():
    """aenqueue(), aget_result() and arefresh() do the same."""
    from asgiref.sync import async_to_sync

    result, read = async_to_sync(_enqueue_and_read)()

    assert read == result
    assert (read.status, read.args) == ("READY", [1])
    assert len(rows()) == 1


def test_a_copy_with_other_options():
    """using() changes the priority, the queue and the time of one call."""
    later = datetime.now(UTC).replace(microsecond=123456) + timedelta(hours=1)
    task = work.noop.using(priority=7, queue_name="slow", run_after=later)
    result = task.enqueue()

    [row] = rows()
    assert (row.priority, row.state) == (7, State.DELAYED)
    assert OutboxMessage.objects.get(available_at=later) == row
    assert result.task == task
    assert work.noop.get_result(result.id).task == task
    assert work.noop.priority == 0


def test_what_a_database_could_not_hold_in_its_own_json(run_tasks):
    """A NUL, and a number of many digits, reach the task as they are."""
    given = ["a\x00b", 2**80, 1e300, "𝄞"]
    result = work.give_back.enqueue(given)
    run_tasks()

    result.refresh()
    assert result.return_value == given


def test_a_transaction_that_is_rolled_back():
    """Nothing is left of the task; inside, its result can be read."""
    with transaction.atomic():
        result = work.noop.enqueue()
        assert work.noop.get_result(result.id).status == "READY"
        transaction.set_rollback(True)

    assert rows() == []
    with pytest.raises(from_tasks("exceptions.TaskResultDoesNotExist")):
        work.noop.get_result(result.id)


def test_inside_a_command():
    """A task is stored with the command's other messages, and read before that."""
    seen = []

    def place(command: Work):
        result = work.noop.enqueue(command.number)
        seen.append((rows(), work.noop.get_result(result.id)))
        if command.how == "fail":
            raise ValueError("no order")

    own = Registry()
    own.add(command_handler(name="place")(place))
    with pytest.raises(ValueError, match="no order"):
        own.command_bus.dispatch(Work(1, "fail"))
    assert rows() == []

    own.command_bus.dispatch(Work(2, "write"))
    [(none, early), (_, result)] = seen
    assert none == []
    assert (early.status, early.args) == ("READY", [1])
    [row] = rows()
    assert str(row.message_id) == result.id
    assert row.causation_id == row.correlation_id != row.message_id


def test_another_database(settings):
    """The option names the database that stores the tasks and their results."""
    settings.TASKS = {"default": backend(using="other")}
    result = work.noop.enqueue(5)

    assert rows() == []
    assert len(rows(using="other")) == 1
    assert handle(registry, using="other").handled == 1
    result.refresh()
    assert (result.status, work.seen) == ("SUCCESSFUL", [((5,), {})])

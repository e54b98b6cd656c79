"""
A backend of ``TASKS`` as callers see it: what is stored, what is refused.

The groups of behaviours that Django's own tests, and those of django-tasks-db, ask of a
backend when a task is enqueued: the result that is returned, sync and async; copies
with ``using()``; priorities, queues and times that are refused, also if the settings
change after the copy was made; arguments without a JSON form; pickled tasks and
results; signals and logs; what a transaction does to it.
"""

import json
import logging
import pickle
from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from django_cqrs.exceptions import InvalidChannel
from django_cqrs.outbox.models import State
from django_cqrs.outbox.tasks import OutboxTaskBackend
from django_cqrs.outbox.tasks.djangos import PACKAGE, InvalidTask, from_tasks
from tests.outbox.support import rows
from tests.outbox.tasks import work
from tests.outbox.tasks.conftest import backend

pytestmark = pytest.mark.django_db(databases=["default", "other"])

ALIKE = ("id", "task", "args", "kwargs", "status", "enqueued_at", "backend", "errors")


def local(hour):
    """Return a time without a zone."""
    return datetime(2026, 7, 1, hour)  # noqa: DTZ001 - as it is


def values(result):
    return {name: getattr(result, name) for name in ALIKE}


def test_the_backend_of_the_settings():
    """TASKS names it by its path, and it says what it can do."""
    found = from_tasks("task_backends")["default"]

    assert isinstance(found, OutboxTaskBackend)
    assert found.alias == "default"
    assert found.supports_defer
    assert found.supports_async_task
    assert found.supports_get_result
    assert found.supports_priority


@pytest.mark.parametrize("task", [work.noop, work.anoop])
def test_enqueue(task):
    """The result is ready, and says what was enqueued; the row has the arguments."""
    before = datetime.now(UTC)
    result = task.enqueue(1, two=(3,))

    assert result.status == "READY"
    assert not result.is_finished
    assert result.task == task
    assert (result.args, result.kwargs) == ([1], {"two": [3]})
    assert (result.attempts, result.errors, result.worker_ids) == (0, [], [])
    assert result.started_at is result.finished_at is result.last_attempted_at is None
    assert before - timedelta(milliseconds=2) <= result.enqueued_at
    with pytest.raises(ValueError, match="Task has not finished yet"):
        _ = result.return_value
    [row] = rows()
    assert str(row.message_id) == result.id
    assert row.channel == "outbox"
    assert row.endpoint == f"django.tasks:default:{task.module_path}"
    assert row.state == State.READY
    assert json.loads(bytes(row.payload)) == {
        "args": [1],
        "kwargs": {"two": [3]},
        "queue_name": "default",
    }


def test_the_stored_result_is_the_returned_one():
    """What is read of a task at once is equal, also after a refresh."""
    result = work.noop.enqueue("ä", deep={"a": [None, True, 1.5]})

    read = work.noop.get_result(result.id)
    assert values(read) == values(result)
    result.refresh()
    assert values(read) == values(result)


def test_a_time_in_the_past_is_no_delay():
    """A task that may run already is ready at once."""
    past = datetime.now(UTC) - timedelta(hours=1)
    result = work.noop.using(run_after=past).enqueue()

    assert rows()[0].state == State.READY
    assert work.noop.get_result(result.id).task.run_after == past


def test_local_times(settings):
    """Without time zones in the project, tasks have local times."""
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"
    with time_machine.travel(datetime(2026, 7, 1, 10, tzinfo=UTC), tick=False):
        result = work.noop.using(run_after=local(13)).enqueue()

        assert result.enqueued_at == local(12)
        read = work.noop.get_result(result.id)
        assert read.enqueued_at == local(12)
        assert read.task.run_after == local(13)
        assert rows()[0].state == State.DELAYED


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"priority": 101}, "priority must be a whole number between -100 and 100"),
        ({"priority": -101}, "priority must be a whole number between -100 and 100"),
        ({"priority": 1.5}, "priority must be a whole number between -100 and 100"),
        ({"run_after": local(0)}, "run_after must be an aware datetime"),
        ({"queue_name": "none"}, "Queue 'none' is not valid for backend"),
    ],
)
def test_what_a_task_cannot_have(settings, options, text):
    """Django's own rules hold: nothing is stored."""
    settings.TASKS = {"default": {**backend(), "QUEUES": ["default"]}}

    with pytest.raises(InvalidTask, match=text):
        work.noop.using(**options).enqueue()
    assert rows() == []


@pytest.mark.parametrize("priority", [-100, 100])
def test_the_extreme_priorities(priority):
    """Both ends of the range are stored as they are."""
    work.noop.using(priority=priority).enqueue()

    assert rows()[0].priority == priority


def test_settings_that_changed_since_the_copy_was_made(settings):
    """A task is validated when it is enqueued as well."""
    task = work.noop.using(queue_name="gone")
    settings.TASKS = {"default": {**backend(), "QUEUES": ["default"]}}

    with pytest.raises(InvalidTask, match="Queue 'gone' is not valid for backend"):
        task.enqueue()
    assert rows() == []


def test_a_queue_is_a_channel(settings):
    """Without the option, the channel has the name of the queue."""
    settings.TASKS = {"default": {**backend(), "OPTIONS": {}}}
    work.noop.using(queue_name="outbox").enqueue()

    assert [row.channel for row in rows()] == ["outbox"]


def test_a_queue_without_a_channel(settings):
    """It is refused with the names of the task, the backend and the queue."""
    settings.TASKS = {"default": {**backend(), "OPTIONS": {}}}

    with pytest.raises(InvalidChannel) as caught:
        work.noop.using(queue_name="outbix").enqueue()
    assert str(caught.value) == (
        "The task tests.outbox.tasks.work.noop cannot be stored: the task backend "
        "'default' has no channel for the queue 'outbix'. Channel 'outbix' is not in "
        "DJANGO_CQRS['CHANNELS']. Did you mean 'outbox'?"
    )
    assert rows() == []


# Arguments ----------------------------------------------------------------------------


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


FORMS = "Give text, numbers, True, False, None, or lists and dicts of these."


@pytest.mark.parametrize(
    ("call", "kind", "where", "fault"),
    [
        (
            lambda: work.noop.enqueue(1, local(0)),
            TypeError,
            "its argument 2",
            "Unsupported type: <class 'datetime.datetime'>",
        ),
        (
            lambda: work.noop.enqueue(one={"a": [object]}),
            TypeError,
            "its argument 'one'",
            "Unsupported type: <class 'type'>",
        ),
        (
            lambda: work.noop.enqueue(b"\xff"),
            ValueError,
            "its argument 1",
            "Unsupported value: <class 'bytes'>",
        ),
        (
            lambda: work.noop.enqueue(one=1, two="\ud800"),
            ValueError,
            "its argument 'two'",
            "a text has an incomplete character (a lone surrogate)",
        ),
        (
            lambda: work.noop.enqueue(deep(500)),
            ValueError,
            "its argument 1",
            "it is nested too deeply",
        ),
    ],
)
def test_an_argument_without_a_json_form(call, kind, where, fault):
    """It is named, and nothing is stored."""
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == (
        "The task tests.outbox.tasks.work.noop cannot be enqueued, because "
        f"{where} has no JSON form: {fault}. {FORMS}"
    )
    assert rows() == []


def test_a_number_without_a_json_form():
    """JSON has no NaN, and no database's JSON has one either."""
    with pytest.raises(ValueError, match="its argument 1 has no JSON form"):
        work.noop.enqueue([float("nan")])
    assert rows() == []


def test_an_argument_without_a_json_form_in_async_code():
    """aenqueue() refuses it too."""
    from asgiref.sync import async_to_sync

    with pytest.raises(TypeError, match="Unsupported type"):
        async_to_sync(work.noop.aenqueue)(local(0))
    assert rows() == []


# Paths --------------------------------------------------------------------------------


def test_a_task_that_no_worker_could_import():
    """Its path must lead to a task: that of a plain function is refused at once."""
    hidden = from_tasks("task")(work.not_a_task)

    with pytest.raises(InvalidTask) as caught:
        hidden.enqueue()
    assert str(caught.value) == (
        "The task 'django.tasks:default:tests.outbox.tasks.work.not_a_task' cannot be "
        "called: tests.outbox.tasks.work.not_a_task is not a task. Decorate it with "
        "@task."
    )
    assert rows() == []


def test_a_path_that_is_too_long(settings):
    """The backend's alias and the task's path must fit into their column."""
    alias = "a" * 230
    settings.TASKS = {"default": backend(), alias: backend()}

    with pytest.raises(
        InvalidTask, match="it has 272 characters, and the outbox stores"
    ):
        work.noop.using(backend=alias).enqueue()
    assert rows() == []


@pytest.mark.skipif(PACKAGE == "django_tasks", reason="The backport pickles none.")
def test_pickled_tasks_and_results():
    """Both can be passed to another process."""
    result = work.noop.using(priority=3).enqueue(1)
    copy = pickle.loads(pickle.dumps(result))

    assert copy == result
    copy.refresh()
    assert copy.status == "READY"


# Transactions -------------------------------------------------------------------------


# Signals and logs ---------------------------------------------------------------------


def test_the_signal_and_the_log(signalled, caplog):
    """Django's own signal is sent once, and its logger has a line."""
    with caplog.at_level(logging.DEBUG, logger=PACKAGE):
        result = work.noop.enqueue()

    assert signalled == [("task_enqueued", "OutboxTaskBackend", "READY", result.id)]
    [line] = [each for each in caplog.messages if "enqueued" in each]
    assert result.id in line


def test_nothing_is_said_of_a_refused_task(signalled):
    """The signal is of tasks that were stored."""
    with pytest.raises(TypeError):
        work.noop.enqueue(object())

    assert signalled == []

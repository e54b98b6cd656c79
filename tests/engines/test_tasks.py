"""TasksChannel: its options and its checks."""

import pytest
from django.core.checks import run_checks
from django.utils.module_loading import import_string

from django_cqrs.engines.tasks import TasksChannel
from tests.engines.support import channel, forward
from tests.outbox.support import note, on_databases, registry_of, send

pytestmark = on_databases

HINT = (
    'Name an alias of TASKS, and one of its QUEUES: "OPTIONS": '
    '{"backend": "default", "queue": "mail"}.'
)


def reported():
    return [(each.id, each.msg, each.hint) for each in run_checks(tags=["django_cqrs"])]


def test_the_defaults(settings):
    """Without options it is the default backend, and its default queue."""
    from django_tasks_db.models import DBTaskResult

    backend = "django_cqrs.engines.tasks.TasksChannel"
    settings.DJANGO_CQRS = {"CHANNELS": {"outbox": {"BACKEND": backend}}}
    registry = registry_of(note)
    send(registry, 1)

    assert forward(registry) == 1
    [result] = DBTaskResult.objects.all()
    assert (result.backend_name, result.queue_name) == ("default", "default")
    assert reported() == []


def test_a_worker_finds_the_task(tasks_engine):
    """Under its path there is the task itself, of the channel's backend and queue."""
    task = import_string("django_cqrs.engines.tasks.handle_messages")

    assert task is channel().task
    assert task.module_path == "django_cqrs.engines.tasks.handle_messages"
    assert (task.backend, task.queue_name) == ("default", "mail")


def test_without_a_channel_there_is_no_task(settings):
    """Its module has no such name then, and none that it never had."""
    settings.DJANGO_CQRS = {"CHANNELS": {}}

    for name in ("handle_messages", "nonsense"):
        with pytest.raises(ImportError):
            import_string(f"django_cqrs.engines.tasks.{name}")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"queue": "none"}, "Queue 'none' is not valid for backend."),
        ({"backend": "none"}, "The connection 'none' doesn't exist."),
    ],
)
def test_django_cqrs_engines_e002_no_such_queue(
    tasks_engine, with_options, options, text
):
    """A backend or a queue that TASKS does not have is reported, not raised."""
    with_options(**options)
    assert isinstance(channel(), TasksChannel)

    backend = options.get("backend", "default")
    assert reported() == [
        (
            "django_cqrs_engines.E002",
            f"The channel 'outbox' has no task in the backend {backend!r}: {text}",
            HINT,
        )
    ]

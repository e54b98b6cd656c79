"""Tasks beside what operators and handlers have for messages."""

import pytest
from django.core.management import CommandError, call_command

from django_cqrs import Registry, Retry, event_handler
from django_cqrs.given_up import MessageGaveUp
from django_cqrs.outbox.models import OutboxMessage
from django_cqrs.outbox.outcomes import outcome_of
from tests.outbox.support import worker_of
from tests.outbox.tasks import work
from tests.outbox.tasks.conftest import backend

pytestmark = pytest.mark.django_db(databases=["default", "other"])


def test_a_task_that_is_given_up_is_an_event(settings):
    """A handler of MessageGaveUp takes tasks too, with their endpoint's name."""
    settings.TASKS = {"default": backend(retry=Retry(attempts=1))}
    found = []

    @event_handler
    def note(event: MessageGaveUp) -> None:
        found.append(event)

    own = Registry()
    own.add(note)
    work.fail.enqueue()
    worker_of(own).run()

    [event] = found
    assert event.endpoint == "django.tasks:default:tests.outbox.tasks.work.fail"
    assert (event.exception, event.attempts) == ("builtins.ValueError", 1)


def test_a_deployment_without_the_task(capsys):
    """The check before a deployment knows the tasks that this code can call."""
    work.noop.enqueue()
    call_command("cqrs_check_deployed")

    OutboxMessage.objects.update(endpoint="django.tasks:default:shop.gone")
    with pytest.raises(CommandError, match="1 of 1 stored messages"):
        call_command("cqrs_check_deployed")
    printed = capsys.readouterr()
    assert "django.tasks:default:shop.gone" in printed.out + printed.err


def test_the_outcome_of_a_task():
    """Its id is that of a message, so it has an outcome like every message."""
    result = work.fail.enqueue()

    assert outcome_of(result.id).status == "waiting"

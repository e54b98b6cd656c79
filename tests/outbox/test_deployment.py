"""What of the stored messages new code could not handle."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
from django.core.management import CommandError, call_command

from django_cqrs import command_handler, message
from django_cqrs.outbox.deployment import stored_kinds
from django_cqrs.outbox.models import DeadLetter, OutboxMessage
from tests.outbox.support import registry_of, send
from tests.outbox.work import Work
from tests.support import registry_of as registry_of_all

pytestmark = pytest.mark.django_db


def act(command: Work): ...


@pytest.fixture
def registry(monkeypatch):
    registry = registry_of(act)
    monkeypatch.setattr("django_cqrs.buses.registry", registry)
    return registry


def checked(*arguments):
    """Return the exit code of the command, and what it said."""
    out = io.StringIO()
    try:
        call_command("cqrs_check_deployed", *arguments, stdout=out)
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}{error}"
    return 0, out.getvalue()


def bury(row):
    """Make a dead letter of a message."""
    shared = {
        field.name: getattr(row, field.name)
        for field in DeadLetter._meta.fields
        if field.name != "id" and hasattr(row, field.name)
    }
    row.delete()
    return DeadLetter.objects.create(**shared, reason="failed", failed_at=row.sent_at)


def test_what_this_code_can_handle_is_no_obstacle(registry):
    """The command says how much it has counted, and exits with 0."""
    send(registry, 1, 2)

    assert checked() == (0, "This code can handle all 2 stored messages.\n")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"endpoint": "gone"}, "No handler has the endpoint name 'gone'"),
        ({"name": "gone"}, "No registered message class is named 'gone'"),
        ({"channel": "gone"}, "gone"),
        ({"channel": "memory"}, "is not an outbox"),
        ({"version": 7}, "was stored in version 7, but"),
    ],
    ids=str,
)
def test_what_this_code_does_not_know_is_counted(registry, changes, said):
    """Exit code 1, the number of messages, and what each kind of them lacks."""
    send(registry, 1, 2, 3)
    first = OutboxMessage.objects.order_by("pk").first()
    OutboxMessage.objects.exclude(pk=first.pk).update(**changes)

    code, text = checked()

    assert code == 1
    assert "This code cannot handle 2 of 3 stored messages." in text
    assert said in text
    assert "waiting" in text


def test_a_broken_handler_cannot_handle_its_messages(registry, monkeypatch):
    """Its declaration is what manage.py check would report."""
    send(registry, 1)

    @command_handler(name="act", channel="outbox")
    def broken(command: Work, what) -> None: ...

    monkeypatch.setattr("django_cqrs.buses.registry", registry_of_all(broken))

    code, text = checked()
    assert code == 1
    assert "E005" in text


def test_an_old_name_and_an_older_version_are_known(monkeypatch):
    """aliases= and upcasters are for that."""

    @message("deployment.now", version=3, aliases=["deployment.before"])
    @dataclass(frozen=True)
    class Now:
        pass

    @command_handler(
        name="deployment.new", aliases=["deployment.old"], channel="outbox"
    )
    def handle(command: Now) -> None: ...

    registry = registry_of_all(handle)
    monkeypatch.setattr("django_cqrs.buses.registry", registry)
    registry.command_bus.dispatch(Now())
    OutboxMessage.objects.update(
        endpoint="deployment.old", name="deployment.before", version=1
    )

    assert checked()[0] == 0


def test_dead_letters_are_counted_if_asked(registry):
    """They wait for nobody, but could not be replayed."""
    send(registry, 1)
    row = OutboxMessage.objects.get()
    row.endpoint = "gone"
    bury(row)

    assert checked()[0] == 0
    code, text = checked("--dead-letters")
    assert code == 1
    assert "dead" in text
    [kind] = stored_kinds(dead_letters=True)
    assert (kind.is_dead, kind.count, kind.endpoint) == (True, 1, "gone")


def test_plain_values_have_no_name(registry):
    """Their endpoint alone is looked up."""

    @command_handler("deployment.value", name="deployment.value", channel="outbox")
    def value(number: int) -> None: ...

    registry.add(value)
    registry.command_bus.dispatch(7, route="deployment.value")

    assert checked()[0] == 0
    assert stored_kinds()[0].name == ""

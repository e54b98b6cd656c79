"""``manage.py cqrs_worker``: what it prints, refuses, and where it stops."""

import errno
import io

import pytest
from django.core.management import CommandError, call_command

from django_cqrs import Retry, command_handler
from django_cqrs.buses import registry as project
from django_cqrs.outbox.models import OutboxMessage
from tests.outbox.support import letters, note, numbers, on_databases, rows, send
from tests.outbox.work import Work

pytestmark = on_databases


@pytest.fixture
def registry(monkeypatch):
    """The registry of the command, with handlers of these tests."""
    from django_cqrs import Registry

    found = Registry()

    @found.add
    @command_handler(
        name="do",
        channel="outbox",
        retry=Retry(attempts=1, final_failure="dead_letter"),
    )
    def do(command: Work):
        note(command)
        if command.how == "fail":
            raise ValueError(command.number)

    monkeypatch.setattr(
        "django_cqrs.outbox.management.commands.cqrs_worker.registry", found
    )
    assert project is not found
    return found


def run(*arguments, **options):
    """Return what the command prints, and where it fails, that as well."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("cqrs_worker", *arguments, stdout=out, stderr=err, **options)
    except CommandError as error:
        return out.getvalue(), str(error)
    return out.getvalue(), ""


def test_until_nothing_is_ready(registry):
    """It says what it handles, and at its end what it has done. [C09.1]"""
    send(registry, 1, 2)
    send(registry, 3, how="fail")

    assert run("outbox", "--until-empty") == (
        "Handling outbox of 'default'.\n2 handled, 1 failed, 1 dead, 0 expired.\n",
        "",
    )
    assert numbers() == [1, 2]


def test_until_so_many(registry):
    """What was not begun waits for the next one. [C09.1]"""
    send(registry, 1, 2, 3)

    assert run("outbox", max_messages=2) == (
        "Handling outbox of 'default'.\n2 handled, 0 failed, 0 dead, 0 expired.\n",
        "",
    )
    assert len(rows()) == 1


def test_until_a_time(registry):
    """It waits for messages as long as it may. [C09.1]"""
    assert run("outbox", "--max-seconds", "0.2", "--database", "other") == (
        "Handling outbox of 'other'.\n0 handled, 0 failed, 0 dead, 0 expired.\n",
        "",
    )


def test_until_a_failure(registry):
    """The first failure ends it with exit code 1. [C09.1]"""
    send(registry, 1, how="fail")
    send(registry, 2)

    assert run("outbox", "--stop-on-failure") == (
        "Handling outbox of 'default'.\n0 handled, 1 failed, 1 dead, 0 expired.\n",
        "do failed with ValueError. The worker stops.",
    )
    assert len(letters()) == 1
    assert len(rows()) == 1


def test_quietly(registry):
    """With --verbosity 0 nothing is printed."""
    send(registry, 1)

    assert run("outbox", "--until-empty", verbosity=0) == ("", "")
    assert OutboxMessage.objects.count() == 0


def test_an_unknown_channel():
    """An alias that is none is refused, with the one that was probably meant."""
    assert run("outbx") == (
        "",
        "Channel 'outbx' is not in DJANGO_CQRS['CHANNELS']. Did you mean 'outbox'?",
    )


def test_a_channel_that_is_no_outbox():
    """Where nothing is stored there is nothing to handle."""
    assert run("memory") == (
        "",
        (
            "<InMemoryChannel 'memory'> is not an outbox: it stores no messages for a "
            "worker."
        ),
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Give the aliases of the channels to handle, or --all for all of them."),
        (["outbox", "--batch", "0"], "'0' is not a whole number of at least 1."),
        (["outbox", "--lease", "0"], "'0' is not a number of seconds above 0."),
        (["outbox", "--lease", "nan"], "'nan' is not a number of seconds above 0."),
        (["outbox", "--max-seconds", "x"], "'x' is not a number of seconds above 0."),
        (["outbox", "--database", "none"], "invalid choice: 'none'"),
    ],
)
def test_arguments_that_mean_nothing(arguments, text):
    """They are refused with what is wanted."""
    _, error = run(*arguments)

    assert text in error


def test_a_worker_that_leaves_messages_to_an_outage_ends_with_an_error(registry):
    """With `--until-empty`, so that who waits for it knows; nothing is used up."""

    @registry.add
    @command_handler("fill", name="fill", channel="outbox")
    def fill(number: int):
        raise OSError(errno.ENOSPC, "No space left on device")

    registry.command_bus.dispatch(1, route="fill")
    registry.command_bus.dispatch(2, route="fill")

    assert run("outbox", "--until-empty") == (
        "Handling outbox of 'default'.\n0 handled, 1 failed, 0 dead, 0 expired.\n",
        (
            "outbox: messages remain because the channel is paused: OSError: [Errno "
            "28] No space left on device."
        ),
    )
    assert [row.attempts for row in rows()] == [0, 0]

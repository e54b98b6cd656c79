"""``manage.py cqrs_worker`` on a channel with an engine: the same command, another verb."""

import pytest

from django_cqrs import Registry
from tests.engines.support import consume
from tests.outbox.support import note, numbers, on_databases, registry_of, send
from tests.outbox.worker.test_worker_command import run

pytestmark = on_databases

OUTBOX = {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"}


@pytest.fixture
def registry(monkeypatch):
    """The registry of the command, with a handler of these tests."""
    found = registry_of(note)
    assert isinstance(found, Registry)
    monkeypatch.setattr(
        "django_cqrs.outbox.management.commands.cqrs_worker.registry", found
    )
    return found


def test_it_forwards(engine, registry):
    """It says so, and how many messages."""
    send(registry, 1, 2, 3)

    assert run("outbox", "--until-empty") == (
        "Forwarding outbox of 'default'.\n3 forwarded.\n",
        "",
    )
    consume(engine, registry)
    assert numbers() == [1, 2, 3]


def test_it_forwards_so_many(engine, registry):
    """The bounds of a worker are those of a relay."""
    send(registry, 1, 2, 3)

    assert run("outbox", "--max-messages", "2") == (
        "Forwarding outbox of 'default'.\n2 forwarded.\n",
        "",
    )


def test_one_worker_for_both_kinds(engine, registry, settings):
    """Channels with an engine and without may be given to one worker."""
    channels = settings.DJANGO_CQRS["CHANNELS"]
    settings.DJANGO_CQRS = {"CHANNELS": {**channels, "plain": OUTBOX}}
    send(registry, 1, 2, 3)

    assert run("plain", "outbox", "--until-empty") == (
        (
            "Handling plain of 'default'.\nForwarding outbox of 'default'.\n"
            "3 forwarded, 0 handled, 0 failed, 0 dead, 0 expired.\n"
        ),
        "",
    )

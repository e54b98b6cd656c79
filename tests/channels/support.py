"""What the tests of channels share: messages, handlers, and ways to look."""

import json
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

import pytest
from django.db import transaction

from django_cqrs import Registry, command_handler, event_handler, message
from django_cqrs.channels import InMemoryChannel, channels
from tests.testapp.models import Note

IN_MEMORY = {"BACKEND": "django_cqrs.channels.InMemoryChannel"}
ON_COMMIT = {"BACKEND": "django_cqrs.channels.OnCommitChannel"}

CHANNELS = {
    "default": IN_MEMORY,
    "mail": IN_MEMORY,
    "commit": ON_COMMIT,
}


class Refused(Exception):
    """What a handler here raises on purpose."""


@message("channels.line")
@dataclass(frozen=True)
class Line:
    product: UUID
    price: Decimal = Decimal("1.50")


@message("channels.gift_line")
@dataclass(frozen=True)
class GiftLine(Line):
    wish: str = ""


@message("channels.write", version=2, aliases=["channels.scribble"])
@dataclass(frozen=True)
class Write:
    text: str = "written"
    number: float = 0


@message("channels.act")
@dataclass(frozen=True)
class Act:
    """A command that is handled at once: it does what it carries."""

    steps: object


@message("channels.act_elsewhere")
@dataclass(frozen=True)
class ActElsewhere:
    """The same on the other database."""

    steps: object


@message("channels.placed")
@dataclass(frozen=True)
class Placed:
    number: int = 0
    lines: tuple[Line, ...] = ()
    at: datetime | None = None


def make_registry(seen):
    """Return handlers on each channel: each writes a row, and what it handled in `seen`."""
    registry = Registry()

    def handle(text):
        Note.objects.create(text=f"handled {text}")
        seen.append(text)
        if text == "bad":
            raise Refused

    @registry.add
    @command_handler(name="write", channel=True)
    @command_handler("write")
    def write(command: Write):
        handle(command.text)

    @registry.add
    @command_handler("write.commit", name="write_on_commit", channel="commit")
    def write_on_commit(command: Write):
        handle(command.text)

    @registry.add
    @event_handler(name="on_placed", channel=True)
    def on_placed(event: Placed):
        handle(f"placed {event.number}")

    @registry.add
    @command_handler
    def act(command: Act):
        return command.steps()

    @registry.add
    @command_handler(using="other")
    def act_elsewhere(command: ActElsewhere):
        return command.steps()

    return registry


def texts(using="default"):
    return sorted(Note.objects.using(using).values_list("text", flat=True))


def waiting(alias="default"):
    channel = channels[alias]
    assert isinstance(channel, InMemoryChannel)
    return channel.waiting()


def payloads(alias="default"):
    return [json.loads(envelope.payload) for envelope in waiting(alias)]


def undone(steps):
    """Do steps in a block of the user's own that fails and whose failure is caught."""

    @transaction.atomic
    def block():
        steps()
        raise Refused

    with pytest.raises(Refused):
        block()


def caught(steps):
    with pytest.raises(Refused):
        steps()


def fail():
    raise Refused

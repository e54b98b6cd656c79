"""Tell a project's handlers that a message is given up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

from django.core.exceptions import ImproperlyConfigured

from django_cqrs.buses.commands import CommandBus
from django_cqrs.buses.events import EventBus
from django_cqrs.channels.channel import Envelope
from django_cqrs.declaration.declarations import Kind
from django_cqrs.exceptions import CQRSError
from django_cqrs.given_up import MessageGaveUp
from django_cqrs.messages import Message
from django_cqrs.pipeline.notices import (
    earlier_in,
    is_about_notice,
    message_about,
    read_payload,
    user_headers_of,
)
from django_cqrs.routing.endpoint import Endpoint, Run
from django_cqrs.routing.table import RouteTable


class Teller(Protocol):
    """The part of a registry that is used here."""

    command_bus: CommandBus
    event_bus: EventBus
    _taps: list[Any]

    @property
    def routes(self) -> RouteTable:
        """The route table."""
        ...

    def with_taps(self, kind: Kind, run: Run) -> Run:
        """Return `run` preceded by the observers of every message."""
        ...


class Notice(NamedTuple):
    """One handler that is told of a message that is given up."""

    endpoint: Endpoint
    run: Run
    """Calls the handler, or sends to its channel; takes a message of its own."""


class GaveUp(NamedTuple):
    """A message that is given up, and those who are told."""

    message: Message
    """The message about it. Each handler gets a copy."""
    notices: list[Notice]


class Farewell(NamedTuple):
    """The facts about a message that is given up."""

    envelope: Envelope
    channel: str
    exception: str
    error: str
    attempts: int
    reason: str
    dead_letter_id: int | None = None


def are_told(registry: Teller, envelope: Envelope) -> bool:
    """Return whether anybody is told if a message is given up."""
    table = registry.routes
    if _on_dead(table, envelope) is not None:
        return True
    if not _is_published(table, envelope):
        return False
    return bool(registry._taps) or table.has_subscribers(MessageGaveUp)


def gave_up(registry: Teller, facts: Farewell, using: str) -> GaveUp:
    """
    Return the message about a message that is given up, and those who are told.

    Args:
        registry: the registry with the handlers.
        facts: the facts about it.
        using: the alias of the database that a command's handler uses if it names none.

    """
    table, envelope = registry.routes, facts.envelope
    on_dead = _on_dead(table, envelope)
    cls = on_dead if isinstance(on_dead, type) else MessageGaveUp
    payload, name, version = read_payload(table, envelope)
    event = cls(
        endpoint=envelope.endpoint,
        payload=payload,
        name=name,
        version=version,
        headers=user_headers_of(envelope),
        exception=facts.exception,
        error=facts.error,
        attempts=facts.attempts,
        reason=facts.reason,
        dead_letter_id=facts.dead_letter_id,
        message_id=envelope.message_id,
        channel=facts.channel,
    )
    message = message_about(envelope, event)
    message.message_id  # noqa: B018 - the copies share it
    notices = list(_notices(registry, facts.envelope, event, on_dead, using))
    for kind in dict.fromkeys(each.endpoint.kind for each in notices) or (Kind.EVENT,):
        if kind is Kind.EVENT:  # the run of a command has its taps
            registry.with_taps(kind, _do_nothing)(message)
    return GaveUp(message, notices)


def _notices(
    registry: Teller,
    envelope: Envelope,
    event: MessageGaveUp,
    on_dead: str | type | None,
    using: str,
) -> Iterator[Notice]:
    table, route = registry.routes, on_dead if isinstance(on_dead, str) else None
    commands = () if route is None else table.commands_of(route)
    is_published = isinstance(on_dead, type) or _is_published(table, envelope)
    for endpoint in table.told_of(
        event if is_published else None, None if commands else route
    ):
        yield _notice(registry, endpoint, partial(_run_of_event, registry, event))
    for endpoint in commands:
        yield _notice(
            registry, endpoint, partial(_run_of_command, registry, event, using)
        )


def _notice(
    registry: Teller, endpoint: Endpoint, run_of: Callable[[Endpoint], Run]
) -> Notice:
    """Return the notice of one handler; one that is broken raises when it is told."""
    try:
        return Notice(endpoint, run_of(registry.routes.ensure_sound(endpoint)))
    except (CQRSError, ImproperlyConfigured) as error:
        return Notice(endpoint, partial(_raise, error))


def _run_of_event(registry: Teller, event: Any, endpoint: Endpoint) -> Run:
    return registry.event_bus.run_for(endpoint, event)


def _run_of_command(
    registry: Teller, event: Any, using: str, endpoint: Endpoint
) -> Run:
    has_own = endpoint.policies.using is not None or endpoint.subject is not None
    alias = None if has_own or endpoint.channel is not None else using
    return registry.command_bus.run_for(endpoint, event, alias)


def _raise(error: Exception, _message: Message) -> None:
    raise error


def _on_dead(table: RouteTable, envelope: Envelope) -> str | type[MessageGaveUp] | None:
    if envelope.endpoint in earlier_in(envelope):  # as for the event
        return None
    try:
        endpoint = table.endpoint_named(envelope.endpoint)
    except CQRSError:  # nobody has it
        return None
    on_dead: str | type[MessageGaveUp] | None = endpoint.policies.on_dead
    return on_dead


def _is_published(table: RouteTable, envelope: Envelope) -> bool:
    """
    Return whether the event is published for a message.

    It is not published for itself, nor a second time for an endpoint in one chain: its
    handlers would send what fails in the same way, without an end.
    """
    if is_about_notice(envelope, table.types):
        return False
    return envelope.endpoint not in earlier_in(envelope)


def _do_nothing(_message: Message) -> None:
    """Take the place of the handlers."""

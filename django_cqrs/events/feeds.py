"""Feeds: projections that send stored events to a channel, in the order of streams."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from django_cqrs.annotations import LOCAL
from django_cqrs.buses.registries import Registry
from django_cqrs.channels.aliases import channels
from django_cqrs.channels.channel import Delivery, Envelope, next_sequence
from django_cqrs.declaration.declarations import (
    MARK,
    STAND_IN,
    Declaration,
    Kind,
    Policies,
    take_role,
)
from django_cqrs.declaration.decorators import event_handler
from django_cqrs.declaration.key_sources import storable_key
from django_cqrs.events.decoding import TAGS, headers_in
from django_cqrs.events.projecting import (
    ProjectionOptions,
    ProjectionRole,
    Start,
    as_tuple,
    options_of,
    refuse_bad_values,
)
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.rules import ProjectionRule
from django_cqrs.exceptions import (
    InvalidChannel,
    InvalidOption,
    ReplayForbidden,
    UnknownEndpoint,
)
from django_cqrs.messages import Message, aggregate_headers_of
from django_cqrs.pipeline.outlet import Deliverer
from django_cqrs.pipeline.scopes import send
from django_cqrs.pipeline.tenancy import tenancy
from django_cqrs.problems import Problem, add_problem_finder
from django_cqrs.retries import Retry
from django_cqrs.routing.endpoints import PATTERN_SIGNS

H = TypeVar("H", bound=Callable[..., Any])

STREAM_HEADER: Final = "stored_stream"
VERSION_HEADER: Final = "stored_version"
POSITION_HEADER: Final = "stored_position"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FeedOptions(ProjectionOptions):
    """The declaration of one feed."""

    target: str
    """The alias of the channel that it sends to."""


class Feed:
    """
    A projection that sends stored events to a channel, each once.

    The events of a stream stay in order: the name of the stream is their ordering key.
    They are sent as they are stored, with their ids and headers; ``stored_stream``,
    ``stored_version`` and ``stored_position`` are added. Position and messages commit
    together. It is found in a ``handlers`` module, as a projection is.
    """

    def __init__(
        self,
        name: str,
        /,
        *,
        channel: str,
        names: Sequence[str] = (),
        sources: Sequence[Any] = (),
        worker: str | None = None,
        batch: int | None = None,
        start: Start = "beginning",
        retry: Retry | None = None,
    ) -> None:
        """
        Declare a feed.

        Args:
            name: unique among projections; also the name of the endpoint that its
                messages are for.
            channel: the alias of the channel that it sends to.
            names: the names of the events, or patterns of them such as ``"order.*"``;
                by default all.
            sources: event-sourced classes, and the names of categories and streams,
                whose events it sends; by default all.
            worker: the alias of the channel whose worker follows the events for it, by
                default that of `channel`.
            batch: the maximum number of events in one transaction, by default
                ``PROJECTION_BATCH``.
            start: the first event: of the ``"beginning"``, from ``"now"`` on, or none
                until ``cqrs_projections init`` (``"manual"``).
            retry: the pauses after a failed batch, which is never given up.

        Raises:
            InvalidOption: a value cannot be used.

        """
        options = FeedOptions(
            name=name,
            channel=channel if worker is None else worker,
            target=channel,
            sources=as_tuple(sources, "sources"),
            batch=batch,
            start=start,
            retry=retry,
        )
        refuse_bad_values(options)
        if PATTERN_SIGNS & set(name):
            msg = f"{name!r} cannot be the name of a feed: it looks like a pattern."
            raise InvalidOption(msg)
        if not isinstance(channel, str) or not channel:
            msg = f"Feed {name!r} has channel={channel!r}: it takes an alias."
            raise InvalidOption(msg)
        wanted = as_tuple(names, "names")
        for each in wanted:
            if not isinstance(each, str) or not each:
                msg = f"Feed {name!r} takes the names of events, not {each!r}."
                raise InvalidOption(msg)
        self.name = name
        self.channel = channel
        caller = sys._getframe(1)
        made = _class_of(options, wanted)
        made.__module__ = str(caller.f_globals.get("__name__", __name__))
        made.__doc__ = f"Sends events to the channel {channel!r}."
        if caller.f_code.co_name != "<module>":
            made.__qualname__ = f"{caller.f_code.co_name}.{LOCAL}.{made.__name__}"
        setattr(self, STAND_IN, take_role(made, ProjectionRole(options)))

    def handler(
        self, *, retry: Retry | None = None, on_dead: str | type | None = None
    ) -> Callable[[H], H]:
        """
        Declare the handler of its messages, for a channel whose worker calls handlers.

        It is an event handler of this feed alone: ``@orders_out.handler()``.

        Args:
            retry: the policy for messages whose handling failed.
            on_dead: the address that is told if a message is given up.

        """
        return event_handler(
            self.name,
            name=self.name,
            channel=self.channel,
            ordering_key=_stream_of,
            retry=retry,
            on_dead=on_dead,
        )

    def __repr__(self) -> str:
        """Return its name and its channel."""
        return f"<Feed {self.name!r} to {self.channel!r}>"


def _stream_of(message: Message) -> Any:
    return aggregate_headers_of(message).get(STREAM_HEADER)


def _class_of(options: FeedOptions, names: Sequence[str]) -> Any:
    """Return a class whose only event handler sends the events of some names."""

    def send_event(_event: dict, message: Message) -> None:  # type: ignore[type-arg]
        _send(options, message)

    policies = Policies(name=f"{options.name}:feed")
    keys: Sequence[str | None] = names or (None,)
    declared = tuple(
        Declaration(Kind.EVENT, key, Policies() if number else policies)
        for number, key in enumerate(keys)
    )
    setattr(send_event, MARK, declared)
    return type("Feed", (), {"send": staticmethod(send_event)})


def _send(options: FeedOptions, message: Any) -> None:
    """Send the stored event of a message, in the transaction of its batch."""
    batch, recorded = message.batch, message.recorded
    if batch.is_replay:
        msg = (
            f"Feed {options.name!r} would send its events again in a rebuild. Reset it "
            "instead if the channel is to get them once more."
        )
        raise ReplayForbidden(msg)
    registry: Registry = batch.handlers.registry
    channel = channels[options.target]
    try:
        retry = registry.routes.endpoint_named(options.name).retry
    except UnknownEndpoint:  # its messages are handled elsewhere
        retry = None
    deliver = Deliverer(
        registry.deliver,
        registry.give_up,
        channel=options.target,
        using=batch.connection.alias,
        retry=retry,
    )
    delivery = Delivery(_envelope_of(options.name, recorded, message), deliver)
    send(batch.scope, batch.connection, channel, delivery)


def _envelope_of(endpoint: str, recorded: Recorded, message: Message) -> Envelope:
    headers = {
        name: value
        for name, value in headers_in(recorded.stored_headers).items()
        if name != TAGS
    }
    headers |= {
        STREAM_HEADER: recorded.stream,
        VERSION_HEADER: recorded.version,
        POSITION_HEADER: recorded.position,
    }
    key = None if recorded.stream is None else storable_key(recorded.stream)
    tenant, owners = None, tenancy()
    if owners is not None:
        tenant = owners.name_in(message._user)
        key = owners.key_of(message, key)
    return Envelope(
        endpoint=endpoint,
        name=recorded.name,
        version=recorded.shape,
        payload=recorded.stored_payload.encode(),
        headers=json.dumps(headers).encode(),
        message_id=recorded.event_id,
        correlation_id=recorded.correlation_id,
        causation_id=recorded.causation_id,
        timestamp=recorded.recorded_at,
        sequence=next_sequence(),
        ordering_key=key,
        tenant=tenant,
    )


@add_problem_finder
def feed_problems(registry: Registry) -> Iterator[Problem]:
    """Yield the feeds that cannot send in order, or to nobody."""
    table = registry.routes
    for owner in table.fed_owners:
        options = options_of(owner)
        if not isinstance(options, FeedOptions):
            continue
        name, target = options.name, options.target
        is_handled_here = options.channel == target
        try:
            channel = channels[target]
        except InvalidChannel as error:
            if not is_handled_here:  # else the check of projections tells it
                yield Problem(
                    ProjectionRule.BAD_FEED,
                    f"The feed {name!r} sends to the channel {target!r}. {error}",
                    "Name a channel of CHANNELS.",
                    owner,
                )
            continue
        if not channel.supports_ordering:
            yield Problem(
                ProjectionRule.BAD_FEED,
                f"The feed {name!r} sends to the channel {target!r}, which keeps no "
                "order, so that events of a stream could overtake each other.",
                "Name a channel that supports ordering.",
                owner,
            )
        elif is_handled_here and name not in {each.name for each in table.endpoints}:
            yield Problem(
                ProjectionRule.BAD_FEED,
                f"The feed {name!r} sends to the channel {target!r}, whose worker "
                "calls handlers, and it has none.",
                "Decorate one with the feed's handler(), or name another worker=.",
                owner,
            )

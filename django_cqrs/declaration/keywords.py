"""
The table of keywords: the handlers for which each one has an effect.

The checks read it, and the table in the reference is compared with it, so every keyword
of a decorator has a rule.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

from django_cqrs.declaration.declarations import Kind


class HandlerRole(enum.StrEnum):
    """A handler's role for the objects of its class; the value ends a check's text."""

    PLAIN = "is called on no aggregate or saga"
    FACTORY = "makes a new object, which no message names"
    ACTION = "is called on an object"
    PAIR = "has a factory beside it, which makes the object that is missing"
    SAGA_PAIR = "starts a saga or moves it"


_ALL = frozenset(HandlerRole)
_NONE: frozenset[HandlerRole] = frozenset()
_OBJECTS = _ALL - {HandlerRole.PLAIN}
_FOUND = _OBJECTS - {HandlerRole.FACTORY}
_MADE = frozenset({HandlerRole.FACTORY})
_MISSABLE = frozenset({HandlerRole.ACTION, HandlerRole.SAGA_PAIR})


@dataclasses.dataclass(frozen=True, slots=True)
class Where:
    """The handlers of one kind for which a keyword has its documented effect."""

    text: str
    """The text in the reference."""
    at_once: frozenset[HandlerRole] = _NONE
    """Handlers that are called at once."""
    waiting: frozenset[HandlerRole] = _NONE
    """Handlers on a channel."""

    def fits(self, role: HandlerRole, *, is_waiting: bool) -> bool:
        """Return whether the keyword has an effect for a handler."""
        return role in (self.waiting if is_waiting else self.at_once)


ANYWHERE: Final = Where("yes", _ALL, _ALL)
NOWHERE: Final = Where("no")
CHANNEL: Final = Where("on a channel", waiting=_ALL)
CHANNEL_OR_OBJECT: Final = Where("on a channel, or of an object", _OBJECTS, _ALL)
FOUND: Final = Where("of an action or a pair", _FOUND, _FOUND)
ASKED: Final = Where("of an object", _FOUND, _NONE)
MADE: Final = Where("of a factory", _MADE, _MADE)
MISSABLE: Final = Where("of an action, or of a saga's pair", _MISSABLE, _MISSABLE)


@dataclasses.dataclass(frozen=True, slots=True)
class Keyword:
    """One keyword: the handlers that it is for, by kind of message."""

    name: str
    command: Where
    event: Where
    query: Where = NOWHERE

    def where(self, kind: Kind) -> Where:
        """Return the handlers that it is for, for one kind of message."""
        return {
            Kind.COMMAND: self.command,
            Kind.EVENT: self.event,
            Kind.QUERY: self.query,
        }[kind]


KEYWORDS: Final = {
    each.name: each
    for each in (
        Keyword("name", ANYWHERE, ANYWHERE, ANYWHERE),
        Keyword("aliases", ANYWHERE, ANYWHERE, ANYWHERE),
        Keyword("using", ANYWHERE, CHANNEL_OR_OBJECT),
        Keyword("atomic", ANYWHERE, CHANNEL_OR_OBJECT),
        Keyword("priority", CHANNEL, ANYWHERE),
        Keyword("channel", ANYWHERE, ANYWHERE),
        Keyword("delay", CHANNEL, CHANNEL),
        Keyword("expires", CHANNEL, CHANNEL),
        Keyword("retry", CHANNEL, CHANNEL),
        Keyword("identifier", FOUND, FOUND, ASKED),
        Keyword("on_missing", MISSABLE, MISSABLE),
        Keyword("on_existing", MADE, MADE),
        Keyword("output", ANYWHERE, ANYWHERE),
        Keyword("ordering_key", CHANNEL, CHANNEL),
        Keyword("idempotency_key", ANYWHERE, CHANNEL),
        Keyword("on_dead", CHANNEL, CHANNEL),
        Keyword("tenant", ANYWHERE, ANYWHERE, ANYWHERE),
    )
}
"""Every keyword that a handler's decorator takes, by its name."""

OWN: Final = frozenset({"name", "aliases"})
"""The keywords that a factory and an action do not share: each has its own name."""

"""Queries: which events, by class or name, by category or stream, by tag."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.annotations import is_plain_class, union_members
from django_cqrs.conversion.stored import MessageTypes
from django_cqrs.events.columns import TAG, key_column
from django_cqrs.events.recorded import Recorded
from django_cqrs.events.stream_names import StreamName, stream_name
from django_cqrs.events.tags import checked_tags, tag_of
from django_cqrs.exceptions import InvalidOption


@dataclasses.dataclass(frozen=True, slots=True)
class QueryPart:
    """Conditions that an event must meet all of; empty ones are met by any event."""

    events: tuple[Any, ...] = ()
    """Classes, and names or patterns of names: the event is any of them."""
    categories: tuple[str, ...] = ()
    """The stream is of any of them, or one of `streams`."""
    streams: tuple[StreamName, ...] = ()
    tags: tuple[str, ...] = ()
    """The event has all of them."""

    @property
    def has_links(self) -> bool:
        """Whether links count as events, since it is about certain streams."""
        return bool(self.categories or self.streams)


@dataclasses.dataclass(frozen=True, slots=True)
class EventQuery:
    """Events that meet any of several parts. Without a part, no event does."""

    parts: tuple[QueryPart, ...] = ()

    def __or__(self, other: EventQuery) -> EventQuery:
        """Return the query of the events that either finds."""
        if not isinstance(other, EventQuery):
            return NotImplemented
        return EventQuery(tuple(dict.fromkeys((*self.parts, *other.parts))))

    @property
    def is_everything(self) -> bool:
        """Whether every event meets it, though not its links."""
        return QueryPart() in self.parts


EVERYTHING = EventQuery((QueryPart(),))


def where(
    *events: Any,
    category: str | Iterable[str] | None = None,
    stream: str | Iterable[str] | None = None,
    tags: Iterable[str] = (),
    **values: Any,
) -> EventQuery:
    """
    Return a query of the events that meet all of these conditions.

    Args:
        *events: message classes, bases of them, names, or patterns of names such as
            ``"order.*"``: an event is any of them. Without one, any event is.
        category: the category, or several, of the event's stream.
        stream: the name, or several, of the event's stream.
        tags: tags that it has, all of them: ``["course:42"]``.
        **values: the same with a name and a value each: ``course=42``.

    Raises:
        InvalidOption: a condition is none of these.

    """
    return EventQuery(
        (
            QueryPart(
                _checked_events(events),
                categories_of(category),
                tuple(map(stream_name, _several(stream))),
                (
                    *checked_tags(tags),
                    *(tag_of(name, value) for name, value in values.items()),
                ),
            ),
        )
    )


def _several(given: str | Iterable[str] | None) -> Iterable[str]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)


def categories_of(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """
    Return categories that are given by name.

    Raises:
        InvalidOption: one of them is the name of a stream.

    """
    names = tuple(map(stream_name, _several(given)))
    for each in names:
        if each.key:
            msg = (
                f"category= takes a category, which has no hyphen, not {str(each)!r}; "
                "stream= takes the name of a stream."
            )
            raise InvalidOption(msg)
    return tuple(each.category for each in names)


def _checked_events(events: Iterable[Any]) -> tuple[Any, ...]:
    found: list[Any] = []
    for each in events:
        members = [each] if isinstance(each, str) else union_members(each)
        for member in members:
            if not (isinstance(member, str) and member) and not is_plain_class(member):
                msg = f"where() takes classes and names of events, not {member!r}."
                raise InvalidOption(msg)
            found.append(member)
    return tuple(found)


def is_found(query: EventQuery, types: MessageTypes, recorded: Recorded) -> bool:
    """
    Return whether a query finds a stored event.

    Args:
        query: the query.
        types: the registered classes.
        recorded: the event, or a link to it.

    """
    return any(_is_met(part, types, recorded) for part in query.parts)


def _is_met(part: QueryPart, types: MessageTypes, recorded: Recorded) -> bool:
    if part.has_links:
        place = None if recorded.stream is None else stream_name(recorded.stream)
        if place is None or not (
            place.category in part.categories or place in part.streams
        ):
            return False
    elif recorded.link_to is not None:
        return False
    names = names_of(part.events, types)
    if names is not None and not names.include(recorded.name):
        return False
    return set(recorded.tags).issuperset(part.tags)


class Condition(NamedTuple):
    """An SQL condition for an event `e` and its stream `s`, with its parameters."""

    sql: str
    parameters: list[Any]


def condition_of(
    query: EventQuery, types: MessageTypes, connection: BaseDatabaseWrapper
) -> Condition:
    """
    Return a query as SQL.

    Args:
        query: the query.
        types: the registered classes: a class stands for its names, the old ones too,
            and for those of its subclasses.
        connection: of the database with the events.

    """
    parameters: list[Any] = []
    parts = [_sql_of(part, types, connection, parameters) for part in query.parts]
    if not parts:
        return Condition("1 = 0", [])
    if len(parts) == 1:
        return Condition(parts[0], parameters)
    return Condition(" OR ".join(f"({each})" for each in parts), parameters)


def _sql_of(
    part: QueryPart,
    types: MessageTypes,
    connection: BaseDatabaseWrapper,
    parameters: list[Any],
) -> str:
    conditions = []
    if not part.has_links:
        conditions.append("e.link_to IS NULL")
    names = names_of(part.events, types)
    if names is not None:
        conditions.append(names_sql(names, connection, parameters))
    places = []
    if part.categories:
        marks = ", ".join(["%s"] * len(part.categories))
        places.append(f"s.category IN ({marks})")
        parameters += part.categories
    for stream in part.streams:
        places.append(f"(s.category = %s AND s.{key_column(connection)} = %s)")
        parameters += stream
    if places:
        conditions.append(f"({' OR '.join(places)})")
    for tag in part.tags:
        # A link has the tags of its original.
        position = "COALESCE(e.link_to, e.position)" if part.has_links else "e.position"
        conditions.append(
            f"EXISTS (SELECT 1 FROM {TAG} t WHERE t.tag = %s "
            f"AND t.position = {position})"
        )
        parameters.append(tag)
    return " AND ".join(conditions) or "1 = 1"


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """Names of stored events, exact ones and patterns."""

    exact: tuple[str, ...]
    patterns: tuple[str, ...]

    def include(self, name: str) -> bool:
        """Return whether an event of a name is among them."""
        return name in self.exact or any(fnmatchcase(name, p) for p in self.patterns)


def names_of(events: Iterable[Any], types: MessageTypes) -> Names | None:
    """
    Return the names that events of some classes and names are stored under.

    Args:
        events: classes, names and patterns.
        types: the registered classes.

    Returns:
        The names; None if events of any name are meant.

    """
    exact: dict[str, None] = {}
    patterns: dict[str, None] = {}
    is_any = True
    for each in events:
        is_any = False
        if each is object or each == "*":
            return None
        if isinstance(each, str):
            if any(sign in each for sign in "*?["):
                patterns[each] = None
            else:
                exact |= dict.fromkeys(_names_like(each, types))
            continue
        for cls in types.subclasses_of(each):
            own = types.name_of(cls)
            exact |= dict.fromkeys((own.name, *own.aliases))
    return None if is_any else Names(tuple(exact), tuple(patterns))


def _names_like(name: str, types: MessageTypes) -> tuple[str, ...]:
    """Return a name, with the old ones of its class if it is the present one."""
    cls = types.named(name)
    return (name,) if cls is None else (name, *types.name_of(cls).aliases)


def names_sql(
    names: Names, connection: BaseDatabaseWrapper, parameters: list[Any]
) -> str:
    """Return the condition for names; its parameters are added to those given."""
    choices = []
    if names.exact:
        choices.append(f"e.name IN ({', '.join(['%s'] * len(names.exact))})")
        parameters += names.exact
    operator, write = _PATTERNS[connection.vendor]
    for pattern in names.patterns:
        choices.append(f"e.name {operator} %s")
        parameters.append(write(pattern))
    return f"({' OR '.join(choices)})" if choices else "1 = 0"


_SIGN = re.compile(r"\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


def _glob(pattern: str) -> str:
    """Return a pattern as SQLite's GLOB takes it."""
    return "".join(
        f"[^{sign[2:]}" if sign.startswith("[!") else sign
        for sign in _SIGN.findall(pattern)
    )


def _expression(pattern: str) -> str:
    """Return a pattern as a regular expression that every server understands."""
    parts = []
    for sign in _SIGN.findall(pattern):
        if sign == "*":
            parts.append(".*")
        elif sign == "?":
            parts.append(".")
        elif len(sign) > 1:
            inner = sign[1:-1].replace("\\", "\\\\")
            parts.append(f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]")
        else:
            parts.append(sign if sign.isalnum() or sign == "_" else f"\\{sign}")
    return f"^{''.join(parts)}$"


_PATTERNS: Final[dict[str, tuple[str, Callable[[str], str]]]] = {
    "postgresql": ("~", _expression),
    "mysql": ("REGEXP", _expression),
    "sqlite": ("GLOB", _glob),
}

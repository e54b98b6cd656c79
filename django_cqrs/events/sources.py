"""The events that one shard of a projection reads, as a condition in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs import clock
from django_cqrs.events.columns import key_column
from django_cqrs.events.handling import Handlers
from django_cqrs.events.projecting import BY_STREAM, ProjectionOptions
from django_cqrs.events.queries import Condition, Names, names_sql
from django_cqrs.events.stream_names import StreamName, stream_name
from django_cqrs.events.streams import category_of
from django_cqrs.exceptions import InvalidOption
from django_cqrs.routing.endpoints import PATTERN_SIGNS
from django_cqrs.times import as_stored

DEPLOYMENT_TIME: Final = timedelta(minutes=10)
"""
How long an event with a name that this code does not know is waited for.

Newer code, which may be on its way here, has appended it.
"""


def place_in(source: Any) -> StreamName:
    """
    Return the category, or the stream, that is a source.

    Raises:
        InvalidOption: it is neither, nor a class with streams.

    """
    if isinstance(source, str):
        return stream_name(source)
    if isinstance(source, type):
        return StreamName(category_of(source))
    msg = f"{source!r} is neither a class nor the name of a stream."
    raise InvalidOption(msg)


def sources_sql(
    options: ProjectionOptions, connection: BaseDatabaseWrapper, parameters: list[Any]
) -> str:
    """Return the condition for the streams of a projection; links count there."""
    if not options.sources:
        return "e.link_to IS NULL"
    choices = []
    for source in options.sources:
        place = place_in(source)
        if place.key:
            choices.append(f"(s.category = %s AND s.{key_column(connection)} = %s)")
            parameters += place
        else:
            choices.append("s.category = %s")
            parameters.append(place.category)
    return f"({' OR '.join(choices)})"


class Reach:
    """The condition for the events of one shard, at the present time."""

    def __init__(
        self,
        handlers: Handlers,
        connection: BaseDatabaseWrapper,
        *,
        shard: int = 0,
        shards: int = 1,
    ) -> None:
        """
        Prepare it.

        Args:
            handlers: of the projection.
            connection: of the database with the events.
            shard: the number of the shard.
            shards: the number of shards.

        Raises:
            InvalidOption: a source has no stream.

        """
        self._connection = connection
        self._before: list[Any] = []
        self._after: list[Any] = []
        conditions = [sources_sql(handlers.options, connection, self._before)]
        if shards > 1 and handlers.options.partitioning == BY_STREAM:
            conditions.append(_modulo(connection))
            self._before += [shards, shard]
        self._is_timed = not handlers.takes_any_name
        if self._is_timed:
            names = names_sql(_names_of(handlers), connection, self._before)
            known = handlers.all_names
            if known:
                unknown = f"e.name NOT IN ({', '.join(['%s'] * len(known))})"
            else:
                unknown = "1 = 1"
            conditions.append(f"({names} OR (e.recorded_at > %s AND {unknown}))")
            self._after += known
        self._sql = " AND ".join(conditions)

    def condition(self) -> Condition:
        """Return the condition; it finds recent events of unknown names as well."""
        parameters = list(self._before)
        if self._is_timed:
            since = clock.now() - DEPLOYMENT_TIME
            parameters += [as_stored(since, self._connection), *self._after]
        return Condition(self._sql, parameters)


def _modulo(connection: BaseDatabaseWrapper) -> str:
    if connection.vendor == "sqlite":
        return "COALESCE(e.stream_id, 0) %% %s = %s"
    return "MOD(COALESCE(e.stream_id, 0), %s) = %s"


def _names_of(handlers: Handlers) -> Names:
    patterns: Sequence[str] = handlers.patterns
    globs = tuple(each for each in patterns if PATTERN_SIGNS & set(each))
    exact = [each for each in patterns if each not in globs]
    return Names(tuple(dict.fromkeys((*handlers.known_names, *exact))), globs)

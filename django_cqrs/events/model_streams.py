"""Models with a stream of events beside their row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any, Final

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper

from django_cqrs.annotations import name_of_type
from django_cqrs.events.absorbing import events_of, messages_of
from django_cqrs.events.appending import append
from django_cqrs.events.appliers import appliers_of
from django_cqrs.events.columns import EVENT, STREAM, key_column
from django_cqrs.events.insertion import NEW, Target
from django_cqrs.events.rules import StreamRule
from django_cqrs.events.stream_checks import unatomic_problems
from django_cqrs.events.stream_names import StreamName
from django_cqrs.events.streams import (
    StreamOptions,
    declared_stream_of,
    key_of,
    stream_problems,
)
from django_cqrs.exceptions import ConcurrencyError
from django_cqrs.modelling.identifiers import Values, plain
from django_cqrs.modelling.model_storage import ModelStorage
from django_cqrs.modelling.storages import AboutObject, Options
from django_cqrs.modelling.watches import Watch
from django_cqrs.problems import Problem
from django_cqrs.routing.endpoint import Endpoint
from django_cqrs.sends import Send

FOUND_BY: Final = "_cqrs_found_by"
"""The attribute of an object with the identifier that it was found by."""


class StreamedModelStorage(ModelStorage):
    """Stores models in their rows, and appends what they record to their streams."""

    def __init__(self, cls: type[models.Model], options: Options) -> None:
        """Take a model."""
        super().__init__(cls, options)
        self.keeps_events = declared_stream_of(cls) is not None

    @cached_property
    def streams(self) -> StreamOptions:
        """The declaration of the streams."""
        return declared_stream_of(self.cls) or StreamOptions("")

    def find(self, values: Values, *, using: str, lock: bool) -> Any:
        """Get the object, which keeps its identifier if it is deleted."""
        found = super().find(values, using=using, lock=lock)
        if found is not None and self.keeps_events:
            vars(found)[FOUND_BY] = self.values_of(found)
        return found

    def absorb(
        self,
        instance: Any,
        recorded: list[Any],
        result: Any,
        *,
        using: str,
        about: AboutObject,
        watch: Watch | None = None,
    ) -> tuple[Any, list[Any]]:
        """
        Append the recorded events, and return their messages.

        Raises:
            ConcurrencyError: somebody else has appended in the meantime.

        """
        events = events_of(recorded)
        sends = [each for each in recorded if type(each) is Send]
        if not events:
            return instance, sends
        values = self.values_of(instance)
        if None in values:  # it was deleted just now
            values = vars(instance).get(FOUND_BY, values)
        key = key_of(tuple(None if each is None else plain(each) for each in values))
        name = StreamName(self.streams.category, key)
        found = place_of_stream(connections[using], name)
        target = (
            Target(name, NEW) if found is None else Target(name, found[1], found[0])
        )
        try:
            appended = append(
                events,
                target,
                registry=self.registry,
                using=using,
                about=partial(about, values),
            )
        except ConcurrencyError as error:
            raise self._lost(instance) from error
        return instance, [*messages_of(appended), *sends]

    def problems(self) -> Iterator[Problem]:
        """Yield the faults of the model, of its streams, and its appliers."""
        yield from super().problems()
        for each in appliers_of(self.cls).own:
            yield Problem(
                StreamRule.STREAM_WITHOUT_USE,
                f"{name_of_type(self.cls)} is a model, so its applier "
                f"{each.function.__name__} is never called: its state is its row.",
                "Remove @applies, or make the class a dataclass, which is its events.",
                self.cls,
            )
        if self.keeps_events:
            yield from stream_problems(self.cls)
            yield from self._option_problems()

    def _option_problems(self) -> Iterator[Problem]:
        options = self.streams
        for name in ("snapshot_every", "natural_key"):
            if getattr(options, name) is not None:
                yield Problem(
                    StreamRule.BAD_STREAM,
                    f"{name_of_type(self.cls)} is a model, and {name}= is for classes "
                    "that are their events.",
                    f"Remove {name}=: the row is the state, and a field can be unique.",
                    self.cls,
                )

    def problems_with(self, endpoint: Endpoint) -> Iterator[Problem]:
        """Yield handlers without a transaction."""
        if self.keeps_events:
            yield from unatomic_problems(self.cls, endpoint)


def place_of_stream(
    connection: BaseDatabaseWrapper, name: StreamName
) -> tuple[int, int] | None:
    """Return the key and the last version of a stream, None if it has no row."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT s.id, (SELECT MAX(e.version) FROM {EVENT} e "
            f"WHERE e.stream_id = s.id) FROM {STREAM} s "
            f"WHERE s.category = %s AND s.{key_column(connection)} = %s",
            name,
        )
        row = cursor.fetchone()
    return None if row is None else (row[0], row[1] or 0)

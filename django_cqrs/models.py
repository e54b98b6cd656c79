"""Bases of models. The core has no table of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_cqrs.channels.channel import Due
from django_cqrs.messages import HeaderValue
from django_cqrs.recording import (
    RECORDED,
    RECORDED_COMMANDS,
    ensure_known,
    expect_collection,
    recording_appliers,
)
from django_cqrs.sends import LATE, Send, ensure_object


class RecordsEvents:
    """
    Lets an aggregate or a saga record events and commands for the time after its save.

    Events are published, then commands are sent, in the transaction of the save. It
    adds no column to a model. What was recorded is copied and pickled with the object.
    """

    def record(self, event: Any) -> None:
        """
        Record an event, in order.

        An object that is kept as its events changes at once, by its appliers.

        Args:
            event: the event, or a function without arguments that returns it. The
                function is called after the save, when the key that the database
                creates is known: ``self.record(lambda: Made(self.pk))``.

        Raises:
            InvalidEvent: it is not an object, or has a value that only the save
                provides: the key of a new object, or an expression such as ``F()``.

        """
        ensure_object(event)
        ensure_known(self, event)
        for apply in recording_appliers:
            event = apply(self, event)
        # A tuple: a shallow copy of the object then shares no mutable state.
        object.__setattr__(self, RECORDED, (*getattr(self, RECORDED, ()), event))

    def send(
        self,
        command: Any = None,
        *,
        route: str | None = None,
        aggregate_id: Any = None,
        headers: Mapping[str, HeaderValue] | None = None,
        delay: Due | None = None,
        expires: Due | None = None,
        priority: int | None = None,
    ) -> None:
        """
        Record a command to be sent after the save and the events, in order.

        Args:
            command: the command, or a function without arguments that returns it after
                the save; with `route`, any value or none.
            route: a routing key, if the command's class does not decide.
            aggregate_id: the identifier of the aggregate that handles it.
            headers: as for ``command_bus.dispatch``.
            delay: for a handler on a channel, in seconds, a timedelta, or a datetime.
            expires: likewise.
            priority: likewise; higher first.

        Raises:
            InvalidOption: the command is missing or a class, or an option is invalid.
            InvalidHeader: a header is reserved or cannot be stored.
            InvalidEvent: the command has a value that only the save provides.

        """
        sent = Send(
            command,
            route=route,
            aggregate_id=aggregate_id,
            headers=headers,
            delay=delay,
            expires=expires,
            priority=priority,
        )
        ensure_known(self, sent)
        sends = (*getattr(self, RECORDED_COMMANDS, ()), sent)
        object.__setattr__(self, RECORDED_COMMANDS, sends)
        if len(sends) == 1:
            expect_collection(self)

    @property
    def recorded_events(self) -> list[Any]:
        """
        The recorded events that have not been published, oldest first.

        A recorded function is called, each time that this is read.
        """
        events = getattr(self, RECORDED, ())
        return [each() if type(each) in LATE else each for each in events]

    @property
    def recorded_commands(self) -> list[Send]:
        """
        The commands that have not been sent, oldest first, each as a ``Send``.

        A function given for a command is called, each time that this is read.
        """
        return [each.made() for each in getattr(self, RECORDED_COMMANDS, ())]

    def pull_recorded_events(self) -> list[Any]:
        """Return the recorded events, and forget them; functions are not called."""
        events = list(getattr(self, RECORDED, ()))
        if events:
            object.__delattr__(self, RECORDED)
        return events

    def pull_recorded_commands(self) -> list[Send]:
        """Return the commands to be sent, and forget them; functions are not called."""
        sends: list[Send] = list(getattr(self, RECORDED_COMMANDS, ()))
        if sends:
            object.__delattr__(self, RECORDED_COMMANDS)
        return sends

    def post_insert(self) -> None:
        """
        Save what belongs to the object, such as child rows; by default nothing.

        Override it. It is called after the object was inserted, in the same
        transaction, before its recorded events are published. It may record more.
        """


# Never another mix-in: a model's bases are in its project's migrations.
class SagaModel(RecordsEvents, models.Model):
    """The base of sagas that are models; a completed one's row is its tombstone."""

    completed_at = models.DateTimeField(
        _("completed at"), null=True, blank=True, editable=False
    )

    class Meta:
        """No table of its own."""

        abstract: ClassVar[bool] = True

    def complete(self) -> None:
        """End the process now: late messages are ignored or refused."""
        self.completed_at = timezone.now()


class NameField(models.CharField):  # type: ignore[type-arg]
    """Text that is only equal to the same text, whatever the database's collation."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, Any]:
        """Compare byte by byte on MySQL and MariaDB, as other databases always do."""
        parameters: dict[str, Any] = super().db_parameters(connection)
        if connection.vendor == "mysql":
            parameters["collation"] = "utf8mb4_bin"
        return parameters


class PartialIndex(models.Index):
    """
    An index of rows that meet a condition; of all rows without support for it.

    Django's own ``condition=`` does the same, and warns (models.W037) about each model
    on MySQL and MariaDB, whose indexes have no conditions.
    """

    def __init__(self, *expressions: Any, where: models.Q, **options: Any) -> None:
        """
        Take the arguments of an index.

        Args:
            *expressions: as for ``Index``.
            where: the condition for the rows in it, on databases that can omit others.
            **options: as for ``Index``, except ``condition=``.

        """
        super().__init__(*expressions, **options)
        self.where = where

    def create_sql(
        self, model: Any, schema_editor: Any, using: str = "", **options: Any
    ) -> Any:
        """Return the statement that creates it."""
        _, expressions, own = self.deconstruct()
        condition = own.pop("where")
        plain = models.Index(*expressions, condition=condition, **own)
        return plain.create_sql(model, schema_editor, using, **options)

    def deconstruct(self) -> Any:
        """Return the arguments of an equal one."""
        path, expressions, options = super().deconstruct()
        return path, expressions, {**options, "where": self.where}

    def __repr__(self) -> str:
        """Return its fields and condition."""
        return f"<{type(self).__name__}: {self.name!r} where {self.where}>"

"""Bases of models. The core has no table of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_cqrs.recording import ensure_known


class RecordsEvents:
    """
    Lets an aggregate record events, which are published after the save.

    It adds no column to a model. Recorded events are copied and pickled with the
    object.
    """

    def record(self, event: Any) -> None:
        """
        Record an event, in order.

        Raises:
            InvalidEvent: it has a value that only the save provides: the key that the
                database creates for a new object, or an expression such as ``F()``.

        """
        ensure_known(self, event)
        # A tuple: a shallow copy of the object then shares no mutable state.
        object.__setattr__(self, RECORDED, (*getattr(self, RECORDED, ()), event))

    @property
    def recorded_events(self) -> list[Any]:
        """The recorded events that have not been published, oldest first."""
        return list(getattr(self, RECORDED, ()))

    def pull_recorded_events(self) -> list[Any]:
        """Return the recorded events, and forget them."""
        events = self.recorded_events
        if events:
            object.__delattr__(self, RECORDED)
        return events


RECORDED = "_recorded_events"


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

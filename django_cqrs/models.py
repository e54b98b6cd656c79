"""What models derive from. The core has no table of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from django_cqrs.recording import ensure_known


class RecordsEvents:
    """
    Lets an aggregate record what has happened to it; it is published after the save.

    It costs a model no column. What is recorded goes with a copy and with a pickle.
    """

    def record(self, event: Any) -> None:
        """
        Remember an event, in order.

        Raises:
            InvalidEvent: it has a value that only the save gives: the key that the
                database makes for a new object, or an expression such as ``F()``.

        """
        ensure_known(self, event)
        # A tuple: a shallow copy of the object then shares nothing that changes.
        object.__setattr__(self, RECORDED, (*getattr(self, RECORDED, ()), event))

    @property
    def recorded_events(self) -> list[Any]:
        """What was recorded and has not been published, the oldest first."""
        return list(getattr(self, RECORDED, ()))

    def pull_recorded_events(self) -> list[Any]:
        """Return what was recorded, and forget it."""
        events = self.recorded_events
        if events:
            object.__delattr__(self, RECORDED)
        return events


RECORDED = "_recorded_events"


# No other mix-in: the bases of a model stand in the migrations of its project.
class SagaModel(RecordsEvents, models.Model):
    """The base of sagas that are models; a completed one's row is the tombstone."""

    completed_at = models.DateTimeField(
        _("completed at"), null=True, blank=True, editable=False
    )

    class Meta:
        """No table of its own."""

        abstract: ClassVar[bool] = True

    def complete(self) -> None:
        """End the process, from now on: what is late for it is ignored or refused."""
        self.completed_at = timezone.now()


class NameField(models.CharField):  # type: ignore[type-arg]
    """Text of which no two are equal that differ, whatever the database's collation."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> dict[str, Any]:
        """Compare byte by byte on MySQL and MariaDB, as others do of themselves."""
        parameters: dict[str, Any] = super().db_parameters(connection)
        if connection.vendor == "mysql":
            parameters["collation"] = "utf8mb4_bin"
        return parameters


class PartialIndex(models.Index):
    """
    An index of the rows that fulfil a condition; of all rows where none can be given.

    Django's own ``condition=`` does the same, and warns (models.W037) of each model on
    MySQL and MariaDB, whose indexes have no conditions.
    """

    def __init__(self, *expressions: Any, where: models.Q, **options: Any) -> None:
        """
        Take what an index takes.

        Args:
            *expressions: as for ``Index``.
            where: which rows are in it, wherever the database can leave out others.
            **options: as for ``Index``, ``condition=`` excepted.

        """
        super().__init__(*expressions, **options)
        self.where = where

    def create_sql(
        self, model: Any, schema_editor: Any, using: str = "", **options: Any
    ) -> Any:
        """Return the statement that makes it."""
        _, expressions, own = self.deconstruct()
        condition = own.pop("where")
        plain = models.Index(*expressions, condition=condition, **own)
        return plain.create_sql(model, schema_editor, using, **options)

    def deconstruct(self) -> Any:
        """Return what makes an equal one."""
        path, expressions, options = super().deconstruct()
        return path, expressions, {**options, "where": self.where}

    def __repr__(self) -> str:
        """Return what it is of."""
        return f"<{type(self).__name__}: {self.name!r} where {self.where}>"

"""What models derive from. The core has no table of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class RecordsEvents:
    """
    Lets an aggregate record what has happened to it; it is published after the save.

    It costs a model no column. What is recorded goes with a copy and with a pickle.
    """

    def record(self, event: Any) -> None:
        """Remember an event, in order."""
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

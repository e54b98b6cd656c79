"""The table of schedules: when each one is due next, and what became of it."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from django_cqrs.models import NameField, PartialIndex
from django_cqrs.times import MomentField


class Schedule(models.Model):
    """The next due time of a schedule. The code says everything else."""

    name = NameField(_("name"), max_length=255)
    # Empty for a schedule that is not one of each tenant.
    tenant = NameField(_("tenant"), max_length=255, blank=True, default="")
    # The timetable by which the next time was found: another one is counted anew.
    fingerprint = models.CharField(_("fingerprint"), max_length=64, blank=True)
    # None if no time is left.
    next_at = MomentField(_("next at"), null=True)
    # A worker is to find the next time after this one: it was resumed then.
    counted_from = MomentField(_("counted from"), null=True)
    # The last firing.
    due_at = MomentField(_("last due at"), null=True)
    fired_at = MomentField(_("last fired at"), null=True)
    message_id = models.UUIDField(_("last message"), null=True)
    # The ids of the messages that may still wait, where the next one then must not.
    open_messages = models.JSONField(_("open messages"), default=list)
    is_paused = models.BooleanField(_("paused"), default=False)
    paused_at = MomentField(_("paused at"), null=True)
    paused_by = models.CharField(_("paused by"), max_length=255, blank=True, default="")
    # The number of firings in a row that failed.
    failures = models.PositiveIntegerField(_("failures"), default=0)
    failed_at = MomentField(_("failed at"), null=True)
    error = models.TextField(_("error"), blank=True, default="")
    # Since when no worker's code declares it.
    vanished_at = MomentField(_("vanished at"), null=True)

    objects: ClassVar[models.Manager[Schedule]] = models.Manager()

    class Meta:
        """A row for each schedule of the code, which workers insert."""

        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")
        default_permissions = ("view",)
        permissions = (
            ("pause_schedule", _("Can pause and resume schedules")),
            ("run_schedule", _("Can run schedules now")),
        )
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["name", "tenant"], name="cqrs_schedule_once"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            PartialIndex(
                fields=["next_at"],
                where=models.Q(is_paused=False),
                name="cqrs_schedule_next",
            ),
        ]

    def __str__(self) -> str:
        """Return the name."""
        return f"{self.name}"

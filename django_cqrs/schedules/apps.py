"""The app config of schedules."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class SchedulesConfig(AppConfig):
    """Commands that are sent at the times of a timetable."""

    name = "django_cqrs.schedules"
    label = "django_cqrs_schedules"
    verbose_name = _("Schedules")
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        """Import the models, and offer the clock to workers."""
        super().import_models()
        from django_cqrs.attendants import offer_attendant
        from django_cqrs.schedules.attendant import SchedulesAttendant

        offer_attendant(self.name, SchedulesAttendant())

    def ready(self) -> None:
        """Show the schedules in the message graph."""
        from django_cqrs.graph.offers import offer_senders
        from django_cqrs.schedules.senders import sent_by_schedules

        offer_senders(sent_by_schedules)

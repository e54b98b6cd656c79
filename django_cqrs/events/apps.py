"""The app config of event streams."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.db import connections
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _


class EventsConfig(AppConfig):
    """Events that are kept in streams, and the projections that follow them."""

    name = "django_cqrs.events"
    label = "django_cqrs_events"
    verbose_name = _("Events")
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        """Import the models, and the storages before routes are compiled."""
        super().import_models()
        import_module("django_cqrs.events.store")
        import_module("django_cqrs.events.projection_checks")
        import_module("django_cqrs.events.feeds")
        from django_cqrs.attendants import offer_attendant
        from django_cqrs.events.appending import INLINE, register_hook
        from django_cqrs.events.attendant import EventsAttendant
        from django_cqrs.events.event_storage import event_storage
        from django_cqrs.events.followers import wake_channels
        from django_cqrs.events.inline import has_inline, run_inline
        from django_cqrs.events.waking import register_waker
        from django_cqrs.events.wanted import projection_jobs
        from django_cqrs.jobs import offer_jobs
        from django_cqrs.modelling.storages import register_storage

        register_storage(event_storage, first=True)
        offer_jobs(self.name, projection_jobs)
        offer_attendant(self.name, EventsAttendant())
        register_waker(wake_channels)
        register_hook(INLINE, run_inline, wants=has_inline)

    def ready(self) -> None:
        """Complete the tables after ``migrate``, and check them if asked to."""
        from django_cqrs.events.database_checks import check_stores

        post_migrate.connect(_complete_tables, sender=self)
        register(check_stores, Tags.database)


def _complete_tables(using: str, **_kwargs: Any) -> None:
    from django.db import router

    from django_cqrs.events.models import StoredEvent
    from django_cqrs.events.positions import complete

    connection = connections[using]
    if router.allow_migrate_model(using, StoredEvent):
        complete(connection, StoredEvent._meta.db_table)

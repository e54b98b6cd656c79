"""The app config of the outbox."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.utils.translation import gettext_lazy as _


class OutboxConfig(AppConfig):
    """Messages stored together with the data that they concern."""

    name = "django_cqrs.outbox"
    label = "django_cqrs_outbox"
    verbose_name = _("Outbox")
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        """Import the models, and register the inbox before routes are compiled."""
        super().import_models()
        from django_cqrs.inbox import offer_inbox
        from django_cqrs.outbox.inbox import inbox

        offer_inbox(self.name, inbox)

    def ready(self) -> None:
        """Connect the journal to the handling of messages; it is off by default."""
        from django_cqrs.outbox.checks import check_tables
        from django_cqrs.outbox.journal import watch

        watch()
        register(check_tables, Tags.database)

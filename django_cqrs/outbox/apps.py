"""The app config of the outbox."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.utils.translation import gettext_lazy as _


class OutboxConfig(AppConfig):
    """Messages stored with the data they speak of."""

    name = "django_cqrs.outbox"
    label = "django_cqrs_outbox"
    verbose_name = _("Outbox")
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        """Import them and offer the inbox: routes are compiled before ``ready()``."""
        super().import_models()
        from django_cqrs.inbox import offer_inbox
        from django_cqrs.outbox.inbox import inbox

        offer_inbox(self.name, inbox)

    def ready(self) -> None:
        """Have the journal asked about what is handled: it is off by default."""
        from django_cqrs.outbox.checks import check_tables
        from django_cqrs.outbox.journal import watch

        watch()
        register(check_tables, Tags.database)

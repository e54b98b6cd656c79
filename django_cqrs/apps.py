"""The app config: discovers handlers and registers the checks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register
from django.utils.translation import gettext_lazy as _


class DjangoCQRSConfig(AppConfig):
    """The core, without models or tables."""

    name = "django_cqrs"
    label = "django_cqrs"
    verbose_name = _("Commands, queries and events")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """
        Import the messages and handlers of every app and compile the routes.

        An error inside a handlers module is raised unchanged. A broken declaration
        is not an error here: a check reports it, and its route raises when used.
        """
        from django_cqrs.buses.registries import registry
        from django_cqrs.callbacks import bind_callbacks
        from django_cqrs.checks import CHECKS, LOCK_TAG, check_schema_lock

        registry.reset()
        registry.routes  # noqa: B018 - compiled now, so that no request waits for it
        bind_callbacks()
        for check in CHECKS:
            register(check, "django_cqrs")
        register(check_schema_lock, LOCK_TAG)

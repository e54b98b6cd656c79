"""The audit app."""

from __future__ import annotations

from django.apps import AppConfig


class AuditConfig(AppConfig):
    """Remembers what happened, and who wanted it."""

    name = "audit"
    default_auto_field = "django.db.models.BigAutoField"

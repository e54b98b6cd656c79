"""The office app."""

from __future__ import annotations

from django.apps import AppConfig


class OfficeConfig(AppConfig):
    """Writes invoices and letters, in the background."""

    name = "office"
    default_auto_field = "django.db.models.BigAutoField"

"""The payments app."""

from __future__ import annotations

from django.apps import AppConfig


class PaymentsConfig(AppConfig):
    """Orders are paid on credit, within a limit."""

    name = "payments"
    default_auto_field = "django.db.models.BigAutoField"

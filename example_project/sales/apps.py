"""The sales app."""

from __future__ import annotations

from django.apps import AppConfig


class SalesConfig(AppConfig):
    """What the owner wants to see of the orders."""

    name = "sales"
    default_auto_field = "django.db.models.BigAutoField"

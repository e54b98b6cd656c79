"""The orders app."""

from __future__ import annotations

from django.apps import AppConfig


class OrdersConfig(AppConfig):
    """Customers order products."""

    name = "orders"
    default_auto_field = "django.db.models.BigAutoField"

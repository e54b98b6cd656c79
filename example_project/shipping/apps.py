"""The shipping app."""

from __future__ import annotations

from django.apps import AppConfig


class ShippingConfig(AppConfig):
    """Paid orders leave the house."""

    name = "shipping"
    default_auto_field = "django.db.models.BigAutoField"

"""The fulfilment app."""

from __future__ import annotations

from django.apps import AppConfig


class FulfilmentConfig(AppConfig):
    """Sees to it that an order is paid and shipped, or cancelled."""

    name = "fulfilment"
    default_auto_field = "django.db.models.BigAutoField"

"""The stock app."""

from __future__ import annotations

from django.apps import AppConfig


class StockConfig(AppConfig):
    """Goods come to the shelves and leave them."""

    name = "stock"
    default_auto_field = "django.db.models.BigAutoField"

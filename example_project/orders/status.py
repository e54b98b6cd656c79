"""The life of an order."""

from __future__ import annotations

from django.db import models


class OrderStatus(models.TextChoices):
    """Placed, and then one of the other two."""

    PLACED = "placed"
    SHIPPED = "shipped"
    CANCELLED = "cancelled"

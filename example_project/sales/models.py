"""What the sales app stores: a view of the orders' events."""

from __future__ import annotations

from django.db import models

from common.money import Money


class SalesDay(models.Model):
    """The orders of one day; written by the projection alone."""

    day = models.DateField(primary_key=True)
    orders = models.IntegerField(default=0)
    amount = models.DecimalField(max_digits=12, decimal_places=2, default=0)

    class Meta:
        ordering = ("-day",)

    def __str__(self) -> str:
        return f"Sales of {self.day}"

    @property
    def revenue(self) -> Money:
        """The amount with its currency."""
        return Money(self.amount)

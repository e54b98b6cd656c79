"""What the payments app stores."""

from __future__ import annotations

from decimal import Decimal

from django.db import models
from django.db.models import Sum

from common.money import Money


class CreditAccount(models.Model):
    """How much a customer may owe for orders that are not paid yet."""

    customer = models.OneToOneField(
        "orders.Customer", models.CASCADE, related_name="credit_account"
    )
    credit_limit = models.DecimalField(max_digits=10, decimal_places=2)

    class Meta:
        ordering = ("customer__name",)

    def __str__(self) -> str:
        return f"Account of {self.customer}"

    @property
    def available(self) -> Decimal:
        """What is left of the limit."""
        owed = Payment.objects.filter(
            order__customer=self.customer_id, status=Payment.Status.AUTHORISED
        ).aggregate(owed=Sum("amount"))["owed"]
        return self.credit_limit - (owed or Decimal(0))


class Payment(models.Model):
    """The payment of one order."""

    class Status(models.TextChoices):
        AUTHORISED = "authorised"
        CAPTURED = "captured"
        RELEASED = "released"

    order = models.OneToOneField("orders.Order", models.CASCADE, related_name="payment")
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    status = models.CharField(max_length=10, choices=Status, default=Status.AUTHORISED)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return f"Payment of {self.order}"

    @property
    def money(self) -> Money:
        """The amount with its currency."""
        return Money(self.amount)

"""What the shipping app stores."""

from __future__ import annotations

from django.db import models


class Shipment(models.Model):
    """The parcel of one order."""

    class Status(models.TextChoices):
        READY = "ready"
        SENT = "sent"
        CALLED_OFF = "called off"

    order = models.OneToOneField(
        "orders.Order", models.CASCADE, related_name="shipment"
    )
    status = models.CharField(max_length=10, choices=Status, default=Status.READY)
    tracking_code = models.CharField(max_length=20, blank=True)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return f"Shipment of {self.order}"

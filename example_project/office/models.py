"""What the office app stores."""

from __future__ import annotations

from django.db import models


class Invoice(models.Model):
    """What a customer is asked to pay for one order."""

    # No foreign key: the books outlive what they speak of.
    order_id = models.BigIntegerField(unique=True)
    reference = models.CharField(max_length=20)
    total = models.CharField(max_length=30)
    written_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"Invoice {self.pk} for {self.reference}"


class Letter(models.Model):
    """A mail that the shop's post office has taken."""

    address = models.EmailField()
    subject = models.CharField(max_length=200)
    body = models.TextField()
    sent_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"{self.subject}, to {self.address}"


class FullMailbox(models.Model):
    """An address that takes no letter, until somebody empties it."""

    address = models.EmailField(unique=True)

    class Meta:
        verbose_name_plural = "full mailboxes"

    def __str__(self) -> str:
        return self.address

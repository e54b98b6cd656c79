"""What the audit app stores."""

from __future__ import annotations

from django.db import models


class AuditEntry(models.Model):
    """An event, as it was published."""

    message_id = models.UUIDField(unique=True)
    correlation_id = models.UUIDField(db_index=True)
    # No foreign key: the trail outlives what it speaks of.
    order_id = models.BigIntegerField(db_index=True)
    event = models.CharField(max_length=40)
    details = models.JSONField()
    executor = models.CharField(max_length=150)
    happened_at = models.DateTimeField()

    class Meta:
        ordering = ("pk",)
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.event} by {self.executor}"

from __future__ import annotations

from django.db import models


class Effect(models.Model):
    """What a handler writes that does something."""

    number = models.IntegerField()


class Waiting(models.Model):
    """A message of the bare loops: what no queue of this kind can do without."""

    payload = models.JSONField()
    is_claimed = models.BooleanField(default=False)
    owner = models.CharField(max_length=100, default="")
    lease_expires_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            models.Index(
                fields=["id"],
                condition=models.Q(is_claimed=False),
                name="benchmarks_waiting_turn",
            )
        ]

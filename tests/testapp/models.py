from __future__ import annotations

from django.db import models


class Note(models.Model):
    text = models.CharField(max_length=200)
    number = models.IntegerField(default=0)
    slug = models.CharField(max_length=80, unique=True, null=True, blank=True)

    def __str__(self) -> str:
        return self.text


class Reading(models.Model):
    """A column of every type that a value can be bound for."""

    place = models.CharField(max_length=80)
    token = models.UUIDField(null=True)
    amount = models.DecimalField(max_digits=12, decimal_places=2, null=True)
    taken_at = models.DateTimeField(null=True)
    day = models.DateField(null=True)
    clock = models.TimeField(null=True)
    lasted = models.DurationField(null=True)
    is_valid = models.BooleanField(null=True)
    details = models.JSONField(null=True)
    octets = models.BinaryField(null=True)

    def __str__(self) -> str:
        return self.place

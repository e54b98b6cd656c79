"""The views of the projections that the tests declare."""

from __future__ import annotations

from typing import Any

from django.db import models


class OrderRow(models.Model):
    """A row found by a unique column beside its serial number."""

    number = models.IntegerField(unique=True)
    placed_at = models.DateTimeField(null=True)
    paid = models.BooleanField(default=False)
    changes = models.IntegerField(default=0)
    lines: Any = models.JSONField(default=list)
    touched_at = models.DateTimeField(auto_now=True)

    objects = models.Manager()


class OrderLine(models.Model):
    """A row found by two columns together."""

    order = models.IntegerField()
    sku = models.CharField(max_length=40)
    count = models.IntegerField(default=0)

    objects = models.Manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["order", "sku"], name="line_once")
        ]


class Customer(models.Model):
    """A row whose key is given, with another unique column, and one without default."""

    name = models.CharField(max_length=40, primary_key=True)
    email = models.CharField(max_length=40, unique=True, null=True)
    age = models.IntegerField()

    objects = models.Manager()


class Entry(models.Model):
    """A row for each event that a handler writes by hand."""

    text = models.CharField(max_length=200)
    number = models.IntegerField(default=0)
    position = models.BigIntegerField(default=0)

    objects = models.Manager()


class Owned(models.Model):
    """A row that points to a view from outside."""

    entry = models.ForeignKey(Entry, models.CASCADE)

    objects = models.Manager()

from __future__ import annotations

from django.db import models


class Order(models.Model):
    number = models.IntegerField()
    customer = models.CharField(max_length=80)
    is_paid = models.BooleanField(default=False)

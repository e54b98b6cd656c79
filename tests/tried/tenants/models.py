"""The tenants of django-tenants, and what each keeps in its own schema."""

from __future__ import annotations

from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Tenant(TenantMixin):
    name = models.CharField(max_length=20)
    auto_create_schema = True


class Domain(DomainMixin):
    pass


class Visit(models.Model):
    """What a handler of the shared part has seen: there is one table of it."""

    text = models.CharField(max_length=40)
    schema = models.CharField(max_length=40)

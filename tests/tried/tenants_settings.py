"""A project of django-tenants: the outbox is in the shared schema."""

from __future__ import annotations

import os

os.environ.setdefault(
    "DATABASE_URL", "postgres://postgres@127.0.0.1:5432/django_cqrs_tenants"
)

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES, DJANGO_CQRS, MIDDLEWARE

DATABASES = {
    "default": {**DATABASES["default"], "ENGINE": "django_tenants.postgresql_backend"}
}
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
SHARED_APPS = [
    "django_tenants",
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.messages",
    "django.contrib.admin",
    "django_cqrs",
    "django_cqrs.outbox",
    "django_cqrs.schedules",
    "tests.tried.tenants",
]
TENANT_APPS = ["tests.tried.ledger"]
INSTALLED_APPS = [*SHARED_APPS, *TENANT_APPS]
TENANT_MODEL = "tenants.Tenant"
TENANT_DOMAIN_MODEL = "tenants.Domain"
MIDDLEWARE = ["django_tenants.middleware.main.TenantMainMiddleware", *MIDDLEWARE]

DJANGO_CQRS = {
    **DJANGO_CQRS,
    "REQUEST_HEADERS": "django_cqrs.contrib.django_tenants.headers_of",
    "TENANCY": {"HEADER": "tenant", "SCHEMAS": True},
}

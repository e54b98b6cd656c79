"""Settings of the benchmarks: two empty databases, the shop, and queuebie's own."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import environ

POSTGRES_URL = os.environ.get("BENCHMARKS_POSTGRES_URL", "")

DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}
if POSTGRES_URL:
    DATABASES["postgres"] = {
        **environ.Env.db_url_config(POSTGRES_URL),
        "TEST": {"NAME": f"django_cqrs_benchmarks_{os.getpid()}"},
    }
    # The same database by way of a proxy; see tests/benchmarks/far.py.
    DATABASES["far"] = {**DATABASES["postgres"], "TEST": {"MIRROR": "postgres"}}

INSTALLED_APPS = [
    "django_cqrs",
    "django_cqrs.events",
    "django_cqrs.outbox",
    "django_cqrs.schedules",
    "tests.benchmarks.shop",
]
if find_spec("queuebie") is not None:
    INSTALLED_APPS += ["queuebie", "tests.benchmarks.queuebie_shop"]

DATABASE_ROUTERS = ["tests.benchmarks.shop.routers.ServerRouter"]
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
DJANGO_CQRS = {
    "CHANNELS": {"orders": {"BACKEND": "django_cqrs.outbox.channel.OutboxChannel"}}
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
QUEUEBIE_APP_BASE_PATH = Path(__file__).resolve().parent
SECRET_KEY = "benchmarks"
USE_TZ = True

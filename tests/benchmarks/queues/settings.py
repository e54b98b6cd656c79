"""Settings of one queue's project; the environment says which."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec

import django

QUEUE = os.environ["BENCHMARKS_QUEUE"]
DATABASES = {"default": json.loads(os.environ["BENCHMARKS_DATABASE"])}
REDIS_URL = os.environ.get("BENCHMARKS_REDIS", "")
BACKPORT = [] if django.VERSION >= (6, 0) else ["django_tasks"]
APPS = {
    "celery": ["django_celery_beat"] if find_spec("django_celery_beat") else [],
    "django_cqrs": ["django_cqrs", "django_cqrs.outbox", "django_cqrs.schedules"],
    "outbox_tasks": [*BACKPORT, "django_cqrs", "django_cqrs.outbox"],
    "reliable_outbox": ["reliable_outbox"],
    "tasks_db": [*BACKPORT, "django_tasks_db"],
    "procrastinate": ["procrastinate.contrib.django"],
}

INSTALLED_APPS = [*APPS.get(QUEUE, []), "tests.benchmarks.queues"]
DEBUG = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "benchmarks"
USE_TZ = True
# Warnings at most: none of them is to spend its time on a line for each message.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

DJANGO_CQRS = {
    "CHANNELS": {
        "orders": {
            "BACKEND": "django_cqrs.outbox.channel.OutboxChannel",
            "OPTIONS": {"NOTIFY": os.environ.get("BENCHMARKS_NOTIFY", "1") == "1"},
        }
    }
}
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
if QUEUE == "outbox_tasks":
    TASKS = {"default": {"BACKEND": "django_cqrs.outbox.tasks.OutboxTaskBackend"}}
    DJANGO_CQRS["CHANNELS"]["default"] = DJANGO_CQRS["CHANNELS"]["orders"]
PROCRASTINATE_IMPORT_PATHS = ["tests.benchmarks.queues.procrastinate_tasks"]
if QUEUE == "procrastinate":
    PROCRASTINATE_AUTODISCOVER_MODULE_NAME = None

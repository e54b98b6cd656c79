"""Settings of one project; the environment says which."""

from __future__ import annotations

import json
import os

DATABASES = {"default": json.loads(os.environ["BENCHMARKS_DATABASE"])}
BROKER_URL = os.environ["BENCHMARKS_BROKER"]
QUEUE = os.environ["BENCHMARKS_TASK_QUEUE"]
APPS = {
    "django_cqrs": ["django_cqrs", "django_cqrs.outbox"],
    "django_celery_outbox": ["django_celery_outbox"],
}

INSTALLED_APPS = APPS[os.environ["BENCHMARKS_PROJECT"]]
DEBUG = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "benchmarks"
USE_TZ = True

DJANGO_CQRS = {
    "CHANNELS": {
        "orders": {
            "BACKEND": "django_cqrs.engines.celery.CeleryChannel",
            "OPTIONS": {
                "queue": QUEUE,
                "app": "tests.benchmarks.forwarding.projects.celery_app",
                "in_flight": 100_000,
            },
        }
    }
}
CELERY_OUTBOX_APP = "tests.benchmarks.forwarding.projects.outbox_app"
